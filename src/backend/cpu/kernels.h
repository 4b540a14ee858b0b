/* kernels: the element-wise inner loops, one table per instruction set.
 *
 * body.h holds the code once; kernels_<isa>.c compiles it with that ISA's flags.
 * Sums run in 16 (dot: 64) fixed lanes that are added in a fixed order, so that
 * under one ISA a result depends on the length alone. No libm in loops:
 * exp is accurate to 2e-7 relative, sin and cos (in double) to 1e-15. */
#ifndef D2Q_BACKEND_CPU_KERNELS_H
#define D2Q_BACKEND_CPU_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* la_sgemm_tile's product; no dimension is 0. */
typedef void sgemm_fn(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                      int64_t ldb, float beta, float *c, int64_t ldc);

#define NARROW 32 /* columns of the product that has its own kernel, the rows of the quantizer's tiles */

struct cpu_kernels {
    const char *name;
    /* out[i] = sum_j x[j] * w[i*ldw + j], i < rows, j < n */
    void (*dots)(const float *x, const float *w, int64_t ldw, int64_t rows, int64_t n, float *out);
    /* out[j] = sum_i p[i] * v[i*ldv + j], i < rows, j < n */
    void (*weighted_sum)(const float *p, const float *v, int64_t ldv, int64_t rows, int64_t n, float *out);
    /* One row; gain may be NULL, y may be x. */
    void (*rmsnorm)(const float *x, const float *gain, int64_t n, float eps, float *y);
    /* c[i], s[i] = scale * cos, sin of pos * inv_freq[i]; exact in double up to a million radians. */
    void (*rope_angles)(int32_t pos, const float *inv_freq, int64_t n, float scale, float *c, float *s);
    /* Rotates the n_head heads of one token. */
    void (*rope)(float *x, int64_t n_head, int64_t head_dim, const float *c, const float *s);
    void (*silu_mul)(const float *gate, const float *up, int64_t n, float *out);
    void (*add)(float *y, const float *x, int64_t n); /* y += x */
    void (*exp)(float *x, int64_t n);                 /* in place; 0 below -87, clamped above 88.3 */
    void (*softmax)(float *x, int64_t n, float scale); /* x := softmax(scale * x), scale > 0, n > 0 */
    /* *max = max x, returns sum exp(x - max); n > 0 */
    double (*sum_exp)(const float *x, int64_t n, float *max);
    /* sum of exp(ref - shift) * (ref - x - offset) over ref > floor */
    double (*kl_sum)(const float *ref, const float *x, int64_t n, float shift, float offset, float floor);
    int64_t (*find_bad)(const float *x, int64_t n); /* first NaN or Inf, or -1 */
    int64_t (*find_value)(const float *x, int64_t n, float v); /* first x[i] == v, or -1 */
    /* Bit-equal to dtype_f16_to_f32 and dtype_bf16_to_f32; row need not be aligned. */
    void (*f16_row)(const void *row, float *dst, int64_t n);
    void (*bf16_row)(const void *row, float *dst, int64_t n);
    /* C (m, NARROW) += alpha A^T B, A (k, m), B (k, NARROW) */
    void (*narrow)(int64_t m, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc);
    sgemm_fn *sgemm; /* NULL: BLAS does it */
};

sgemm_fn amx_sgemm;

#define ISA(name, like) extern const struct cpu_kernels cpu_kernels_##name;
#include "backend/cpu/isa.def"
#undef ISA

/* The table in use; chooses as backend_init does if that has not been called. */
const struct cpu_kernels *cpu_kernels(void);
/* No BLAS: plain loops in linalg, for one digest on every machine. True for generic. */
bool backend_plain(void);

/* For tests: take this ISA (NULL: as D2Q_CPU and the machine say). Not while work runs. */
int backend_force(const char *name, struct err *e);
/* Rows of isa.def: i-th name or NULL past the end; whether this machine can run it. */
const char *backend_isa_name(int i);
bool backend_isa_usable(int i);

#endif
