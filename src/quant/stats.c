#include "quant/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/linalg.h"

int stats_init(struct stats *s, int64_t d, int64_t n_res, bool with_diff, enum quant_sinks sinks, struct err *e)
{
    memset(s, 0, sizeof *s);
    arena_init(&s->arena);
    arena_init(&s->path);
    s->d = d;
    s->n_res = with_diff ? n_res : 0;
    s->sinks = sinks;
    s->h = arena_zalloc(&s->arena, (size_t)(d * d), sizeof(float));
    s->dx = with_diff ? arena_zalloc(&s->path, (size_t)(d * d), sizeof(float)) : NULL;
    s->r = s->n_res ? arena_zalloc(&s->path, (size_t)(n_res * d), sizeof(float)) : NULL;
    s->sum_x = arena_zalloc(&s->arena, (size_t)d, sizeof(double));
    s->sum_diff = arena_zalloc(&s->arena, (size_t)d, sizeof(double));
    if (s->h && s->sum_x && s->sum_diff && (!with_diff || s->dx) && (!s->n_res || s->r))
        return 0;
    stats_release(s);
    return err_nomem(e, "calibration statistics", stats_bytes(d, n_res, with_diff));
}

void stats_release(struct stats *s)
{
    arena_release(&s->arena);
    arena_release(&s->path);
    memset(s, 0, sizeof *s);
}

void stats_drop_path(struct stats *s)
{
    arena_release(&s->path);
    s->dx = s->r = NULL;
}

uint64_t stats_bytes(int64_t d, int64_t n_res, bool with_diff)
{
    return (uint64_t)(d * d * (with_diff ? 2 : 1) + (with_diff ? n_res * d : 0)) * sizeof(float);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void sink_weights(enum quant_sinks sinks, const float *x, int64_t n, int64_t d, float *f, float *norms)
{
    for (int64_t t = 0; t < n; t++) {
        double sum = 0;
        for (int64_t j = 0; j < d; j++)
            sum += (double)x[t * d + j] * x[t * d + j];
        f[t] = norms[t] = (float)sqrt(sum);
    }
    qsort(norms, (size_t)n, sizeof *norms, by_value);
    float limit = SINK_RATIO * norms[n / 2];
    for (int64_t t = 0; t < n; t++)
        f[t] = sinks == SINKS_KEEP || f[t] <= limit ? 1.0f : sinks == SINKS_SKIP ? 0.0f : limit / f[t];
}

/* dst (n, d) = f * (a - b), or f * a */
static void weighted(float *dst, const float *a, const float *b, const float *f, int64_t n, int64_t d)
{
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < d; j++) {
            float v = b ? a[t * d + j] - b[t * d + j] : a[t * d + j];
            dst[t * d + j] = f[t] * v;
        }
}

static void add_sums(double *sum, const float *x, const float *f, int64_t n, int64_t d)
{
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < d; j++)
            sum[j] += (double)f[t] * x[t * d + j];
}

int stats_add(struct stats *s, const float *xq, const float *xf, const float *rq, const float *rf,
              int64_t n, struct err *e)
{
    int64_t d = s->d, wide = s->n_res > d ? s->n_res : d;
    struct arena a;
    arena_init(&a);
    float *f = arena_alloc(&a, (size_t)n, sizeof *f), *g = arena_alloc(&a, (size_t)n, sizeof *g);
    float *norms = arena_alloc(&a, (size_t)n, sizeof *norms);
    float *x = arena_alloc(&a, (size_t)(n * d), sizeof *x);
    float *y = s->dx ? arena_alloc(&a, (size_t)(n * wide), sizeof *y) : NULL;
    if (!f || !g || !norms || !x || (s->dx && !y)) {
        arena_release(&a);
        return err_nomem(e, "calibration statistics", (size_t)(n * (d + wide)) * sizeof *x);
    }
    sink_weights(s->sinks, xq, n, d, f, norms);
    if (s->dx) { /* a sink of either path, or of the residual stream, is a sink */
        sink_weights(s->sinks, xf, n, d, g, norms);
        for (int64_t t = 0; t < n; t++)
            f[t] = g[t] < f[t] ? g[t] : f[t];
    }
    weighted(x, xq, NULL, f, n, d);
    la_syrk_add(n, d, 1, x, d, s->h);
    add_sums(s->sum_x, x, f, n, d);
    for (int64_t t = 0; t < n; t++)
        s->weight += (double)f[t] * f[t];
    s->n += n;
    if (s->dx) {
        weighted(y, xf, xq, f, n, d);
        la_sgemm(1, 0, d, d, n, 1, y, d, x, d, 1, s->dx, d);
        add_sums(s->sum_diff, y, f, n, d);
    }
    if (s->r) {
        sink_weights(s->sinks, rf, n, s->n_res, g, norms);
        for (int64_t t = 0; t < n; t++)
            f[t] = g[t] < f[t] ? g[t] : f[t];
        weighted(y, rf, rq, f, n, s->n_res);
        la_sgemm(1, 0, s->n_res, d, n, 1, y, s->n_res, x, d, 1, s->r, d);
    }
    arena_release(&a);
    return 0;
}

void stats_shift(struct stats *s, const float *mu)
{
    int64_t d = s->d;
    /* sum (x~+mu)(x~+mu)^T, lower triangle; sum (x-x~-mu)(x~+mu)^T */
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            if (j <= i)
                s->h[i * d + j] += (float)(s->sum_x[i] * mu[j] + mu[i] * s->sum_x[j] +
                                           s->weight * mu[i] * mu[j]);
            if (s->dx)
                s->dx[i * d + j] += (float)(s->sum_diff[i] * mu[j] - mu[i] * s->sum_x[j] -
                                            s->weight * mu[i] * mu[j]);
        }
    for (int64_t i = 0; i < d; i++) {
        s->sum_x[i] += s->weight * mu[i];
        s->sum_diff[i] -= s->weight * mu[i];
    }
}

int stats_finish(struct stats *s, const char *name, struct err *e)
{
    int64_t d = s->d;
    float scale = (float)(2.0 / (double)(s->n ? s->n : 1));
    la_symmetrize(d, s->h);
    for (int64_t i = 0; i < d * d; i++)
        s->h[i] *= scale;
    for (int64_t i = 0; s->dx && i < d * d; i++)
        s->dx[i] *= scale;
    for (int64_t i = 0; s->r && i < s->n_res * d; i++)
        s->r[i] *= scale;
    if (op_find_bad(s->h, d * d) >= 0 || (s->dx && op_find_bad(s->dx, d * d) >= 0) ||
        (s->r && op_find_bad(s->r, s->n_res * d) >= 0))
        return err_set(e, ERR_NUMERIC, "%s: NaN or Inf in the statistics of its inputs", name);
    return 0;
}
