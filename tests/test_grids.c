/* The grids of GGUF's types: what is stored is what the solver computed with.
 *
 * For every type: GPTQ's codes are replayed in double precision from the parameters read back out of the finished
 * blocks (static: no knowledge of how they were found), so error feedback must have used exactly what the file says; the
 * parameters themselves are compared with a plain search over unrestricted ones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "quant/correct.h"
#include "quant/tile.h"
#include "tensor/pack.h"

enum { ROWS = 37, COLS = 512, TOKENS = 1200 };

static uint64_t rng = 1;

static double uniform(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng >> 11) / 9007199254740992.0;
}

static float normal(void)
{
    return (float)(sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform()));
}

/* Correlated inputs of unequal power; the same for all. */
static float hessian[COLS * COLS];

static void make_hessian(void)
{
    float x[COLS];
    for (int t = 0; t < TOKENS; t++) {
        float common = normal();
        for (int j = 0; j < COLS; j++)
            x[j] = (normal() + 0.5f * common) * (0.3f + (float)(j * 7 % 13) / 6);
        for (int j = 0; j < COLS; j++)
            for (int k = 0; k < COLS; k++)
                hessian[j * COLS + k] += 2 * x[j] * x[k] / TOKENS;
    }
}

struct problem {
    struct arena a;
    float *w, *h;
    struct factor f;
    struct quant_options o;
    struct grid g;
    struct tensor t;
    struct solve_in in;
};

static void problem_init(struct problem *p, enum grid_id id, int bits, int group)
{
    struct err e;
    memset(p, 0, sizeof *p);
    arena_init(&p->a);
    p->w = arena_alloc(&p->a, ROWS * COLS, sizeof(float));
    p->h = hessian;
    for (int i = 0; i < ROWS * COLS; i++)
        p->w[i] = 0.05f * normal() * (i % 7 == 0 ? 2.5f : 1);
    assert_int_equal(quant_options_init(&p->o, "gptq", "default", &e), 0);
    assert_int_equal(factor_init(&p->f, p->h, COLS, 0.01, ORDER_NONE, "test", NULL, &e), 0);
    grid_init(&p->g, id, bits, group, 0, COLS);
    assert_int_equal(grid_alloc(&p->g, &p->a, "test", ROWS, COLS, &p->t, &e), 0);
    p->in = (struct solve_in){ .name = "test", .w = p->w, .n_out = ROWS, .n_in = COLS, .h = p->h, .f = &p->f, .grid = &p->g };
}

static void problem_release(struct problem *p)
{
    factor_release(&p->f);
    arena_release(&p->a);
}

static double error_of(struct problem *p, const float *col_scale)
{
    double err;
    struct err e;
    assert_int_equal(solve_error(p->w, &p->t, col_scale, p->h, ROWS, COLS, &err, &e), 0);
    return err;
}

/* The row's values if every code were 0 (one false) or 1: how the blocks' own fields place the levels. */
static void level(const struct problem *p, int row, bool one, float *v)
{
    uint8_t copy[COLS * 2];
    const struct dtype_info *d = &dtype_table[p->g.type];
    size_t bytes = p->t.size / ROWS;
    static const struct { enum dtype type; int from, to; uint8_t pattern; } fields[] = {
        { DT_Q2_0, 2, 18, 0x55 }, { DT_TQ2_0, 0, 64, 0x55 }, { DT_Q2_K, 16, 80, 0x55 }, { DT_Q3_K, 32, 96, 0x55 }, { DT_Q3_K, 0, 32, 0 },
        { DT_Q4_0, 2, 18, 0x11 }, { DT_Q4_1, 4, 20, 0x11 }, { DT_Q4_K, 16, 144, 0x11 }, { DT_Q5_0, 6, 22, 0x11 }, { DT_Q5_0, 2, 6, 0 },
        { DT_Q5_1, 8, 24, 0x11 }, { DT_Q5_1, 4, 8, 0 }, { DT_Q5_K, 48, 176, 0x11 }, { DT_Q5_K, 16, 48, 0 }, { DT_Q6_K, 0, 128, 0x11 },
        { DT_Q6_K, 128, 192, 0 }, { DT_Q8_0, 2, 34, 1 },
    };
    memcpy(copy, (const uint8_t *)p->t.data + (size_t)row * bytes, bytes);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (size_t b = 0; fields[i].type == p->g.type && b < bytes; b += (size_t)d->block_bytes)
            memset(copy + b + fields[i].from, one ? fields[i].pattern : 0, (size_t)(fields[i].to - fields[i].from));
    d->to_f32(copy, v, COLS);
}

/* Levels of the type are v0 + s c for c in lo..hi. */
static void code_range(const struct problem *p, double *lo, double *hi)
{
    *lo = p->g.type == DT_Q8_0 ? -128 : 0;
    *hi = p->g.type == DT_Q8_0 ? 127 : p->g.maxq;
}

static const enum grid_id types[] = { GRID_q2_0, GRID_tq2_0, GRID_q2_k, GRID_q3_k, GRID_q4_0, GRID_q4_1, GRID_q4_k, GRID_q5_0,
                                      GRID_q5_1, GRID_q5_k, GRID_q6_k, GRID_q8_0 };
#define N_TYPES (int)(sizeof types / sizeof *types)

/* Against double arithmetic: ties may differ, at most 1 in 300 values. */
static void feedback_sees_what_is_stored(void **state)
{
    (void)state;
    for (int k = 0; k < N_TYPES; k++) {
        struct problem p;
        struct err e;
        float v0[COLS], v1[COLS], got[COLS];
        double t[COLS], lo, hi;
        int wrong = 0;
        rng = 7;
        problem_init(&p, types[k], 0, 0);
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        code_range(&p, &lo, &hi);
        for (int i = 0; i < ROWS; i++) {
            level(&p, i, false, v0);
            level(&p, i, true, v1);
            tensor_rows_f32(&p.t, i, 1, got);
            for (int j = 0; j < COLS; j++)
                t[j] = p.w[i * COLS + j];
            for (int j = 0; j < COLS; j++) {
                double s = (double)v1[j] - v0[j], c = s == 0 ? 0 : fmin(fmax(rint((t[j] - v0[j]) / s), lo), hi);
                double value = v0[j] + s * c, err = (t[j] - got[j]) / p.f.u[j * COLS + j];
                wrong += fabs(value - got[j]) > 0.01 * fabs(s);
                for (int n = j + 1; n < COLS; n++)
                    t[n] -= err * p.f.u[j * COLS + n];
            }
        }
        if (wrong * 300 > ROWS * COLS)
            fail_msg("%s: %d of %d values are not the nearest of their grid", grid_table[types[k]].name, wrong, ROWS * COLS);
        problem_release(&p);
    }
}

/* Feedback beats rounding, sweeps do not harm, dual scales do not harm; more bits, less error. */
static void refinements_help(void **state)
{
    (void)state;
    double last[9] = { 0 };
    for (int k = 0; k < N_TYPES; k++) {
        struct problem p;
        struct err e;
        float s_c[COLS];
        double gain;
        rng = 7;
        problem_init(&p, types[k], 0, 0);
        p.in.f = NULL;
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        double rtn = error_of(&p, NULL);
        p.in.f = &p.f;
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        double gptq = error_of(&p, NULL);
        p.o.sweeps = 1;
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        double swept = error_of(&p, NULL);
        p.o.dsq_rounds = 2;
        p.o.dsq_weighted = true;
        assert_int_equal(dsq_solve(&(struct solve_task){ .in = &p.in, .t = &p.t }, 1, NULL, &p.o, s_c, &gain, &e), 0);
        double dual = error_of(&p, s_c);
        if (!(gptq < 0.97 * rtn && swept <= gptq * 1.0001 && dual <= swept * 1.0001))
            fail_msg("%s: rtn %g, gptq %g, with sweep %g, with dual scales %g", grid_table[types[k]].name, rtn, gptq, swept, dual);
        if (last[p.g.bits] == 0)
            last[p.g.bits] = gptq;
        if (p.g.bits > 2)
            assert_true(gptq < last[p.g.bits - (p.g.bits == 8 ? 2 : 1)]);
        problem_release(&p);
    }
}

/* The best of a dense search over scale and offset of one group of 16, unrestricted, min-max at worst. */
static double free_error(const float *w, const float *h, int n, int maxq, bool offset)
{
    double lo = 0, hi = 0, best = INFINITY;
    for (int j = 0; j < n; j++) {
        lo = fmin(lo, w[j]);
        hi = fmax(hi, w[j]);
    }
    double mid = (maxq + 1) / 2;
    for (int a = 0; a <= 30; a++)
        for (int b = 0; b <= (offset ? 30 : 1); b++) {
            double top = hi * (1 - a / 50.0), low = lo * (1 - b / 50.0), err = 0;
            double s = offset ? (top - low) / maxq : (b ? -1 : 1) * (1.05 - a / 40.0) * 2 * fmax(hi, -lo) / maxq;
            for (int j = 0; s != 0 && j < n; j++) {
                double z = offset ? -low / s : mid, c = fmin(fmax(rint(w[j] / s + z), 0), maxq), d = w[j] - s * (c - z);
                err += h[j] * d * d;
            }
            best = err < best ? err : best;
        }
    return best;
}

/* Two levels against unrestricted scales: 4-bit scales cost at most 14 %, 6- and 8-bit ones 4 to 6 %. */
static void two_levels_cost_little(void **state)
{
    (void)state;
    static const struct { enum grid_id id; double limit; } cases[] = { { GRID_q2_k, 1.14 }, { GRID_q3_k, 1.04 }, { GRID_q4_k, 1.06 },
                                                                       { GRID_q5_k, 1.06 }, { GRID_q6_k, 1.04 } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct problem p;
        struct err e;
        float got[COLS], h[COLS];
        double err = 0, best = 0;
        rng = 9;
        problem_init(&p, cases[k].id, 0, 0);
        p.in.f = NULL;
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        for (int j = 0; j < COLS; j++)
            h[j] = p.h[j * COLS + j];
        for (int i = 0; i < ROWS; i++) {
            const float *w = p.w + i * COLS;
            tensor_rows_f32(&p.t, i, 1, got);
            for (int j = 0; j < COLS; j++)
                err += h[j] * ((double)w[j] - got[j]) * ((double)w[j] - got[j]);
            for (int j = 0; j < COLS; j += (int)p.g.group)
                best += free_error(w + j, h + j, (int)p.g.group, p.g.maxq, p.g.kind == KIND_TWO_AFFINE);
        }
        if (!(err < cases[k].limit * best))
            fail_msg("%s: error %g, with unrestricted parameters %g (ratio %.3f)", grid_table[cases[k].id].name, err, best, err / best);
        problem_release(&p);
    }
}

/* Integers that the K types hold as well: pack and decode equal, before and after a merge of column scales into rows. */
static void portable_is_portable(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 3; bits++)
        for (int group = 16; group <= 128; group *= 2) {
            struct problem p;
            struct err e;
            float s_c[ROWS], before[COLS], after[COLS], packed[COLS];
            uint8_t codes[COLS], out[COLS];
            rng = 3;
            problem_init(&p, GRID_portable, bits, group);
            assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
            for (int i = 0; i < ROWS; i++)
                s_c[i] = (float)exp(2 * uniform() - 1);
            for (int merged = 0; merged < 2; merged++) {
                enum dtype want = bits == 2 ? DT_Q2_K : DT_Q3_K;
                struct pack_grid pg = pack_grid_of(p.t.q);
                assert_int_equal(pack_type(&pg), want);
                for (int i = 0; i < ROWS; i++) {
                    tensor_rows_f32(&p.t, i, 1, merged ? after : before);
                    pack_row(p.t.q, i, want, codes, out);
                    dtype_table[want].to_f32(out, packed, COLS);
                    for (int j = 0; j < COLS; j++)
                        assert_true(packed[j] == (merged ? after : before)[j]);
                }
                if (!merged)
                    assert_int_equal(dsq_absorb(&p.t, &p.g, s_c, &e), 0);
            }
            /* the unit has 7 (6) significant bits: it moves by 1/128 (1/64) at most */
            tensor_rows_f32(&p.t, ROWS - 1, 1, after);
            for (int j = 0; j < COLS; j++)
                assert_true(fabsf(after[j] - s_c[ROWS - 1] * before[j]) <= fabsf(s_c[ROWS - 1] * before[j]) / (bits == 2 ? 127 : 63));
            problem_release(&p);
        }
}

/* The same codes, only d and m of each block times the row's factor. */
static void blocks_absorb_row_scales(void **state)
{
    (void)state;
    for (int k = 0; k < N_TYPES; k++) {
        struct problem p;
        struct err e;
        float s_c[ROWS], before[ROWS * COLS], after[COLS];
        problem_init(&p, types[k], 0, 0);
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        tensor_rows_f32(&p.t, 0, ROWS, before);
        for (int i = 0; i < ROWS; i++)
            s_c[i] = (float)exp(2 * uniform() - 1);
        assert_int_equal(dsq_absorb(&p.t, &p.g, s_c, &e), 0);
        for (int i = 0; i < ROWS; i++) {
            float top = 0; /* d and m round apart: relative to the largest value of the row; q6_k's d may be subnormal */
            tensor_rows_f32(&p.t, i, 1, after);
            for (int j = 0; j < COLS; j++)
                top = fmaxf(top, fabsf(s_c[i] * before[i * COLS + j]));
            for (int j = 0; j < COLS; j++)
                if (fabsf(after[j] - s_c[i] * before[i * COLS + j]) > top * (types[k] == GRID_q6_k ? 0.01f : 0.002f))
                    fail_msg("%s: %g became %g", grid_table[types[k]].name, (double)(s_c[i] * before[i * COLS + j]), (double)after[j]);
        }
        s_c[5] = 1e9f;
        assert_int_equal(dsq_absorb(&p.t, &p.g, s_c, &e), -1);
        assert_non_null(strstr(e.msg, "row 5"));
        problem_release(&p);
    }
}

/* A free choice of the side with the extra level: never worse than the fixed one at the same search, and 2 % better at 2 bits. */
static void sign_free_is_better(void **state)
{
    (void)state;
    double err[2];
    for (int k = 0; k < 2; k++) {
        struct problem p;
        struct err e;
        rng = 5;
        problem_init(&p, k ? GRID_signfree : GRID_sym, 2, 64);
        p.in.f = NULL;
        assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
        err[k] = error_of(&p, NULL);
        struct pack_grid pg = pack_grid_of(p.t.q);
        assert_int_equal(pack_type(&pg), DT_Q2_0);
        assert_int_equal(pg.zmin, k ? 1 : 2);
        problem_release(&p);
    }
    assert_true(err[1] < 0.98 * err[0]);
}

static void narrow_rows_fall_back(void **state)
{
    (void)state;
    static const struct { enum grid_id id; int64_t n_in; enum grid_id want; } cases[] = {
        { GRID_q2_k, 1536, GRID_q2_k }, { GRID_q2_k, 576, GRID_q2_0 }, { GRID_q2_k, 96, GRID_q4_0 },  { GRID_q3_k, 576, GRID_q4_0 },
        { GRID_q4_k, 576, GRID_q5_0 },  { GRID_q5_k, 576, GRID_q5_1 }, { GRID_q6_k, 576, GRID_q8_0 }, { GRID_q6_k, 100, GRID_f16 },
        { GRID_portable, 576, GRID_sym }, { GRID_asym, 100, GRID_asym },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grid g;
        grid_init(&g, cases[i].id, 2, 64, 0, cases[i].n_in);
        assert_int_equal(g.id, cases[i].want);
    }
}

/* Rows of zeros, of one value, far outside and far below what fp16 holds: finite everywhere, zeros stay zero. A few inputs of next to
 * nothing take nothing from those beside them. */
static void extreme_weights(void **state)
{
    (void)state;
    for (int k = 0; k <= N_TYPES; k++) {
        struct problem p;
        struct err e;
        float v[COLS];
        problem_init(&p, k < N_TYPES ? types[k] : GRID_portable, 2, 32);
        for (int j = 0; j < COLS; j++) {
            p.w[j] = 0;
            p.w[COLS + j] = 3;
            p.w[2 * COLS + j] = j ? 0 : 1e30f;
            p.w[3 * COLS + j] = 1e-30f;
            p.w[4 * COLS + j] = -2;
            p.w[5 * COLS + j] = j % 256 < 32 ? (float)(j % 3 - 1) * 1e-40f : sinf((float)j);
        }
        for (int search = 0; search < 3; search++) {
            p.o.search = (enum quant_search)search;
            assert_int_equal(solve(&p.in, &p.o, &p.t, &e), 0);
            for (int i = 0; i < ROWS; i++) {
                tensor_rows_f32(&p.t, i, 1, v);
                for (int j = 0; j < COLS; j++)
                    assert_true(isfinite(v[j]));
            }
            double off = 0, all = 0;
            tensor_rows_f32(&p.t, 5, 1, v);
            for (int j = 0; j < COLS; j++) {
                off += pow(v[j] - p.w[5 * COLS + j], 2);
                all += pow(p.w[5 * COLS + j], 2);
            }
            if (!(off < 0.5 * all))
                fail_msg("%s, search %d: %g of %g is lost beside small weights", grid_table[p.g.id].name, search, off, all);
            tensor_rows_f32(&p.t, 0, 1, v);
            for (int j = 0; j < COLS; j++)
                if (v[j] != 0)
                    fail_msg("%s: 0 became %g", grid_table[p.g.id].name, (double)v[j]);
        }
        problem_release(&p);
    }
}

int main(void)
{
    struct err e;
    if (backend_init(&e))
        return 1;
    make_hessian();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(feedback_sees_what_is_stored), cmocka_unit_test(refinements_help), cmocka_unit_test(two_levels_cost_little),
        cmocka_unit_test(portable_is_portable), cmocka_unit_test(blocks_absorb_row_scales), cmocka_unit_test(sign_free_is_better),
        cmocka_unit_test(narrow_rows_fall_back), cmocka_unit_test(extreme_weights),
    };
    return cmocka_run_group_tests_name("grids", tests, NULL, NULL);
}
