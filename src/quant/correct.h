/* correct: what D2Quant adds to GPTQ. design.md 5.
 *   propagated error  aims a matrix at the float path's outputs
 *   DSQ               a second scale for each input channel of down_proj, absorbed by up_proj; of q,k,v and of gate,up, absorbed by
 *                     the gains of the norm before them; and of o, absorbed by v
 *   DAC               the mean deviation after the post-attention norm, paid back as biases of gate and up */
#ifndef D2Q_QUANT_CORRECT_H
#define D2Q_QUANT_CORRECT_H

#include "quant/solve.h"
#include "quant/stats.h"

/* out (n_out, d) = w + T H^-1, chol that of H damped by prop_damp; T as s has it (then it was gathered for this w), else alpha w D. */
int propagate_target(const struct stats *s, const double *chol, double alpha, const float *w, int64_t n_out, float *out, struct err *e);

/* *p (d, d; mem_free), in processing order: alpha striu(D U^T) U, the term of GPTAQ (arXiv 2504.02692) by which the columns after
 * the i-th gain w_i p[i, :], w_i its value before rounding - also between blocks of columns, where the reference
 * code takes the rounded one and so depends on its block size (formats.md 3c). */
int gptaq_term(const struct stats *s, const struct factor *f, double alpha, float **p, struct err *e);

/* Inputs that share their s^c: channel i of head h, and of the other heads that read one of v with it (grouped queries). */
struct dsq_tie {
    int64_t heads, head_dim; /* heads to a group; n_in is a multiple of heads * head_dim */
};

/* Solves n tasks, whose matrices see the same inputs (h, f) and share s_c (n_in), by the alternation of design.md 5: as solve_tasks does,
 * errors included, and fills s_c; tie NULL: each input has its own. The iterate of least sum of tr(E H E^T) is kept, so that is never above
 * GPTQ's alone: *gain = the kept one / that at s^c = 1. */
int dsq_solve(struct solve_task *task, int n, const struct dsq_tie *tie, const struct quant_options *o, float *s_c, double *gain, struct err *e);
/* Row j of up, quantized on grid g, times s_c[j]: only its fp16 factors change, rounded again (the integers of a two-level
 * grid stay, so it stays on its grid); fails naming the row, all rows as they were, when that leaves fp16's range. */
int dsq_absorb(struct tensor *up, const struct grid *g, const float *s_c, struct err *e);

#endif
