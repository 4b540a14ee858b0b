/* solve: one matrix onto one grid, written once for every method against the tile kernels.
 *
 * GPTQ (formats.md 3c): with U the upper Cholesky factor of (H + damping)^-1, columns are rounded in turn and
 * each error e = (w - value)/U_jj is paid back by the columns that follow, w_k -= e U_jk.
 * RTN is the same without U. DSQ calls it with col_scale. */
#ifndef D2Q_QUANT_SOLVE_H
#define D2Q_QUANT_SOLVE_H

#include "quant/grid.h"
#include "quant/quant.h"

/* What is computed once for each H and shared by the matrices that see the same inputs. */
struct factor {
    int64_t d;
    float *u;       /* (d, d) upper triangular, in processing order */
    int32_t *perm;  /* (d) processing order -> input, or NULL: natural */
    double damp;    /* share of the mean diagonal that it took */
};

/* h (d, d) symmetric, undamped. Dead inputs (zero diagonal) count as 1. A matrix that is not positive definite
 * has its damping raised tenfold, up to 1, with a warning; then ERR_NUMERIC. */
int factor_init(struct factor *f, const float *h, int64_t d, double damp, enum quant_order order,
                const char *name, const struct log *log, struct err *e);
void factor_release(struct factor *f);

struct solve_in {
    const char *name;        /* for messages */
    const float *w;          /* (n_out, n_in) target */
    int64_t n_out, n_in;
    const float *h;          /* (n_in, n_in) undamped, or NULL */
    const struct factor *f;  /* NULL: round to nearest */
    const struct grid *grid;
    const float *asym;       /* (n_in, n_in) GPTAQ's term in processing order (gptaq_term), or NULL */
    const float *col_scale;  /* (n_in) s^c, or NULL: ones; codes then stand for w[:,j] / s^c[j] */
};

/* Fills the data of t, which grid_alloc made for in->grid. */
int solve(const struct solve_in *in, const struct quant_options *o, struct tensor *t, struct err *e);
/* Up to SOLVE_MOST matrices at once, their rows side by side on all threads. */
#define SOLVE_MOST ROLE_COUNT
struct solve_task {
    const struct solve_in *in;
    struct tensor *t;
    double error; /* out, where it is asked for (judge): tr(E H E^T) as solve_error gives it, to float rounding: sweeps know it without
                   * another product */
};
int solve_tasks(struct solve_task *task, int n, bool judge, const struct quant_options *o, struct err *e);

/* tr(E H E^T), E = w - v * diag(col_scale); v NULL: E = w. h NULL: identity. */
int solve_error(const float *w, const struct tensor *v, const float *col_scale, const float *h,
                int64_t n_out, int64_t n_in, double *err, struct err *e);

/* Lower Cholesky factor of H + damp * mean diag, in double (mem_free); dead inputs and damping as above. */
int hessian_cholesky(const float *h, int64_t d, double damp, const char *name, const struct log *log, double **l, struct err *e);

#endif
