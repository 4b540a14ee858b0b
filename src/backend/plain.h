/* plain: what stands for BLAS and LAPACK under D2Q_CPU=generic, one thread.
 *
 * Every sum runs in a fixed order that depends on the inner dimension alone, without
 * fused multiply-adds, so the results are the same on every machine and for every tiling. Row-major;
 * arguments as in linalg.h. The triangular pieces are for small diagonal blocks. */
#ifndef D2Q_BACKEND_PLAIN_H
#define D2Q_BACKEND_PLAIN_H

#include <stdint.h>

void plain_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void plain_dgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                 int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
/* Lower Cholesky in place; returns 0 or the 1-based pivot that is not positive. */
int64_t plain_potrf(int64_t n, double *a, int64_t lda);
void plain_trtri(int64_t n, double *l, int64_t ldl); /* inverse of a lower triangle, in place */
void plain_right_lt(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx); /* X L^-T */
void plain_right_l(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx);  /* X L^-1 */
void plain_left_l(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx);   /* L^-1 X, L (m, m) */

#endif
