/* backward: the gradient of one block, for tuning what is continuous in a quantized model.
 *
 * Plain reverse mode, one sequence at a time: bwd_forward runs the block from its input and keeps what the gradient needs,
 * bwd_block turns the gradient at the block's output into the one at its input. Gradients of weights are never stored: a
 * callback gets both factors of dW = dY^T X while they are there. */
#ifndef D2Q_MODEL_BACKWARD_H
#define D2Q_MODEL_BACKWARD_H

#include "model/model.h"

struct bwd {
    struct fwd f;           /* x: input of q,k,v; q, k after rope; a, g as in the forward pass; u: up's output */
    float *x2, *gate, *h1;  /* (cap, n_embd) input of gate, up; (cap, n_ff); (cap, n_embd) between the halves */
    float *q0, *k0;         /* before their norms, where the family has these */
    float *dg, *du, *dx, *da, *dq, *dk, *dv;
    struct arena arena;
};

struct bwd_sink {
    void *ud;
    /* dW of this matrix = dy^T x; dy (n, n_out), x (n, n_in) */
    int (*weight)(void *ud, enum role role, const float *dy, const float *x, int64_t n, struct err *e);
    float *attn_gain, *ffn_gain; /* (n_embd) or NULL: += gradient of the norms' gains */
};

int bwd_init(struct bwd *b, const struct hparams *hp, int64_t n_tok, struct err *e);
void bwd_release(struct bwd *b);
uint64_t bwd_bytes(const struct hparams *hp, int64_t n_tok);

/* The block on h (n, n_embd) without its last matrix; h is not changed. */
int bwd_forward(const struct model *m, const struct layer *l, struct bwd *b, const float *h, int64_t n, struct err *e);
/* After bwd_forward on the same h: dh (n, n_embd), the gradient at the block's output, becomes that at h. */
int bwd_block(const struct model *m, const struct layer *l, struct bwd *b, const float *h, int64_t n, float *dh,
              const struct bwd_sink *sink, struct err *e);

/* dx (n, n_in) (+)= dy (n, n_out) W */
int bwd_linear(const struct tensor *w, const float *dy, int64_t n, float *dx, bool accumulate, struct err *e);
/* y = x / rms(x) * gain: dx (n, dim) (+)= its gradient for dy; dgain (dim) += that of the gain, unless NULL. */
int bwd_rmsnorm(const float *x, const float *gain, const float *dy, int64_t n, int64_t dim, float eps, float *dx,
                bool accumulate, float *dgain, struct err *e);

#endif
