/* block: solving the matrices of one block that share their input, and what is recorded of them. */
#include "quant/block.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
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

#define HALF_MAX 65504.0f

const float *block_keep_vector(struct run *r, const float *v, int64_t n)
{
    float *p = arena_alloc(&r->m->arena, (size_t)n, sizeof *p);
    for (int64_t i = 0; p && i < n; i++)
        p[i] = r->o->kept == DT_F16 ? half_round(v[i]) : v[i];
    return p;
}

/* DSQ of q,k,v or gate,up: the gains of the norm before them absorb s^c. */
static int absorb_in_norm(struct block *b, const float **norm, const float *s_c, struct err *e)
{
    int64_t d = b->run->m->hp.n_embd;
    float *scaled = arena_alloc(&b->arena, (size_t)d, sizeof *scaled);
    for (int64_t j = 0; scaled && j < d; j++)
        scaled[j] = (*norm)[j] * s_c[j];
    const float *gain = scaled ? block_keep_vector(b->run, scaled, d) : NULL;
    if (!gain)
        return err_nomem(e, "norm gains", (size_t)d * sizeof *gain);
    if (op_find_bad(gain, d) >= 0)
        return err_set(e, ERR_NUMERIC, "block %lld: a merged norm gain leaves the range of fp16", (long long)b->index);
    *norm = gain;
    b->norm_scale = s_c;
    return 0;
}

/* The rows of an earlier matrix and its bias absorb s (n_out). */
static int absorb_in_rows(struct block *b, enum role role, const float *s, struct err *e)
{
    struct run *r = b->run;
    struct linear *l = &b->fq->lin[role];
    int64_t n = tensor_rows(&l->w);
    float *scaled = l->b ? arena_alloc(&b->arena, (size_t)n, sizeof *scaled) : NULL;
    for (int64_t j = 0; scaled && j < n; j++)
        scaled[j] = l->b[j] * s[j];
    const float *bias = scaled ? block_keep_vector(r, scaled, n) : NULL;
    if (l->b && !bias)
        return err_nomem(e, "a merged bias", (size_t)n * sizeof *bias);
    if (bias && op_find_bad(bias, n) >= 0)
        return err_set(e, ERR_NUMERIC, "%s: its merged bias leaves the range of fp16", l->w.name);
    struct grid g;
    quant_grid(r->o, b->index, role, l->w.dim[1], &g);
    if (dsq_absorb(&l->w, &g, s, e))
        return -1;
    l->b = bias;
    return 0;
}

/* DSQ of down_proj. */
static int absorb_in_up(struct block *b, const float *s_c, struct err *e)
{
    return absorb_in_rows(b, ROLE_UP, s_c, e) || record_scales(s_c, b->run->m->hp.n_ff, b->out, e) ? -1 : 0;
}

/* Heads that read the same channel of v share its s^c. */
static struct dsq_tie tie_of_heads(const struct hparams *hp)
{
    return (struct dsq_tie){ hp->n_head / hp->n_head_kv, hp->head_dim };
}

/* DSQ of o: each row of v has the s^c of the first of its heads. */
static int absorb_in_v(struct block *b, const float *s_c, struct err *e)
{
    const struct hparams *hp = &b->run->m->hp;
    int64_t n = hp->n_head_kv * hp->head_dim, heads = tie_of_heads(hp).heads;
    float *s = arena_alloc(&b->arena, (size_t)n, sizeof *s);
    if (!s)
        return err_nomem(e, "dual scales", (size_t)n * sizeof *s);
    for (int64_t j = 0; j < n; j++)
        s[j] = s_c[j / hp->head_dim * heads * hp->head_dim + j % hp->head_dim];
    b->v_scaled = !absorb_in_rows(b, ROLE_V, s, e);
    return b->v_scaled ? 0 : -1;
}

/* The scales of a stage move into what comes before it. */
static int absorb(struct block *b, enum role first, const float *s_c, struct err *e)
{
    switch (first) {
    case ROLE_Q: return absorb_in_norm(b, &b->fq->attn_norm, s_c, e);
    case ROLE_O: return absorb_in_v(b, s_c, e);
    case ROLE_GATE: return absorb_in_norm(b, &b->fq->ffn_norm, s_c, e);
    default: return absorb_in_up(b, s_c, e);
    }
}

static double *gain_of(struct block *b, enum role role)
{
    return b->out->dsq_gain + (role < ROLE_O ? STAGE_QKV : role == ROLE_O ? STAGE_O : role < ROLE_DOWN ? STAGE_GATE_UP : STAGE_DOWN);
}

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
    const float *w = b->ff.lin[role].w.data;
    struct tensor *to = &b->fq->lin[role].w, out;
    if ((g->type == DT_F16 && check_range(t->name, w, t->n_out, t->n_in, e)) ||
        grid_alloc(g, &b->run->m->arena, to->name, t->n_out, t->n_in, &out, e) ||
        grid_round_floats(g, w, t->n_out * t->n_in, t->n_in, 0, t->name, (void *)(uintptr_t)out.data, e))
        return -1;
    *to = out;
    t->bpw = g->bits;
    t->err = t->err_target = 0;
    grid_label(g, t->type, sizeof t->type);
    return 0;
}

bool block_propagates(const struct run *r)
{
    return r->o->method != METHOD_gptaq && (r->o->alpha > 0 || r->o->beta > 0);
}

/* What was made of the statistics before the first matrix is solved: the factor of H, what propagated error aims each matrix at, and
 * GPTAQ's term. */
struct shared {
    struct factor f;
    float *moved[ROLE_COUNT]; /* (n_out, n_in) of the first + i-th, or NULL */
    float *asym;
};

/* The targets of propagated error. D or T is given back then: with them, the factor and its double, the widest stage would be the
 * peak of the whole run. */
static int aim(struct block *b, enum role first, int n, struct stats *st, struct shared *s, struct err *e)
{
    const struct quant_options *o = b->run->o;
    double *chol = NULL;
    int rc = hessian_cholesky(st->h, st->d, o->prop_damp, b->fq->lin[first].w.name, b->run->log, &chol, e);
    for (int i = 0; !rc && i < n; i++) {
        enum role role = (enum role)(first + i);
        const struct tensor *w = &b->ff.lin[role].w;
        size_t count = (size_t)(w->dim[0] * w->dim[1]);
        s->moved[i] = mem_alloc(count, sizeof *s->moved[i]);
        rc = !s->moved[i] ? err_nomem(e, w->name, count * sizeof *s->moved[i])
                          : propagate_target(st, chol, o->alpha, w->data, w->dim[0], s->moved[i], e);
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
    int rc = (block_propagates(r) && aim(b, first, n, st, s, why)) ||
             factor_init(&s->f, st->h, st->d, o->damp, o->order, b->fq->lin[first].w.name, r->log, why) ||
             (o->method == METHOD_gptaq && o->alpha > 0 && gptaq_term(st, &s->f, o->alpha, &s->asym, why));
    r->res->seconds_factor += log_now() - t0;
    return !rc ? 0 : why->code == ERR_NUMERIC ? 1 : -1;
}

/* One matrix on its way through block_solve. */
struct part {
    enum role role;
    struct quant_tensor *rec;
    struct grid grid;
    float *cleared; /* W without its dead inputs, or NULL: the target is W itself or what propagated error aims at */
    bool moved;     /* the target is that */
    struct solve_in in;
    struct tensor q;
    float *s_c;     /* (n_in) DSQ's scales, which all parts share, or NULL */
    double aimed;   /* tr(E H E^T) against the target */
    bool failed;    /* numerically; why says how */
    struct err why;
};

/* Dead inputs see nothing: their weights are free, and 0 keeps them out of the scales. */
static int clear_dead(const struct stats *st, struct part *p, float *moved, struct err *e)
{
    struct quant_tensor *t = p->rec;
    size_t n = (size_t)(t->n_out * t->n_in);
    t->dead = 0;
    for (int64_t j = 0; j < st->d; j++)
        t->dead += !(st->h[j * st->d + j] > 0);
    if (!t->dead)
        return 0;
    if (!moved) {
        p->cleared = mem_alloc(n, sizeof *p->cleared);
        if (!p->cleared)
            return err_nomem(e, t->name, n * sizeof *p->cleared);
        memcpy(p->cleared, p->in.w, n * sizeof *p->cleared);
        p->in.w = moved = p->cleared;
    }
    for (int64_t j = 0; j < st->d; j++)
        for (int64_t i = 0; i < t->n_out && !(st->h[j * st->d + j] > 0); i++)
            moved[i * st->d + j] = 0;
    return 0;
}

/* What the solver needs. st and f NULL: round to nearest; moved (n_out, n_in): what propagated error aims at, or NULL: W. */
static int part_begin(struct block *b, struct part *p, const struct stats *st, const struct factor *f, float *moved, const float *asym,
                      struct err *e)
{
    struct quant_tensor *t = p->rec;
    const struct tensor *w = &b->ff.lin[p->role].w;
    p->moved = moved != NULL;
    p->in = (struct solve_in){ .name = t->name, .w = moved ? moved : w->data, .n_out = t->n_out, .n_in = t->n_in,
                               .h = st ? st->h : NULL, .f = f, .asym = asym, .grid = &p->grid };
    quant_grid(b->run->o, b->index, p->role, t->n_in, &p->grid);
    if (st && clear_dead(st, p, moved, e))
        return -1;
    if (p->grid.kind == KIND_FLOAT)
        return 0;
    if (check_range(t->name, p->in.w, t->n_out, t->n_in, e) ||
        grid_alloc(&p->grid, &b->run->m->arena, b->fq->lin[p->role].w.name, t->n_out, t->n_in, &p->q, e))
        return -1;
    return 0;
}

/* Are these to be solved by DSQ, all together? What absorbs the scales must be there, and every matrix that sees it change. */
static bool by_dsq(const struct block *b, const struct part *p, int n)
{
    const struct quant_options *o = b->run->o;
    for (int i = 0; i < n; i++)
        if (p[i].failed || p[i].grid.kind == KIND_FLOAT || !p[i].in.f)
            return false;
    return p->role == ROLE_DOWN ? o->dsq && b->up_quantized : p->role == ROLE_O ? o->dsq_o && b->v_quantized : o->dsq_norms;
}

static bool by_boa(const struct block *b, const struct part *p)
{
    return b->boa && p->in.f && p->role <= ROLE_V;
}

static int solve_boa(struct block *b, struct part *p, struct err *e)
{
    const struct solve_in *in = &p->in;
    double t0 = log_now();
    int rc = boa_solve(b->boa, p->role, &b->ff, in, b->run->o, &p->q, b->run->log, e) ||
             solve_error(in->w, &p->q, NULL, in->h, in->n_out, in->n_in, &p->aimed, e);
    p->rec->seconds += log_now() - t0;
    return rc ? -1 : 0;
}

/* 0: a numerical failure, with which p goes on to the user's rule; -1: any other. */
static int part_failed(struct part *p, const struct err *why)
{
    p->failed = why->code == ERR_NUMERIC;
    p->why = *why;
    return p->failed ? 0 : -1;
}

static void share_time(struct part *const *p, int n, double seconds)
{
    int64_t rows = 0;
    for (int i = 0; i < n; i++)
        rows += p[i]->in.n_out;
    for (int i = 0; i < n; i++) /* by rows, of the time they took together */
        p[i]->rec->seconds += seconds * (double)p[i]->in.n_out / (double)rows;
}

/* dsq: with scales that they share. */
static int solve_together(struct block *b, struct part *const *p, int n, bool dsq, struct err *e)
{
    struct solve_task task[SOLVE_MOST];
    float *s_c = NULL;
    double t0 = log_now();
    for (int i = 0; i < n; i++)
        task[i] = (struct solve_task){ .in = &p[i]->in, .t = &p[i]->q };
    if (dsq && !(s_c = arena_alloc(&b->arena, (size_t)p[0]->in.n_in, sizeof *s_c)))
        return err_nomem(e, "dual scales", (size_t)p[0]->in.n_in * sizeof *s_c);
    struct dsq_tie heads = tie_of_heads(&b->run->m->hp), *tie = p[0]->role == ROLE_O ? &heads : NULL;
    if (dsq ? dsq_solve(task, n, tie, b->run->o, s_c, gain_of(b, p[0]->role), e) : solve_tasks(task, n, true, b->run->o, e))
        return -1;
    for (int i = 0; i < n; i++) {
        p[i]->s_c = s_c;
        p[i]->aimed = task[i].error;
    }
    share_time(p, n, log_now() - t0);
    return 0;
}

/* The codes of all n parts. */
static int solve_parts(struct block *b, struct part *p, int n, struct err *e)
{
    struct part *of[SOLVE_MOST];
    int n_of = 0;
    bool dsq = by_dsq(b, p, n);
    for (int i = 0; i < n; i++) {
        if (p[i].failed || p[i].grid.kind == KIND_FLOAT)
            continue;
        if (!by_boa(b, p + i))
            of[n_of++] = p + i;
        else if (solve_boa(b, p + i, e) && part_failed(p + i, e))
            return -1;
    }
    if (!n_of || !solve_together(b, of, n_of, dsq, e))
        return 0;
    for (int i = 0; dsq && i < n_of; i++)
        if (part_failed(of[i], e))
            return -1;
    return dsq ? 0 : -1;
}

/* What is said of it. */
static int judge(const struct block *b, struct part *p, struct err *e)
{
    struct quant_tensor *t = p->rec;
    const struct solve_in *in = &p->in;
    const float *w = b->ff.lin[p->role].w.data;
    double norm = 0;
    t->err = p->aimed;
    if (solve_error(w, NULL, NULL, in->h, in->n_out, in->n_in, &norm, e) ||
        (p->moved && solve_error(w, &p->q, p->s_c, in->h, in->n_out, in->n_in, &t->err, e)))
        return -1;
    t->err = norm > 0 ? t->err / norm : 0;
    t->err_target = norm > 0 ? p->aimed / norm : 0;
    if (!isfinite(t->err) || !isfinite(t->err_target))
        return err_set(e, ERR_NUMERIC, "its error is not finite");
    t->bpw = grid_row_bits(&p->grid, in->n_in) / (double)in->n_in;
    t->damp = in->f ? in->f->damp : 0;
    grid_label(&p->grid, t->type, sizeof t->type);
    return 0;
}

/* Each part judged; those that share scales stand or fall together, with what absorbs them. */
static int judge_all(struct block *b, struct part *p, int n, struct err *e)
{
    bool shared = n > 0 && p[0].s_c;
    int bad = -1;
    for (int i = 0; i < n; i++) {
        double t0 = log_now();
        if (!p[i].failed && p[i].grid.kind != KIND_FLOAT && judge(b, p + i, e) && part_failed(p + i, e))
            return -1;
        p[i].rec->seconds += log_now() - t0;
        bad = p[i].failed ? i : bad;
    }
    if (!shared)
        return 0;
    if (bad < 0 && !absorb(b, p[0].role, p[0].s_c, e))
        return 0;
    const struct err why = bad >= 0 ? p[bad].why : *e;
    for (int i = 0; i < n; i++) {
        p[i].s_c = NULL;
        if (part_failed(p + i, &why))
            return -1;
    }
    return 0;
}

/* Into the model. */
static int place(struct block *b, struct part *p, struct err *e)
{
    if (p->grid.kind == KIND_FLOAT)
        return keep_float(b, p->role, &p->grid, p->rec, e);
    b->fq->lin[p->role].w = p->q;
    b->v_quantized |= p->role == ROLE_V;
    b->up_quantized |= p->role == ROLE_UP;
    return 0;
}

/* Round to nearest instead, or as float: the user's rule for a matrix that cannot be done well, and p->why why. */
static int fall_back(struct block *b, struct part *p, const struct stats *st, struct err *e)
{
    struct run *r = b->run;
    struct quant_tensor *t = p->rec;
    *gain_of(b, p->role) = 0;
    if (r->o->on_failure == FAILURE_STOP) {
        *e = p->why;
        return -1;
    }
    t->damp = 0;
    snprintf(t->fallback, sizeof t->fallback, "%s", r->o->on_failure == FAILURE_RTN ? "rtn" : "keep");
    if (r->o->on_failure == FAILURE_RTN) {
        struct part again = { .role = p->role, .rec = t };
        log_warn(r->log, "%s: rounded to nearest instead: %s", t->name, p->why.msg);
        int rc = part_begin(b, &again, st, NULL, NULL, NULL, e) || solve_parts(b, &again, 1, e) || judge(b, &again, e) ||
                 place(b, &again, e) ? -1 : 0;
        mem_free(again.cleared);
        return rc;
    }
    struct grid g;
    grid_init(&g, r->o->kept == DT_F16 ? GRID_f16 : GRID_f32, 0, 0, 0, t->n_in);
    log_warn(r->log, "%s: kept in %s: %s", t->name, dtype_table[g.type].name, p->why.msg);
    return keep_float(b, p->role, &g, t, e);
}

/* Put in place, reported; what failed numerically by the user's rule. */
static int finish(struct block *b, struct part *p, const struct stats *st, struct err *e)
{
    struct run *r = b->run;
    struct quant_tensor *t = p->rec;
    double t0 = log_now();
    int rc = !p->failed && place(b, p, e) ? part_failed(p, e) : 0;
    if (!rc && p->failed)
        rc = fall_back(b, p, st, e);
    if (rc && e->code == ERR_NUMERIC)
        err_prefix(e, "%s (--on-failure %s)", t->name, r->o->on_failure == FAILURE_STOP ? "stop; rtn or keep go on" : t->fallback);
    t->seconds += log_now() - t0;
    if (!rc && r->on_tensor)
        r->on_tensor(r->ud, t);
    return rc;
}

static bool stays_float(const struct block *b, enum role role)
{
    struct grid g;
    quant_grid(b->run->o, b->index, role, role_cols(&b->run->m->hp, role), &g);
    return g.kind == KIND_FLOAT;
}

/* why: NULL, or how the statistics or the factor failed numerically, and with them every matrix that needs them. */
static int solve_all(struct block *b, enum role first, int n, const struct stats *st, const struct shared *s, const struct err *why,
                     struct err *e)
{
    struct part p[SOLVE_MOST] = { 0 };
    const struct factor *f = st && b->run->o->method != METHOD_rtn ? &s->f : NULL;
    int rc = 0;
    for (int i = 0; !rc && i < n; i++) {
        p[i].role = (enum role)(first + i);
        p[i].rec = record(b, p[i].role);
        if (stays_float(b, p[i].role))
            rc = part_begin(b, p + i, NULL, NULL, NULL, NULL, e);
        else if (why)
            rc = part_failed(p + i, why);
        else if (part_begin(b, p + i, st, f, s->moved[i], s->asym, e))
            rc = part_failed(p + i, e);
    }
    rc = rc || solve_parts(b, p, n, e) || judge_all(b, p, n, e) ? -1 : 0;
    for (int i = 0; !rc && i < n; i++)
        rc = finish(b, p + i, st, e);
    for (int i = 0; i < n; i++)
        mem_free(p[i].cleared);
    return rc;
}

int block_solve(struct block *b, enum role first, int n, struct stats *st, struct err *e)
{
    struct run *r = b->run;
    struct shared s = { 0 };
    struct err why = { 0 };
    double t0 = log_now();
    int failed = 0;
    bool needs_stats = false;
    b->norm_scale = NULL;
    for (int i = 0; i < n; i++)
        needs_stats |= !stays_float(b, (enum role)(first + i));
    st = needs_stats ? st : NULL;
    arena_forget(&r->arena);
    arena_forget(&r->m->arena);
    if (st)
        failed = !stats_finish(st, b->fq->lin[first].w.name, &why) ? 0 : why.code == ERR_NUMERIC ? 1 : -1;
    st = failed ? NULL : st; /* of no use then, not even to judge by */
    if (st)
        stats_shrink(st, r->o->shrink);
    if (st && r->o->method != METHOD_rtn)
        failed = prepare(b, first, n, st, &s, &why);
    if (failed < 0)
        *e = why;
    int rc = failed < 0 ? -1 : solve_all(b, first, n, st, &s, failed ? &why : NULL, e);
    factor_release(&s.f);
    for (int i = 0; i < ROLE_COUNT; i++)
        mem_free(s.moved[i]);
    mem_free(s.asym);
    r->res->seconds_solve += log_now() - t0;
    return rc;
}
