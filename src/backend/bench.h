/* bench: how fast the backend is on this machine, and OpenBLAS beside it in the same run. */
#ifndef D2Q_BACKEND_BENCH_H
#define D2Q_BACKEND_BENCH_H

#include <stdint.h>

#include "base/err.h"

/* y (n, n_out) = x (n, n_in) W^T, in GFLOP/s with par_threads() threads. */
struct bench_linear {
    int64_t n, n_out, n_in;         /* given; n_in a multiple of 32 */
    double blas_all;                /* one cblas_sgemm, OpenBLAS's own threads */
    double blas_each;               /* one cblas_sgemm per thread, each n / threads tokens */
    double f32, f16, q4_1;          /* op_linear on weights of these types */
};

struct bench_rest {
    int64_t n, n_head, n_head_kv, head_dim; /* given: the shape of attention */
    double attention_seconds;               /* one causal op_attention over n tokens */
    double exp_per_second;                  /* elements, one thread */
    double rmsnorm_seconds, rope_seconds, silu_seconds; /* (n, n_head*head_dim); silu over 3 times that */
};

/* Fills rows and rest (NULL allowed). Each figure is the best of several short runs, about `seconds` for each;
 * all but blas_all are interleaved. Library threads of OpenBLAS are 1 again afterwards. */
int backend_bench(struct bench_linear *rows, int n_rows, struct bench_rest *rest, double seconds,
                  struct err *e);

/* Bytes a second read and written by copying 128 MiB a thread with par_threads() threads, the best of five; -1 with an error. */
double backend_bench_copy(struct err *e);

#endif
