/* bench_kernels: prints what backend_bench measures for the shapes of SmolLM2-135M, the solvers, and unpacking to float.
 *
 *     cc -std=c11 -D_GNU_SOURCE -Isrc -O2 bench/bench_kernels.c build/libd2q_internal.a \
 *        $(pkg-config --cflags --libs openblas lapacke) -pthread -lm -o build/bench_kernels && build/bench_kernels [THREADS] */
#include <stdio.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/bench.h"
#include "backend/linalg.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/par.h"
#include "tensor/tensor.h"

static void solvers(int64_t n)
{
    size_t count = (size_t)(n * n);
    double *a = mem_zalloc(count, sizeof *a), *x = mem_zalloc(count, sizeof *x), t[4];
    float *h = mem_zalloc(count, sizeof *h), *f = mem_zalloc((size_t)n * 1024, sizeof *f);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            a[i * n + j] = i == j ? (double)n : 1.0 / (double)(1 + i + j);
    struct err e;
    double start = log_now();
    if (la_cholesky(n, a, &e))
        printf("%s\n", e.msg);
    t[0] = log_now() - start;
    start = log_now();
    la_solve_rows(n, a, n, x);
    t[1] = log_now() - start;
    start = log_now();
    la_invert_lower(n, a);
    t[2] = log_now() - start;
    start = log_now();
    la_syrk_add(1024, n, 1.0f, f, n, h);
    t[3] = log_now() - start;
    double g = (double)n * (double)n * (double)n * 1e-9;
    printf("n %5lld  cholesky %7.1f ms %5.1f GFLOP/s  solve_rows %8.1f ms %5.1f  invert %7.1f ms %5.1f  syrk(1024) %6.1f ms %5.1f\n",
           (long long)n, 1e3 * t[0], g / 3 / t[0], 1e3 * t[1], 2 * g / t[1], 1e3 * t[2], g / 3 / t[2], 1e3 * t[3],
           1024e-9 * (double)n * (double)n / t[3]);
    mem_free(a);
    mem_free(x);
    mem_free(h);
    mem_free(f);
}

#define WIDTH 1536

/* Nanoseconds a weight, one thread, a row in the cache. */
static double row_ns(const struct tensor *t, float *dst)
{
    enum { TIMES = 4000 };
    double start = log_now();
    for (int i = 0; i < TIMES; i++)
        tensor_rows_f32(t, 0, 1, dst);
    return 1e9 * (log_now() - start) / TIMES / WIDTH;
}

static void unpacking(void)
{
    static float dst[WIDTH];
    static uint8_t zeros[WIDTH * 4];
    struct arena a;
    struct err e;
    arena_init(&a);
    printf("unpacking, ns a weight:");
    for (int type = DT_F16; type < DT_QMAT; type++) {
        struct tensor t = { .type = (enum dtype)type, .n_dims = 2, .dim = { 1, WIDTH, 1, 1 }, .data = zeros };
        printf(" %s %.2f", dtype_table[type].name, row_ns(&t, dst));
    }
    for (int bits = 2; bits <= 4; bits++) {
        struct qmat q;
        struct tensor t = { .type = DT_QMAT, .n_dims = 2, .dim = { 1, WIDTH, 1, 1 }, .q = &q };
        if (!qmat_init(&q, &a, 1, WIDTH, bits, 64, false, &e))
            printf(" int%d g64 %.2f", bits, row_ns(&t, dst));
    }
    printf("\n");
    arena_release(&a);
}

int main(int argc, char **argv)
{
    struct bench_linear rows[] = {
        { .n = 1024, .n_out = 576, .n_in = 576 }, { .n = 1024, .n_out = 192, .n_in = 576 },
        { .n = 1024, .n_out = 1536, .n_in = 576 }, { .n = 1024, .n_out = 576, .n_in = 1536 },
        { .n = 1024, .n_out = 4096, .n_in = 4096 }, { .n = 512, .n_out = 1536, .n_in = 576 },
        { .n = 1, .n_out = 1536, .n_in = 576 },
    };
    struct bench_rest rest = { .n = 1024, .n_head = 9, .n_head_kv = 3, .head_dim = 64 };
    struct err e;
    par_set_threads(argc > 1 ? atoi(argv[1]) : 0);
    if (backend_bench(rows, 7, &rest, 0.3, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    printf("%s, OpenBLAS %s, %d threads, GFLOP/s\n", backend_isa(), backend_blas(), par_threads());
    for (int i = 0; i < 7; i++) {
        const struct bench_linear *r = &rows[i];
        double best = r->blas_all > r->blas_each ? r->blas_all : r->blas_each;
        printf("%5lld x %5lld x %5lld  sgemm %6.1f, one per thread %6.1f  op_linear f32 %6.1f (%3.0f %%)  "
               "f16 %6.1f (%3.0f %%)  q4_1 %6.1f (%3.0f %%)\n",
               (long long)r->n, (long long)r->n_out, (long long)r->n_in, r->blas_all, r->blas_each, r->f32,
               100 * r->f32 / best, r->f16, 100 * r->f16 / best, r->q4_1, 100 * r->q4_1 / best);
    }
    printf("attention (1024 tokens, 9 heads of 64) %.2f ms, exp %.2f G/s, rmsnorm %.2f ms, rope %.2f ms, silu %.2f ms\n",
           1e3 * rest.attention_seconds, 1e-9 * rest.exp_per_second, 1e3 * rest.rmsnorm_seconds,
           1e3 * rest.rope_seconds, 1e3 * rest.silu_seconds);
    solvers(576);
    solvers(1536);
    unpacking();
    return 0;
}
