/* DSQ, the dual-scale quantizer: W[i,j] ~ s^c[j] * s[i,g] * (Q[i,j] - z[i,g]).
 *
 * Alternates (a) GPTQ on W diag(1/s^c) against diag(s^c) H diag(s^c), whose factor is that of H with its columns
 * divided by s^c, and (b) the closed form for s^c with the quantized matrix V fixed:
 *   plain     s^c[j] = <W[:,j], V[:,j]> / |V[:,j]|^2
 *   weighted  (H o V^T V) s^c = diag(V^T W H)
 * s^c is known up to a constant, so its geometric mean is set to 1 before the next (a). */
#include <math.h>
#include <string.h>

#include "backend/linalg.h"
#include "base/par.h"
#include "quant/correct.h"
#include "tensor/half.h"

#define S_MIN (1.0f / 16)
#define S_MAX 16.0f

static float clip_scale(double s, float old)
{
    if (!(s > 0) || !isfinite(s))
        return old;
    return s < S_MIN ? S_MIN : s > S_MAX ? S_MAX : (float)s;
}

static void normalize(float *s, int64_t d)
{
    double sum = 0;
    for (int64_t j = 0; j < d; j++)
        sum += log(s[j]);
    double f = exp(-sum / (double)d);
    for (int64_t j = 0; j < d; j++)
        s[j] = clip_scale(s[j] * f, s[j]);
}

/* s^c from the power of the activations, rms(x_j)^-0.3: large inputs get the finer grid of W / s^c. */
static void from_activation(const float *h, int64_t d, float *s)
{
    for (int64_t j = 0; j < d; j++) {
        double power = h[j * d + j];
        s[j] = power > 0 ? clip_scale(pow(power, -0.15), 1) : 1;
    }
    double mean = 0;
    for (int64_t j = 0; j < d; j++)
        mean += log(s[j]);
    mean = exp(mean / (double)d);
    for (int64_t j = 0; j < d; j++)
        s[j] = clip_scale(s[j] / mean, 1);
}

/* V (n_out, d) as float32. */
static void unpack(const struct qmat *q, float *v)
{
    struct tensor t = { .name = "v", .type = DT_QMAT, .n_dims = 2, .dim = { q->n_out, q->n_in, 1, 1 }, .q = q };
    tensor_to_f32(&t, v);
}

static void closed_form_plain(const struct solve_in *in, const float *v, float *s)
{
    int64_t d = in->n_in;
    for (int64_t j0 = 0; j0 < d; j0 += 64) {
        int64_t n = d - j0 < 64 ? d - j0 : 64;
        double num[64] = { 0 }, den[64] = { 0 };
        for (int64_t i = 0; i < in->n_out; i++)
            for (int64_t j = 0; j < n; j++) {
                double vij = v[i * d + j0 + j];
                num[j] += in->w[i * d + j0 + j] * vij;
                den[j] += vij * vij;
            }
        for (int64_t j = 0; j < n; j++)
            s[j0 + j] = den[j] > 0 ? clip_scale(num[j] / den[j], s[j0 + j]) : s[j0 + j];
    }
}

/* The system is damped towards the old s by 1 % of its mean diagonal. */
static int closed_form_weighted(const struct solve_in *in, const float *v, float *s, struct err *e)
{
    int64_t d = in->n_in;
    size_t n = (size_t)(d * d);
    float *g = mem_alloc(n, sizeof *g), *wh = mem_alloc((size_t)(in->n_out * d), sizeof *wh);
    double *a = mem_alloc(n, sizeof *a), *b = mem_zalloc((size_t)d, sizeof *b);
    int rc = -1;
    if (!g || !wh || !a || !b) {
        err_nomem(e, "dual scales", n * 12);
        goto out;
    }
    la_sgemm(1, 0, d, d, in->n_out, 1, v, d, v, d, 0, g, d);
    la_sgemm(0, 0, in->n_out, d, d, 1, in->w, d, in->h, d, 0, wh, d);
    for (int64_t i = 0; i < in->n_out; i++)
        for (int64_t j = 0; j < d; j++)
            b[j] += (double)v[i * d + j] * wh[i * d + j];
    double mean = 0;
    for (size_t i = 0; i < n; i++)
        a[i] = (double)in->h[i] * g[i];
    for (int64_t j = 0; j < d; j++)
        mean += a[j * d + j] / (double)d;
    for (int64_t j = 0; j < d; j++) {
        double add = 0.01 * mean + (a[j * d + j] > 0 ? 0 : mean);
        a[j * d + j] += add;
        b[j] += add * s[j];
    }
    struct err why;
    if (la_cholesky(d, a, &why) == 0) {
        la_solve_rows(d, a, 1, b);
        for (int64_t j = 0; j < d; j++)
            s[j] = clip_scale(b[j], s[j]);
    } else {
        closed_form_plain(in, v, s);
    }
    rc = 0;
out:
    mem_free(g);
    mem_free(wh);
    mem_free(a);
    mem_free(b);
    return rc;
}

struct iterate {
    struct qmat q; /* in its own arena */
    struct arena arena;
    double first, err; /* with the s^c it was solved for, and with the closed form after it */
};

static void qmat_copy(struct qmat *dst, const struct qmat *src)
{
    memcpy(dst->codes, src->codes, (size_t)(src->n_out * src->row_words) * sizeof *src->codes);
    memcpy(dst->scale, src->scale, (size_t)(src->n_out * src->n_groups) * sizeof *src->scale);
    memcpy(dst->zero, src->zero, (size_t)(src->n_out * src->n_groups));
}

/* One (a), judged with its s^c and, after (b), with the new one: V fixed, either pair may be the best. */
static int try_scales(struct solve_in *in, const struct quant_options *o, struct qmat *q, float *s_c,
                      float *s, float *v, struct iterate *it, double *best, struct err *e)
{
    in->col_scale = s;
    if (solve(in, o, &it->q, e) ||
        solve_error(in->w, &it->q, s, in->h, in->n_out, in->n_in, &it->first, e))
        return -1;
    if (it->first < *best || *best < 0) {
        *best = it->first;
        qmat_copy(q, &it->q);
        memcpy(s_c, s, (size_t)in->n_in * sizeof *s);
    }
    unpack(&it->q, v);
    if (o->dsq_weighted) {
        if (closed_form_weighted(in, v, s, e))
            return -1;
    } else {
        closed_form_plain(in, v, s);
    }
    if (solve_error(in->w, &it->q, s, in->h, in->n_out, in->n_in, &it->err, e))
        return -1;
    if (it->err < *best) {
        *best = it->err;
        qmat_copy(q, &it->q);
        memcpy(s_c, s, (size_t)in->n_in * sizeof *s);
    }
    return 0;
}

int dsq_solve(struct solve_in *in, const struct quant_options *o, struct qmat *q, float *s_c, double *gain,
              struct err *e)
{
    int64_t d = in->n_in;
    struct iterate it = { .err = 0 };
    double best = -1, plain = 0;
    int rc = -1;
    arena_init(&it.arena);
    float *s = arena_alloc(&it.arena, (size_t)d, sizeof *s);
    float *v = arena_alloc(&it.arena, (size_t)(in->n_out * d), sizeof *v);
    if (!s || !v || qmat_init(&it.q, &it.arena, in->n_out, d, q->bits, q->group, q->sym, e)) {
        err_nomem(e, "dual scales", (size_t)(in->n_out * d) * sizeof *v);
        goto out;
    }
    for (int64_t j = 0; j < d; j++)
        s[j] = 1;
    if (try_scales(in, o, q, s_c, s, v, &it, &best, e))
        goto out;
    plain = it.first;
    if (o->dsq_init == DSQ_ACTIVATION)
        from_activation(in->h, d, s);
    for (int round = o->dsq_init == DSQ_ACTIVATION ? 0 : 1; round < o->dsq_rounds; round++) {
        normalize(s, d);
        if (try_scales(in, o, q, s_c, s, v, &it, &best, e))
            goto out;
    }
    *gain = plain > 0 ? best / plain : 1;
    rc = 0;
out:
    in->col_scale = NULL;
    arena_release(&it.arena);
    return rc;
}

int dsq_absorb(struct qmat *up, float *bias, const float *s_c, const char *name, struct err *e)
{
    for (int64_t j = 0; j < up->n_out; j++) {
        for (int64_t g = 0; g < up->n_groups; g++) {
            uint16_t *p = &up->scale[j * up->n_groups + g];
            float s = half_to_f32(*p) * s_c[j];
            if (!(s <= 65504.0f))
                return err_set(e, ERR_NUMERIC, "%s: row %lld: merged scale %g leaves the range of fp16", name,
                               (long long)j, (double)s);
            *p = half_from_f32(s);
        }
        if (bias)
            bias[j] *= s_c[j];
    }
    return 0;
}
