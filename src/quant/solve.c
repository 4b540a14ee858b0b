#include "quant/solve.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/linalg.h"
#include "base/num.h"
#include "base/par.h"
#include "quant/tile.h"
#include "tensor/half.h"
#include "tensor/pack.h"

#define BLOCK 128 /* columns between two lazy updates of the rest */

/* ---- the factor of H ----------------------------------------------------- */

static double mean_diag(const float *h, int64_t d)
{
    double sum = 0;
    for (int64_t i = 0; i < d; i++)
        sum += h[i * d + i];
    return sum / (double)d;
}

struct order_key {
    float diag;
    int32_t i;
};

static int by_diag_descending(const void *a, const void *b)
{
    const struct order_key *x = a, *y = b;
    if (x->diag != y->diag)
        return x->diag < y->diag ? 1 : -1;
    return x->i - y->i; /* one order whatever qsort does */
}

static int activation_order(const float *h, int64_t d, int32_t **perm, struct err *e)
{
    struct order_key *key = mem_alloc((size_t)d, sizeof *key);
    *perm = mem_alloc((size_t)d, sizeof **perm);
    if (!key || !*perm) {
        mem_free(key);
        return err_nomem(e, "activation order", (size_t)d * sizeof *key);
    }
    for (int64_t i = 0; i < d; i++)
        key[i] = (struct order_key){ h[i * d + i], (int32_t)i };
    qsort(key, (size_t)d, sizeof *key, by_diag_descending);
    for (int64_t i = 0; i < d; i++)
        (*perm)[i] = key[i].i;
    mem_free(key);
    return 0;
}

/* a (d, d), lower triangle: H + damping, rows and columns in order idx(i) = reversed processing order. */
static void damped_reversed(const float *h, int64_t d, double add, const int32_t *perm, double *a)
{
    for (int64_t i = 0; i < d; i++) {
        int64_t pi = perm ? perm[d - 1 - i] : d - 1 - i;
        for (int64_t j = 0; j <= i; j++) {
            int64_t pj = perm ? perm[d - 1 - j] : d - 1 - j;
            a[i * d + j] = h[pi * d + pj];
        }
        a[i * d + i] = (h[pi * d + pi] > 0 ? h[pi * d + pi] : 1.0) + add;
    }
}

static double more_damping(double damp)
{
    return damp > 0 ? damp * 10 : 1e-4;
}

int factor_init(struct factor *f, const float *h, int64_t d, double damp, enum quant_order order,
                const char *name, const struct log *log, struct err *e)
{
    memset(f, 0, sizeof *f);
    f->d = d;
    double mean = mean_diag(h, d);
    double *a = mem_alloc((size_t)(d * d), sizeof *a);
    f->u = mem_zalloc((size_t)(d * d), sizeof *f->u);
    if (!a || !f->u || (order == ORDER_ACT && activation_order(h, d, &f->perm, e))) {
        mem_free(a);
        factor_release(f);
        return err_nomem(e, name, (size_t)(d * d) * 12);
    }
    struct err why;
    for (f->damp = damp;; f->damp = more_damping(f->damp)) {
        damped_reversed(h, d, f->damp * mean, f->perm, a);
        if (la_cholesky(d, a, &why) == 0)
            break;
        if (more_damping(f->damp) > 1) {
            mem_free(a);
            factor_release(f);
            return err_set(e, ERR_NUMERIC, "%s: its Hessian is not positive definite even with damping 1: %s",
                           name, why.msg);
        }
        log_warn(log, "%s: Cholesky failed with damping %g, trying %g", name, f->damp, more_damping(f->damp));
    }
    /* With J the reversal, J A J = L L^T gives A^-1 = U^T U for U = J L^-1 J, upper triangular. */
    la_invert_lower(d, a);
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = i; j < d; j++)
            f->u[i * d + j] = (float)a[(d - 1 - i) * d + (d - 1 - j)];
    mem_free(a);
    return 0;
}

void factor_release(struct factor *f)
{
    mem_free(f->u);
    mem_free(f->perm);
    memset(f, 0, sizeof *f);
}

int hessian_cholesky(const float *h, int64_t d, double damp, const char *name, const struct log *log, double **l, struct err *e)
{
    double *a = mem_alloc((size_t)(d * d), sizeof *a), mean = mean_diag(h, d);
    if (!a)
        return err_nomem(e, "Hessian", (size_t)(d * d) * sizeof *a);
    for (;; damp = more_damping(damp)) {
        for (int64_t i = 0; i < d; i++) {
            for (int64_t j = 0; j < i; j++)
                a[i * d + j] = h[i * d + j];
            a[i * d + i] = (h[i * d + i] > 0 ? h[i * d + i] : 1.0) + damp * mean;
        }
        if (!la_cholesky(d, a, e)) {
            *l = a;
            return 0;
        }
        if (more_damping(damp) > 1)
            break;
        log_warn(log, "%s: propagated error: Cholesky failed with damping %g, trying %g", name, damp, more_damping(damp));
    }
    mem_free(a);
    return -1;
}

/* ---- the solver ----------------------------------------------------------- */

struct solve_job {
    const struct solve_in *in;
    const struct grid *grid;
    enum quant_search search;
    const struct tile_kernels *k;
    struct tensor *out;
    int64_t n_groups;
    const float *u;    /* factor with col_scale applied, or NULL */
    const float *hs;   /* scaled, damped, permuted H for the sweeps, or NULL */
    const float *hw;   /* (n_in) weights of the scale search in input order, or NULL */
    const int32_t *perm;
    int sweeps;
    double add;        /* damping on hs, before scaling */
    double *tile_err;  /* (tiles): of the sweeps */
    atomic_int failed; /* out of memory in some item */
};

struct tile_state {
    float *t;       /* (n_in, R) what is left to quantize, in processing order */
    uint8_t *codes; /* (n_in, R) */
    struct tile_group *g; /* (n_groups) */
    struct tile_super *super; /* (n_in / grid->super) or NULL */
    float *err;     /* (BLOCK, R) */
};

/* Row r of the tile, input perm[j], in units of its column scale; rows past the end repeat the last one. */
static void tile_load(const struct solve_job *job, int64_t row0, const int32_t *perm, float *t)
{
    const struct solve_in *in = job->in;
    for (int r = 0; r < TILE_R; r++) {
        int64_t row = row0 + r < in->n_out ? row0 + r : in->n_out - 1;
        const float *w = in->w + row * in->n_in;
        for (int64_t j = 0; j < in->n_in; j++) {
            int64_t c = perm ? perm[j] : j;
            t[j * TILE_R + r] = in->col_scale ? w[c] / in->col_scale[c] : w[c];
        }
    }
}

static int64_t group_of(const struct solve_job *job, int64_t j)
{
    return (job->perm ? job->perm[j] : j) / job->grid->group;
}

/* Parameters of group g from the weights t in input order; those of its superblock first, where it begins one. */
static void fit_group(const struct solve_job *job, const float *t, int64_t g, struct tile_state *st)
{
    const struct grid *grid = job->grid;
    int64_t j0 = g * grid->group, n = job->in->n_in - j0;
    struct tile_super *super = grid->super ? st->super + j0 / grid->super : NULL;
    const float *hw = job->hw ? job->hw + j0 : NULL;
    if (super && j0 % grid->super == 0)
        job->k->fit_super(grid, job->search, t + j0 * TILE_R, job->search == SEARCH_MSE ? NULL : hw, grid->super, super);
    job->k->fit(grid, job->search, t + j0 * TILE_R, hw, n < grid->group ? n : grid->group, super, st->g + g);
}

/* End of the run of columns from j on that share a group and end at `end` at the latest. */
static int64_t run_end(const struct solve_job *job, int64_t j, int64_t end)
{
    if (job->perm)
        return j + 1;
    int64_t next = (j / job->grid->group + 1) * job->grid->group;
    return next < end ? next : end;
}

/* Blocks end where groups do, so that a group's parameters see every earlier column's error. */
static int64_t block_end(const struct solve_job *job, int64_t j)
{
    int64_t d = job->in->n_in, g = job->grid->group, end;
    if (job->perm || g >= BLOCK)
        end = j + BLOCK;
    else
        end = j + BLOCK / g * g;
    if (!job->perm && g > BLOCK && end > (j / g + 1) * g)
        end = (j / g + 1) * g;
    return end < d ? end : d;
}

static void tile_feedback(const struct solve_job *job, struct tile_state *st)
{
    int64_t d = job->in->n_in;
    for (int64_t j0 = 0; j0 < d;) {
        int64_t jend = block_end(job, j0);
        for (int64_t j = j0; j < jend;) {
            int64_t end = run_end(job, j, jend), g = group_of(job, j);
            if (!job->perm && j % job->grid->group == 0)
                fit_group(job, st->t, g, st);
            job->k->feedback(job->grid, st->t, job->u, job->in->asym, d, j, end - j, jend, st->g + g, st->codes + j * TILE_R,
                             st->err + (j - j0) * TILE_R);
            j = end;
        }
        if (jend < d)
            la_sgemm_tile(1, 0, d - jend, TILE_R, jend - j0, -1, job->u + j0 * d + jend, d, st->err,
                          TILE_R, 1, st->t + jend * TILE_R, TILE_R);
        if (jend < d && job->in->asym)
            la_sgemm_tile(1, 0, d - jend, TILE_R, jend - j0, 1, job->in->asym + j0 * d + jend, d, st->t + j0 * TILE_R,
                          TILE_R, 1, st->t + jend * TILE_R, TILE_R);
        j0 = jend;
    }
}

static void tile_round(const struct solve_job *job, struct tile_state *st)
{
    int64_t d = job->in->n_in;
    for (int64_t j = 0; j < d;) {
        int64_t end = run_end(job, j, d), g = group_of(job, j);
        if (!job->perm)
            fit_group(job, st->t, g, st);
        job->k->round(job->grid, st->t + j * TILE_R, end - j, st->g + g, st->codes + j * TILE_R);
        j = end;
    }
}

/* t = w - value of each column; returns sum of t p over the tile's real rows, p = H t. */
static double tile_residual(const struct solve_job *job, int64_t row0, struct tile_state *st, float *p)
{
    int64_t d = job->in->n_in, rows = job->in->n_out - row0 < TILE_R ? job->in->n_out - row0 : TILE_R;
    double sum = 0;
    tile_load(job, row0, job->perm, st->t);
    for (int64_t j = 0; j < d; j++) {
        const struct tile_group *g = st->g + group_of(job, j);
        for (int r = 0; r < TILE_R; r++)
            st->t[j * TILE_R + r] -= g->s[r] * ((float)st->codes[j * TILE_R + r] - g->z[r]) - g->b[r];
    }
    memset(p, 0, (size_t)(d * TILE_R) * sizeof *p);
    la_sgemm_tile(1, 0, d, TILE_R, d, 1, job->hs, d, st->t, TILE_R, 1, p, TILE_R); /* H^T, the same, as the other products have it */
    for (int64_t j = 0; j < d; j++)
        for (int64_t r = 0; r < rows; r++)
            sum += (double)st->t[j * TILE_R + r] * p[j * TILE_R + r];
    return sum;
}

/* Coordinate descent over the codes under H, scales fixed; p (n_in, R) is scratch. Returns the tile's part of tr(E H E^T),
 * damping taken off again: what it was, less what every move gained. */
static double tile_sweep(const struct solve_job *job, int64_t row0, struct tile_state *st, float *p)
{
    int64_t d = job->in->n_in, rows = job->in->n_out - row0 < TILE_R ? job->in->n_out - row0 : TILE_R;
    double sum = tile_residual(job, row0, st, p);
    for (int sweep = 0; sweep < job->sweeps; sweep++)
        for (int64_t j0 = 0; j0 < d;) {
            int64_t jend = block_end(job, j0);
            for (int64_t j = j0; j < jend;) {
                int64_t end = run_end(job, j, jend);
                float gain[TILE_R], *dv = st->err + (j - j0) * TILE_R;
                job->k->descend(job->grid, p, job->hs, d, j, end - j, j0, jend, st->g + group_of(job, j),
                                st->codes + j * TILE_R, dv, gain);
                for (int64_t r = 0; r < rows; r++)
                    sum -= gain[r];
                for (int64_t k = 0; k < (end - j) * TILE_R; k++)
                    st->t[j * TILE_R + k] -= dv[k];
                j = end;
            }
            if (jend < d)
                la_sgemm_tile(1, 0, d - jend, TILE_R, jend - j0, -1, job->hs + j0 * d + jend, d, st->err,
                              TILE_R, 1, p + jend * TILE_R, TILE_R);
            if (j0 > 0 && sweep + 1 < job->sweeps)
                la_sgemm_tile(1, 0, j0, TILE_R, jend - j0, -1, job->hs + j0 * d, d, st->err, TILE_R, 1, p,
                              TILE_R);
            j0 = jend;
        }
    for (int64_t j = 0; j < d; j++) {
        double s = job->in->col_scale ? job->in->col_scale[job->perm ? job->perm[j] : j] : 1;
        for (int64_t r = 0; r < rows; r++)
            sum -= job->add * s * s * st->t[j * TILE_R + r] * st->t[j * TILE_R + r];
    }
    return sum;
}

/* Row r of the tile as blocks of its type; codes (n_in) in input order. */
static void store_blocks(const struct solve_job *job, const struct tile_state *st, int r, const uint8_t *codes, uint8_t *dst)
{
    const struct grid *grid = job->grid;
    const struct dtype_info *d = &dtype_table[grid->type];
    struct block_fields f;
    for (int64_t j = 0; j < job->in->n_in; j += d->block_len, dst += d->block_bytes) {
        const struct tile_group *g = st->g + j / grid->group;
        if (grid->kind == KIND_INT) {
            f.d = pack_group(grid->type, codes + j, d->block_len, half_from_f32(g->s[r]), (int)g->z[r], grid->bits, &f, 0);
        } else {
            memcpy(f.q, codes + j, (size_t)d->block_len);
            f.d = half_from_f32(grid->super ? st->super[j / grid->super].d[r] : g->s[r]);
            f.m = half_from_f32(grid->super ? st->super[j / grid->super].m[r] : -g->b[r]);
        }
        for (int i = 0; grid->super && i < (int)(grid->super / grid->group); i++) {
            f.sc[i] = g[i].sc[r];
            f.mn[i] = g[i].mn[r];
        }
        block_store(grid->type, &f, dst);
    }
}

static void store_integers(const struct solve_job *job, const struct tile_state *st, int r, const uint8_t *codes, int64_t row)
{
    struct qmat *q = (struct qmat *)(uintptr_t)job->out->q;
    qmat_set_codes(q, row, codes);
    for (int64_t g = 0; g < q->n_groups; g++) {
        q->scale[row * q->n_groups + g] = half_from_f32(st->g[g].s[r]);
        q->zero[row * q->n_groups + g] = (uint8_t)st->g[g].z[r];
    }
}

static void tile_store(const struct solve_job *job, int64_t row0, const struct tile_state *st, uint8_t *codes)
{
    int64_t d = job->in->n_in;
    size_t row_bytes = job->out->size / (size_t)job->in->n_out;
    for (int r = 0; r < TILE_R && row0 + r < job->in->n_out; r++) {
        for (int64_t j = 0; j < d; j++)
            codes[job->perm ? job->perm[j] : j] = st->codes[j * TILE_R + r];
        if (job->out->type == DT_QMAT)
            store_integers(job, st, r, codes, row0 + r);
        else
            store_blocks(job, st, r, codes, (uint8_t *)(uintptr_t)job->out->data + (size_t)(row0 + r) * row_bytes);
    }
}

static void solve_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct solve_job *job = ctx;
    int64_t d = job->in->n_in, ng = job->n_groups, row0 = (int64_t)i * TILE_R, super = job->grid->super;
    struct arena a;
    arena_init(&a);
    struct tile_state st = {
        .t = arena_alloc(&a, (size_t)(d * TILE_R), sizeof(float)),
        .codes = arena_alloc(&a, (size_t)(d * TILE_R), 1),
        .g = arena_alloc(&a, (size_t)ng, sizeof *st.g),
        .super = super ? arena_alloc(&a, (size_t)(d / super), sizeof *st.super) : NULL,
        .err = arena_alloc(&a, BLOCK * TILE_R, sizeof(float)),
    };
    float *p = job->hs ? arena_alloc(&a, (size_t)(d * TILE_R), sizeof(float)) : NULL;
    uint8_t *row = arena_alloc(&a, (size_t)d, 1);
    if (!st.t || !st.codes || !st.g || (super && !st.super) || !st.err || !row || (job->hs && !p)) {
        atomic_store(&job->failed, 1);
    } else {
        tile_load(job, row0, NULL, st.t);
        if (job->perm) { /* static groups: all parameters from the weights before any feedback */
            for (int64_t g = 0; g < ng; g++)
                fit_group(job, st.t, g, &st);
            tile_load(job, row0, job->perm, st.t);
        }
        if (job->u)
            tile_feedback(job, &st);
        else
            tile_round(job, &st);
        if (p)
            job->tile_err[i] = tile_sweep(job, row0, &st, p);
        tile_store(job, row0, &st, row);
    }
    arena_release(&a);
}

/* What the inputs of a job come to, in the units of the scaled columns: U diag(1/s), diag(s) (H + damping) diag(s). */
struct scaled {
    float *u, *hs, *hw; /* own memory, or NULL */
};

static int scale_hessian(const struct solve_in *in, const struct quant_options *o, struct solve_job *job, struct scaled *own, struct err *e)
{
    int64_t d = in->n_in;
    const float *s = in->col_scale;
    const int32_t *perm = job->perm;
    size_t n = (size_t)(d * d);
    own->hs = mem_alloc(n, sizeof *own->hs);
    if (!own->hs)
        return err_nomem(e, in->name, n * sizeof *own->hs);
    float add = (float)(in->f->damp * mean_diag(in->h, d));
    for (int64_t i = 0; i < d; i++) {
        int64_t pi = perm ? perm[i] : i;
        for (int64_t j = 0; j < d; j++) {
            int64_t pj = perm ? perm[j] : j;
            float v = in->h[pi * d + pj] + (i == j ? add : 0.0f);
            own->hs[i * d + j] = s ? v * s[pi] * s[pj] : v;
        }
        if (own->hs[i * d + i] <= 0)
            own->hs[i * d + i] = 1;
    }
    job->hs = own->hs;
    job->add = add;
    job->sweeps = o->sweeps;
    return 0;
}

static int scale_inputs(const struct solve_in *in, const struct quant_options *o, struct solve_job *job, struct scaled *own, struct err *e)
{
    int64_t d = in->n_in;
    const float *s = in->col_scale;
    const int32_t *perm = in->f ? in->f->perm : NULL;
    size_t n = (size_t)(d * d);
    job->perm = perm;
    if (in->h && o->search == SEARCH_HESSIAN) {
        own->hw = mem_alloc((size_t)d, sizeof *own->hw);
        if (!own->hw)
            return err_nomem(e, in->name, (size_t)d * sizeof *own->hw);
        for (int64_t j = 0; j < d; j++)
            own->hw[j] = in->h[j * d + j] * (s ? s[j] * s[j] : 1.0f);
        job->hw = own->hw;
    }
    if (!in->f)
        return 0;
    job->u = in->f->u;
    if (s) {
        own->u = mem_alloc(n, sizeof *own->u);
        if (!own->u)
            return err_nomem(e, in->name, n * sizeof *own->u);
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++)
                own->u[i * d + j] = j < i ? 0 : in->f->u[i * d + j] / s[perm ? perm[j] : j];
        job->u = own->u;
    }
    return o->sweeps ? scale_hessian(in, o, job, own, e) : 0;
}

/* The jobs of one call, and where their tiles begin among all. */
struct batch {
    struct solve_job job[SOLVE_MOST];
    size_t first[SOLVE_MOST + 1];
    struct scaled own[SOLVE_MOST];
};

static bool same_inputs(const struct solve_in *a, const struct solve_in *b)
{
    return a->h == b->h && a->f == b->f && a->n_in == b->n_in && a->col_scale == b->col_scale;
}

static int batch_init(struct batch *b, const struct solve_task *task, int n, const struct quant_options *o, struct err *e)
{
    memset(b, 0, sizeof *b);
    for (int i = 0; i < n; i++) {
        const struct solve_in *in = task[i].in;
        struct solve_job *job = b->job + i;
        size_t tiles = (size_t)ceil_div(in->n_out, TILE_R);
        if (i > 0 && same_inputs(in, task[0].in))
            *job = b->job[0];
        else if (scale_inputs(in, o, job, b->own + i, e))
            return -1;
        job->in = in;
        job->out = task[i].t;
        job->k = tile_kernels();
        job->grid = in->grid;
        job->search = o->search;
        job->n_groups = ceil_div(in->n_in, in->grid->group);
        b->first[i + 1] = b->first[i] + tiles;
        job->tile_err = mem_zalloc(tiles, sizeof *job->tile_err);
        if (!job->tile_err)
            return err_nomem(e, in->name, tiles * sizeof *job->tile_err);
    }
    return 0;
}

static void batch_release(struct batch *b)
{
    for (int i = 0; i < SOLVE_MOST; i++) {
        mem_free(b->job[i].tile_err);
        mem_free(b->own[i].u);
        mem_free(b->own[i].hs);
        mem_free(b->own[i].hw);
    }
}

static void batch_item(void *ctx, size_t item, int worker)
{
    struct batch *b = ctx;
    int i = 0;
    while (item >= b->first[i + 1])
        i++;
    solve_item(b->job + i, item - b->first[i], worker);
}

int solve_tasks(struct solve_task *task, int n, bool judge, const struct quant_options *o, struct err *e)
{
    struct batch b;
    int rc = batch_init(&b, task, n, o, e);
    if (!rc)
        par_for(b.first[n], batch_item, &b);
    for (int i = 0; !rc && i < n; i++) {
        const struct solve_in *in = task[i].in;
        const struct solve_job *job = b.job + i;
        task[i].error = 0;
        if (atomic_load(&job->failed))
            rc = err_nomem(e, in->name, (size_t)in->n_in * TILE_R * 8);
        else if (judge && !job->hs)
            rc = solve_error(in->w, task[i].t, in->col_scale, in->h, in->n_out, in->n_in, &task[i].error, e);
        for (size_t k = 0; judge && job->hs && k < b.first[i + 1] - b.first[i]; k++)
            task[i].error += job->tile_err[k];
    }
    batch_release(&b);
    return rc;
}

int solve(const struct solve_in *in, const struct quant_options *o, struct tensor *t, struct err *e)
{
    struct solve_task task = { .in = in, .t = t };
    return solve_tasks(&task, 1, false, o, e);
}

/* ---- errors --------------------------------------------------------------- */

#define ERR_ROWS 64
#define ERR_COLS 512 /* the triangle of H left of its diagonal is as fine as these */

struct error_job {
    const float *w, *col_scale, *h;
    const struct tensor *v;
    int64_t n_out, n_in;
    double *part; /* one per item */
    atomic_int failed;
};

/* tr(X H X^T), x (n, d), H symmetric: what is below its diagonal counts twice, and nothing above is looked at. y: scratch (n, ERR_COLS) */
static double quadratic_form(const float *x, const float *h, int64_t n, int64_t d, float *y)
{
    double sum = 0;
    for (int64_t j0 = 0; j0 < d; j0 += ERR_COLS) {
        int64_t cols = d - j0 < ERR_COLS ? d - j0 : ERR_COLS, j1 = j0 + cols;
        la_sgemm_tile(0, 0, n, cols, cols, 0.5f, x + j0, d, h + j0 * d + j0, d, 0, y, cols);
        if (j1 < d)
            la_sgemm_tile(0, 0, n, cols, d - j1, 1, x + j1, d, h + j1 * d + j0, d, 1, y, cols);
        for (int64_t r = 0; r < n; r++)
            for (int64_t j = 0; j < cols; j++)
                sum += 2.0 * (double)x[r * d + j0 + j] * y[r * cols + j];
    }
    return sum;
}

static double squares(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t k = 0; k < n; k++)
        sum += (double)x[k] * x[k];
    return sum;
}

static void error_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct error_job *j = ctx;
    int64_t d = j->n_in, row0 = (int64_t)i * ERR_ROWS;
    int64_t n = j->n_out - row0 < ERR_ROWS ? j->n_out - row0 : ERR_ROWS;
    float *x = mem_alloc((size_t)(n * (d + ERR_COLS)), sizeof *x);
    if (!x) {
        atomic_store(&j->failed, 1);
        return;
    }
    for (int64_t r = 0; r < n; r++) {
        float *xr = x + r * d;
        const float *w = j->w + (row0 + r) * d;
        if (!j->v) {
            memcpy(xr, w, (size_t)d * sizeof *xr);
            continue;
        }
        tensor_rows_f32(j->v, row0 + r, 1, xr);
        for (int64_t c = 0; c < d; c++)
            xr[c] = w[c] - (j->col_scale ? xr[c] * j->col_scale[c] : xr[c]);
    }
    j->part[i] = j->h ? quadratic_form(x, j->h, n, d, x + n * d) : squares(x, n * d);
    mem_free(x);
}

int solve_error(const float *w, const struct tensor *v, const float *col_scale, const float *h,
                int64_t n_out, int64_t n_in, double *err, struct err *e)
{
    size_t items = (size_t)ceil_div(n_out, ERR_ROWS);
    struct error_job j = { .w = w, .col_scale = col_scale, .h = h, .v = v, .n_out = n_out, .n_in = n_in };
    j.part = mem_zalloc(items, sizeof *j.part);
    if (!j.part)
        return err_nomem(e, "error sums", items * sizeof *j.part);
    par_for(items, error_item, &j);
    *err = 0;
    for (size_t i = 0; i < items; i++)
        *err += j.part[i];
    mem_free(j.part);
    return atomic_load(&j.failed) ? err_nomem(e, "error of a matrix", (size_t)(n_in + ERR_COLS) * ERR_ROWS * sizeof(float)) : 0;
}
