/* Every packed type against what the PyPI package `gguf` decodes (tools/golden_gguf.py), to the bit; halves exhaustively. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "io/gguf.h"
#include "tensor/half.h"

static const struct tensor *find(const struct gguf *g, const char *prefix, const char *type)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", prefix, type);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name))
            return &g->tensors[i];
    return NULL;
}

static void test_types(void **state)
{
    (void)state;
    struct gguf g;
    struct err e;
    if (gguf_open(&g, "tests/fixtures/gguf/blocks.gguf", &e))
        fail_msg("%s", e.msg);
    for (int type = 0; type < DT_QMAT; type++) {
        if (type == DT_F32)
            continue;
        const char *name = dtype_table[type].name;
        const struct tensor *raw = find(&g, "raw", name), *want = find(&g, "f32", name);
        if (!raw || !want)
            fail_msg("fixture lacks type %s", name);
        assert_int_equal(raw->type, type);
        assert_int_equal(tensor_count(raw), tensor_count(want));
        size_t n = (size_t)tensor_count(raw);
        float *got = mem_alloc(n, sizeof *got), *w = mem_alloc(n, sizeof *w);
        tensor_to_f32(raw, got);
        tensor_to_f32(want, w);
        if (memcmp(got, w, n * sizeof *got))
            fail_msg("%s differs from the gguf package", name);
        tensor_rows_f32(raw, 1, 1, got); /* a single row is the same row */
        assert_memory_equal(got, w + n / 3, n / 3 * sizeof *got);
        mem_free(got);
        mem_free(w);
    }
    gguf_release(&g);
}

/* The value of a half by its definition. */
static double half_value(uint16_t h)
{
    int exp = h >> 10 & 31, man = h & 1023;
    double v = exp == 0 ? ldexp(man, -24) : exp == 31 ? (man ? NAN : INFINITY) : ldexp(1024 + man, exp - 25);
    return h & 0x8000 ? -v : v;
}

static void test_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        double want = half_value((uint16_t)h);
        float got = half_to_f32((uint16_t)h);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(half_to_f32(half_from_f32(got))));
            continue;
        }
        assert_true((double)got == want);
        assert_int_equal(half_from_f32(got), h);
        if (h < 0x7bff) { /* midpoints go to the even one, just above and below to the nearer */
            double next = half_value((uint16_t)(h + 1)), mid = (want + next) / 2;
            assert_int_equal(half_from_f32((float)mid), h & 1 ? h + 1 : h);
            assert_int_equal(half_from_f32(nextafterf((float)mid, -1)), h);
            assert_int_equal(half_from_f32(nextafterf((float)mid, INFINITY)), h + 1);
        }
    }
    assert_int_equal(half_from_f32(65519.99f), 0x7bff);
    assert_int_equal(half_from_f32(65520.0f), 0x7c00);
    assert_int_equal(half_from_f32(-1e30f), 0xfc00);
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(bf16_to_f32(bf16_from_f32(f))));
        else
            assert_int_equal(bf16_from_f32(f), h);
    }
    assert_int_equal(bf16_from_f32(1.00390625f), 0x3f80); /* tie to even */
    assert_int_equal(bf16_from_f32(1.01171875f), 0x3f82);
}

static void one_qmat(int bits, int group)
{
    struct arena a;
    struct qmat q;
    struct err e;
    uint8_t codes[101], back[101];
    float row[101];
    arena_init(&a);
    assert_int_equal(qmat_init(&q, &a, 3, 101, bits, group, false, &e), 0);
    assert_int_equal(q.n_groups, (101 + group - 1) / group);
    for (int j = 0; j < 101; j++)
        codes[j] = (uint8_t)((j * 37 + 11) & ((1 << bits) - 1));
    for (int g = 0; g < q.n_groups; g++) {
        q.scale[q.n_groups + g] = half_from_f32((float)(g + 1) * 0.5f);
        q.zero[q.n_groups + g] = (uint8_t)g;
    }
    qmat_set_codes(&q, 1, codes);
    qmat_get_codes(&q, 1, back);
    assert_memory_equal(codes, back, 101);
    qmat_row_f32(&q, 1, row);
    for (int j = 0; j < 101; j++)
        assert_true(row[j] == (float)(j / group + 1) * 0.5f * (float)(codes[j] - j / group));
    arena_release(&a);
}

/* Codes of every width survive packing, whatever crosses a word; groups of whole words and others, the last one short. */
static void test_qmat_codes(void **state)
{
    (void)state;
    int widths[4] = { 2, 3, 4, 8 }, groups[4] = { 32, 64, 128, 20 };
    for (int k = 0; k < 16; k++)
        one_qmat(widths[k / 4], groups[k % 4]);
}

/* GGUF's row order of q and k: (head, pair, half) in the file, (head, half, pair) above. */
static void test_row_permutation(void **state)
{
    (void)state;
    float data[16], row;
    for (int i = 0; i < 16; i++)
        data[i] = (float)i;
    struct tensor t = tensor_f32("q", data, 16, 1);
    t.perm_dim = 8;
    int want[16] = { 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15 };
    for (int i = 0; i < 16; i++) {
        tensor_rows_f32(&t, i, 1, &row);
        assert_true(row == (float)want[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_qmat_codes),
        cmocka_unit_test(test_row_permutation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
