/* model: a decoder-only transformer of one of the families, and how to run it.
 *
 * Names follow Hugging Face: y = x W^T, W (n_out, n_in). A model's tensors are views
 * into its checkpoint (mapped, never copied) until a quantizer replaces a tensor's data and type: "a
 * quantized model is a model", everything here works on it unchanged. */
#ifndef D2Q_MODEL_MODEL_H
#define D2Q_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/packed.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "io/checkpoint.h"
#include "model/tokenizer.h"
#include "tensor/tensor.h"

struct hparams {
    char family[16];       /* row of families.def: "llama", "mistral", "qwen2", "qwen3" */
    int64_t n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_ctx;
    float rms_eps;
    double rope_base;
    bool tied;             /* lm_head is tok_embd */
    bool qkv_bias, o_bias, mlp_bias, qk_norm;
    int64_t window;        /* sliding window of attention, 0: none */
};

/* The seven matrices of a block that are quantized, in the order in which they are. */
enum role { ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN, ROLE_COUNT };
extern const char *const role_hf_name[ROLE_COUNT];   /* "self_attn.q_proj" ... */
extern const char *const role_gguf_name[ROLE_COUNT]; /* "attn_q" ... */

/* "model.layers.3.mlp.down_proj" and suffix, of matrix i = layer ROLE_COUNT + role. */
void matrix_name(char *out, size_t cap, int64_t i, const char *suffix);

/* Shape of a role's matrix. */
int64_t role_rows(const struct hparams *hp, enum role r);
int64_t role_cols(const struct hparams *hp, enum role r);

struct linear {
    struct tensor w;  /* (n_out, n_in) */
    const float *b;   /* (n_out) or NULL */
    struct packed_slot *slot; /* of the model, for decoding */
};

struct layer {
    const float *attn_norm, *ffn_norm; /* (n_embd) */
    const float *q_norm, *k_norm;      /* (head_dim) or NULL */
    struct linear lin[ROLE_COUNT];
};

struct model {
    struct checkpoint *ck;   /* owned */
    struct tokenizer *tok;   /* owned; NULL when the checkpoint has none */
    struct arena arena;      /* whatever is not a view */
    struct hparams hp;
    json_t *config;          /* config.json of this model: the folder's own, or made from GGUF metadata */
    struct tensor tok_embd;  /* (n_vocab, n_embd) */
    struct tensor lm_head;   /* (n_vocab, n_embd); the same view when tied */
    const float *out_norm;   /* (n_embd) */
    const float *inv_freq;   /* (head_dim/2), rope scaling applied */
    float rope_attn_scale;   /* factor on cos and sin, 1 but for some scalings */
    struct layer *layers;    /* n_layer */
    struct packed_slot *slots; /* of each linear of each layer, then lm_head */
    bool more_layers;        /* the file holds some beyond hp.n_layer, which are no part of the model (as transformers has it) */
    bool unfinished;         /* quantizing began and did not end (model_whole) */
};

/* Unknown architectures and options are refused by name; NaN is not looked for here. */
int model_open(struct model **out, const char *path, struct err *e);
void model_free(struct model *m);
/* -1 with an error: quantizing it was cut off, so it is neither the model that was read nor the one that was to be. */
int model_whole(const struct model *m, struct err *e);
/* Gives back what generating text repacked (packed_lanes.c); it is made again when it is needed. */
void model_forget_repacked(const struct model *m);

/* ---- forward, in the stages the quantizer needs -------------------------- */

/* Scratch for runs of up to n_tok tokens of one sequence (keys and values of one block included). */
struct fwd {
    int64_t cap; /* tokens */
    float *x;    /* (cap, n_embd) norm output */
    float *q, *k, *v; /* (cap, n_head*head_dim), (cap, n_head_kv*head_dim) x 2 */
    float *a;    /* (cap, n_head*head_dim) attention output, o's input */
    float *g, *u; /* (cap, n_ff); after fwd_act g is down's input */
    int32_t *pos; /* (cap) 0,1,2... */
    struct arena arena;
};

int fwd_init(struct fwd *f, const struct hparams *hp, int64_t n_tok, struct err *e);
void fwd_release(struct fwd *f);
uint64_t fwd_bytes(const struct hparams *hp, int64_t n_tok);

/* h (n, n_embd) = rows of the embedding; an id outside the vocabulary is an error. */
int fwd_embed(const struct model *m, const int32_t *ids, int64_t n, float *h, struct err *e);

/* One block on h (n, n_embd), a whole sequence from position 0. The stages, in order:
 *   fwd_attn_in   x = rmsnorm(h) * attn_norm                    x: input of q, k, v
 *   fwd_attn      q,k,v = lin(x); norms, rope, attention -> a     a: input of o
 *   fwd_attn_out  h += o(a)
 *   fwd_ffn_in    x = rmsnorm(h) * ffn_norm                     x: input of gate, up
 *   fwd_act       g = silu(gate(x)) * up(x)                     g: input of down
 *   fwd_ffn_out   h += down(g)
 * x, a, g are passed explicitly where a caller may keep them elsewhere. */
void fwd_attn_in(const struct model *m, const struct layer *l, const float *h, int64_t n, float *x);
int fwd_attn(const struct model *m, const struct layer *l, struct fwd *f, const float *x, int64_t n,
             float *a, struct err *e);
int fwd_attn_out(const struct layer *l, const float *a, int64_t n, float *h, struct err *e);
void fwd_ffn_in(const struct model *m, const struct layer *l, const float *h, int64_t n, float *x);
int fwd_act(const struct layer *l, struct fwd *f, const float *x, int64_t n, float *g, struct err *e);
int fwd_ffn_out(const struct layer *l, const float *g, int64_t n, float *h, struct err *e);

/* The first half of fwd_attn: q, k, v of x with norms and rope, token t at position pos[t]. */
int fwd_qkv(const struct model *m, const struct layer *l, const float *x, int64_t n, const int32_t *pos,
            float *q, float *k, float *v, struct err *e);
/* What follows the three products in fwd_qkv: norms and rope. */
void fwd_rotate(const struct model *m, const struct layer *l, int64_t n, const int32_t *pos, float *q, float *k);
/* All stages of one block. */
int fwd_block(const struct model *m, const struct layer *l, struct fwd *f, float *h, int64_t n, struct err *e);
/* logits (n, n_vocab) = lm_head(rmsnorm(h) * out_norm). h is not changed. x: scratch (n, n_embd). */
int fwd_logits(const struct model *m, const float *h, int64_t n, float *x, float *logits, struct err *e);

/* ---- forward with a KV cache --------------------------------------------- */

struct kv_cache {
    int64_t cap, n;    /* positions; n are filled */
    bool packed;       /* products by op_linear_packed: activations rounded to 8 bits; false after kv_init */
    bool forgot;       /* stored weights that have been repacked are no longer in memory */
    float *k, *v;      /* (n_layer, cap, n_head_kv*head_dim) */
    struct fwd f;
    float *h;
    struct arena arena;
};

int kv_init(struct kv_cache *c, const struct hparams *hp, int64_t cap, int64_t batch, struct err *e);
void kv_release(struct kv_cache *c);
/* Runs n tokens (<= batch) after the c->n already there. logits: (n, n_vocab) if all, else (n_vocab) of the last
 * token, or NULL. Rolling back is c->n = smaller. */
int kv_forward(const struct model *m, struct kv_cache *c, const int32_t *ids, int64_t n, bool all,
               float *logits, struct err *e);
/* One token ids[i] for each of n_seq sequences at once (c[0] was made with batch >= n_seq): their matrix products
 * are one. logits (n_seq, n_vocab) or NULL. */
int kv_step(const struct model *m, struct kv_cache *const *c, int64_t n_seq, const int32_t *ids,
            float *logits, struct err *e);
/* Of the keys and values of a cache of cap positions. */
uint64_t kv_bytes(const struct hparams *hp, int64_t cap);

#endif
