/* stats: what the solver must know of a matrix's inputs, summed over calibration tokens.
 *
 * With x the float path's input of the matrix, x~ the quantized path's, r and r~ the residual streams:
 *   H = (2/n) sum f^2 x~ x~^T      D = (2/n) sum f^2 (x - x~) x~^T      R = (2/n) sum f^2 (r - r~) x~^T
 * f is the token's weight against massive activations (enum quant_sinks). */
#ifndef D2Q_QUANT_STATS_H
#define D2Q_QUANT_STATS_H

#include "quant/quant.h"

struct stats {
    int64_t d, n_res;  /* widths of x and of r (0: no R) */
    float *h;          /* (d, d) */
    float *dx;         /* (d, d) or NULL */
    float *r;          /* (n_res, d) or NULL */
    double *sum_x, *sum_diff; /* (d): of f^2 x~ and f^2 (x - x~) */
    double weight;     /* sum of f^2 */
    int64_t n;         /* tokens */
    enum quant_sinks sinks;
    struct arena arena, path; /* path: dx and r */
};

/* n_res 0: no R; with_diff false: neither D nor R (the float path is not needed). */
int stats_init(struct stats *s, int64_t d, int64_t n_res, bool with_diff, enum quant_sinks sinks, struct err *e);
void stats_release(struct stats *s);
/* Gives back dx and r. */
void stats_drop_path(struct stats *s);
uint64_t stats_bytes(int64_t d, int64_t n_res, bool with_diff);
/* One sequence of n tokens: xq, xf (n, d); rq, rf (n, n_res); xf, rq, rf NULL where not asked for. */
int stats_add(struct stats *s, const float *xq, const float *xf, const float *rq, const float *rf,
              int64_t n, struct err *e);
/* Symmetric H, and the factor 2/n. NaN is reported as ERR_NUMERIC. */
int stats_finish(struct stats *s, const char *name, struct err *e);
/* As if x~ had been x~ + mu throughout (mu (d)); before stats_finish. */
void stats_shift(struct stats *s, const float *mu);

/* f of each of n rows of x (n, d): 1, or for a row whose norm exceeds SINK_RATIO times the median of the
 * sequence: 0 (skip) or SINK_RATIO * median / norm (clip). */
#define SINK_RATIO 8.0f
void sink_weights(enum quant_sinks sinks, const float *x, int64_t n, int64_t d, float *f, float *norms);

#endif
