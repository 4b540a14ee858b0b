/* kv: the forward pass with a cache of keys and values, for text that grows.
 *
 * One body serves two shapes of work: n new tokens of one sequence (prefill, decoding), and one new
 * token for each of n sequences (batched decoding). Both run every matrix product once over n rows; only
 * where keys go and what a query sees differ. Decoding is bound by reading the weights, so n sequences at
 * once cost hardly more than one. */
#include <stdatomic.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/packed.h"
#include "base/par.h"
#include "model/model.h"

int kv_init(struct kv_cache *c, const struct hparams *hp, int64_t cap, int64_t batch, struct err *e)
{
    memset(c, 0, sizeof *c);
    arena_init(&c->arena);
    size_t row = (size_t)(hp->n_head_kv * hp->head_dim) * sizeof(float);
    size_t rows = 0;
    if (fwd_init(&c->f, hp, batch, e))
        return -1;
    if (!__builtin_mul_overflow((size_t)hp->n_layer, (size_t)cap, &rows)) {
        c->k = arena_alloc(&c->arena, rows, row);
        c->v = arena_alloc(&c->arena, rows, row);
    }
    c->h = arena_alloc(&c->arena, (size_t)batch, (size_t)hp->n_embd * sizeof(float));
    if (!c->k || !c->v || !c->h) {
        kv_release(c);
        return err_nomem(e, "key-value cache", 2 * rows * row);
    }
    c->cap = cap;
    return 0;
}

void kv_release(struct kv_cache *c)
{
    fwd_release(&c->f);
    arena_release(&c->arena);
    memset(c, 0, sizeof *c);
}

uint64_t kv_bytes(const struct hparams *hp, int64_t cap)
{
    return 2 * (uint64_t)hp->n_layer * (uint64_t)cap * (uint64_t)(hp->n_head_kv * hp->head_dim) * sizeof(float);
}

/* Row `pos` of layer's keys or values. */
static float *row_of(const struct hparams *hp, const struct kv_cache *c, float *base, int64_t layer, int64_t pos)
{
    return base + (layer * c->cap + pos) * hp->n_head_kv * hp->head_dim;
}

/* ---- the stages of forward.c with either kind of product ------------------ */

static struct linear_part part(const struct linear *l, float *y, int accumulate)
{
    return (struct linear_part){ &l->w, l->b, y, accumulate, l->slot };
}

static int qkv(const struct model *m, const struct layer *l, bool packed, const float *x, int64_t n, const int32_t *pos,
               float *q, float *k, float *v, struct err *e)
{
    if (!packed)
        return fwd_qkv(m, l, x, n, pos, q, k, v, e);
    const struct linear_part p[3] = { part(&l->lin[ROLE_Q], q, 0), part(&l->lin[ROLE_K], k, 0), part(&l->lin[ROLE_V], v, 0) };
    if (op_linear_packed(p, 3, x, n, e))
        return -1;
    fwd_rotate(m, l, n, pos, q, k);
    return 0;
}

/* h += lin(x) */
static int add_linear(const struct linear *l, const float *x, int64_t n, float *h, struct err *e)
{
    const struct linear_part p = part(l, h, 1);
    return op_linear_packed(&p, 1, x, n, e);
}

static int feed_forward(const struct layer *l, bool packed, struct fwd *f, float *h, int64_t n, struct err *e)
{
    if (!packed)
        return fwd_act(l, f, f->x, n, f->g, e) || fwd_ffn_out(l, f->g, n, h, e) ? -1 : 0;
    const struct linear_part p[2] = { part(&l->lin[ROLE_GATE], f->g, 0), part(&l->lin[ROLE_UP], f->u, 0) };
    if (op_linear_packed(p, 2, f->x, n, e))
        return -1;
    op_silu_mul(f->g, f->u, n * tensor_rows(p->w), f->g);
    return add_linear(&l->lin[ROLE_DOWN], f->g, n, h, e);
}

static int head(const struct model *m, bool packed, const float *h, int64_t n, float *x, float *logits, struct err *e)
{
    if (!packed)
        return fwd_logits(m, h, n, x, logits, e);
    const struct linear_part p = { &m->lm_head, NULL, logits, 0, &m->slots[m->hp.n_layer * ROLE_COUNT] };
    op_rmsnorm(h, m->out_norm, n, m->hp.n_embd, m->hp.rms_eps, x);
    return op_linear_packed(&p, 1, x, n, e);
}

/* ---- attention over one cache, or over one for each row ------------------- */

struct attend {
    const struct model *m;
    struct kv_cache *const *c;
    struct fwd *f;
    int64_t layer;
    atomic_bool failed;
    struct err *e; /* the first failure's */
};

static void attend_row(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct attend *a = ctx;
    const struct hparams *hp = &a->m->hp;
    struct kv_cache *c = a->c[i];
    int64_t q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    struct err e = { .code = ERR_NONE };
    memcpy(row_of(hp, c, c->k, a->layer, c->n), a->f->k + (int64_t)i * kv, (size_t)kv * sizeof(float));
    memcpy(row_of(hp, c, c->v, a->layer, c->n), a->f->v + (int64_t)i * kv, (size_t)kv * sizeof(float));
    if (op_attention(a->f->q + (int64_t)i * q, row_of(hp, c, c->k, a->layer, 0),
                     row_of(hp, c, c->v, a->layer, 0), 1, c->n, hp->n_head, hp->n_head_kv, hp->head_dim,
                     hp->window, a->f->a + (int64_t)i * q, &e) &&
        !atomic_exchange(&a->failed, true) && a->e)
        *a->e = e;
}

/* Attention of the n rows of f->x: of sequence c[0] from its position on if n_seq is 1, else row i of c[i]. */
static int attend(const struct model *m, struct kv_cache *const *c, int64_t n_seq, struct fwd *f, int64_t n,
                  int64_t layer, struct err *e)
{
    const struct hparams *hp = &m->hp;
    const struct layer *l = &m->layers[layer];
    if (n_seq == 1) {
        float *k = row_of(hp, c[0], c[0]->k, layer, c[0]->n), *v = row_of(hp, c[0], c[0]->v, layer, c[0]->n);
        if (qkv(m, l, c[0]->packed, f->x, n, f->pos, f->q, k, v, e))
            return -1;
        return op_attention(f->q, row_of(hp, c[0], c[0]->k, layer, 0), row_of(hp, c[0], c[0]->v, layer, 0), n,
                            c[0]->n, hp->n_head, hp->n_head_kv, hp->head_dim, hp->window, f->a, e);
    }
    if (qkv(m, l, c[0]->packed, f->x, n, f->pos, f->q, f->k, f->v, e))
        return -1;
    struct attend a = { m, c, f, layer, false, e };
    par_for((size_t)n, attend_row, &a);
    return a.failed ? -1 : 0;
}

/* All blocks on h (n, n_embd), whose positions stand in f->pos. */
static int blocks(const struct model *m, struct kv_cache *const *c, int64_t n_seq, struct fwd *f, float *h,
                  int64_t n, struct err *e)
{
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        const struct layer *l = &m->layers[i];
        fwd_attn_in(m, l, h, n, f->x);
        if (attend(m, c, n_seq, f, n, i, e) ||
            (c[0]->packed ? add_linear(&l->lin[ROLE_O], f->a, n, h, e) : fwd_attn_out(l, f->a, n, h, e)))
            return -1;
        fwd_ffn_in(m, l, h, n, f->x);
        if (feed_forward(l, c[0]->packed, f, h, n, e))
            return -1;
    }
    return 0;
}

/* Repacked weights are read in their place: the stored ones need not stay in memory besides. Once, when all are. */
static void forget_stored(const struct model *m, struct kv_cache *c)
{
    int64_t n = m->hp.n_layer * ROLE_COUNT;
    if (!c->packed || c->forgot || !atomic_load(&m->slots[n - 1].tiles))
        return;
    for (int64_t i = 0; i < n; i++)
        if (atomic_load(&m->slots[i].tiles))
            checkpoint_forget(m->ck, m->slots[i].of, m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w.size);
    c->forgot = true;
}

static int check_room(const struct kv_cache *c, int64_t n, struct err *e)
{
    if (n <= c->cap - c->n)
        return 0;
    return err_set(e, ERR_USAGE, "key-value cache of %lld positions is full: %lld are used, %lld more asked for",
                   (long long)c->cap, (long long)c->n, (long long)n);
}

int kv_forward(const struct model *m, struct kv_cache *c, const int32_t *ids, int64_t n, bool all,
               float *logits, struct err *e)
{
    if (n < 1 || n > c->f.cap)
        return err_set(e, ERR_USAGE, "key-value cache: expected 1 to %lld tokens at once, found %lld",
                       (long long)c->f.cap, (long long)n);
    if (check_room(c, n, e) || fwd_embed(m, ids, n, c->h, e))
        return -1;
    for (int64_t i = 0; i < n; i++)
        c->f.pos[i] = (int32_t)(c->n + i);
    if (blocks(m, &c, 1, &c->f, c->h, n, e))
        return -1;
    c->n += n;
    forget_stored(m, c);
    if (!logits)
        return 0;
    int64_t rows = all ? n : 1;
    return head(m, c->packed, c->h + (n - rows) * m->hp.n_embd, rows, c->f.x, logits, e);
}

int kv_step(const struct model *m, struct kv_cache *const *c, int64_t n_seq, const int32_t *ids,
            float *logits, struct err *e)
{
    struct fwd *f = &c[0]->f;
    if (n_seq == 1)
        return kv_forward(m, c[0], ids, 1, true, logits, e);
    if (n_seq < 1 || n_seq > f->cap)
        return err_set(e, ERR_USAGE, "key-value cache: expected 1 to %lld sequences at once, found %lld",
                       (long long)f->cap, (long long)n_seq);
    for (int64_t i = 0; i < n_seq; i++) {
        if (check_room(c[i], 1, e))
            return -1;
        f->pos[i] = (int32_t)c[i]->n;
    }
    if (fwd_embed(m, ids, n_seq, c[0]->h, e) || blocks(m, c, n_seq, f, c[0]->h, n_seq, e))
        return -1;
    for (int64_t i = 0; i < n_seq; i++)
        c[i]->n++;
    return logits ? head(m, c[0]->packed, c[0]->h, n_seq, f->x, logits, e) : 0;
}
