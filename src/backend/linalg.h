/* linalg: dense matrix work in fixed tiles over par_for. Row-major.
 *
 * The solvers work in double: a Hessian with massive activations has a condition
 * number that float does not survive. */
#ifndef D2Q_BACKEND_LINALG_H
#define D2Q_BACKEND_LINALG_H

#include <stdint.h>

#include "base/err.h"

/* C (m, n) = alpha * A * B + beta * C; A is (m, k), or (k, m) with trans_a; B is (k, n), or (n, k) with
 * trans_b; ld* are row strides in elements. */
void la_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
              int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void la_dgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
              int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
/* The same on one thread, for use inside a par_for item: one call of BLAS or of a kernel of our own (or plain loops). */
void la_sgemm_tile(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                   int64_t ldc);
/* Lower triangle and diagonal of H (d, d) += alpha * X^T X, X (n, d). la_symmetrize copies it up. */
void la_syrk_add(int64_t n, int64_t d, float alpha, const float *x, int64_t ldx, float *h);
void la_symmetrize(int64_t d, float *h);
/* In place on the lower triangle of A (n, n): A = L L^T. Returns 0, or -1 with ERR_NUMERIC naming the pivot
 * (A is then spoilt). The strict upper triangle is not touched. */
int la_cholesky(int64_t n, double *a, struct err *e);
/* In place: the inverse of the lower triangular L (n, n); strict upper triangle untouched. */
void la_invert_lower(int64_t n, double *l);
/* X (m, n) := X * A^-1 with A = L L^T given by its Cholesky factor L (n, n): row-wise solves. */
void la_solve_rows(int64_t n, const double *l, int64_t m, double *x);

#endif
