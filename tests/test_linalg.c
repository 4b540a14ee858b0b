/* linalg against plain loops in long double, for every usable instruction set, at sizes around the
 * tile edges; in place routines must not touch the strict upper triangle; 1, 2 and 7 threads give the same bits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/linalg.h"
#include "base/mem.h"
#include "base/par.h"

static uint32_t seed = 1;

static double rnd(void) /* (-1, 1) */
{
    seed = seed * 1664525u + 1013904223u;
    return (double)(int32_t)seed * 0x1p-31;
}

static double *rnd_d(int64_t n)
{
    double *x = mem_alloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rnd();
    return x;
}

static float *rnd_f(int64_t n)
{
    float *x = mem_alloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rnd();
    return x;
}

static void *copy(const void *p, size_t bytes)
{
    return memcpy(mem_alloc(bytes, 1), p, bytes);
}

/* Runs fn for each ISA that this machine has. */
static void each_isa(void (*fn)(const char *isa))
{
    for (int i = 0; backend_isa_name(i); i++)
        if (backend_isa_usable(i)) {
            assert_int_equal(backend_force(backend_isa_name(i), NULL), 0);
            seed = 1;
            fn(backend_isa_name(i));
        }
    assert_int_equal(backend_force(NULL, NULL), 0);
}

static void near(double got, double want, double tol, const char *isa, const char *what, int64_t i, int64_t j)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("%s: %s (%lld, %lld): expected %.17g within %.3g, found %.17g", isa, what, (long long)i,
                 (long long)j, want, tol, got);
}

/* ---- products -------------------------------------------------------------- */

static void gemm_case(const char *isa, int ta, int tb, int64_t m, int64_t n, int64_t k, int64_t pad,
                      double alpha, double beta)
{
    int64_t lda = (ta ? m : k) + pad, ldb = (tb ? k : n) + pad, ldc = n + pad;
    int64_t na = (ta ? k : m) * lda, nb = (tb ? n : k) * ldb, nc = m * ldc;
    float *fa = rnd_f(na), *fb = rnd_f(nb), *fc = rnd_f(nc), *f0 = copy(fc, (size_t)nc * 4);
    double *da = rnd_d(na), *db = rnd_d(nb), *dc = rnd_d(nc), *d0 = copy(dc, (size_t)nc * 8);
    if (beta == 0) /* must be overwritten, not multiplied */
        fc[0] = f0[0] = NAN, dc[0] = d0[0] = NAN;
    la_sgemm(ta, tb, m, n, k, (float)alpha, fa, lda, fb, ldb, (float)beta, fc, ldc);
    la_dgemm(ta, tb, m, n, k, alpha, da, lda, db, ldb, beta, dc, ldc);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < ldc; j++) {
            int64_t at = i * ldc + j;
            if (j >= n) {
                assert_true(fc[at] == f0[at] && dc[at] == d0[at]);
                continue;
            }
            double fs = 0;
            long double ds = 0;
            for (int64_t p = 0; p < k; p++) {
                int64_t ia = ta ? p * lda + i : i * lda + p, ib = tb ? j * ldb + p : p * ldb + j;
                fs += (double)fa[ia] * (double)fb[ib];
                ds += (long double)da[ia] * (long double)db[ib];
            }
            fs = alpha * fs + (beta == 0 ? 0 : beta * (double)f0[at]);
            double dw = (double)((long double)alpha * ds) + (beta == 0 ? 0 : beta * d0[at]);
            near((double)fc[at], fs, 3e-7 * (double)(k + 4), isa, "sgemm", i, j);
            near(dc[at], dw, 1e-15 * (double)(k + 4), isa, "dgemm", i, j);
        }
    void *all[] = { fa, fb, fc, f0, da, db, dc, d0 };
    for (int i = 0; i < 8; i++)
        mem_free(all[i]);
}

static void gemm_isa(const char *isa)
{
    static const int64_t size[][3] = { { 1, 1, 1 }, { 3, 17, 100 }, { 257, 5, 3 }, { 100, 257, 33 }, { 300, 270, 301 } };
    for (int s = 0; s < 5; s++)
        for (int t = 0; t < 4; t++)
            gemm_case(isa, t & 1, t >> 1, size[s][0], size[s][1], size[s][2], s, s % 2 ? -0.5 : 1.0, s % 3 ? 0.75 : 0.0);
}

/* The one with a kernel of its own: full and part rows, more than one depth. */
static void narrow_isa(const char *isa)
{
    static const int64_t size[][2] = { { 1, 1 }, { 12, 128 }, { 101, 300 } };
    for (int s = 0; s < 3; s++)
        gemm_case(isa, 1, 0, size[s][0], 32, size[s][1], s, s ? -0.5 : 1.0, 1.0);
}

static void test_narrow(void **state)
{
    (void)state;
    each_isa(narrow_isa);
}

static void test_gemm(void **state)
{
    (void)state;
    each_isa(gemm_isa);
}

static void syrk_isa(const char *isa)
{
    static const int64_t dims[] = { 1, 3, 17, 100, 128, 257, 300 };
    for (int s = 0; s < 7; s++) {
        int64_t d = dims[s], n = s % 2 ? 37 : 290, ldx = d + s;
        float *x = rnd_f(n * ldx), *h = rnd_f(d * d), *h0 = copy(h, (size_t)(d * d) * 4);
        la_syrk_add(n, d, 0.5f, x, ldx, h);
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++) {
                double want = (double)h0[i * d + j];
                for (int64_t t = 0; j <= i && t < n; t++)
                    want += 0.5 * (double)x[t * ldx + i] * (double)x[t * ldx + j];
                near((double)h[i * d + j], want, j > i ? 0 : 2e-7 * (double)n, isa, "syrk", i, j);
            }
        la_symmetrize(d, h);
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < i; j++)
                assert_true(h[i * d + j] == h[j * d + i]);
        mem_free(x);
        mem_free(h);
        mem_free(h0);
    }
}

static void test_syrk(void **state)
{
    (void)state;
    each_isa(syrk_isa);
}

/* ---- solvers ------------------------------------------------------------------ */

static const int64_t solver_dims[] = { 1, 3, 17, 100, 128, 129, 257, 400 };
#define N_DIMS 8

/* Positive definite, condition about 1e4: B B^T / n + a graded diagonal. Upper triangle: a mark. */
static double *spd(int64_t n)
{
    double *b = rnd_d(n * n), *a = mem_alloc((size_t)(n * n), sizeof *a);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double s = 0;
            for (int64_t k = 0; j <= i && k < n; k++)
                s += b[i * n + k] * b[j * n + k];
            a[i * n + j] = j > i ? 1e300 : s / (double)n + (i == j ? 1e-4 + (double)(i % 7) : 0);
        }
    mem_free(b);
    return a;
}

static void upper_untouched(const double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++)
            assert_true(a[i * n + j] == 1e300);
}

static void cholesky_isa(const char *isa)
{
    for (int s = 0; s < N_DIMS; s++) {
        int64_t n = solver_dims[s];
        double *a = spd(n), *l = copy(a, (size_t)(n * n) * 8);
        assert_int_equal(la_cholesky(n, l, NULL), 0);
        upper_untouched(l, n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) {
                long double sum = 0;
                for (int64_t k = 0; k <= j; k++)
                    sum += (long double)l[i * n + k] * (long double)l[j * n + k];
                near((double)sum, a[i * n + j], 1e-13, isa, "L L^T", i, j);
            }
        mem_free(a);
        mem_free(l);
    }
}

static void test_cholesky(void **state)
{
    (void)state;
    each_isa(cholesky_isa);
}

static void pivot_isa(const char *isa)
{
    static const int64_t at[] = { 0, 1, 127, 128, 200, 299 };
    for (int s = 0; s < 6; s++)
        for (int kind = 0; kind < 4; kind++) {
            int64_t n = 300, p = at[s];
            double *a = spd(n);
            if (kind == 3 && p > 0)
                a[p * n + p / 2] = NAN; /* off the diagonal: shows at its row's pivot */
            else
                a[p * n + p] = kind == 0 ? -1e-3 : kind == 1 ? NAN : INFINITY;
            struct err e = { 0 };
            char want[64];
            snprintf(want, sizeof want, "pivot %lld ", (long long)p);
            assert_int_equal(la_cholesky(n, a, &e), -1);
            assert_int_equal(e.code, ERR_NUMERIC);
            if (!strstr(e.msg, want))
                fail_msg("%s: kind %d: expected \"%s\" in \"%s\"", isa, kind, want, e.msg);
            mem_free(a);
        }
}

static void test_pivot(void **state)
{
    (void)state;
    each_isa(pivot_isa);
}

static void invert_isa(const char *isa)
{
    for (int s = 0; s < N_DIMS; s++) {
        int64_t n = solver_dims[s];
        double *l = spd(n);
        assert_int_equal(la_cholesky(n, l, NULL), 0);
        double *v = copy(l, (size_t)(n * n) * 8);
        la_invert_lower(n, v);
        upper_untouched(v, n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) {
                long double sum = 0;
                for (int64_t k = j; k <= i; k++)
                    sum += (long double)l[i * n + k] * (long double)v[k * n + j];
                near((double)sum, i == j, 1e-11, isa, "L L^-1", i, j);
            }
        mem_free(l);
        mem_free(v);
    }
}

static void test_invert(void **state)
{
    (void)state;
    each_isa(invert_isa);
}

static void solve_isa(const char *isa)
{
    for (int s = 0; s < N_DIMS; s++) {
        int64_t n = solver_dims[s], m = s % 2 ? 70 : 3;
        double *a = spd(n), *l = copy(a, (size_t)(n * n) * 8);
        double *b = rnd_d(m * n), *x = copy(b, (size_t)(m * n) * 8);
        assert_int_equal(la_cholesky(n, l, NULL), 0);
        la_solve_rows(n, l, m, x);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                long double sum = 0;
                for (int64_t k = 0; k < n; k++)
                    sum += (long double)x[i * n + k] * (long double)(k >= j ? a[k * n + j] : a[j * n + k]);
                near((double)sum, b[i * n + j], 1e-10, isa, "X A", i, j);
            }
        void *all[] = { a, l, b, x };
        for (int i = 0; i < 4; i++)
            mem_free(all[i]);
    }
}

static void test_solve(void **state)
{
    (void)state;
    each_isa(solve_isa);
}

/* ---- bits ------------------------------------------------------------------------ */

struct bundle {
    float *h, *c;
    double *d, *l, *v, *x;
};

#define BN 600 /* several tiles of everything */

static void bundle_run(struct bundle *b, int threads)
{
    par_set_threads(threads);
    seed = 5;
    float *fx = rnd_f(300 * BN), *fb = rnd_f(BN * BN);
    double *da = rnd_d(300 * BN), *db = rnd_d(BN * BN);
    b->h = rnd_f(BN * BN);
    la_syrk_add(300, BN, 1.0f, fx, BN, b->h);
    la_symmetrize(BN, b->h);
    b->c = mem_zalloc(300 * BN, 4);
    la_sgemm(0, 1, 300, BN, BN, 1.0f, fx, BN, fb, BN, 0.0f, b->c, BN);
    b->d = mem_zalloc(300 * BN, 8);
    la_dgemm(0, 0, 300, BN, BN, 1.0, da, BN, db, BN, 0.0, b->d, BN);
    b->l = mem_zalloc(BN * BN, 8);
    for (int64_t i = 0; i < BN; i++)
        for (int64_t j = 0; j <= i; j++)
            b->l[i * BN + j] = db[i * BN + j] + (i == j ? BN : 0);
    assert_int_equal(la_cholesky(BN, b->l, NULL), 0);
    b->v = copy(b->l, BN * BN * 8);
    la_invert_lower(BN, b->v);
    b->x = copy(da, 300 * BN * 8);
    la_solve_rows(BN, b->l, 300, b->x);
    mem_free(fx);
    mem_free(fb);
    mem_free(da);
    mem_free(db);
    par_set_threads(0);
}

static void bundle_free(struct bundle *b)
{
    void *all[] = { b->h, b->c, b->d, b->l, b->v, b->x };
    for (int i = 0; i < 6; i++)
        mem_free(all[i]);
}

static void threads_isa(const char *isa)
{
    (void)isa;
    static const int threads[] = { 2, 7 };
    struct bundle one, many;
    bundle_run(&one, 1);
    for (int t = 0; t < 2; t++) {
        bundle_run(&many, threads[t]);
        assert_memory_equal(one.h, many.h, BN * BN * 4);
        assert_memory_equal(one.c, many.c, 300 * BN * 4);
        assert_memory_equal(one.d, many.d, 300 * BN * 8);
        assert_memory_equal(one.l, many.l, BN * BN * 8);
        assert_memory_equal(one.v, many.v, BN * BN * 8);
        assert_memory_equal(one.x, many.x, 300 * BN * 8);
        bundle_free(&many);
    }
    bundle_free(&one);
}

static void test_threads(void **state)
{
    (void)state;
    each_isa(threads_isa);
}

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (const uint8_t *b = p; n--; b++)
        h = (h ^ *b) * 0x100000001b3u;
    return h;
}

/* The bits of the generic path are the same on every machine, compiler and optimization level. */
static void test_generic_digest(void **state)
{
    (void)state;
    struct bundle b;
    assert_int_equal(backend_force("generic", NULL), 0);
    bundle_run(&b, 0);
    uint64_t h = fnv(0xcbf29ce484222325u, b.h, BN * BN * 4);
    h = fnv(h, b.c, 300 * BN * 4);
    h = fnv(h, b.d, 300 * BN * 8);
    h = fnv(h, b.l, BN * BN * 8);
    h = fnv(h, b.v, BN * BN * 8);
    h = fnv(h, b.x, 300 * BN * 8);
    bundle_free(&b);
    assert_int_equal(backend_force(NULL, NULL), 0);
    if (h != 0xb0078641f955a58du)
        fail_msg("digest of the generic linear algebra: found %#llx", (unsigned long long)h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),     cmocka_unit_test(test_narrow),  cmocka_unit_test(test_syrk),
        cmocka_unit_test(test_cholesky), cmocka_unit_test(test_pivot),   cmocka_unit_test(test_invert),
        cmocka_unit_test(test_solve),    cmocka_unit_test(test_threads), cmocka_unit_test(test_generic_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
