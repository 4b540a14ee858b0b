/* pack: random codes, scales and zeros of every grid that GGUF holds, packed and decoded by dtype_*_to_f32 (which test_blocks
 * checks against the PyPI package gguf), equal to what the grid means, exactly; all others refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tensor/half.h"
#include "tensor/pack.h"

static uint32_t next(uint32_t *x)
{
    *x = *x * 1664525u + 1013904223u;
    return *x >> 8;
}

static int zero_min;

static void fill(struct qmat *q, struct arena *a, int bits, int group, bool sym, int n_in, int zero_max)
{
    struct err e;
    uint8_t codes[2048];
    uint32_t x = (uint32_t)(bits * 1000 + group);
    assert_true(n_in <= (int)sizeof codes);
    assert_int_equal(qmat_init(q, a, 5, n_in, bits, group, sym, &e), 0);
    for (int64_t i = 0; i < q->n_out; i++) {
        for (int j = 0; j < n_in; j++)
            codes[j] = (uint8_t)(next(&x) & ((1u << bits) - 1));
        qmat_set_codes(q, i, codes);
        for (int64_t g = 0; g < q->n_groups; g++) {
            uint16_t s = (uint16_t)next(&x); /* any finite half: subnormal, negative, zero, the largest */
            q->scale[i * q->n_groups + g] = (s & 0x7c00) == 0x7c00 ? s & 0x83ff : s;
            q->zero[i * q->n_groups + g] = (uint8_t)(sym ? 1 << (bits - 1) : zero_min + (int)next(&x) % (zero_max - zero_min + 1));
        }
    }
    q->scale[1] = 0x7bff;
}

static void round_trip(int bits, int group, bool sym, int n_in, enum dtype want, int zero_max)
{
    struct arena a;
    struct qmat q;
    struct err e = { 0 };
    uint8_t codes[2048], out[4096];
    float expected[2048], got[2048];
    arena_init(&a);
    fill(&q, &a, bits, group, sym, n_in, zero_max);
    struct pack_grid g = pack_grid_of(&q);
    if (pack_type(&g) != want)
        fail_msg("%d bits g%d sym %d, %d wide: expected type %d, found %d", bits, group, sym, n_in, want, pack_type(&g));
    if (pack_check(&q, want, "t", &e))
        fail_msg("%s", e.msg);
    for (int64_t i = 0; i < q.n_out; i++) {
        qmat_row_f32(&q, i, expected);
        memset(out, 0xff, sizeof out);
        pack_row(&q, i, want, codes, out);
        assert_int_equal(out[n_in / dtype_table[want].block_len * dtype_table[want].block_bytes], 0xff);
        dtype_table[want].to_f32(out, got, n_in);
        for (int j = 0; j < n_in; j++)
            if (!(got[j] == expected[j]))
                fail_msg("%s, row %d, input %d: expected %.9g, found %.9g", dtype_table[want].name, (int)i, j,
                         (double)expected[j], (double)got[j]);
    }
    arena_release(&a);
}

static void grids_round_trip(void **state)
{
    (void)state;
    round_trip(2, 64, true, 576, DT_Q2_0, 0);
    round_trip(2, 128, true, 576, DT_Q2_0, 0); /* the last group is short */
    round_trip(2, 192, true, 768, DT_Q2_0, 0);
    round_trip(2, 576, true, 576, DT_Q2_0, 0);
    round_trip(2, 256, true, 1024, DT_TQ2_0, 0);
    round_trip(2, 512, true, 768, DT_TQ2_0, 0);
    round_trip(2, 2000, true, 768, DT_TQ2_0, 0);
    round_trip(2, 256, false, 768, DT_Q2_K, 3);
    round_trip(2, 256, false, 768, DT_Q2_K, 4); /* as GPTQ v1 may say */
    round_trip(2, 128, false, 512, DT_Q4_0, 4);
    round_trip(3, 256, false, 512, DT_Q4_0, 8);
    round_trip(3, 32, false, 96, DT_Q4_0, 7);
    round_trip(4, 128, false, 512, DT_Q5_0, 16);
    round_trip(2, 768, false, 768, DT_Q2_K, 3);
    round_trip(3, 256, true, 512, DT_Q3_K, 0);
    round_trip(3, 64, true, 512, DT_Q4_0, 0);
    round_trip(3, 256, true, 576, DT_Q4_0, 0); /* Q3_K does not divide the width */
    round_trip(4, 32, true, 96, DT_Q4_0, 0);
    round_trip(4, 128, true, 576, DT_Q4_0, 0);
    round_trip(4, 256, false, 512, DT_Q4_K, 15);
    round_trip(4, 512, false, 512, DT_Q4_K, 16);
    round_trip(8, 32, true, 64, DT_Q8_0, 0);
}

static void others_are_refused(void **state)
{
    (void)state;
    static const struct pack_grid none[] = {
        { 2, 32, 2, 2, false, 72 },   { 2, 64, 2, 2, false, 72 },  { 2, 80, 2, 2, false, 576 }, { 2, 16, 0, 3, false, 512 },
        { 2, 48, 2, 2, false, 512 },  { 3, 16, 4, 4, false, 512 }, { 3, 64, 4, 4, false, 72 },  { 4, 16, 8, 8, false, 512 },
        { 3, 16, 4, 4, true, 576 - 64 - 32 }, { 4, 48, 0, 15, false, 480 }, { 8, 128, 0, 255, false, 512 }, { 5, 256, 16, 16, false, 512 },
    };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        if (pack_type(&none[i]) != DT_COUNT)
            fail_msg("grid %zu has type %s", i, dtype_table[pack_type(&none[i])].name);
    struct arena a;
    struct qmat q;
    struct err e = { 0 };
    arena_init(&a);
    fill(&q, &a, 2, 64, true, 128, 0);
    assert_int_equal(pack_check(&q, DT_Q8_0, "t", &e), -1);
    assert_string_equal(e.msg, "tensor t: 2 bits, group 64, zeros 2 to 2, rows of 128 do not fit q8_0");
    q.scale[3] = 0x7c00;
    assert_int_equal(pack_check(&q, DT_Q2_0, "t", &e), -1);
    assert_string_equal(e.msg, "tensor t: scale of output 1, group 1 is not finite");
    q.scale[3] = 0x3c00;
    q.zero[2] = 0;
    assert_int_equal(pack_check(&q, DT_Q2_0, "t", &e), -1);
    assert_string_equal(e.msg, "tensor t: 2 bits, group 64, zeros 0 to 2, rows of 128 do not fit q2_0");
    q.zero[2] = 2;
    int32_t g_idx[128] = { 0 };
    for (int j = 0; j < 128; j++)
        g_idx[j] = j / 64;
    q.g_idx = g_idx;
    assert_int_equal(pack_check(&q, DT_Q2_0, "t", &e), 0);
    g_idx[7] = 1;
    assert_int_equal(pack_check(&q, DT_Q2_0, "t", &e), -1);
    assert_non_null(strstr(e.msg, "input 7 is of group 1"));
    fill(&q, &a, 2, 256, false, 256, 3);
    q.zero[4] = 16;
    assert_int_equal(pack_check(&q, DT_Q2_K, "t", &e), -1);
    assert_non_null(strstr(e.msg, "to 16"));
    arena_release(&a);
}

/* Either side may have the extra level: zeros 1 and 2 (3 and 4, 7 and 8). */
static void sign_free_grids(void **state)
{
    (void)state;
    static const struct { int bits, group, n_in; enum dtype type; } cases[] = {
        { 2, 64, 576, DT_Q2_0 }, { 2, 256, 768, DT_TQ2_0 }, { 3, 256, 512, DT_Q3_K }, { 4, 32, 96, DT_Q4_0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        zero_min = (1 << (cases[i].bits - 1)) - 1;
        round_trip(cases[i].bits, cases[i].group, false, cases[i].n_in, cases[i].type, zero_min + 1);
    }
    zero_min = 0;
}

/* Scales d k with groups of 16 and more are exact in the K types; one that is no multiple of d goes to a coarser type. */
static void snapped_scales(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 3; bits++)
        for (int group = 16; group <= 128; group *= 2) {
            struct arena a;
            struct qmat q;
            struct err e = { 0 };
            uint32_t x = 5;
            uint8_t codes[512], out[512];
            float expected[512], got[512];
            enum dtype want = bits == 2 ? DT_Q2_K : DT_Q3_K;
            arena_init(&a);
            fill(&q, &a, bits, group, true, 512, 0);
            for (int64_t s = 0; s < q.n_out * 2; s++) {
                float d = (float)(64 + next(&x) % 64) / 4096; /* 7 bits; 6 for 3 bits */
                d = bits == 3 ? (float)((int)(d * 4096) / 2 * 2) / 4096 : d;
                for (int i = 0; i < 256 / group; i++)
                    q.scale[s * (256 / group) + i] = half_from_f32(d * (float)(1 + next(&x) % (bits == 2 ? 15 : 31)));
            }
            struct pack_grid g = pack_grid_of(&q);
            assert_int_equal(pack_type(&g), want);
            assert_int_equal(pack_check(&q, want, "t", &e), 0);
            for (int64_t i = 0; i < q.n_out; i++) {
                qmat_row_f32(&q, i, expected);
                pack_row(&q, i, want, codes, out);
                dtype_table[want].to_f32(out, got, 512);
                for (int j = 0; j < 512; j++)
                    assert_true(got[j] == expected[j]);
            }
            q.scale[1] = 0x2e03;
            g = pack_grid_of(&q);
            assert_int_not_equal(pack_type(&g), want);
            arena_release(&a);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grids_round_trip),
        cmocka_unit_test(sign_free_grids),
        cmocka_unit_test(snapped_scales),
        cmocka_unit_test(others_are_refused),
    };
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
