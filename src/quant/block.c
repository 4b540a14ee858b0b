/* block: solving the matrices of one block that share their input, and what is recorded of them. */
#include "quant/block.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/half.h"

static struct quant_tensor *record(struct block *b, enum role role)
{
    struct quant_result *res = b->run->res;
    struct quant_tensor *t = &res->tensors[res->n_tensors++];
    const struct tensor *w = &b->ff.lin[role].w;
    memset(t, 0, sizeof *t);
    t->name = arena_printf(&res->arena, "model.layers.%lld.%s.weight", (long long)b->index, role_hf_name[role]);
    if (!t->name)
        t->name = role_hf_name[role];
    t->n_out = w->dim[0];
    t->n_in = w->dim[1];
    return t;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int record_scales(const float *s_c, int64_t n, struct quant_block *out, struct err *e)
{
    static const double at[QUANT_SPREAD] = { 0.05, 0.25, 0.5, 0.75, 0.95 };
    float *sorted = mem_alloc((size_t)n, sizeof *sorted);
    if (!sorted)
        return err_nomem(e, "dual scales", (size_t)n * sizeof *sorted);
    memcpy(sorted, s_c, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    out->dsq_min = sorted[0];
    out->dsq_max = sorted[n - 1];
    for (int i = 0; i < QUANT_SPREAD; i++)
        out->dsq_quantile[i] = sorted[(int64_t)(at[i] * (double)(n - 1) + 0.5)];
    mem_free(sorted);
    return 0;
}

/* down_proj with DSQ: up_proj absorbs s^c. */
static int absorb(struct block *b, const float *s_c, struct err *e)
{
    struct run *r = b->run;
    struct linear *up = &b->fq->lin[ROLE_UP];
    int64_t n_ff = r->m->hp.n_ff;
    float *bias = NULL;
    if (up->b) {
        bias = arena_alloc(&r->m->arena, (size_t)n_ff, sizeof *bias);
        if (!bias)
            return err_nomem(e, "up_proj's bias", (size_t)n_ff * sizeof *bias);
        memcpy(bias, up->b, (size_t)n_ff * sizeof *bias);
        up->b = bias;
    }
    struct grid g;
    quant_grid(r->o, b->index, ROLE_UP, up->w.dim[1], &g);
    return dsq_absorb(&up->w, &g, bias, s_c, e) || record_scales(s_c, n_ff, b->out, e) ? -1 : 0;
}

#define HALF_MAX 65504.0f

/* fp16 holds the scales, or the weights themselves. */
static int check_range(const char *name, const float *w, int64_t n_out, int64_t n_in, struct err *e)
{
    for (int64_t i = 0; i < n_out * n_in; i++)
        if (!(w[i] <= HALF_MAX && w[i] >= -HALF_MAX))
            return err_set(e, ERR_NUMERIC, "%s: %g at row %lld, column %lld is beyond the range of fp16 (65504)", name, (double)w[i],
                           (long long)(i / n_in), (long long)(i % n_in));
    return 0;
}

/* A matrix that is not quantized: its values as grid g (a float type) stores them. */
static int keep_float(struct block *b, enum role role, const struct grid *g, struct quant_tensor *t, struct err *e)
{
    size_t n = (size_t)(t->n_out * t->n_in);
    const float *w = b->ff.lin[role].w.data;
    if (g->type == DT_F16 && check_range(t->name, w, t->n_out, t->n_in, e))
        return -1;
    float *own = arena_alloc(&b->run->m->arena, n, sizeof *own);
    if (!own)
        return err_nomem(e, t->name, n * sizeof *own);
    for (size_t i = 0; i < n; i++)
        own[i] = g->type == DT_F16 ? half_round(w[i]) : g->type == DT_BF16 ? bf16_to_f32(bf16_from_f32(w[i])) : w[i];
    struct tensor *to = &b->fq->lin[role].w;
    *to = tensor_f32(to->name, own, t->n_out, t->n_in);
    t->bpw = g->bits;
    t->err = t->err_target = 0;
    grid_label(g, t->type, sizeof t->type);
    return 0;
}

/* Quantizes one matrix: target (n_out, n_in), factor f (NULL: rtn), GPTAQ's term asym or NULL, into the model's arena. moved: the target is
 * not W. */
static int solve_one(struct block *b, enum role role, const float *target, const struct stats *st,
                     const struct factor *f, const float *asym, bool moved, struct quant_tensor *t, struct err *e)
{
    struct run *r = b->run;
    const struct quant_options *o = r->o;
    const float *w = b->ff.lin[role].w.data, *h = st ? st->h : NULL;
    int64_t n_out = t->n_out, n_in = t->n_in;
    struct grid g;
    struct tensor q;
    quant_grid(o, b->index, role, n_in, &g);
    if (g.kind == KIND_FLOAT)
        return keep_float(b, role, &g, t, e);
    if (check_range(t->name, target, n_out, n_in, e))
        return -1;
    struct solve_in in = { .name = t->name, .w = target, .n_out = n_out, .n_in = n_in, .h = h, .f = f, .asym = asym,
                           .grid = &g };
    bool dsq = o->dsq && role == ROLE_DOWN && f && b->up_quantized;
    float *s_c = NULL;
    if (grid_alloc(&g, &r->m->arena, b->fq->lin[role].w.name, n_out, n_in, &q, e))
        return -1;
    if (dsq && !(s_c = arena_alloc(&b->arena, (size_t)n_in, sizeof *s_c)))
        return err_nomem(e, "dual scales", (size_t)n_in * sizeof *s_c);
    double aimed = 0, norm = 0;
    int rc = 0;
    if (dsq)
        rc = dsq_solve(&in, o, &q, s_c, &b->out->dsq_gain, &aimed, e);
    else if (b->boa && f && role <= ROLE_V)
        rc = boa_solve(b->boa, role, &b->ff, &in, o, &q, r->log, e) || solve_error(target, &q, NULL, h, n_out, n_in, &aimed, e) ? -1 : 0;
    else
        rc = solve_and_judge(&in, o, &q, &aimed, e);
    t->err = aimed;
    if (rc || solve_error(w, NULL, NULL, h, n_out, n_in, &norm, e) ||
        (moved && solve_error(w, &q, s_c, h, n_out, n_in, &t->err, e)))
        return -1;
    t->err = norm > 0 ? t->err / norm : 0;
    t->err_target = norm > 0 ? aimed / norm : 0;
    if (!isfinite(t->err) || !isfinite(t->err_target))
        return err_set(e, ERR_NUMERIC, "its error is not finite");
    t->bpw = grid_row_bits(&g, n_in) / (double)n_in;
    t->damp = f ? f->damp : 0;
    grid_label(&g, t->type, sizeof t->type);
    b->fq->lin[role].w = q;
    b->up_quantized |= role == ROLE_UP;
    return s_c ? absorb(b, s_c, e) : 0;
}

/* Dead inputs see nothing: their weights are free, and 0 keeps them out of the scales. How many there are. */
static int64_t clear_dead(const struct stats *st, float *w, int64_t n_out)
{
    int64_t dead = 0;
    for (int64_t j = 0; j < st->d; j++) {
        if (st->h[j * st->d + j] > 0)
            continue;
        dead++;
        for (int64_t i = 0; i < n_out; i++)
            w[i * st->d + j] = 0;
    }
    return dead;
}

static bool propagates(const struct run *r)
{
    return r->o->method != METHOD_gptaq && (r->o->alpha > 0 || r->o->beta > 0);
}

/* 0 done, 1 this matrix failed numerically (*e says how), -1 anything else. moved: what propagated error aims at, of
 * which dead inputs are cleared, or NULL: W. */
static int solve_role(struct block *b, enum role role, const struct stats *st, const struct factor *f, float *moved,
                      const float *asym, struct quant_tensor *t, struct err *e)
{
    size_t n = (size_t)(t->n_out * t->n_in);
    float *copy = moved ? NULL : mem_alloc(n, sizeof *copy), *target = moved ? moved : copy;
    if (!target)
        return err_nomem(e, t->name, n * sizeof *target);
    if (copy)
        memcpy(copy, b->ff.lin[role].w.data, n * sizeof *copy);
    t->dead = st ? clear_dead(st, target, t->n_out) : 0;
    int rc = solve_one(b, role, target, st, f, asym, moved != NULL, t, e);
    mem_free(copy);
    return rc && e->code == ERR_NUMERIC ? 1 : rc;
}

/* The user's rule for a matrix that cannot be done well: e holds why. */
static int fall_back(struct block *b, enum role role, const struct stats *st, struct quant_tensor *t, struct err *e)
{
    struct run *r = b->run;
    if (role == ROLE_DOWN)
        b->out->dsq_gain = 0;
    if (r->o->on_failure == FAILURE_STOP)
        return -1;
    t->damp = 0;
    snprintf(t->fallback, sizeof t->fallback, "%s", r->o->on_failure == FAILURE_RTN ? "rtn" : "keep");
    if (r->o->on_failure == FAILURE_RTN) {
        log_warn(r->log, "%s: rounded to nearest instead: %s", t->name, e->msg);
        return solve_role(b, role, st, NULL, NULL, NULL, t, e) ? -1 : 0;
    }
    struct grid g;
    grid_init(&g, r->o->kept == DT_F16 ? GRID_f16 : GRID_f32, 0, 0, 0, t->n_in);
    log_warn(r->log, "%s: kept in %s: %s", t->name, dtype_table[g.type].name, e->msg);
    return keep_float(b, role, &g, t, e);
}

/* What was made of the statistics before the first matrix is solved: the factor of H, what propagated error aims each matrix at, and
 * GPTAQ's term. */
struct shared {
    struct factor f;
    float *moved[ROLE_COUNT]; /* (n_out, n_in) of the first + i-th, or NULL */
    float *asym;
};

/* The targets of propagated error. D and R are given back then: with them, the factor and its double, the widest stage would be the
 * peak of the whole run. */
static int aim(struct block *b, enum role first, int n, struct stats *st, struct shared *s, struct err *e)
{
    const struct quant_options *o = b->run->o;
    double *chol = NULL;
    int rc = hessian_cholesky(st->h, st->d, o->prop_damp, &chol, e);
    for (int i = 0; !rc && i < n; i++) {
        enum role role = (enum role)(first + i);
        const struct tensor *w = &b->ff.lin[role].w;
        size_t count = (size_t)(w->dim[0] * w->dim[1]);
        bool residual = role == ROLE_O || role == ROLE_DOWN;
        s->moved[i] = mem_alloc(count, sizeof *s->moved[i]);
        rc = !s->moved[i] ? err_nomem(e, w->name, count * sizeof *s->moved[i])
                          : propagate_target(st, chol, o->alpha, residual ? o->beta : 0, w->data, w->dim[0], s->moved[i], e);
    }
    mem_free(chol);
    stats_drop_path(st);
    return rc;
}

/* 0 done, 1 failed numerically (*why says how), -1 anything else. */
static int prepare(struct block *b, enum role first, int n, struct stats *st, struct shared *s, struct err *why)
{
    struct run *r = b->run;
    const struct quant_options *o = r->o;
    double t0 = log_now();
    int rc = (propagates(r) && aim(b, first, n, st, s, why)) ||
             factor_init(&s->f, st->h, st->d, o->damp, o->order, b->fq->lin[first].w.name, r->log, why) ||
             (o->method == METHOD_gptaq && o->alpha > 0 && gptaq_term(st, &s->f, o->alpha, &s->asym, why));
    r->res->seconds_factor += log_now() - t0;
    return !rc ? 0 : why->code == ERR_NUMERIC ? 1 : -1;
}

/* One of them; failed: their statistics or factor already did, and *why says how. */
static int solve_or_fall_back(struct block *b, enum role role, const struct stats *st, const struct shared *s, float *moved, bool failed,
                              struct err *why)
{
    struct run *r = b->run;
    struct quant_tensor *t = record(b, role);
    const struct factor *f = st && r->o->method != METHOD_rtn ? &s->f : NULL;
    double t0 = log_now();
    int rc = failed ? 1 : solve_role(b, role, st, f, moved, s->asym, t, why);
    if (rc > 0)
        rc = fall_back(b, role, st, t, why);
    if (rc && why->code == ERR_NUMERIC)
        err_prefix(why, "%s (--on-failure %s)", t->name, r->o->on_failure == FAILURE_STOP ? "stop; rtn or keep go on" : t->fallback);
    t->seconds = log_now() - t0;
    if (!rc && r->on_tensor)
        r->on_tensor(r->ud, t);
    return rc;
}

int block_solve(struct block *b, enum role first, int n, struct stats *st, struct err *e)
{
    struct run *r = b->run;
    struct shared s = { 0 };
    struct err why = { 0 };
    double t0 = log_now();
    int failed = 0, rc = 0;
    arena_forget(&r->arena);
    arena_forget(&r->m->arena);
    if (st) {
        failed = stats_finish(st, b->fq->lin[first].w.name, &why);
        rc = failed && why.code != ERR_NUMERIC ? -1 : 0;
        st = failed ? NULL : st; /* of no use, not even to judge by */
    }
    if (st && r->o->method != METHOD_rtn) {
        failed = prepare(b, first, n, st, &s, &why);
        rc = failed < 0 ? -1 : 0;
    }
    for (int i = 0; !rc && i < n; i++) {
        struct err mine = why;
        rc = solve_or_fall_back(b, (enum role)(first + i), st, &s, s.moved[i], failed != 0, &mine);
        if (rc)
            why = mine;
    }
    if (rc)
        err_set(e, why.code, "%s", why.msg);
    factor_release(&s.f);
    for (int i = 0; i < ROLE_COUNT; i++)
        mem_free(s.moved[i]);
    mem_free(s.asym);
    r->res->seconds_solve += log_now() - t0;
    return rc;
}
