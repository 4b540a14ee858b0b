/* stats: what the solver must know of a matrix's inputs, summed over calibration tokens.
 *
 * With x the float path's input of the matrix W, x~ the quantized path's, r and r~ the residual streams:
 *   H = (2/n) sum f^2 x~ x~^T      D = (2/n) sum f^2 (x - x~) x~^T
 *   T = (2/n) sum f (f alpha W (x - x~) + g beta (r - r~)) x~^T = alpha W D + beta R
 * f is the token's weight against massive activations (enum quant_sinks), g the same but of the residual stream besides. T is asked for instead
 * of D where W writes to the residual stream: down_proj has a sixth of D's rows, and D would be the largest matrix of a run. */
#ifndef D2Q_QUANT_STATS_H
#define D2Q_QUANT_STATS_H

#include "quant/quant.h"

/* A matrix that writes to the residual stream, w (n_out, d). */
struct stats_target {
    const float *w;
    int64_t n_out;
    double alpha, beta;
};

enum stats_path { PATH_NONE, PATH_D, PATH_T }; /* what is known of the float path */

struct stats {
    int64_t d;         /* width of x */
    struct stats_target to; /* with PATH_T */
    float *h;          /* (d, d) */
    float *dx;         /* (d, d) or NULL */
    float *t;          /* (to.n_out, d) or NULL */
    double *sum_x, *sum_diff; /* (d): of f^2 x~ and f^2 (x - x~), with PATH_D; else 0 */
    double weight;     /* sum of f^2 */
    int64_t n;         /* tokens */
    enum quant_sinks sinks;
    struct arena arena, path; /* path: dx or t */
};

/* to: with PATH_T; its w must live as long as s. */
int stats_init(struct stats *s, int64_t d, enum stats_path path, const struct stats_target *to, enum quant_sinks sinks, struct err *e);
void stats_release(struct stats *s);
/* Gives back dx or t. */
void stats_drop_path(struct stats *s);
uint64_t stats_bytes(int64_t d, enum stats_path path, int64_t n_out);
/* One sequence of n tokens: xq, xf (n, d); rq, rf (n, to.n_out); xf, rq, rf may be NULL where the path does not ask for them. */
int stats_add(struct stats *s, const float *xq, const float *xf, const float *rq, const float *rf,
              int64_t n, struct err *e);
/* Symmetric H, and the factor 2/n. NaN is reported as ERR_NUMERIC. */
int stats_finish(struct stats *s, const char *name, struct err *e);
/* After stats_finish: H towards its diagonal, which grows by the share c d / n: what so few tokens say of pairs of inputs is in good part
 * luck, the more so the more inputs there are for each token, and the solver's feedback would follow it. */
void stats_shrink(struct stats *s, double c);
/* By what the diagonal of d inputs' statistics of n tokens grows. */
float shrink_growth(double c, int64_t d, int64_t n);
/* As if x~ had been x~ + mu throughout (mu (d)); with PATH_D, before stats_finish. */
void stats_shift(struct stats *s, const float *mu);

/* f of each of n rows of x (n, d): 1, or for a row whose norm exceeds SINK_RATIO times the median of the
 * sequence: 0 (skip) or SINK_RATIO * median / norm (clip). */
#define SINK_RATIO 8.0f
void sink_weights(enum quant_sinks sinks, const float *x, int64_t n, int64_t d, float *f, float *norms);

#endif
