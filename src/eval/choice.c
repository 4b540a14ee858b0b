#include "eval/choice.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/par.h"

#define LOGITS 64 /* rows of logits at a time */

/* The rows of one question in a batch: its context, then each continuation without its last token, which only is predicted. */
struct placed {
    const struct question *q;
    int64_t row, skip; /* first row; tokens of the context left out */
};

struct target {
    int64_t row;
    int32_t id;
    double *sum;
};

struct batch {
    const struct model *m;
    struct placed *at;
    int64_t n, rows, cap;   /* questions, rows */
    int64_t cap_targets, n_targets;
    struct target *target;
    struct fwd f;
    int32_t *ids;
    float *h, *tile, *logits; /* (cap, n_embd), (LOGITS, n_embd) twice, (LOGITS, n_vocab) */
    int64_t layer;
    atomic_int failed;
    struct arena arena;
};

static int64_t rows_of(const struct question *q)
{
    return q->n_ctx + q->start[q->n] - q->n;
}

/* ---- attention, question by question ------------------------------------------------ */

static int attend(const struct batch *b, const struct placed *p, struct err *e)
{
    const struct hparams *hp = &b->m->hp;
    int64_t q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim, n_ctx = p->q->n_ctx - p->skip, longest = 0;
    const struct fwd *f = &b->f;
    if (op_attention(f->q + p->row * q, f->k + p->row * kv, f->v + p->row * kv, n_ctx, 0, hp->n_head, hp->n_head_kv, hp->head_dim,
                     hp->window, f->a + p->row * q, e))
        return -1;
    for (int64_t i = 0; i < p->q->n; i++) {
        int64_t n = p->q->start[i + 1] - p->q->start[i] - 1;
        longest = n > longest ? n : longest;
    }
    if (!longest)
        return 0;
    float *k = mem_alloc((size_t)(2 * (n_ctx + longest) * kv), sizeof *k), *v = k ? k + (n_ctx + longest) * kv : NULL;
    if (!k)
        return err_nomem(e, "keys and values", (size_t)(2 * (n_ctx + longest) * kv) * sizeof *k);
    memcpy(k, f->k + p->row * kv, (size_t)(n_ctx * kv) * sizeof *k);
    memcpy(v, f->v + p->row * kv, (size_t)(n_ctx * kv) * sizeof *v);
    int rc = 0;
    int64_t row = p->row + n_ctx;
    for (int64_t i = 0; !rc && i < p->q->n; i++) {
        int64_t n = p->q->start[i + 1] - p->q->start[i] - 1;
        if (n < 1)
            continue;
        memcpy(k + n_ctx * kv, f->k + row * kv, (size_t)(n * kv) * sizeof *k);
        memcpy(v + n_ctx * kv, f->v + row * kv, (size_t)(n * kv) * sizeof *v);
        rc = op_attention(f->q + row * q, k, v, n, n_ctx, hp->n_head, hp->n_head_kv, hp->head_dim, hp->window, f->a + row * q, e);
        row += n;
    }
    mem_free(k);
    return rc;
}

static void attend_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct batch *b = ctx;
    struct err e;
    if (attend(b, &b->at[i], &e))
        atomic_store(&b->failed, 1);
}

/* ---- one batch ------------------------------------------------------------------------ */

static void add_target(struct batch *b, int64_t row, int32_t id, double *sum)
{
    b->target[b->n_targets++] = (struct target){ row, id, sum };
}

static void place(struct batch *b, const struct question *q, int64_t skip)
{
    int64_t row = b->rows, n_ctx = q->n_ctx - skip, last = row + n_ctx - 1;
    b->at[b->n++] = (struct placed){ q, row, skip };
    for (int64_t t = 0; t < n_ctx; t++, row++) {
        b->ids[row] = q->ctx[skip + t];
        b->f.pos[row] = (int32_t)t;
    }
    for (int64_t i = 0; i < q->n; i++) {
        const int32_t *c = q->ids + q->start[i];
        int64_t n = q->start[i + 1] - q->start[i];
        q->logp[i] = 0;
        add_target(b, last, c[0], &q->logp[i]);
        for (int64_t t = 1; t < n; t++, row++) {
            b->ids[row] = c[t - 1];
            b->f.pos[row] = (int32_t)(n_ctx + t - 1);
            add_target(b, row, c[t], &q->logp[i]);
        }
    }
    b->rows = row;
}

static int by_row(const void *a, const void *b)
{
    const struct target *x = a, *y = b;
    return x->row != y->row ? (x->row > y->row) - (x->row < y->row) : (x->sum > y->sum) - (x->sum < y->sum);
}

struct log_prob_job {
    const struct batch *b;
    const struct target *t;
    int64_t first_row;
    const int64_t *tile_row; /* of each target */
    double *logp;
};

static void log_prob_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct log_prob_job *j = ctx;
    int64_t v = j->b->m->hp.n_vocab;
    op_log_prob(j->b->logits + j->tile_row[i] * v, 1, v, &j->t[i].id, j->logp + i);
}

/* Logits of up to LOGITS different rows at a time, each looked at by all that it predicts. */
static int score(struct batch *b, struct err *e)
{
    int64_t d = b->m->hp.n_embd;
    int64_t *tile_row = mem_alloc((size_t)b->n_targets, sizeof *tile_row);
    double *logp = mem_alloc((size_t)b->n_targets, sizeof *logp);
    int rc = tile_row && logp ? 0 : err_nomem(e, "scores", (size_t)b->n_targets * 16);
    qsort(b->target, (size_t)b->n_targets, sizeof *b->target, by_row);
    for (int64_t i = 0, end; !rc && i < b->n_targets; i = end) {
        int64_t n = 0;
        for (end = i; end < b->n_targets; end++) {
            bool fresh = end == i || b->target[end].row != b->target[end - 1].row;
            if (fresh && n == LOGITS)
                break;
            if (fresh)
                memcpy(b->tile + n++ * d, b->h + b->target[end].row * d, (size_t)d * sizeof *b->tile);
            tile_row[end - i] = n - 1;
        }
        struct log_prob_job j = { .b = b, .t = b->target + i, .tile_row = tile_row, .logp = logp };
        rc = fwd_logits(b->m, b->tile, n, b->tile + LOGITS * d, b->logits, e);
        if (!rc)
            par_for((size_t)(end - i), log_prob_item, &j);
        for (int64_t k = i; !rc && k < end; k++)
            *b->target[k].sum += logp[k - i];
    }
    mem_free(tile_row);
    mem_free(logp);
    return rc;
}

/* Of all rows `done` are behind and `all` there are. */
static int batch_run(struct batch *b, const struct log *log, const char *step, int64_t done, int64_t all, struct err *e)
{
    const struct model *m = b->m;
    struct fwd *f = &b->f;
    if (fwd_embed(m, b->ids, b->rows, b->h, e))
        return -1;
    for (int64_t l = 0; l < m->hp.n_layer; l++) {
        const struct layer *layer = &m->layers[l];
        double now = (double)done + (double)b->rows * (double)l / (double)m->hp.n_layer;
        if (log_progress(log, step, now, (double)all, e))
            return -1;
        fwd_attn_in(m, layer, b->h, b->rows, f->x);
        if (fwd_qkv(m, layer, f->x, b->rows, f->pos, f->q, f->k, f->v, e))
            return -1;
        par_for((size_t)b->n, attend_item, b);
        if (atomic_load(&b->failed))
            return err_nomem(e, "attention", 0);
        if (fwd_attn_out(layer, f->a, b->rows, b->h, e))
            return -1;
        fwd_ffn_in(m, layer, b->h, b->rows, f->x);
        if (fwd_act(layer, f, f->x, b->rows, f->g, e) || fwd_ffn_out(layer, f->g, b->rows, b->h, e))
            return -1;
    }
    return score(b, e);
}

/* ---- all questions ---------------------------------------------------------------------- */

static int longest_first(const void *a, const void *b)
{
    const struct question *x = *(const struct question *const *)a, *y = *(const struct question *const *)b;
    int64_t m = rows_of(x), n = rows_of(y);
    return m != n ? (m < n) - (m > n) : (x > y) - (x < y);
}

/* Tokens of the context to leave out, so that context and longest continuation fit. */
static int64_t excess(const struct model *m, const struct question *q)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < q->n; i++)
        if (q->start[i + 1] - q->start[i] > longest)
            longest = q->start[i + 1] - q->start[i];
    int64_t over = q->n_ctx + longest - 1 - m->hp.n_ctx;
    return over < 0 || m->hp.n_ctx <= 0 ? 0 : over < q->n_ctx ? over : q->n_ctx - 1;
}

static int batch_init(struct batch *b, const struct model *m, int64_t longest, int64_t targets, struct err *e)
{
    size_t d = (size_t)m->hp.n_embd;
    memset(b, 0, sizeof *b);
    arena_init(&b->arena);
    b->m = m;
    b->cap = longest > CHOICE_BATCH ? longest : CHOICE_BATCH;
    b->cap_targets = targets > 2 * CHOICE_BATCH ? targets : 2 * CHOICE_BATCH;
    if (fwd_init(&b->f, &m->hp, b->cap, e))
        return -1;
    b->at = arena_alloc(&b->arena, (size_t)b->cap, sizeof *b->at);
    b->target = arena_alloc(&b->arena, (size_t)b->cap_targets, sizeof *b->target);
    b->ids = arena_alloc(&b->arena, (size_t)b->cap, sizeof *b->ids);
    b->h = arena_alloc(&b->arena, (size_t)b->cap, d * sizeof *b->h);
    b->tile = arena_alloc(&b->arena, 2 * LOGITS, d * sizeof *b->tile);
    b->logits = arena_alloc(&b->arena, LOGITS, (size_t)m->hp.n_vocab * sizeof *b->logits);
    if (b->at && b->target && b->ids && b->h && b->tile && b->logits)
        return 0;
    return err_nomem(e, "a batch of questions", (size_t)b->cap * d * sizeof *b->h);
}

int choice_score(const struct model *m, const struct question *q, int64_t n, const struct log *log, const char *step,
                 bool *interrupted, struct err *e)
{
    *interrupted = false;
    const struct question **order = mem_alloc((size_t)(n > 0 ? n : 1), sizeof *order);
    int64_t longest = 1, targets = 1, done = 0, all = 0;
    struct batch b;
    if (!order)
        return err_nomem(e, "questions", (size_t)n * sizeof *order);
    for (int64_t i = 0; i < n; i++) {
        order[i] = q + i;
        int64_t rows = rows_of(q + i) - excess(m, q + i);
        longest = rows > longest ? rows : longest;
        targets = q[i].start[q[i].n] > targets ? q[i].start[q[i].n] : targets;
        all += rows;
    }
    qsort(order, (size_t)n, sizeof *order, longest_first);
    int rc = batch_init(&b, m, longest, targets, e);
    for (int64_t i = 0; !rc && i < n;) {
        b.n = b.rows = b.n_targets = 0;
        for (; i < n; i++) {
            int64_t skip = excess(m, order[i]), rows = rows_of(order[i]) - skip;
            if (b.n && (b.rows + rows > b.cap || b.n_targets + order[i]->start[order[i]->n] > b.cap_targets))
                break;
            place(&b, order[i], skip);
        }
        rc = batch_run(&b, log, step, done, all, e);
        if (rc && e->code == ERR_CANCELLED && done) {
            for (i -= b.n; i < n; i++)
                for (int64_t k = 0; k < order[i]->n; k++)
                    order[i]->logp[k] = NAN;
            *interrupted = true;
            rc = 0;
        }
        done += b.rows;
    }
    if (!rc && !*interrupted)
        log_progress(log, step, (double)all, (double)all, NULL); /* too late to cancel */
    fwd_release(&b.f);
    arena_release(&b.arena);
    mem_free(order);
    return rc;
}
