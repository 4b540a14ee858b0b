/* boa: attention-aware Hessians (BoA, arXiv 2406.13474), for the baseline of that name.
 *
 * GPTQ asks that each matrix keeps its own output; BoA asks that q and k keep the attention's logits and v its output. Errors of
 * one head then weigh as tr(H_row E H_col E^T), E (head_dim, n_embd):
 *   q   H_col = X^T X, H_row = mean over positions t of R_t^T (K^T K) R_t, K with RoPE, R_t the rotation of RoPE
 *   k   the same with Q^T Q summed over the query heads that share the key head
 *   v   H_col of each head = (A X)^T (A X) summed over those heads, A the attention; rows weigh alike
 * and a head's rows are rounded in turn, each row's error paid back by those after it, as columns are in GPTQ. Taken from the
 * paper alone. Tokens weigh alike, also where sinks are clipped or left out of X^T X. Where q or k is followed by a norm (Qwen3) its gain is in H_row, its division counts as constant. */
#ifndef D2Q_QUANT_BOA_H
#define D2Q_QUANT_BOA_H

#include "quant/solve.h"

struct boa {
    int64_t d, n_head, n_kv, head_dim;
    float *row_q, *row_k; /* (n_kv, head_dim, head_dim); the query heads of a group have one row_q */
    float *col_v;         /* (n_kv, d, d) */
    double *turn;         /* (4, head_dim/2, head_dim/2): of n_turn positions, see mean_turns */
    int64_t n_turn, n;    /* n: tokens of all sequences */
    struct arena arena;
};

int boa_init(struct boa *b, const struct hparams *hp, struct err *e);
void boa_release(struct boa *b);
/* One sequence: x (n, n_embd) is the input of q,k,v; l's float weights make q,k. f: scratch, overwritten. */
int boa_add(struct boa *b, const struct model *m, const struct layer *l, struct fwd *f, const float *x, int64_t n,
            struct err *e);
/* As solve(), for role q, k or v of layer l; in->f is the factor of H_col of q and k. */
int boa_solve(const struct boa *b, enum role role, const struct layer *l, const struct solve_in *in,
              const struct quant_options *o, struct tensor *t, const struct log *log, struct err *e);

#endif
