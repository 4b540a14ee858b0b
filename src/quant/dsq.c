/* DSQ, the dual-scale quantizer: W[i,j] ~ s^c[j] * s[i,g] * (Q[i,j] - z[i,g]), for one matrix or for several that see the same inputs and
 * share s^c: their rows then count as those of one.
 *
 * Alternates (a) GPTQ on W diag(1/s^c) against diag(s^c) H diag(s^c), whose factor is that of H with its columns
 * divided by s^c, and (b) the closed form for s^c with the quantized matrix V fixed:
 *   plain     s^c[j] = <W[:,j], V[:,j]> / |V[:,j]|^2
 *   weighted  (H o V^T V) s^c = diag(V^T W H)
 * s^c is known up to a constant, so its geometric mean is set to 1 before the next (a). Inputs that share a scale (struct dsq_tie) have
 * the sums of (b) over all of them. */
#include <math.h>
#include <string.h>

#include "backend/linalg.h"
#include "base/num.h"
#include "base/par.h"
#include "quant/correct.h"
#include "tensor/half.h"
#include "tensor/pack.h"

#define S_MIN (1.0f / 16)
#define S_MAX 16.0f

static float clip_scale(double s, float old)
{
    if (!(s > 0) || !isfinite(s))
        return old;
    return s < S_MIN ? S_MIN : s > S_MAX ? S_MAX : (float)s;
}

/* Where input j of a matrix stands among the scales: heads that share one of v lie side by side. */
static int64_t slot(const struct dsq_tie *tie, int64_t j)
{
    return j / tie->head_dim / tie->heads * tie->head_dim + j % tie->head_dim;
}

/* Sums over the inputs that share a scale, in place: x (d) to (d / heads), slot(j) <= j. */
static void fold(const struct dsq_tie *tie, int64_t d, double *x)
{
    for (int64_t j = 0; j < d; j++) {
        double v = x[j];
        x[slot(tie, j)] = v + (j / tie->head_dim % tie->heads ? x[slot(tie, j)] : 0);
    }
}

/* The same of rows and columns of a (d, d), which becomes (d / heads, d / heads). */
static void fold_matrix(const struct dsq_tie *tie, int64_t d, float *a)
{
    int64_t m = d / tie->heads;
    for (int64_t i = 0; i < d && tie->heads > 1; i++)
        for (int64_t j = 0; j < d; j++) {
            bool first = i / tie->head_dim % tie->heads == 0 && j / tie->head_dim % tie->heads == 0;
            float v = a[i * d + j], *to = a + slot(tie, i) * m + slot(tie, j);
            *to = first ? v : *to + v;
        }
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

/* The matrices, and one iterate of them. */
struct alternation {
    int n;
    int64_t d, rows;
    struct dsq_tie tie;
    struct solve_in in[SOLVE_MOST];    /* with col_scale = s */
    struct solve_task task[SOLVE_MOST]; /* in and t */
    struct tensor t[SOLVE_MOST];
    float *s, *v;                      /* (d); (rows, d) the values of t */
    double *num, *den;                 /* (d) scratch */
    struct arena arena;
};

/* s^c from the power of the activations, rms(x_j)^-0.3: large inputs get the finer grid of W / s^c. */
static void from_activation(struct alternation *a)
{
    int64_t d = a->d;
    for (int64_t j = 0; j < d; j++)
        a->num[j] = a->in->h[j * d + j];
    fold(&a->tie, d, a->num);
    for (int64_t j = 0; j < d; j++) {
        double power = a->num[slot(&a->tie, j)];
        a->s[j] = power > 0 ? clip_scale(pow(power, -0.15), 1) : 1;
    }
    double mean = 0;
    for (int64_t j = 0; j < d; j++)
        mean += log(a->s[j]);
    mean = exp(mean / (double)d);
    for (int64_t j = 0; j < d; j++)
        a->s[j] = clip_scale(a->s[j] / mean, 1);
}

static void closed_form_plain(struct alternation *a)
{
    for (int64_t j0 = 0; j0 < a->d; j0 += 64) {
        int64_t n = a->d - j0 < 64 ? a->d - j0 : 64;
        double num[64] = { 0 }, den[64] = { 0 };
        const float *v = a->v + j0;
        for (int k = 0; k < a->n; k++)
            for (int64_t i = 0; i < a->in[k].n_out; i++, v += a->d)
                for (int64_t j = 0; j < n; j++) {
                    double vij = v[j];
                    num[j] += a->in[k].w[i * a->d + j0 + j] * vij;
                    den[j] += vij * vij;
                }
        memcpy(a->num + j0, num, (size_t)n * sizeof *num);
        memcpy(a->den + j0, den, (size_t)n * sizeof *den);
    }
    fold(&a->tie, a->d, a->num);
    fold(&a->tie, a->d, a->den);
    for (int64_t j = 0; j < a->d; j++) {
        int64_t k = slot(&a->tie, j);
        a->s[j] = a->den[k] > 0 ? clip_scale(a->num[k] / a->den[k], a->s[j]) : a->s[j];
    }
}

/* y = a x, a (d, d) symmetric: rows in items. */
struct matvec {
    const float *a;
    const double *x;
    double *y;
    int64_t d;
};

#define ROWS 64

static void matvec_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct matvec *m = ctx;
    int64_t end = ((int64_t)item + 1) * ROWS < m->d ? ((int64_t)item + 1) * ROWS : m->d;
    for (int64_t i = (int64_t)item * ROWS; i < end; i++) {
        const float *a = m->a + i * m->d;
        double sum[4] = { 0 };
        int64_t j = 0;
        for (; j + 4 <= m->d; j += 4)
            for (int k = 0; k < 4; k++)
                sum[k] += a[j + k] * m->x[j + k];
        for (; j < m->d; j++)
            sum[0] += a[j] * m->x[j];
        m->y[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

static void matvec(const float *a, int64_t d, const double *x, double *y)
{
    struct matvec m = { a, x, y, d };
    par_for((size_t)ceil_div(d, ROWS), matvec_item, &m);
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

#define STEPS 200
#define SMALL 1e-10 /* of the first residual's square */

/* (A + diag(add)) x = b by conjugate gradients, preconditioned by the diagonal, from the x given; work (4, d). Far cheaper than a
 * factorization where d is wide, and the answer need not be exact: the error of what comes out is computed. */
static void solve_system(const float *a, const double *add, const double *b, int64_t d, double *x, double *work)
{
    double *r = work, *p = work + d, *ap = work + 2 * d, *z = work + 3 * d, rz = 0, first = 0;
    matvec(a, d, x, ap);
    for (int64_t j = 0; j < d; j++) {
        r[j] = b[j] - ap[j] - add[j] * x[j];
        p[j] = z[j] = r[j] / (a[j * d + j] + add[j]);
    }
    rz = first = dot(r, z, d);
    for (int step = 0; step < STEPS && rz > SMALL * first && rz > 0; step++) {
        matvec(a, d, p, ap);
        for (int64_t j = 0; j < d; j++)
            ap[j] += add[j] * p[j];
        double curve = dot(p, ap, d), alpha = rz / curve, before = rz;
        if (!(curve > 0))
            return;
        for (int64_t j = 0; j < d; j++) {
            x[j] += alpha * p[j];
            r[j] -= alpha * ap[j];
            z[j] = r[j] / (a[j * d + j] + add[j]);
        }
        rz = dot(r, z, d);
        for (int64_t j = 0; j < d; j++)
            p[j] = z[j] + rz / before * p[j];
    }
}

/* tr(E H E^T) of W - V diag(s) is |W|^2 - 2 b.s + s.A s with A = H o V^T V, b = diag(V^T W H), |W|^2 = tr(W H W^T): the system's own
 * quadratic form. *change: its value at the new s minus that at the old one. The system is damped towards the old s by 1 % of
 * its mean diagonal. */
static int closed_form_weighted(struct alternation *alt, double *change, struct err *e)
{
    int64_t d = alt->d, m = d / alt->tie.heads, most = 0;
    const float *h = alt->in[0].h, *v = alt->v;
    float *s = alt->s;
    for (int k = 0; k < alt->n; k++)
        most = alt->in[k].n_out > most ? alt->in[k].n_out : most;
    float *a = mem_zalloc((size_t)(d * d), sizeof *a), *wh = mem_alloc((size_t)(most * d), sizeof *wh);
    double *vec = mem_zalloc((size_t)(8 * d), sizeof *vec), mean = 0;
    if (!a || !wh || !vec) {
        mem_free(a);
        mem_free(wh);
        mem_free(vec);
        return err_nomem(e, "dual scales", (size_t)(d * d) * sizeof *a);
    }
    double *b = vec, *add = vec + d, *x = vec + 2 * d, *old = vec + 3 * d;
    la_syrk_add(alt->rows, d, 1, v, d, a);
    la_symmetrize(d, a);
    for (int k = 0; k < alt->n; k++) {
        la_sgemm(0, 0, alt->in[k].n_out, d, d, 1, alt->in[k].w, d, h, d, 0, wh, d);
        for (int64_t i = 0; i < alt->in[k].n_out; i++, v += d)
            for (int64_t j = 0; j < d; j++)
                b[j] += (double)v[j] * wh[i * d + j];
    }
    for (int64_t i = 0; i < d * d; i++)
        a[i] *= h[i];
    fold_matrix(&alt->tie, d, a);
    fold(&alt->tie, d, b);
    for (int64_t j = 0; j < d; j++)
        x[slot(&alt->tie, j)] = s[j];
    for (int64_t j = 0; j < m; j++)
        mean += a[j * m + j] / (double)m;
    for (int64_t j = 0; j < m; j++) {
        add[j] = 0.01 * mean + (a[j * m + j] > 0 ? 0 : mean);
        b[j] += add[j] * x[j];
        old[j] = x[j];
    }
    solve_system(a, add, b, m, x, vec + 4 * d);
    /* q(new) - q(old) = delta . (A (new + old) - 2 b), b as it was */
    double *delta = vec + 4 * d, *both = vec + 5 * d, *ab = vec + 6 * d;
    for (int64_t j = 0; j < m; j++) {
        float to = clip_scale(x[j], (float)old[j]);
        b[j] -= add[j] * old[j];
        x[j] = to;
        delta[j] = to - old[j];
        both[j] = to + old[j];
    }
    matvec(a, m, both, ab);
    *change = dot(delta, ab, m) - 2 * dot(delta, b, m);
    for (int64_t j = 0; j < d; j++)
        s[j] = (float)x[slot(&alt->tie, j)];
    mem_free(a);
    mem_free(wh);
    mem_free(vec);
    return 0;
}

/* Both made by grid_alloc for one grid. */
static void copy_data(struct tensor *dst, const struct tensor *src)
{
    if (src->type != DT_QMAT) {
        memcpy((void *)(uintptr_t)dst->data, src->data, src->size);
        return;
    }
    const struct qmat *q = src->q;
    memcpy(dst->q->codes, q->codes, (size_t)(q->n_out * q->row_words) * sizeof *q->codes);
    memcpy(dst->q->scale, q->scale, (size_t)(q->n_out * q->n_groups) * sizeof *q->scale);
    memcpy(dst->q->zero, q->zero, (size_t)(q->n_out * q->n_groups));
}

/* What is kept if its error is the least so far. */
struct kept {
    const struct solve_task *task; /* t of each */
    float *s_c;
    double error; /* of all; below 0: nothing yet */
};

static void keep_better(const struct alternation *a, double error, struct kept *k)
{
    if (!(error < k->error || k->error < 0))
        return;
    k->error = error;
    for (int i = 0; i < a->n; i++)
        copy_data(k->task[i].t, &a->t[i]);
    memcpy(k->s_c, a->s, (size_t)a->d * sizeof *a->s);
}

/* One (a), judged with its s^c (*first) and, after (b), with the new one: V fixed, either pair may be the best. */
static int try_scales(struct alternation *a, const struct quant_options *o, double *first, struct kept *k, struct err *e)
{
    double error = 0, change = 0;
    if (solve_tasks(a->task, a->n, true, o, e))
        return -1;
    for (int i = 0; i < a->n; i++)
        error += a->task[i].error;
    *first = error;
    keep_better(a, error, k);
    float *v = a->v;
    for (int i = 0; i < a->n; v += a->in[i++].n_out * a->d)
        tensor_to_f32(&a->t[i], v);
    if (o->dsq_weighted) {
        if (closed_form_weighted(a, &change, e))
            return -1;
        error += change;
    } else {
        closed_form_plain(a);
        error = 0;
        for (int i = 0; i < a->n; i++) {
            double part;
            if (solve_error(a->in[i].w, &a->t[i], a->s, a->in[i].h, a->in[i].n_out, a->d, &part, e))
                return -1;
            error += part;
        }
    }
    keep_better(a, error, k);
    return 0;
}

static int alternation_init(struct alternation *a, const struct solve_task *task, int n, const struct dsq_tie *tie, struct err *e)
{
    a->n = n;
    a->d = task->in->n_in;
    a->tie = tie ? *tie : (struct dsq_tie){ 1, a->d };
    a->num = arena_alloc(&a->arena, (size_t)a->d, sizeof *a->num);
    a->den = arena_alloc(&a->arena, (size_t)a->d, sizeof *a->den);
    a->s = arena_alloc(&a->arena, (size_t)a->d, sizeof *a->s);
    for (int i = 0; i < n; i++)
        a->rows += task[i].in->n_out;
    a->v = arena_alloc(&a->arena, (size_t)(a->rows * a->d), sizeof *a->v);
    if (!a->num || !a->den || !a->s || !a->v)
        return err_nomem(e, "dual scales", (size_t)(a->rows * a->d) * sizeof *a->v);
    for (int i = 0; i < n; i++) {
        a->in[i] = *task[i].in;
        a->in[i].col_scale = a->s;
        a->task[i] = (struct solve_task){ .in = &a->in[i], .t = &a->t[i] };
        if (grid_alloc(a->in[i].grid, &a->arena, a->in[i].name, a->in[i].n_out, a->d, &a->t[i], e))
            return -1;
    }
    for (int64_t j = 0; j < a->d; j++)
        a->s[j] = 1;
    return 0;
}

/* Of each task; the sum of all is known. */
static int task_errors(struct solve_task *task, int n, double sum, const float *s_c, struct err *e)
{
    task->error = sum;
    for (int i = 0; n > 1 && i < n; i++) {
        const struct solve_in *in = task[i].in;
        if (solve_error(in->w, task[i].t, s_c, in->h, in->n_out, in->n_in, &task[i].error, e))
            return -1;
    }
    return 0;
}

int dsq_solve(struct solve_task *task, int n, const struct dsq_tie *tie, const struct quant_options *o, float *s_c, double *gain, struct err *e)
{
    struct alternation a = { 0 };
    struct kept k = { task, s_c, -1 };
    double plain = 0, first;
    arena_init(&a.arena);
    int rc = alternation_init(&a, task, n, tie, e) || try_scales(&a, o, &plain, &k, e) ? -1 : 0;
    if (!rc && o->dsq_init == DSQ_ACTIVATION)
        from_activation(&a);
    for (int round = o->dsq_init == DSQ_ACTIVATION ? 0 : 1; !rc && round < o->dsq_rounds; round++) {
        normalize(a.s, a.d);
        rc = try_scales(&a, o, &first, &k, e);
    }
    arena_release(&a.arena);
    *gain = plain > 0 ? k.error / plain : 1;
    return rc ? -1 : task_errors(task, n, k.error, s_c, e);
}

static int out_of_range(const struct tensor *up, int64_t row, struct err *e)
{
    return err_set(e, ERR_NUMERIC, "%s: row %lld: a merged scale leaves the range of fp16", up->name, (long long)row);
}

/* Scales of one row of integers; snapped ones (d k over 256 inputs) keep their k. */
static bool scale_integers(const struct grid *g, const struct qmat *q, int64_t row, float factor)
{
    int64_t per = g->super ? g->super / g->group : 1;
    for (int64_t i = 0; i < q->n_groups; i += per) {
        uint16_t *s = q->scale + row * q->n_groups + i;
        float d = g->super ? pack_snap(s, per, g->sc_max) : half_to_f32(*s), to = d * factor;
        if (!(to <= 65504.0f))
            return false;
        to = g->super ? grid_unit_round(to, g->d_bits) : half_round(to);
        for (int64_t k = 0; k < per; k++) {
            float v = d > 0 ? half_to_f32(s[k]) / d * to : to;
            if (!(v <= 65504.0f))
                return false;
            s[k] = half_from_f32(v);
        }
    }
    return true;
}

/* Would row be scaled within fp16? scratch: a row's bytes, or its scales. */
static bool fits(const struct tensor *up, const struct grid *g, int64_t row, float factor, uint8_t *scratch)
{
    if (up->type != DT_QMAT) {
        size_t n = up->size / (size_t)up->dim[0];
        memcpy(scratch, (const uint8_t *)up->data + (size_t)row * n, n);
        return block_scale_row(up->type, scratch, up->dim[1], factor);
    }
    struct qmat one = *up->q;
    one.scale = (uint16_t *)(void *)scratch;
    memcpy(one.scale, up->q->scale + row * one.n_groups, (size_t)one.n_groups * sizeof *one.scale);
    return scale_integers(g, &one, 0, factor);
}

int dsq_absorb(struct tensor *up, const struct grid *g, const float *s_c, struct err *e)
{
    size_t row_bytes = up->type == DT_QMAT ? 0 : up->size / (size_t)up->dim[0];
    size_t room = row_bytes ? row_bytes : (size_t)up->q->n_groups * sizeof *up->q->scale;
    uint8_t *scratch = mem_alloc(room, 1);
    int rc = scratch ? 0 : err_nomem(e, up->name, room);
    for (int64_t j = 0; !rc && j < up->dim[0]; j++) /* all rows or none */
        if (!fits(up, g, j, s_c[j], scratch))
            rc = out_of_range(up, j, e);
    mem_free(scratch);
    for (int64_t j = 0; !rc && j < up->dim[0]; j++) {
        if (up->type == DT_QMAT)
            scale_integers(g, up->q, j, s_c[j]);
        else
            block_scale_row(up->type, (uint8_t *)(uintptr_t)up->data + (size_t)j * row_bytes, up->dim[1], s_c[j]);
    }
    return rc;
}
