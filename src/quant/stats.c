#include "quant/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/linalg.h"

int stats_init(struct stats *s, int64_t d, enum stats_path path, const struct stats_target *to, enum quant_sinks sinks, struct err *e)
{
    memset(s, 0, sizeof *s);
    arena_init(&s->arena);
    arena_init(&s->path);
    s->d = d;
    s->sinks = sinks;
    if (path == PATH_T)
        s->to = *to;
    s->h = arena_zalloc(&s->arena, (size_t)(d * d), sizeof(float));
    s->dx = path == PATH_D ? arena_zalloc(&s->path, (size_t)(d * d), sizeof(float)) : NULL;
    s->t = path == PATH_T ? arena_zalloc(&s->path, (size_t)(to->n_out * d), sizeof(float)) : NULL;
    s->sum_x = arena_zalloc(&s->arena, (size_t)d, sizeof(double));
    s->sum_diff = arena_zalloc(&s->arena, (size_t)d, sizeof(double));
    if (s->h && s->sum_x && s->sum_diff && (path != PATH_D || s->dx) && (path != PATH_T || s->t))
        return 0;
    stats_release(s);
    return err_nomem(e, "calibration statistics", stats_bytes(d, path, to ? to->n_out : 0));
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
    s->dx = s->t = NULL;
}

uint64_t stats_bytes(int64_t d, enum stats_path path, int64_t n_out)
{
    return (uint64_t)(d * d + (path == PATH_D ? d * d : path == PATH_T ? n_out * d : 0)) * sizeof(float);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* In lanes: one running sum would wait for itself. */
static double square(const float *x, int64_t n)
{
    double sum[8] = { 0 };
    int64_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int k = 0; k < 8; k++)
            sum[k] += (double)x[j + k] * x[j + k];
    for (; j < n; j++)
        sum[0] += (double)x[j] * x[j];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

void sink_weights(enum quant_sinks sinks, const float *x, int64_t n, int64_t d, float *f, float *norms)
{
    for (int64_t t = 0; t < n; t++) {
        f[t] = norms[t] = (float)sqrt(square(x + t * d, d));
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

/* Scratch of one sequence. */
struct scratch {
    float *f, *g, *norms;   /* (n) */
    float *x, *y, *z;       /* (n, d) f x~ and f (x - x~); (n, to.n_out) */
    struct arena arena;
};

/* f: what either path thinks of its tokens; a sink of one is a sink. */
static void weigh(enum quant_sinks sinks, const float *x, int64_t n, int64_t d, struct scratch *k)
{
    sink_weights(sinks, x, n, d, k->g, k->norms);
    for (int64_t t = 0; t < n; t++)
        k->f[t] = k->g[t] < k->f[t] ? k->g[t] : k->f[t];
}

/* T += z^T x, z = alpha y W^T + f beta (r - r~) */
static void add_target(struct stats *s, const float *rq, const float *rf, int64_t n, struct scratch *k)
{
    int64_t d = s->d, m = s->to.n_out;
    la_sgemm(0, 1, n, m, d, (float)s->to.alpha, k->y, d, s->to.w, d, 0, k->z, m);
    if (s->to.beta != 0) {
        weigh(s->sinks, rf, n, m, k);
        for (int64_t t = 0; t < n; t++) {
            float f = k->f[t] * (float)s->to.beta;
            for (int64_t j = 0; j < m; j++)
                k->z[t * m + j] += f * (rf[t * m + j] - rq[t * m + j]);
        }
    }
    la_sgemm(1, 0, m, d, n, 1, k->z, m, k->x, d, 1, s->t, d);
}

static void add_sequence(struct stats *s, const float *xq, const float *xf, const float *rq, const float *rf, int64_t n, struct scratch *k)
{
    int64_t d = s->d;
    sink_weights(s->sinks, xq, n, d, k->f, k->norms);
    if (s->dx || s->t)
        weigh(s->sinks, xf, n, d, k);
    weighted(k->x, xq, NULL, k->f, n, d);
    la_syrk_add(n, d, 1, k->x, d, s->h);
    for (int64_t t = 0; t < n; t++)
        s->weight += (double)k->f[t] * k->f[t];
    s->n += n;
    if (s->dx || s->t)
        weighted(k->y, xf, xq, k->f, n, d);
    if (s->dx) {
        la_sgemm(1, 0, d, d, n, 1, k->y, d, k->x, d, 1, s->dx, d);
        add_sums(s->sum_x, k->x, k->f, n, d);
        add_sums(s->sum_diff, k->y, k->f, n, d);
    }
    if (s->t)
        add_target(s, rq, rf, n, k);
}

int stats_add(struct stats *s, const float *xq, const float *xf, const float *rq, const float *rf,
              int64_t n, struct err *e)
{
    struct scratch k = { 0 };
    int64_t d = s->d, m = s->to.n_out;
    bool path = s->dx || s->t;
    arena_init(&k.arena);
    k.f = arena_alloc(&k.arena, (size_t)n, sizeof *k.f);
    k.g = arena_alloc(&k.arena, (size_t)n, sizeof *k.g);
    k.norms = arena_alloc(&k.arena, (size_t)n, sizeof *k.norms);
    k.x = arena_alloc(&k.arena, (size_t)(n * d), sizeof *k.x);
    k.y = path ? arena_alloc(&k.arena, (size_t)(n * d), sizeof *k.y) : NULL;
    k.z = m ? arena_alloc(&k.arena, (size_t)(n * m), sizeof *k.z) : NULL;
    bool ok = k.f && k.g && k.norms && k.x && (!path || k.y) && (!m || k.z);
    if (ok)
        add_sequence(s, xq, xf, rq, rf, n, &k);
    arena_release(&k.arena);
    return ok ? 0 : err_nomem(e, "calibration statistics", (size_t)(n * (2 * d + m)) * sizeof *k.x);
}

float shrink_growth(double c, int64_t d, int64_t n)
{
    return (float)(1 + c * (double)d / (double)(n ? n : 1));
}

void stats_shrink(struct stats *s, double c)
{
    float grow = shrink_growth(c, s->d, s->n);
    for (int64_t i = 0; i < s->d; i++)
        s->h[i * s->d + i] *= grow;
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
    for (int64_t i = 0; s->t && i < s->to.n_out * d; i++)
        s->t[i] *= scale;
    if (op_find_bad(s->h, d * d) >= 0 || (s->dx && op_find_bad(s->dx, d * d) >= 0) ||
        (s->t && op_find_bad(s->t, s->to.n_out * d) >= 0))
        return err_set(e, ERR_NUMERIC, "%s: NaN or Inf in the statistics of its inputs", name);
    return 0;
}
