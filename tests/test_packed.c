/* The packed kernels of every usable instruction set against the generic ones and against double precision (packed_check.c),
 * and op_linear_packed: bias, accumulation, permuted rows, several matrices, threads, the way out to op_linear. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/cpu.h"
#include "base/par.h"
#include "packed_check.h"
#include "tensor/half.h"

static void test_kernels(void **state)
{
    (void)state;
    for (int i = 0; backend_isa_name(i); i++)
        if (backend_isa_usable(i)) {
            assert_int_equal(backend_force(backend_isa_name(i), NULL), 0);
            const struct packed_kernels *k = packed_kernels();
            const char *like = strcmp(backend_isa_name(i), "amx") ? backend_isa_name(i) : "avx512";
            if (strcmp(like, "avx512") || cpu_has_avx512_vnni())
                assert_string_equal(k->name, like);
            assert_int_equal(packed_check(k, &packed_generic), 0);
        }
    assert_int_equal(backend_force(NULL, NULL), 0);
}

enum { IN = 128, OUT = 1024, TOKENS = 3 };

static void test_op(void **state)
{
    (void)state;
    static uint8_t data[OUT * IN / 32 * 34];
    static float x[12 * IN], bias[OUT], y[2][12 * OUT], want[12 * OUT], z[12 * OUT], start[12 * OUT];
    for (int i = 0; i < (int)sizeof data; i++)
        data[i] = (uint8_t)(i * 7 + i / 34 * 13);
    for (int b = 0; b < (int)sizeof data / 34; b++) {
        uint16_t h = half_from_f32(0.001f * (float)(b % 7 + 1));
        memcpy(data + 34 * b, &h, 2);
    }
    for (int i = 0; i < 12 * IN; i++)
        x[i] = sinf((float)i);
    for (int i = 0; i < OUT; i++)
        bias[i] = cosf((float)i);
    struct tensor w = { .name = "w", .type = DT_Q8_0, .n_dims = 2, .dim = { OUT, IN, 1, 1 }, .data = data, .size = sizeof data };
    struct tensor v = w;
    v.perm_dim = 64;
    for (int n = 1; n <= 12; n += n < TOKENS ? 2 : 9) {
        assert_int_equal(op_linear(&w, bias, x, n, want, 0, NULL), 0);
        assert_int_equal(op_linear(&v, NULL, x, n, z, 0, NULL), 0);
        for (int threads = 1; threads <= 3; threads++) {
            struct linear_part p[2] = { { &w, bias, y[0], 0, NULL }, { &v, NULL, y[1], 1, NULL } };
            for (int i = 0; i < 12 * OUT; i++)
                y[1][i] = start[i] = (float)(i % 31 - 15); /* the second adds to what is there */
            par_set_threads(threads);
            assert_int_equal(op_linear_packed(p, 2, x, n, NULL), 0);
            for (int i = 0; i < n * OUT; i++) { /* |w| <= 0.9, d = 1/127: well below 0.45; typically a hundredth */
                assert_true(fabsf(y[0][i] - want[i]) < 0.05f);
                assert_true(fabsf(y[1][i] - start[i] - z[i]) < 0.05f);
            }
            static float first[2][12 * OUT];
            if (threads == 1)
                memcpy(first, y, sizeof y);
            assert_memory_equal(first[0], y[0], (size_t)(n * OUT) * sizeof(float));
            assert_memory_equal(first[1], y[1], (size_t)(n * OUT) * sizeof(float));
        }
        par_set_threads(0);
    }
}

/* A matrix used often enough is repacked where there are kernels for that: the same products but for the order of float sums, and not
 * once its data are others. */
static void test_slot(void **state)
{
    (void)state;
    enum { BYTES = OUT * IN / 32 * 18 };
    static uint8_t data[BYTES], other[BYTES];
    static float x[TOKENS * IN], y[TOKENS * OUT], want[TOKENS * OUT];
    for (int i = 0; i < BYTES; i++)
        data[i] = i % 18 == 0 ? 0 : i % 18 == 1 ? 0x24 : (uint8_t)(i * 31 + i / 18);
    for (int i = 0; i < TOKENS * IN; i++)
        x[i] = sinf((float)i);
    memcpy(other, data, sizeof data);
    struct tensor w = { .name = "w", .type = DT_Q4_0, .n_dims = 2, .dim = { OUT - 3, IN, 1, 1 }, .data = data, .size = BYTES };
    struct packed_slot slot = { .of = data };
    struct linear_part p = { &w, NULL, want, 0, NULL }, q = { &w, NULL, y, 0, &slot };
    assert_int_equal(op_linear_packed(&p, 1, x, TOKENS, NULL), 0);
    for (int use = 0; use < 40; use++) {
        memset(y, 0, sizeof y);
        assert_int_equal(op_linear_packed(&q, 1, x, TOKENS, NULL), 0);
        for (int i = 0; i < TOKENS * (OUT - 3); i++)
            assert_true(fabsf(y[i] - want[i]) <= 1e-4f);
    }
    const struct packed_kernels *k = packed_kernels();
    assert_int_equal(slot.tiles != NULL, k->lanes && k->lanes[DT_Q4_0]);
    w.data = other;
    assert_null(packed_slot_use(&slot, k, &w));
    packed_slot_release(&slot);
}

/* An activation that is no number or infinite makes all products of its token that, and of no other: as stored, repacked, many tokens. */
static void test_not_finite(void **state)
{
    (void)state;
    enum { BYTES = OUT * IN / 32 * 18, N = 12 };
    static uint8_t data[BYTES];
    static float x[N * IN], y[N * OUT];
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < BYTES; i++)
        data[i] = i % 18 == 0 ? 0 : i % 18 == 1 ? 0x24 : (uint8_t)(i * 31 + i / 18);
    const struct tensor w = { .name = "w", .type = DT_Q4_0, .n_dims = 2, .dim = { OUT, IN, 1, 1 }, .data = data, .size = BYTES };
    for (int isa = 0; backend_isa_name(isa); isa++) {
        if (!backend_isa_usable(isa))
            continue;
        assert_int_equal(backend_force(backend_isa_name(isa), NULL), 0);
        struct packed_slot slot = { .of = data };
        for (int use = 0; use < 40; use++) {
            const int64_t n = use % 4 == 3 ? N : TOKENS, at = use * 29 % IN;
            struct linear_part p = { &w, NULL, y, 0, use < 6 ? NULL : &slot };
            for (int i = 0; i < N * IN; i++)
                x[i] = sinf((float)i);
            x[IN + at] = bad[use % 3];
            assert_int_equal(op_linear_packed(&p, 1, x, n, NULL), 0);
            for (int64_t i = 0; i < n * OUT; i++)
                if (!isfinite(y[i]) != (i / OUT == 1))
                    fail_msg("%s, use %d: product %lld is %g", backend_isa_name(isa), use, (long long)i, (double)y[i]);
        }
        packed_slot_release(&slot);
    }
    assert_int_equal(backend_force(NULL, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_kernels), cmocka_unit_test(test_op), cmocka_unit_test(test_slot),
                                        cmocka_unit_test(test_not_finite) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
