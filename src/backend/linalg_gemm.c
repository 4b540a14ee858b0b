/* linalg_gemm: products in tiles. The grid depends on the shape alone; every tile is one call. */
#include "backend/linalg.h"

#include <cblas.h>

#include "backend/cpu/kernels.h"
#include "backend/plain.h"
#include "base/num.h"
#include "base/par.h"

#define TILE 256       /* rows and columns of C in one item */
#define OWN_SIDE 16    /* products with less rows, columns or depth are left to BLAS where we have our own */
#define OWN_DEPTH 32
#define SMALL 2000000  /* multiply-adds that are not worth a second thread */

static CBLAS_TRANSPOSE trans(int t)
{
    return t ? CblasTrans : CblasNoTrans;
}

void la_sgemm_tile(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                   int64_t ldc)
{
    if (m <= 0 || n <= 0)
        return;
    const struct cpu_kernels *kernels = cpu_kernels();
    if (kernels->sgemm && m >= OWN_SIDE && n >= OWN_SIDE && k >= OWN_DEPTH)
        kernels->sgemm(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    else if (backend_plain())
        plain_sgemm(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    else if (trans_a && !trans_b && n == NARROW && beta == 1)
        kernels->narrow(m, k, alpha, a, lda, b, ldb, c, ldc);
    else
        cblas_sgemm(CblasRowMajor, trans(trans_a), trans(trans_b), (int)m, (int)n, (int)k, alpha, a, (int)lda,
                    b, (int)ldb, beta, c, (int)ldc);
}

static void dgemm_tile(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                       const double *a, int64_t lda, const double *b, int64_t ldb, double beta, double *c,
                       int64_t ldc)
{
    if (m <= 0 || n <= 0)
        return;
    if (backend_plain())
        plain_dgemm(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    else
        cblas_dgemm(CblasRowMajor, trans(trans_a), trans(trans_b), (int)m, (int)n, (int)k, alpha, a, (int)lda,
                    b, (int)ldb, beta, c, (int)ldc);
}

/* One product of either type; the pointers of the other type are NULL. */
struct gemm_job {
    int trans_a, trans_b;
    int64_t m, n, k, lda, ldb, ldc;
    double alpha, beta; /* hold a float exactly */
    const float *fa, *fb;
    float *fc;
    const double *da, *db;
    double *dc;
    int64_t tile_m, tile_n, cols; /* tiles across */
};

static void gemm_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct gemm_job *j = ctx;
    int64_t i0 = (int64_t)item / j->cols * j->tile_m, j0 = (int64_t)item % j->cols * j->tile_n;
    int64_t m = min_i64(j->tile_m, j->m - i0), n = min_i64(j->tile_n, j->n - j0);
    int64_t a = j->trans_a ? i0 : i0 * j->lda, b = j->trans_b ? j0 * j->ldb : j0, c = i0 * j->ldc + j0;
    if (j->fc)
        la_sgemm_tile(j->trans_a, j->trans_b, m, n, j->k, (float)j->alpha, j->fa + a, j->lda, j->fb + b,
                      j->ldb, (float)j->beta, j->fc + c, j->ldc);
    else
        dgemm_tile(j->trans_a, j->trans_b, m, n, j->k, j->alpha, j->da + a, j->lda, j->db + b, j->ldb,
                   j->beta, j->dc + c, j->ldc);
}

static void gemm_run(struct gemm_job *j)
{
    if (j->m <= 0 || j->n <= 0)
        return;
    bool whole = j->m * j->n <= SMALL / (j->k > 0 ? j->k : 1);
    j->tile_m = whole ? j->m : TILE;
    j->tile_n = whole ? j->n : TILE;
    j->cols = (j->n + j->tile_n - 1) / j->tile_n;
    par_for((size_t)((j->m + j->tile_m - 1) / j->tile_m * j->cols), gemm_item, j);
}

void la_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
              int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    struct gemm_job j = { .trans_a = trans_a, .trans_b = trans_b, .m = m, .n = n, .k = k, .lda = lda,
                          .ldb = ldb, .ldc = ldc, .alpha = (double)alpha, .beta = (double)beta, .fa = a, .fb = b,
                          .fc = c };
    gemm_run(&j);
}

void la_dgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
              int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc)
{
    struct gemm_job j = { .trans_a = trans_a, .trans_b = trans_b, .m = m, .n = n, .k = k, .lda = lda,
                          .ldb = ldb, .ldc = ldc, .alpha = alpha, .beta = beta, .da = a, .db = b, .dc = c };
    gemm_run(&j);
}

/* ---- X^T X ------------------------------------------------------------------ */

struct syrk_job {
    int64_t n, d, ldx, tile, tiles;
    float alpha;
    const float *x;
    float *h;
};

/* A diagonal tile: only its lower triangle is written. */
static void syrk_diagonal(const struct syrk_job *j, int64_t i0, int64_t m)
{
    if (!backend_plain()) {
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)m, (int)j->n, j->alpha, j->x + i0, (int)j->ldx,
                    1.0f, j->h + i0 * j->d + i0, (int)j->d);
        return;
    }
    for (int64_t i = 0; i < m; i += 8) { /* strips of 8 rows; their triangles by 1 x 1 */
        int64_t r = min_i64(8, m - i), at = i0 + i;
        plain_sgemm(1, 0, r, i, j->n, j->alpha, j->x + at, j->ldx, j->x + i0, j->ldx, 1.0f,
                    j->h + at * j->d + i0, j->d);
        for (int64_t s = 0; s < r; s++)
            plain_sgemm(1, 0, 1, s + 1, j->n, j->alpha, j->x + at + s, j->ldx, j->x + at, j->ldx, 1.0f,
                        j->h + (at + s) * j->d + at, j->d);
    }
}

static void syrk_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct syrk_job *j = ctx;
    /* Rows of tiles: i of them left of the diagonal in row i, the half-priced diagonals last. */
    int64_t below = j->tiles * (j->tiles - 1) / 2, t = (int64_t)item, row = 1, col;
    if (t >= below) {
        row = col = t - below;
    } else {
        while (t >= row)
            t -= row++;
        col = t;
    }
    int64_t i0 = row * j->tile, j0 = col * j->tile, m = min_i64(j->tile, j->d - i0);
    if (row == col)
        syrk_diagonal(j, i0, m);
    else
        la_sgemm_tile(1, 0, m, j->tile, j->n, j->alpha, j->x + i0, j->ldx, j->x + j0, j->ldx, 1.0f,
                      j->h + i0 * j->d + j0, j->d);
}

void la_syrk_add(int64_t n, int64_t d, float alpha, const float *x, int64_t ldx, float *h)
{
    int64_t tile = d <= 1024 ? 128 : 256, tiles = (d + tile - 1) / tile;
    struct syrk_job j = { n, d, ldx, tile, tiles, alpha, x, h };
    par_for((size_t)(tiles * (tiles + 1) / 2), syrk_item, &j);
}

struct symm_job {
    int64_t d;
    float *h;
};

#define SYMM 64

static void symm_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct symm_job *j = ctx;
    int64_t i0 = (int64_t)item * SYMM, i1 = min_i64(i0 + SYMM, j->d);
    for (int64_t c0 = 0; c0 < i1; c0 += SYMM) /* by blocks: the writes go down columns */
        for (int64_t i = i0; i < i1; i++)
            for (int64_t c = c0; c < min_i64(c0 + SYMM, i); c++)
                j->h[c * j->d + i] = j->h[i * j->d + c];
}

void la_symmetrize(int64_t d, float *h)
{
    struct symm_job j = { d, h };
    par_for((size_t)((d + SYMM - 1) / SYMM), symm_item, &j);
}
