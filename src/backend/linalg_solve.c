/* linalg_solve: Cholesky and triangular solves in double, in tiles over par_for.
 *
 * The block sizes depend on n alone. Row-major lower is column-major upper, so LAPACK is called
 * as column-major 'U' and never transposes a copy. */
#include "backend/linalg.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>

#include "backend/cpu/kernels.h"
#include "backend/plain.h"
#include "base/num.h"
#include "base/par.h"

#define NB 128   /* columns of one Cholesky step; leaves of the inversion */
#define ROWS 128 /* rows or columns of a solve in one item */

/* ---- one tile each: BLAS, or plain loops in blocks -------------------------- */

static void tile_dgemm(int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                       int64_t lda, const double *b, int64_t ldb, double *c, int64_t ldc)
{
    if (m <= 0 || n <= 0 || k <= 0)
        return;
    if (backend_plain())
        plain_dgemm(0, trans_b, m, n, k, alpha, a, lda, b, ldb, 1.0, c, ldc);
    else
        cblas_dgemm(CblasRowMajor, CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                    alpha, a, (int)lda, b, (int)ldb, 1.0, c, (int)ldc);
}

#define PB 32 /* diagonal blocks of the plain solves */

/* X (m, n) := X L^-T */
static void tile_right_lt(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx)
{
    if (!backend_plain()) {
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)m, (int)n, 1.0, l,
                    (int)ldl, x, (int)ldx);
        return;
    }
    for (int64_t j = 0; j < n; j += PB) {
        int64_t w = min_i64(PB, n - j);
        tile_dgemm(1, m, w, j, -1.0, x, ldx, l + j * ldl, ldl, x + j, ldx);
        plain_right_lt(m, w, l + j * ldl + j, ldl, x + j, ldx);
    }
}

/* X (m, n) := alpha X L^-1, alpha 1 or -1 */
static void tile_right_l(int64_t m, int64_t n, double alpha, const double *l, int64_t ldl, double *x,
                         int64_t ldx)
{
    if (!backend_plain()) {
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)m, (int)n, alpha, l,
                    (int)ldl, x, (int)ldx);
        return;
    }
    for (int64_t i = 0; alpha < 0 && i < m; i++)
        for (int64_t j = 0; j < n; j++)
            x[i * ldx + j] = -x[i * ldx + j];
    for (int64_t end = n; end > 0;) {
        int64_t j = (end - 1) / PB * PB, w = end - j;
        tile_dgemm(0, m, w, n - end, -1.0, x + end, ldx, l + end * ldl + j, ldl, x + j, ldx);
        plain_right_l(m, w, l + j * ldl + j, ldl, x + j, ldx);
        end = j;
    }
}

/* X (m, n) := L^-1 X, L (m, m) */
static void tile_left_l(int64_t m, int64_t n, const double *l, int64_t ldl, double *x, int64_t ldx)
{
    if (!backend_plain()) {
        cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, (int)m, (int)n, 1.0, l,
                    (int)ldl, x, (int)ldx);
        return;
    }
    for (int64_t i = 0; i < m; i += PB) {
        int64_t w = min_i64(PB, m - i);
        tile_dgemm(0, w, n, i, -1.0, l + i * ldl, ldl, x, ldx, x + i * ldx, ldx);
        plain_left_l(w, n, l + i * ldl + i, ldl, x + i * ldx, ldx);
    }
}

/* ---- Cholesky ----------------------------------------------------------------- */

struct chol_job {
    int64_t n, j0, w; /* columns [j0, j0+w) are being factored */
    double *a;
};

static void chol_panel_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct chol_job *j = ctx;
    int64_t i0 = j->j0 + j->w + (int64_t)item * ROWS;
    tile_right_lt(min_i64(ROWS, j->n - i0), j->w, j->a + j->j0 * j->n + j->j0, j->n,
                  j->a + i0 * j->n + j->j0, j->n);
}

#define UPDATE 256 /* square tiles of the trailing update */

static void chol_update_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct chol_job *j = ctx;
    int64_t row = 0, t = (int64_t)item, first = j->j0 + j->w;
    while (t > row)
        t -= ++row;
    int64_t i0 = first + row * UPDATE, c0 = first + t * UPDATE, m = min_i64(UPDATE, j->n - i0);
    const double *pi = j->a + i0 * j->n + j->j0, *pc = j->a + c0 * j->n + j->j0;
    if (row != t) {
        tile_dgemm(1, m, UPDATE, j->w, -1.0, pi, j->n, pc, j->n, j->a + i0 * j->n + c0, j->n);
    } else if (!backend_plain()) {
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)m, (int)j->w, -1.0, pi, (int)j->n, 1.0,
                    j->a + i0 * j->n + i0, (int)j->n);
    } else {
        for (int64_t i = 0; i < m; i += PB) { /* the strips left of PB x PB triangles, then those row by row */
            int64_t r = min_i64(PB, m - i), at = i0 + i;
            tile_dgemm(1, r, i, j->w, -1.0, pi + i * j->n, j->n, pi, j->n, j->a + at * j->n + i0, j->n);
            for (int64_t s = 0; s < r; s++)
                tile_dgemm(1, 1, s + 1, j->w, -1.0, pi + (i + s) * j->n, j->n, pi + i * j->n, j->n,
                           j->a + (at + s) * j->n + at, j->n);
        }
    }
}

/* Returns 0 or the 1-based pivot that is not positive and finite. */
static int64_t chol_diagonal(int64_t w, double *a, int64_t lda)
{
    if (backend_plain())
        return plain_potrf(w, a, lda);
    /* The _work form skips LAPACKE's NaN scan; the pivots tell, and OpenBLAS lets a NaN one pass. */
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', (lapack_int)w, a, (lapack_int)lda);
    for (int64_t i = 0; i < (info > 0 ? info - 1 : w); i++)
        if (!isfinite(a[i * lda + i]) || a[i * lda + i] <= 0)
            return i + 1;
    return info;
}

int la_cholesky(int64_t n, double *a, struct err *e)
{
    struct chol_job j = { n, 0, 0, a };
    for (int64_t j0 = 0; j0 < n; j0 += NB) {
        j.j0 = j0;
        j.w = min_i64(NB, n - j0);
        int64_t bad = chol_diagonal(j.w, a + j0 * n + j0, n);
        if (bad)
            return err_set(e, ERR_NUMERIC, "Cholesky of a %lld x %lld matrix: pivot %lld is not positive",
                           (long long)n, (long long)n, (long long)(j0 + bad - 1));
        int64_t left = n - j0 - j.w, tiles = (left + UPDATE - 1) / UPDATE;
        par_for((size_t)((left + ROWS - 1) / ROWS), chol_panel_item, &j);
        par_for((size_t)(tiles * (tiles + 1) / 2), chol_update_item, &j);
    }
    return 0;
}

/* ---- inverse of a triangle ------------------------------------------------------ */

/* L is halved into [A 0; B C] down to leaves of NB. Level by level from the top, while A and C still hold L:
 * B := -B A^-1 by tiles of rows, then B := C^-1 B by tiles of columns; at last the leaves are inverted.
 * All in place, and every tile of every node of a level is one item. */
struct inv_job {
    int64_t n, unit; /* unit: leaves of NB in half a node */
    double *l;
    int64_t per_node; /* items per node */
};

/* A node's origin, rows of A, rows of C; 0 where there is no C. */
static int64_t inv_node(const struct inv_job *j, int64_t node, int64_t *origin)
{
    int64_t half = j->unit * NB;
    *origin = node * 2 * half;
    return min_i64(half, j->n - *origin - half);
}

static void inv_rows_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct inv_job *j = ctx;
    int64_t o, half = j->unit * NB, c = inv_node(j, (int64_t)item / j->per_node, &o);
    int64_t i = (int64_t)item % j->per_node * ROWS;
    if (i < c)
        tile_right_l(min_i64(ROWS, c - i), half, -1.0, j->l + o * j->n + o, j->n,
                     j->l + (o + half + i) * j->n + o, j->n);
}

static void inv_cols_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct inv_job *j = ctx;
    int64_t o, half = j->unit * NB, c = inv_node(j, (int64_t)item / j->per_node, &o);
    int64_t col = (int64_t)item % j->per_node * ROWS, at = o + half;
    if (c > 0 && col < half)
        tile_left_l(c, min_i64(ROWS, half - col), j->l + at * j->n + at, j->n, j->l + at * j->n + o + col, j->n);
}

static void inv_leaf_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct inv_job *j = ctx;
    int64_t o = (int64_t)item * NB, w = min_i64(NB, j->n - o);
    double *l = j->l + o * j->n + o;
    if (backend_plain())
        plain_trtri(w, l, j->n);
    else
        LAPACKE_dtrtri_work(LAPACK_COL_MAJOR, 'U', 'N', (lapack_int)w, l, (lapack_int)j->n);
}

void la_invert_lower(int64_t n, double *l)
{
    struct inv_job j = { n, 1, l, 0 };
    while (j.unit * NB * 2 < n)
        j.unit *= 2;
    for (; n > NB && j.unit; j.unit /= 2) {
        int64_t half = j.unit * NB, nodes = (n + 2 * half - 1) / (2 * half);
        j.per_node = (half + ROWS - 1) / ROWS;
        par_for((size_t)(nodes * j.per_node), inv_rows_item, &j);
        par_for((size_t)(nodes * j.per_node), inv_cols_item, &j);
    }
    par_for((size_t)((n + NB - 1) / NB), inv_leaf_item, &j);
}

/* ---- X A^-1 --------------------------------------------------------------------- */

struct solve_job {
    int64_t n, m;
    const double *l;
    double *x;
};

#define SOLVE_ROWS 64

static void solve_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct solve_job *j = ctx;
    int64_t i0 = (int64_t)item * SOLVE_ROWS, m = min_i64(SOLVE_ROWS, j->m - i0);
    double *x = j->x + i0 * j->n;
    tile_right_lt(m, j->n, j->l, j->n, x, j->n);
    tile_right_l(m, j->n, 1.0, j->l, j->n, x, j->n);
}

void la_solve_rows(int64_t n, const double *l, int64_t m, double *x)
{
    struct solve_job j = { n, m, l, x };
    if (n > 0)
        par_for((size_t)((m + SOLVE_ROWS - 1) / SOLVE_ROWS), solve_item, &j);
}
