/* Methods against plain double-precision versions: GPTAQ, BoA and DSQ on random problems, rotation on tiny models. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "quant/boa.h"
#include "quant/correct.h"
#include "quant/rotate.h"
#include "tensor/half.h"

#define MODELS "tests/fixtures/models/"

static uint64_t rng = 5;

static double uniform(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng >> 11) / 9007199254740992.0 - 0.5;
}

static float *random_matrix(struct arena *a, int64_t rows, int64_t cols, double size)
{
    float *p = arena_alloc(a, (size_t)(rows * cols), sizeof *p);
    for (int64_t i = 0; i < rows * cols; i++)
        p[i] = (float)(size * uniform());
    return p;
}

/* 2/n X^T Y */
static float *moment(struct arena *a, const float *x, const float *y, int64_t n, int64_t d)
{
    float *h = arena_zalloc(a, (size_t)(d * d), sizeof *h);
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t t = 0; t < n; t++)
                sum += (double)x[t * d + i] * y[t * d + j];
            h[i * d + j] = (float)(2 * sum / (double)n);
        }
    return h;
}

/* Upper U with U^T U = (H + damp mean diag)^-1: the Cholesky factor of the inverse, by Gauss-Jordan. */
static double *upper_factor(struct arena *a, const float *h, int64_t d, double damp)
{
    double *m = arena_alloc(a, (size_t)(d * d), sizeof *m), *inv = arena_zalloc(a, (size_t)(d * d), sizeof *inv);
    double *u = arena_zalloc(a, (size_t)(d * d), sizeof *u), mean = 0;
    for (int64_t i = 0; i < d; i++)
        mean += h[i * d + i] / (double)d;
    for (int64_t i = 0; i < d * d; i++)
        m[i] = h[i] + (i % (d + 1) ? 0 : damp * mean);
    for (int64_t i = 0; i < d; i++)
        inv[i * d + i] = 1;
    for (int64_t c = 0; c < d; c++) {
        double p = m[c * d + c];
        for (int64_t j = 0; j < d; j++) {
            m[c * d + j] /= p;
            inv[c * d + j] /= p;
        }
        for (int64_t i = 0; i < d; i++) {
            double f = i == c ? 0 : m[i * d + c];
            for (int64_t j = 0; j < d; j++) {
                m[i * d + j] -= f * m[c * d + j];
                inv[i * d + j] -= f * inv[c * d + j];
            }
        }
    }
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = i; j < d; j++) {
            double sum = inv[i * d + j];
            for (int64_t k = 0; k < i; k++)
                sum -= u[k * d + i] * u[k * d + j];
            u[i * d + j] = i == j ? sqrt(sum) : sum / u[i * d + i];
        }
    return u;
}

/* Min-max parameters of n weights; the scale is fp16. */
static void fit(const double *w, int64_t n, int maxq, double *s, double *z)
{
    double lo = 0, hi = 0;
    for (int64_t j = 0; j < n; j++) {
        lo = fmin(lo, w[j]);
        hi = fmax(hi, w[j]);
    }
    *s = half_round((float)((hi - lo) / maxq));
    *z = rint(-lo / *s);
}

static struct quant_options options(const char *method, int bits, int group)
{
    struct quant_options o;
    struct err e;
    assert_int_equal(quant_options_init(&o, method, "default", &e), 0);
    o.bits = bits;
    o.group = group;
    o.search = SEARCH_MINMAX;
    return o;
}

/* ---- GPTAQ --------------------------------------------------------------------- */

/* P = alpha striu(D U^T) U entry by entry. */
static double *plain_term(struct arena *a, const float *dx, const double *u, int64_t d, double alpha)
{
    double *p = arena_zalloc(a, (size_t)(d * d), sizeof *p);
    for (int64_t i = 0; i < d; i++)
        for (int64_t k = i + 1; k < d; k++) {
            double sum = 0;
            for (int64_t j = 0; j < d; j++)
                sum += (double)dx[i * d + j] * u[k * d + j];
            for (int64_t j = k; j < d; j++)
                p[i * d + j] += alpha * sum * u[k * d + j];
        }
    return p;
}

/* perm: NULL, or the inputs by activation order, whose groups' parameters come from the weights as they were; u and p are in that order. */
static void plain_gptaq(const float *w, const double *u, const double *p, const int32_t *perm, int64_t d, int group, int maxq,
                        uint8_t *codes)
{
    double t[512], s[512] = { 0 }, z[512] = { 0 };
    for (int64_t j = 0; j < d; j++)
        t[j] = w[j];
    for (int64_t j = 0; perm && j < d; j += group)
        fit(t + j, d - j < group ? d - j : group, maxq, &s[j / group], &z[j / group]);
    for (int64_t j = 0; perm && j < d; j++)
        t[j] = w[perm[j]];
    for (int64_t j = 0; j < d; j++) {
        int64_t at = perm ? perm[j] : j, g = at / group;
        if (!perm && j % group == 0)
            fit(t + j, d - j < group ? d - j : group, maxq, &s[g], &z[g]);
        double q = fmin(fmax(rint(t[j] / s[g] + z[g]), 0), maxq), e = (t[j] - s[g] * (q - z[g])) / u[j * d + j];
        codes[at] = (uint8_t)q;
        for (int64_t k = j + 1; k < d; k++)
            t[k] += t[j] * p[j * d + k] - e * u[j * d + k];
    }
}

/* h with rows and columns in the order of perm (NULL: as they are) */
static float *permuted(struct arena *a, const float *h, const int32_t *perm, int64_t d)
{
    float *p = arena_alloc(a, (size_t)(d * d), sizeof *p);
    for (int64_t i = 0; i < d * d; i++)
        p[i] = perm ? h[perm[i / d] * d + perm[i % d]] : h[i];
    return p;
}

static void gptaq_case(int64_t d, enum quant_order order)
{
    int64_t n = 3 * d, n_out = 40, wrong = 0, moved = 0;
    struct arena a;
    struct err e;
    struct factor f;
    struct grid g;
    struct tensor t, t0;
    float *p;
    arena_init(&a);
    float *w = random_matrix(&a, n_out, d, 0.2), *x = random_matrix(&a, n, d, 2), *diff = random_matrix(&a, n, d, 0.5);
    for (int64_t i = 0; i < n * d; i++)
        diff[i] += 0.2f * x[i / d * d + (i * 7) % d]; /* what was lost depends on other inputs */
    struct stats st = { .d = d, .h = moment(&a, x, x, n, d), .dx = moment(&a, diff, x, n, d) };
    struct quant_options o = options("gptaq", 3, 40);
    o.order = order;
    assert_int_equal(factor_init(&f, st.h, d, o.damp, order, "test", NULL, &e), 0);
    assert_int_equal(f.perm != NULL, order == ORDER_ACT);
    grid_init(&g, GRID_asym, 3, 40, 0, d);
    assert_int_equal(grid_alloc(&g, &a, "test", n_out, d, &t, &e), 0);
    assert_int_equal(grid_alloc(&g, &a, "test", n_out, d, &t0, &e), 0);
    assert_int_equal(gptaq_term(&st, &f, 0.25, &p, &e), 0);
    struct solve_in in = { .name = "test", .w = w, .n_out = n_out, .n_in = d, .h = st.h, .f = &f, .asym = p, .grid = &g };
    assert_int_equal(solve(&in, &o, &t, &e), 0);
    in.asym = NULL;
    assert_int_equal(solve(&in, &o, &t0, &e), 0);
    double *u = upper_factor(&a, permuted(&a, st.h, f.perm, d), d, o.damp);
    double *plain = plain_term(&a, permuted(&a, st.dx, f.perm, d), u, d, 0.25);
    uint8_t want[512], got[512], gptq[512];
    for (int64_t i = 0; i < n_out; i++) {
        plain_gptaq(w + i * d, u, plain, f.perm, d, 40, 7, want);
        qmat_get_codes(t.q, i, got);
        qmat_get_codes(t0.q, i, gptq);
        for (int64_t j = 0; j < d; j++) {
            wrong += want[j] != got[j];
            moved += gptq[j] != got[j];
        }
    }
    if (wrong * 1000 > n_out * d || moved * 20 < n_out * d)
        fail_msg("width %lld, order %d: %lld of %lld codes differ from the plain version, %lld from GPTQ", (long long)d, order,
                 (long long)wrong, (long long)(n_out * d), (long long)moved);
    mem_free(p);
    factor_release(&f);
    arena_release(&a);
}

/* Over one and over several lazy blocks; codes may differ at ties only: 1 in 1,000. */
static void test_gptaq(void **state)
{
    (void)state;
    static const int64_t widths[] = { 64, 200, 300 };
    for (int k = 0; k < 3; k++) {
        gptaq_case(widths[k], ORDER_NONE);
        gptaq_case(widths[k], ORDER_ACT);
    }
}

/* ---- BoA ------------------------------------------------------------------------- */

static struct model *open_model(const char *name)
{
    struct model *m = NULL;
    struct err e = { 0 };
    char path[128];
    snprintf(path, sizeof path, MODELS "%s", name);
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

/* What boa_add sums up, position by position, with op_rope as the judge of what R_t is. */
static void test_boa_hessians(void **state)
{
    (void)state;
    static const char *const models[] = { "llama", "qwen2", "mistral", "qwen3" }; /* mistral has a sliding window */
    for (int k = 0; k < 4; k++) {
        struct model *m = open_model(models[k]);
        const struct hparams *hp = &m->hp;
        const int64_t n = 37, hd = hp->head_dim, d = hp->n_embd, nq = hp->n_head * hd, nkv = hp->n_head_kv * hd,
                      per = hp->n_head / hp->n_head_kv;
        struct arena a;
        struct err e = { 0 };
        struct boa b;
        struct fwd f;
        arena_init(&a);
        float *x = random_matrix(&a, n, d, 4);
        assert_int_equal(boa_init(&b, hp, &e), 0);
        assert_int_equal(fwd_init(&f, hp, n, &e), 0);
        assert_int_equal(boa_add(&b, m, &m->layers[0], &f, x, n, &e), 0);
        /* R_t as a matrix: op_rope on unit vectors; row i of turn[t] is R_t e_i */
        float *turn = arena_zalloc(&a, (size_t)(n * hd * hd), sizeof *turn);
        for (int64_t t = 0; t < n; t++)
            for (int64_t i = 0; i < hd; i++) {
                int32_t pos = (int32_t)t;
                turn[(t * hd + i) * hd + i] = 1;
                op_rope(turn + (t * hd + i) * hd, 1, 1, hd, &pos, m->inv_freq, 1);
            }
        for (int64_t g = 0; g < hp->n_head_kv; g++)
            for (int q = 0; q < 2; q++) {
                const float *got = (q ? b.row_q : b.row_k) + g * hd * hd;
                double worst = 0, top = 0;
                for (int64_t i = 0; i < hd; i++)
                    for (int64_t j = 0; j < hd; j++) {
                        double sum = 0; /* mean_t sum_s (R_t e_i . k_s)(R_t e_j . k_s) */
                        for (int64_t t = 0; t < n; t++)
                            for (int64_t s = 0; s < n; s++)
                                for (int64_t h = 0; h < (q ? 1 : per); h++) {
                                    const float *v = q ? f.k + s * nkv + g * hd : f.q + s * nq + (g * per + h) * hd;
                                    double vi = 0, vj = 0;
                                    for (int64_t c = 0; c < hd; c++) {
                                        vi += (double)turn[(t * hd + i) * hd + c] * v[c];
                                        vj += (double)turn[(t * hd + j) * hd + c] * v[c];
                                    }
                                    sum += vi * vj / (double)n;
                                }
                        worst = fmax(worst, fabs(sum - got[i * hd + j]));
                        top = fmax(top, fabs(sum));
                    }
                if (!(worst <= 1e-5 * top))
                    fail_msg("%s: head %lld: H_row of %s is off by %g of %g", models[k], (long long)g, q ? "q" : "k", worst, top);
            }
        /* (A X)^T (A X): A by op_attention with x's columns in place of the values, head_dim at a time */
        double *want = arena_zalloc(&a, (size_t)(d * d), sizeof *want);
        float *v = arena_zalloc(&a, (size_t)(n * nkv), sizeof *v), *out = arena_alloc(&a, (size_t)(n * nq), sizeof *out);
        float *ax = arena_alloc(&a, (size_t)(per * n * d), sizeof *ax);
        for (int64_t c0 = 0; c0 < d; c0 += hd) {
            for (int64_t t = 0; t < n; t++)
                for (int64_t c = 0; c < hd && c0 + c < d; c++)
                    v[t * nkv + c] = x[t * d + c0 + c];
            assert_int_equal(op_attention(f.q, f.k, v, n, 0, hp->n_head, hp->n_head_kv, hd, hp->window, out, &e), 0);
            for (int64_t h = 0; h < per; h++)
                for (int64_t t = 0; t < n; t++)
                    for (int64_t c = 0; c < hd && c0 + c < d; c++)
                        ax[(h * n + t) * d + c0 + c] = out[t * nq + h * hd + c];
        }
        double worst = 0, top = 0;
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j <= i; j++) {
                for (int64_t t = 0; t < per * n; t++)
                    want[i * d + j] += (double)ax[t * d + i] * ax[t * d + j];
                worst = fmax(worst, fabs(want[i * d + j] - b.col_v[i * d + j]));
                top = fmax(top, fabs(want[i * d + j]));
            }
        if (!(worst <= 1e-5 * top))
            fail_msg("%s: H_col of v is off by %g of %g", models[k], worst, top);
        boa_release(&b);
        fwd_release(&f);
        arena_release(&a);
        model_free(m);
    }
}

/* Moments of inputs each of which leans on the one before. */
static float *leaning(struct arena *a, int64_t n, int64_t d, float by)
{
    float *x = random_matrix(a, n, d, 2);
    for (int64_t i = 0; i < n * d; i++)
        x[i] += i % d > 0 ? by * x[i - 1] : 0;
    return moment(a, x, x, n, d);
}

enum { HD = 8, D = 24, KV = 3 };

/* Codes of t's head that are not the plain version's: one long row of GPTQ under the Kronecker product of row Hessian hr, times gain, and h. */
static int64_t differ_on_product(struct arena *a, const float *w, const float *hr, const float *gain, const float *h, double damp,
                                 const struct qmat *q, int64_t head)
{
    const int64_t nn = HD * D;
    double *u = arena_alloc(a, (size_t)(nn * nn), sizeof *u), *zero = arena_zalloc(a, (size_t)(nn * nn), sizeof *zero);
    float scaled[HD * HD];
    uint8_t want[512], got[64];
    int64_t wrong = 0;
    for (int i = 0; i < HD * HD; i++)
        scaled[i] = hr[i] * (gain ? gain[i / HD] * gain[i % HD] : 1);
    double *ur = upper_factor(a, scaled, HD, damp), *uc = upper_factor(a, h, D, damp);
    for (int64_t i = 0; i < nn; i++)
        for (int64_t j = 0; j < nn; j++)
            u[i * nn + j] = ur[i / D * HD + j / D] * uc[i % D * D + j % D];
    plain_gptaq(w + head * nn, u, zero, NULL, nn, 12, 3, want);
    for (int64_t i = 0; i < HD; i++) {
        qmat_get_codes(q, head * HD + i, got);
        for (int64_t j = 0; j < D; j++)
            wrong += want[i * D + j] != got[j];
    }
    return wrong;
}

/* Each row of a head of v by itself, under the head's own H_col. */
static int64_t differ_by_rows(struct arena *a, const float *w, const float *h, double damp, const struct qmat *q, int64_t head)
{
    double *u = upper_factor(a, h, D, damp), *zero = arena_zalloc(a, D * D, sizeof *zero);
    uint8_t want[D], got[64];
    int64_t wrong = 0;
    for (int64_t i = head * HD; i < (head + 1) * HD; i++) {
        plain_gptaq(w + i * D, u, zero, NULL, D, 12, 3, want);
        qmat_get_codes(q, i, got);
        for (int64_t j = 0; j < D; j++)
            wrong += want[j] != got[j];
    }
    return wrong;
}

/* A head of q or k under H_row x H_col is one long row of GPTQ under their Kronecker product: what rows in turn and columns in turn
 * must give. Groups end with rows, so their parameters see the same weights. Codes may differ at ties only: 1 in 500. */
static void boa_case(enum role role, bool with_gain)
{
    const int64_t heads = role == ROLE_Q ? 2 * KV : KV;
    struct arena a;
    struct err e;
    struct factor f;
    struct grid g;
    struct tensor t;
    arena_init(&a);
    struct quant_options o = options("boa", 2, 12);
    float *w = random_matrix(&a, heads * HD, D, 0.2), *h = leaning(&a, 100, D, 0.7f), gain[HD];
    struct boa b = { .d = D, .n_head = 2 * KV, .n_kv = KV, .head_dim = HD };
    b.row_q = arena_alloc(&a, KV * HD * HD, sizeof *b.row_q);
    b.row_k = arena_alloc(&a, KV * HD * HD, sizeof *b.row_k);
    b.col_v = arena_zalloc(&a, KV * D * D, sizeof *b.col_v);
    for (int64_t k = 0; k < KV; k++) {
        memcpy(b.row_q + k * HD * HD, leaning(&a, 40, HD, 0.5f), HD * HD * sizeof(float));
        memcpy(b.row_k + k * HD * HD, leaning(&a, 40, HD, -0.5f), HD * HD * sizeof(float));
        float *col = leaning(&a, 60, D, 0.6f);
        for (int64_t i = 0; i < D * D; i++)
            b.col_v[k * D * D + i] = i % D <= i / D ? col[i] : 0; /* the lower triangle is what boa_add fills */
    }
    for (int i = 0; i < HD; i++)
        gain[i] = 0.25f + (float)i;
    struct layer l = { .q_norm = with_gain ? gain : NULL, .k_norm = with_gain ? gain : NULL };
    assert_int_equal(factor_init(&f, h, D, o.damp, ORDER_NONE, "test", NULL, &e), 0);
    grid_init(&g, GRID_asym, 2, 12, 0, D);
    assert_int_equal(grid_alloc(&g, &a, "test", heads * HD, D, &t, &e), 0);
    struct solve_in in = { .name = "test", .w = w, .n_out = heads * HD, .n_in = D, .h = h, .f = &f, .grid = &g };
    assert_int_equal(boa_solve(&b, role, &l, &in, &o, &t, NULL, &e), 0);
    int64_t wrong = 0;
    for (int64_t head = 0; head < heads; head++) {
        const float *hr = role == ROLE_Q ? b.row_q + head / 2 * HD * HD : b.row_k + head * HD * HD;
        float col[D * D];
        for (int64_t i = 0; role == ROLE_V && i < D * D; i++)
            col[i] = b.col_v[head * D * D + (i % D <= i / D ? i : i % D * D + i / D)];
        wrong += role == ROLE_V ? differ_by_rows(&a, w, col, o.damp, t.q, head)
                                : differ_on_product(&a, w, hr, with_gain ? gain : NULL, h, o.damp, t.q, head);
    }
    if (wrong * 500 > heads * HD * D)
        fail_msg("role %d, gain %d: %lld of %lld codes differ", role, with_gain, (long long)wrong, (long long)(heads * HD * D));
    factor_release(&f);
    arena_release(&a);
}

static void test_boa_is_gptq_on_the_product(void **state)
{
    (void)state;
    boa_case(ROLE_Q, false);
    boa_case(ROLE_K, false);
    boa_case(ROLE_Q, true); /* qwen3's norm of each head comes between */
    boa_case(ROLE_K, true);
    boa_case(ROLE_V, false);
}

/* ---- DSQ ------------------------------------------------------------------------- */

/* x with m x = b, by Gaussian elimination; m (d, d) positive definite, spoilt. */
static void plain_solve(double *m, double *b, int64_t d, double *x)
{
    for (int64_t c = 0; c < d; c++)
        for (int64_t i = c + 1; i < d; i++) {
            double f = m[i * d + c] / m[c * d + c];
            for (int64_t j = c; j < d; j++)
                m[i * d + j] -= f * m[c * d + j];
            b[i] -= f * b[c];
        }
    for (int64_t i = d - 1; i >= 0; i--) {
        x[i] = b[i];
        for (int64_t j = i + 1; j < d; j++)
            x[i] -= m[i * d + j] * x[j];
        x[i] /= m[i * d + i];
    }
}

/* s^c for quantized values v and s^c = 1 before: each column's own least squares, or that under h, damped towards 1 by 1 % of the mean diagonal.
 * of (d): which of the n unknowns is column j's. */
static void plain_scales(struct arena *a, const float *w, const float *v, const float *h, int64_t n_out, int64_t d, bool weighted,
                         const int64_t *of, int64_t n, double *s)
{
    double *m = arena_zalloc(a, (size_t)(n * n), sizeof *m), *b = arena_zalloc(a, (size_t)n, sizeof *b), mean = 0;
    double *x = arena_zalloc(a, (size_t)n, sizeof *x);
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            double vv = 0, wv = 0, hij = weighted ? h[i * d + j] : i == j;
            for (int64_t r = 0; r < n_out; r++) {
                vv += (double)v[r * d + i] * v[r * d + j];
                wv += (double)v[r * d + i] * w[r * d + j];
            }
            m[of[i] * n + of[j]] += hij * vv;
            b[of[i]] += hij * wv;
        }
    for (int64_t i = 0; i < n; i++)
        mean += m[i * n + i] / (double)n;
    for (int64_t i = 0; weighted && i < n; i++) {
        m[i * n + i] += 0.01 * mean;
        b[i] += 0.01 * mean;
    }
    plain_solve(m, b, n, x);
    for (int64_t j = 0; j < d; j++)
        s[j] = x[of[j]];
}

/* One alternation from s^c = 1: GPTQ's codes, and the closed form of those; once with the scales of three heads of twelve inputs tied. */
static void test_dsq_closed_forms(void **state)
{
    (void)state;
    const int64_t d = 72, n_out = 50;
    for (int k = 0; k < 4; k++) {
        int weighted = k & 1, tied = k >> 1;
        struct dsq_tie tie = { 3, 12 };
        int64_t of[72];
        for (int64_t j = 0; j < d; j++)
            of[j] = tied ? j / 36 * 12 + j % 12 : j;
        struct arena a;
        struct err e;
        struct factor f;
        struct grid g;
        struct tensor t, gptq;
        arena_init(&a);
        struct quant_options o = options("d2quant", 2, 24);
        o.dsq_init = DSQ_ONES;
        o.dsq_weighted = weighted;
        o.dsq_rounds = 1;
        o.sweeps = 0;
        /* where inputs lean on each other the plain form may lose, and s^c = 1 is kept */
        float *w = random_matrix(&a, n_out, d, 0.2), *h = leaning(&a, 3 * d, d, weighted ? 0.7f : 0), got[72], v[50 * 72];
        for (int64_t i = 0; i < n_out * d; i++)
            w[i] *= of[i % d] % 5 ? 1 : 4; /* columns of unequal size: what DSQ is for */
        assert_int_equal(factor_init(&f, h, d, o.damp, ORDER_NONE, "test", NULL, &e), 0);
        grid_init(&g, GRID_asym, 2, 24, 0, d);
        assert_int_equal(grid_alloc(&g, &a, "test", n_out, d, &t, &e), 0);
        assert_int_equal(grid_alloc(&g, &a, "test", n_out, d, &gptq, &e), 0);
        struct solve_in in = { .name = "test", .w = w, .n_out = n_out, .n_in = d, .h = h, .f = &f, .grid = &g };
        struct solve_task task = { .in = &in, .t = &t };
        double gain, want[72], moved = 0;
        assert_int_equal(dsq_solve(&task, 1, tied ? &tie : NULL, &o, got, &gain, &e), 0);
        assert_int_equal(solve(&in, &o, &gptq, &e), 0);
        assert_memory_equal(t.q->codes, gptq.q->codes, (size_t)(n_out * t.q->row_words) * sizeof *t.q->codes);
        tensor_to_f32(&gptq, v);
        plain_scales(&a, w, v, h, n_out, d, weighted, of, tied ? d / 3 : d, want);
        for (int64_t j = 0; j < d; j++) {
            if (!(fabs(got[j] - want[j]) <= 1e-3 * want[j]))
                fail_msg("weighted %d, tied %d: s^c of input %lld is %g, expected %g", weighted, tied, (long long)j, got[j], want[j]);
            moved = fmax(moved, fabs(want[j] - 1));
        }
        assert_true(moved > 0.03 && gain < 1);
        factor_release(&f);
        arena_release(&a);
    }
}

/* ---- rotation ---------------------------------------------------------------------- */

/* Q Q^T = I to 1e-12, and where a Hadamard matrix is promised all entries have one magnitude. */
static void test_rotations_are_orthogonal(void **state)
{
    (void)state;
    static const struct {
        int64_t n;
        bool hadamard;
    } cases[] = { { 64, true }, { 576, true }, { 1536, true }, { 896, true }, { 40, true }, { 12, true }, { 36, true }, { 28, true },
                  { 10, false }, { 72, true }, { 7, false }, { 26, false }, { 1, true }, { 2, true } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int64_t n = cases[k].n;
        struct arena a;
        struct rotation r;
        struct err e;
        arena_init(&a);
        assert_int_equal(rotation_init(&r, n, 3, &a, &e), 0);
        double *q = arena_zalloc(&a, (size_t)(n * n), sizeof *q), *scratch = arena_alloc(&a, (size_t)n, sizeof *scratch);
        for (int64_t i = 0; i < n; i++) {
            q[i * n + i] = 1;
            rotation_apply(&r, q + i * n, scratch);
            for (int64_t j = 0; cases[k].hadamard && j < n; j++)
                if (fabs(fabs(q[i * n + j]) - 1 / sqrt((double)n)) > 1e-12)
                    fail_msg("%lld: entry (%lld, %lld) is %g", (long long)n, (long long)i, (long long)j, q[i * n + j]);
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i; j < n; j += 1 + n / 64) {
                double dot = 0;
                for (int64_t c = 0; c < n; c++)
                    dot += q[i * n + c] * q[j * n + c];
                if (fabs(dot - (i == j)) > 1e-12)
                    fail_msg("%lld: rows %lld and %lld: %g", (long long)n, (long long)i, (long long)j, dot);
            }
        arena_release(&a);
    }
}

static void logits_of(struct model *m, const int32_t *ids, int64_t n, float *logits)
{
    struct fwd f;
    struct err e = { 0 };
    float *h = mem_alloc((size_t)(n * m->hp.n_embd), sizeof *h);
    assert_int_equal(fwd_init(&f, &m->hp, n, &e), 0);
    assert_int_equal(fwd_embed(m, ids, n, h, &e), 0);
    for (int64_t i = 0; i < m->hp.n_layer; i++)
        assert_int_equal(fwd_block(m, &m->layers[i], &f, h, n, &e), 0);
    assert_int_equal(fwd_logits(m, h, n, f.x, logits, &e), 0);
    mem_free(h);
    fwd_release(&f);
}

/* All weights of a layer as writable F32. */
static void own_weights(struct model *m, struct layer *l)
{
    for (int r = 0; r < ROLE_COUNT; r++) {
        struct tensor *w = &l->lin[r].w;
        float *p = arena_alloc(&m->arena, (size_t)tensor_count(w), sizeof *p);
        tensor_to_f32(w, p);
        *w = tensor_f32(w->name, p, tensor_rows(w), tensor_cols(w));
    }
}

/* The rotated float model gives the float model's logits, within 1e-5 of their range. */
static void test_rotation_changes_nothing(void **state)
{
    (void)state;
    static const char *const models[] = { "llama", "llama3", "llama_bias", "mistral", "qwen2", "qwen3", "smollm2", "llama.gguf" };
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
        struct model *m = open_model(models[k]);
        struct rotator t;
        struct err e = { 0 };
        int32_t ids[24];
        int64_t n = 24, count = n * m->hp.n_vocab;
        for (int i = 0; i < n; i++)
            ids[i] = (int32_t)((i * 37 + 5) % m->hp.n_vocab);
        float *want = mem_alloc((size_t)count, sizeof *want), *got = mem_alloc((size_t)count, sizeof *got);
        logits_of(m, ids, n, want);
        assert_int_equal(rotator_init(&t, m, DT_F32, 1, &e), 0);
        assert_false(m->hp.tied);
        double changed = 0;
        for (int64_t i = 0; i < m->hp.n_layer; i++) {
            own_weights(m, &m->layers[i]);
            float w0 = *(const float *)m->layers[i].lin[ROLE_DOWN].w.data;
            assert_int_equal(rotator_layer(&t, m, i, &m->layers[i], &m->arena, &e), 0);
            changed += fabs(*(const float *)m->layers[i].lin[ROLE_DOWN].w.data - w0);
        }
        logits_of(m, ids, n, got);
        float lo = want[0], hi = want[0], worst = 0;
        for (int64_t i = 0; i < count; i++) {
            lo = fminf(lo, want[i]);
            hi = fmaxf(hi, want[i]);
            worst = fmaxf(worst, fabsf(want[i] - got[i]));
        }
        assert_true(changed > 0);
        if (!(worst <= 1e-5f * (hi - lo)))
            fail_msg("%s: logits move by %g of %g", models[k], worst, hi - lo);
        mem_free(want);
        mem_free(got);
        rotator_release(&t);
        model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gptaq),
        cmocka_unit_test(test_boa_hessians),
        cmocka_unit_test(test_boa_is_gptq_on_the_product),
        cmocka_unit_test(test_dsq_closed_forms),
        cmocka_unit_test(test_rotations_are_orthogonal),
        cmocka_unit_test(test_rotation_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
