/* Propagated error, and GPTAQ's column-wise form of it.
 * W' = W + T H^-1, T = alpha W D + beta R (stats.h), in double where the inverse is taken.
 * At alpha = beta = 1 and without quantization W' x~ is the least squares fit of the float path's output. */
#include <string.h>

#include "backend/linalg.h"
#include "quant/correct.h"

#define ROWS 512 /* rows solved at a time, to bound the memory in double */

int propagate_target(const struct stats *s, const double *chol, double alpha, const float *w, int64_t n_out, float *out, struct err *e)
{
    int64_t d = s->d;
    size_t n = (size_t)((n_out < ROWS ? n_out : ROWS) * d);
    double *x = mem_alloc(n, sizeof *x);
    if (!x)
        return err_nomem(e, "propagated error", n * sizeof *x);
    for (int64_t row0 = 0; row0 < n_out; row0 += ROWS) {
        int64_t rows = n_out - row0 < ROWS ? n_out - row0 : ROWS;
        float *o = out + row0 * d;
        const float *wr = w + row0 * d;
        if (!s->t)
            la_sgemm(0, 0, rows, d, d, (float)alpha, wr, d, s->dx, d, 0, o, d);
        const float *t = s->t ? s->t + row0 * d : o;
        for (int64_t i = 0; i < rows * d; i++)
            x[i] = t[i];
        la_solve_rows(d, chol, rows, x);
        for (int64_t i = 0; i < rows * d; i++)
            o[i] = (float)(wr[i] + x[i]);
    }
    mem_free(x);
    return 0;
}

int gptaq_term(const struct stats *s, const struct factor *f, double alpha, float **p, struct err *e)
{
    int64_t d = s->d;
    float *dx = mem_alloc((size_t)(d * d), sizeof *dx), *y = mem_alloc((size_t)(d * d), sizeof *y);
    if (!dx || !y) {
        mem_free(dx);
        mem_free(y);
        return err_nomem(e, "GPTAQ's term", (size_t)(2 * d * d) * sizeof *y);
    }
    for (int64_t i = 0; i < d; i++) /* a dead input has x~ = 0 always: its rows and columns count nothing */
        for (int64_t j = 0; j < d; j++) {
            int64_t pi = f->perm ? f->perm[i] : i, pj = f->perm ? f->perm[j] : j;
            dx[i * d + j] = s->h[pi * d + pi] > 0 ? s->dx[pi * d + pj] : 0;
        }
    la_sgemm(0, 1, d, d, d, (float)alpha, dx, d, f->u, d, 0, y, d);
    for (int64_t i = 0; i < d; i++)
        memset(y + i * d, 0, (size_t)(i + 1) * sizeof *y);
    la_sgemm(0, 0, d, d, d, 1, y, d, f->u, d, 0, dx, d);
    mem_free(y);
    *p = dx;
    return 0;
}
