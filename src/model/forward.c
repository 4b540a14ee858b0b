/* forward: one block in the stages that the quantizer taps, and the head.
 *
 * Every stage is one to three coarse operations of the backend on whole sequences; what a stage reads
 * and writes stands in model.h. Scratch is allocated once for the longest run. */
#include <string.h>

#include "backend/backend.h"
#include "model/model.h"

/* Floats a token needs, by array; the order is that of struct fwd. */
static void widths(const struct hparams *hp, int64_t w[7])
{
    int64_t q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    const int64_t all[7] = { hp->n_embd, q, kv, kv, q, hp->n_ff, hp->n_ff };
    memcpy(w, all, sizeof all);
}

int fwd_init(struct fwd *f, const struct hparams *hp, int64_t n_tok, struct err *e)
{
    int64_t w[7];
    float **at[7] = { &f->x, &f->q, &f->k, &f->v, &f->a, &f->g, &f->u };
    memset(f, 0, sizeof *f);
    arena_init(&f->arena);
    widths(hp, w);
    for (int i = 0; i < 7; i++) {
        *at[i] = arena_alloc(&f->arena, (size_t)n_tok, (size_t)w[i] * sizeof(float));
        if (!*at[i])
            goto nomem;
    }
    f->pos = arena_alloc(&f->arena, (size_t)n_tok, sizeof *f->pos);
    if (!f->pos)
        goto nomem;
    for (int64_t i = 0; i < n_tok; i++)
        f->pos[i] = (int32_t)i;
    f->cap = n_tok;
    return 0;
nomem:
    fwd_release(f);
    return err_nomem(e, "forward pass scratch", (size_t)fwd_bytes(hp, n_tok));
}

void fwd_release(struct fwd *f)
{
    arena_release(&f->arena);
    memset(f, 0, sizeof *f);
}

uint64_t fwd_bytes(const struct hparams *hp, int64_t n_tok)
{
    int64_t w[7];
    uint64_t sum = sizeof(int32_t);
    widths(hp, w);
    for (int i = 0; i < 7; i++)
        sum += (uint64_t)w[i] * sizeof(float);
    return sum * (uint64_t)n_tok;
}

int fwd_embed(const struct model *m, const int32_t *ids, int64_t n, float *h, struct err *e)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->hp.n_vocab)
            return err_set(e, ERR_FORMAT, "%s: token id %d at position %lld: expected 0 to %lld (the rows of the "
                           "embedding)", m->ck->path, ids[i], (long long)i, (long long)m->hp.n_vocab - 1);
    op_embed(&m->tok_embd, ids, n, h);
    return 0;
}

void fwd_attn_in(const struct model *m, const struct layer *l, const float *h, int64_t n, float *x)
{
    op_rmsnorm(h, l->attn_norm, n, m->hp.n_embd, m->hp.rms_eps, x);
}

int fwd_qkv(const struct model *m, const struct layer *l, const float *x, int64_t n, const int32_t *pos,
            float *q, float *k, float *v, struct err *e)
{
    const struct linear *lin = l->lin;
    if (op_linear(&lin[ROLE_Q].w, lin[ROLE_Q].b, x, n, q, 0, e) ||
        op_linear(&lin[ROLE_K].w, lin[ROLE_K].b, x, n, k, 0, e) ||
        op_linear(&lin[ROLE_V].w, lin[ROLE_V].b, x, n, v, 0, e))
        return -1;
    fwd_rotate(m, l, n, pos, q, k);
    return 0;
}

void fwd_rotate(const struct model *m, const struct layer *l, int64_t n, const int32_t *pos, float *q, float *k)
{
    const struct hparams *hp = &m->hp;
    if (l->q_norm)
        op_rmsnorm(q, l->q_norm, n * hp->n_head, hp->head_dim, hp->rms_eps, q);
    if (l->k_norm)
        op_rmsnorm(k, l->k_norm, n * hp->n_head_kv, hp->head_dim, hp->rms_eps, k);
    op_rope(q, n, hp->n_head, hp->head_dim, pos, m->inv_freq, m->rope_attn_scale);
    op_rope(k, n, hp->n_head_kv, hp->head_dim, pos, m->inv_freq, m->rope_attn_scale);
}

int fwd_attn(const struct model *m, const struct layer *l, struct fwd *f, const float *x, int64_t n,
             float *a, struct err *e)
{
    const struct hparams *hp = &m->hp;
    if (fwd_qkv(m, l, x, n, f->pos, f->q, f->k, f->v, e))
        return -1;
    return op_attention(f->q, f->k, f->v, n, 0, hp->n_head, hp->n_head_kv, hp->head_dim, hp->window, a, e);
}

int fwd_attn_out(const struct layer *l, const float *a, int64_t n, float *h, struct err *e)
{
    return op_linear(&l->lin[ROLE_O].w, l->lin[ROLE_O].b, a, n, h, 1, e);
}

void fwd_ffn_in(const struct model *m, const struct layer *l, const float *h, int64_t n, float *x)
{
    op_rmsnorm(h, l->ffn_norm, n, m->hp.n_embd, m->hp.rms_eps, x);
}

int fwd_act(const struct layer *l, struct fwd *f, const float *x, int64_t n, float *g, struct err *e)
{
    const struct linear *gate = &l->lin[ROLE_GATE], *up = &l->lin[ROLE_UP];
    if (op_linear(&gate->w, gate->b, x, n, g, 0, e) || op_linear(&up->w, up->b, x, n, f->u, 0, e))
        return -1;
    op_silu_mul(g, f->u, n * up->w.dim[0], g);
    return 0;
}

int fwd_ffn_out(const struct layer *l, const float *g, int64_t n, float *h, struct err *e)
{
    return op_linear(&l->lin[ROLE_DOWN].w, l->lin[ROLE_DOWN].b, g, n, h, 1, e);
}

int fwd_block(const struct model *m, const struct layer *l, struct fwd *f, float *h, int64_t n, struct err *e)
{
    fwd_attn_in(m, l, h, n, f->x);
    if (fwd_attn(m, l, f, f->x, n, f->a, e) || fwd_attn_out(l, f->a, n, h, e))
        return -1;
    fwd_ffn_in(m, l, h, n, f->x);
    return fwd_act(l, f, f->x, n, f->g, e) || fwd_ffn_out(l, f->g, n, h, e) ? -1 : 0;
}

int fwd_logits(const struct model *m, const float *h, int64_t n, float *x, float *logits, struct err *e)
{
    op_rmsnorm(h, m->out_norm, n, m->hp.n_embd, m->hp.rms_eps, x);
    return op_linear(&m->lm_head, NULL, x, n, logits, 0, e);
}
