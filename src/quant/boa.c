#include "quant/boa.h"

#include <math.h>
#include <string.h>

#include "backend/linalg.h"
#include "base/par.h"
#include "quant/stats.h"

int boa_init(struct boa *b, const struct hparams *hp, struct err *e)
{
    memset(b, 0, sizeof *b);
    arena_init(&b->arena);
    b->d = hp->n_embd;
    b->n_head = hp->n_head;
    b->n_kv = hp->n_head_kv;
    b->head_dim = hp->head_dim;
    size_t hh = (size_t)(b->head_dim * b->head_dim);
    b->row_q = arena_zalloc(&b->arena, (size_t)b->n_kv * hh, sizeof *b->row_q);
    b->row_k = arena_zalloc(&b->arena, (size_t)b->n_kv * hh, sizeof *b->row_k);
    b->col_v = arena_zalloc(&b->arena, (size_t)(b->n_kv * b->d * b->d), sizeof *b->col_v);
    b->turn = arena_alloc(&b->arena, hh, sizeof *b->turn);
    if (b->row_q && b->row_k && b->col_v && b->turn)
        return 0;
    boa_release(b);
    return err_nomem(e, "attention-aware Hessians", (size_t)(b->n_kv * b->d * b->d) * sizeof *b->col_v);
}

void boa_release(struct boa *b)
{
    arena_release(&b->arena);
    memset(b, 0, sizeof *b);
}

/* ---- H_row ------------------------------------------------------------------- */

/* Means over positions t < n, of pairs of planes (i, j) with angles w_i t, w_j t: cos and sin of the difference
 * (w_j - w_i) t and of the sum. */
static void mean_turns(struct boa *b, const float *inv_freq, int64_t n)
{
    int64_t half = b->head_dim / 2;
    double *at = b->turn;
    if (b->n_turn == n)
        return;
    b->n_turn = n;
    for (int sum = 0; sum < 2; sum++)
        for (int64_t i = 0; i < half; i++)
            for (int64_t j = 0; j < half; j++) {
                double w = sum ? (double)inv_freq[j] + inv_freq[i] : (double)inv_freq[j] - inv_freq[i], c = 0, s = 0;
                for (int64_t t = 0; t < n; t++) {
                    c += cos(w * (double)t);
                    s += sin(w * (double)t);
                }
                at[(2 * sum * half + i) * half + j] = c / (double)n;
                at[((2 * sum + 1) * half + i) * half + j] = s / (double)n;
            }
}

/* h += mean over t of R_t^T c R_t. A 2 x 2 block of c between planes i and j is alpha I + beta J, which turns by the difference of
 * their angles, plus gamma K + delta L (mirrors), which turns by the sum. */
static void add_turned(const struct boa *b, const float *c, float *h)
{
    int64_t d = b->head_dim, half = d / 2, hh = half * half;
    for (int64_t i = 0; i < half; i++)
        for (int64_t j = 0; j < half; j++) {
            const double *at = b->turn + i * half + j;
            double p = c[i * d + j], q = c[i * d + half + j], r = c[(half + i) * d + j], u = c[(half + i) * d + half + j];
            double al = (p + u) / 2, be = (r - q) / 2, ga = (p - u) / 2, de = (q + r) / 2;
            double al2 = al * at[0] - be * at[hh], be2 = al * at[hh] + be * at[0];
            double ga2 = ga * at[2 * hh] + de * at[3 * hh], de2 = de * at[2 * hh] - ga * at[3 * hh];
            h[i * d + j] += (float)(al2 + ga2);
            h[i * d + half + j] += (float)(de2 - be2);
            h[(half + i) * d + j] += (float)(de2 + be2);
            h[(half + i) * d + half + j] += (float)(al2 - ga2);
        }
}

/* c (head_dim, head_dim) = sum over `heads` heads from the first of their x^T x; x (n, ld). */
static void covariance(const float *x, int64_t ld, int64_t first, int64_t heads, int64_t n, int64_t head_dim, float *c)
{
    for (int64_t i = 0; i < heads; i++) {
        const float *at = x + (first + i) * head_dim;
        la_sgemm(1, 0, head_dim, head_dim, n, 1, at, ld, at, ld, i > 0, c, head_dim);
    }
}

/* ---- H_col of v ---------------------------------------------------------------- */

#define CHUNK 256 /* query positions at a time */

/* Rows of p (n, n_key): softmax over the keys that query t0 + i may see. */
static void causal_softmax(float *p, int64_t n, int64_t n_key, int64_t t0, int64_t window)
{
    for (int64_t i = 0; i < n; i++) {
        float *row = p + i * n_key, top = -INFINITY;
        int64_t last = t0 + i, begin = window > 0 && last >= window ? last - window + 1 : 0;
        double sum = 0;
        for (int64_t j = begin; j <= last; j++)
            top = row[j] > top ? row[j] : top;
        for (int64_t j = 0; j < n_key; j++) {
            row[j] = j < begin || j > last ? 0 : expf(row[j] - top);
            sum += row[j];
        }
        for (int64_t j = begin; j <= last; j++)
            row[j] /= (float)sum;
    }
}

/* col += (A X)^T (A X) of one query head (lower triangle). */
static int add_values(struct boa *b, const float *q, const float *k, const float *x, int64_t n, int64_t window, float *col,
                      struct err *e)
{
    int64_t ldq = b->n_head * b->head_dim, ldk = b->n_kv * b->head_dim;
    float *p = mem_alloc((size_t)(CHUNK * n), sizeof *p), *y = mem_alloc((size_t)(CHUNK * b->d), sizeof *y);
    int rc = p && y ? 0 : err_nomem(e, "attention-aware Hessians", (size_t)(CHUNK * (n + b->d)) * sizeof *p);
    for (int64_t t = 0; !rc && t < n; t += CHUNK) {
        int64_t rows = n - t < CHUNK ? n - t : CHUNK, keys = t + rows;
        la_sgemm(0, 1, rows, keys, b->head_dim, 1 / sqrtf((float)b->head_dim), q + t * ldq, ldq, k, ldk, 0, p, keys);
        causal_softmax(p, rows, keys, t, window);
        la_sgemm(0, 0, rows, b->d, keys, 1, p, keys, x, b->d, 0, y, b->d);
        la_syrk_add(rows, b->d, 1, y, b->d, col);
    }
    mem_free(p);
    mem_free(y);
    return rc;
}

int boa_add(struct boa *b, const struct model *m, const struct layer *l, struct fwd *f, const float *x, int64_t n,
            struct err *e)
{
    int64_t d = b->head_dim, per = b->n_head / b->n_kv;
    float *c = mem_alloc((size_t)(d * d), sizeof *c);
    if (!c)
        return err_nomem(e, "attention-aware Hessians", (size_t)(d * d) * sizeof *c);
    mean_turns(b, m->inv_freq, n);
    b->n += n;
    int rc = fwd_qkv(m, l, x, n, f->pos, f->q, f->k, f->v, e);
    for (int64_t g = 0; !rc && g < b->n_kv; g++) {
        covariance(f->k, b->n_kv * d, g, 1, n, d, c);
        add_turned(b, c, b->row_q + g * d * d);
        covariance(f->q, b->n_head * d, g * per, per, n, d, c);
        add_turned(b, c, b->row_k + g * d * d);
        for (int64_t i = 0; !rc && i < per; i++)
            rc = add_values(b, f->q + (g * per + i) * d, f->k + g * d, x, n, m->hp.window, b->col_v + g * b->d * b->d, e);
    }
    mem_free(c);
    return rc;
}

/* ---- rounding ------------------------------------------------------------------ */

/* Row `from` of src becomes row `to` of dst; both of one grid. */
static void copy_row(const struct tensor *src, int64_t from, struct tensor *dst, int64_t to)
{
    if (src->type != DT_QMAT) {
        size_t bytes = src->size / (size_t)src->dim[0];
        memcpy((uint8_t *)(uintptr_t)dst->data + (size_t)to * bytes, (const uint8_t *)src->data + (size_t)from * bytes, bytes);
        return;
    }
    const struct qmat *s = src->q, *d = dst->q;
    memcpy(d->codes + to * d->row_words, s->codes + from * s->row_words, (size_t)d->row_words * sizeof *d->codes);
    memcpy(d->scale + to * d->n_groups, s->scale + from * s->n_groups, (size_t)d->n_groups * sizeof *d->scale);
    memcpy(d->zero + to * d->n_groups, s->zero + from * s->n_groups, (size_t)d->n_groups);
}

/* Factors of the n_kv row Hessians, times the gain of the norm that follows (NULL: none). */
static int row_factors(const struct boa *b, const float *h, const float *gain, double damp, struct factor *f, const char *name,
                       const struct log *log, struct err *e)
{
    int64_t d = b->head_dim;
    float *s = mem_alloc((size_t)(d * d), sizeof *s);
    int rc = s ? 0 : err_nomem(e, name, (size_t)(d * d) * sizeof *s);
    for (int64_t g = 0; !rc && g < b->n_kv; g++) {
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++)
                s[i * d + j] = (h[(g * d + i) * d + j] + h[(g * d + j) * d + i]) / 2 * (gain ? gain[i] * gain[j] : 1);
        rc = factor_init(f + g, s, d, damp, ORDER_NONE, name, log, e);
    }
    mem_free(s);
    return rc;
}

/* Row i of every head at once, for i in turn; target (heads * head_dim, n_in) is spoilt. */
static int solve_rows(const struct boa *b, const struct factor *rows, int64_t heads, const struct solve_in *in, float *target,
                      const struct quant_options *o, struct tensor *t, struct err *e)
{
    int64_t hd = b->head_dim, d = in->n_in;
    struct arena a;
    struct tensor one;
    struct solve_in part = *in;
    arena_init(&a);
    float *w = arena_alloc(&a, (size_t)(heads * d), sizeof *w), *v = arena_alloc(&a, (size_t)d, sizeof *v);
    int rc = w && v ? grid_alloc(in->grid, &a, in->name, heads, d, &one, e)
                    : err_nomem(e, in->name, (size_t)((heads + 1) * d) * sizeof *w);
    part.w = w;
    part.n_out = heads;
    for (int64_t i = 0; !rc && i < hd; i++) {
        for (int64_t h = 0; h < heads; h++)
            memcpy(w + h * d, target + (h * hd + i) * d, (size_t)d * sizeof *w);
        rc = solve(&part, o, &one, e);
        for (int64_t h = 0; !rc && h < heads; h++) {
            const float *u = rows[h / (heads / b->n_kv)].u + i * hd;
            copy_row(&one, h, t, h * hd + i);
            tensor_rows_f32(&one, h, 1, v);
            for (int64_t j = 0; j < d; j++)
                v[j] = (w[h * d + j] - v[j]) / u[i];
            for (int64_t k = i + 1; k < hd; k++)
                for (int64_t j = 0; j < d; j++)
                    target[(h * hd + k) * d + j] -= u[k] * v[j];
        }
    }
    arena_release(&a);
    return rc;
}

/* Each head of v under its own H_col. */
static int solve_values(const struct boa *b, const struct solve_in *in, const struct quant_options *o, struct tensor *t,
                        const struct log *log, struct err *e)
{
    int64_t hd = b->head_dim, d = b->d;
    struct arena a;
    struct tensor one;
    struct solve_in part = *in;
    struct factor f = { 0 };
    arena_init(&a);
    float *h = arena_alloc(&a, (size_t)(d * d), sizeof *h);
    int rc = h ? grid_alloc(in->grid, &a, in->name, hd, d, &one, e) : err_nomem(e, in->name, (size_t)(d * d) * sizeof *h);
    for (int64_t g = 0; !rc && g < b->n_kv; g++) {
        memcpy(h, b->col_v + g * d * d, (size_t)(d * d) * sizeof *h);
        la_symmetrize(d, h);
        for (int64_t i = 0; i < d; i++)
            h[i * d + i] *= shrink_growth(o->shrink, d, b->n); /* as stats_shrink does */
        rc = factor_init(&f, h, d, o->damp, o->order, in->name, log, e);
        part.w = in->w + g * hd * d;
        part.n_out = hd;
        part.h = h;
        part.f = &f;
        rc = rc || solve(&part, o, &one, e) ? -1 : 0;
        for (int64_t i = 0; !rc && i < hd; i++)
            copy_row(&one, i, t, g * hd + i);
        factor_release(&f);
    }
    arena_release(&a);
    return rc;
}

int boa_solve(const struct boa *b, enum role role, const struct layer *l, const struct solve_in *in,
              const struct quant_options *o, struct tensor *t, const struct log *log, struct err *e)
{
    if (role == ROLE_V)
        return solve_values(b, in, o, t, log, e);
    int64_t heads = role == ROLE_Q ? b->n_head : b->n_kv;
    struct factor *rows = mem_zalloc((size_t)b->n_kv, sizeof *rows);
    float *target = mem_alloc((size_t)(in->n_out * in->n_in), sizeof *target);
    int rc = rows && target ? 0 : err_nomem(e, in->name, (size_t)(in->n_out * in->n_in) * sizeof *target);
    if (!rc) {
        memcpy(target, in->w, (size_t)(in->n_out * in->n_in) * sizeof *target);
        rc = row_factors(b, role == ROLE_Q ? b->row_q : b->row_k, role == ROLE_Q ? l->q_norm : l->k_norm, o->damp, rows,
                         in->name, log, e) ||
             solve_rows(b, rows, heads, in, target, o, t, e) ? -1 : 0;
    }
    for (int64_t g = 0; rows && g < b->n_kv; g++)
        factor_release(rows + g);
    mem_free(rows);
    mem_free(target);
    return rc;
}
