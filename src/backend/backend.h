/* backend: the ~16 coarse operations that models and quantizers are made of.
 *
 * Everything is float32, row-major, shapes in comments. Matrix work is cut into
 * tiles of a fixed size (never by thread count), each tile one call of OpenBLAS
 * with one thread, or plain loops under D2Q_CPU=generic; so results do not depend
 * on the number of threads. Element-wise kernels come from a table filled by the
 * generic file and overridden by the widest ISA that the machine and its OS
 * support (D2Q_CPU=generic|avx2|avx512|amx|neon forces one; an unusable name is an error). */
#ifndef D2Q_BACKEND_BACKEND_H
#define D2Q_BACKEND_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tensor/tensor.h"

/* Chooses kernels once; called by every entry point of the facade. */
int backend_init(struct err *e);
const char *backend_isa(void);      /* "generic", "avx2", "avx512", "amx", "neon" */
const char *backend_blas(void);     /* OpenBLAS core type, or "none" */

/* y (n, n_out) = x (n, n_in) * W^T (+ bias). W of any dtype: tiles of rows are unpacked to float32 into
 * scratch of the caller's thread. accumulate: y += instead of y =. bias NULL or (n_out). */
int op_linear(const struct tensor *w, const float *bias, const float *x, int64_t n, float *y,
              int accumulate, struct err *e);
/* out (n, cols): rows ids[i] of table. */
void op_embed(const struct tensor *table, const int32_t *ids, int64_t n, float *out);
/* y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain. x, y (n, dim), gain (dim) or NULL (all ones); y may be x. */
void op_rmsnorm(const float *x, const float *gain, int64_t n, int64_t dim, float eps, float *y);
#define OP_HEAD_MAX 2048 /* widest head that the next takes */
/* Rotates pairs (i, i + head_dim/2) of each head in x (n, n_head*head_dim) by pos[t]*inv_freq[i]. head_dim is even. */
void op_rope(float *x, int64_t n, int64_t n_head, int64_t head_dim, const int32_t *pos,
             const float *inv_freq /* (head_dim/2) */, float attn_scale);
/* Causal grouped-query attention: q (n, n_head*hd); keys, values (n_past+n, n_head_kv*hd), query t sees keys
 * 0 .. n_past+t; out (n, n_head*hd). scale = 1/sqrt(hd). window > 0: only the last `window` keys. */
int op_attention(const float *q, const float *k, const float *v, int64_t n, int64_t n_past,
                 int64_t n_head, int64_t n_head_kv, int64_t head_dim, int64_t window, float *out,
                 struct err *e);
/* out[i] = silu(gate[i]) * up[i]; out may be gate. */
void op_silu_mul(const float *gate, const float *up, int64_t n, float *out);
void op_add(float *y, const float *x, int64_t n); /* y += x */
/* For each row of logits (n, n_vocab): log softmax at target[i], in double, into logp[i]. */
void op_log_prob(const float *logits, int64_t n, int64_t n_vocab, const int32_t *target, double *logp);
/* Two rows of predictions for the same token, reference and model. */
struct kl_row {
    double kl;                    /* sum of p_ref * (log p_ref - log p), nats */
    double logp_ref, logp;        /* of the target */
    int32_t top_ref, top;         /* first index of the largest */
};
/* For each row of logits (n, n_vocab). ref holds logits too, or with floor > -inf log probabilities, of which those at
 * or below floor are left out. */
void op_kl(const float *ref, const float *logits, int64_t n, int64_t n_vocab, const int32_t *target, float floor,
           struct kl_row *out);
/* First index of NaN or Inf in x, or -1. */
int64_t op_find_bad(const float *x, int64_t n);

#endif
