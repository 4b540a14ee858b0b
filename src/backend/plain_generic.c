#include "backend/plain.h"

#include <math.h>

#define T float
#define GEMM gemm_f
#include "backend/plain_gemm.h"
#undef T
#undef GEMM
#define T double
#define GEMM gemm_d
#include "backend/plain_gemm.h"
#undef T
#undef GEMM

void plain_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    gemm_f(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void plain_dgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                 int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc)
{
    gemm_d(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

int64_t plain_potrf(int64_t n, double *a, int64_t lda)
{
    for (int64_t j = 0; j < n; j++) {
        double *rj = a + j * lda, d = rj[j];
        for (int64_t k = 0; k < j; k++)
            d -= rj[k] * rj[k];
        if (!(d > 0) || isinf(d))
            return j + 1;
        rj[j] = sqrt(d);
        for (int64_t i = j + 1; i < n; i++) {
            double *ri = a + i * lda, s = ri[j];
            for (int64_t k = 0; k < j; k++)
                s -= ri[k] * rj[k];
            ri[j] = s / rj[j];
        }
    }
    return 0;
}

void plain_trtri(int64_t n, double *l, int64_t ldl)
{
    /* Row i of the inverse needs rows above it, already inverted, and row i of L. */
    for (int64_t i = 0; i < n; i++) {
        double *ri = l + i * ldl, inv = 1.0 / ri[i];
        for (int64_t j = 0; j < i; j++) {
            double s = 0;
            for (int64_t k = j; k < i; k++)
                s += ri[k] * l[k * ldl + j];
            ri[j] = -s * inv; /* ri[j] is not read again for columns right of j */
        }
        ri[i] = inv;
    }
}

void plain_right_lt(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx)
{
    for (int64_t i = 0; i < m; i++, x += ldx)
        for (int64_t j = 0; j < n; j++) {
            const double *lj = l + j * ldl;
            double s = x[j];
            for (int64_t k = 0; k < j; k++)
                s -= x[k] * lj[k];
            x[j] = s / lj[j];
        }
}

void plain_right_l(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx)
{
    for (int64_t i = 0; i < m; i++, x += ldx)
        for (int64_t j = n - 1; j >= 0; j--) {
            const double *lj = l + j * ldl;
            x[j] /= lj[j];
            for (int64_t k = 0; k < j; k++)
                x[k] -= x[j] * lj[k];
        }
}

void plain_left_l(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx)
{
    for (int64_t i = 0; i < m; i++) {
        const double *li = l + i * ldl;
        double *xi = x + i * ldx, inv = 1.0 / li[i];
        for (int64_t k = 0; k < i; k++)
            for (int64_t j = 0; j < n; j++)
                xi[j] -= li[k] * x[k * ldx + j];
        for (int64_t j = 0; j < n; j++)
            xi[j] *= inv;
    }
}
