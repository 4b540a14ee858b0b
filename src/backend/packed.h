/* packed: products of weights that stay packed with activations rounded to 8 bits, for generating text.
 *
 * Evaluation and calibration never come here: op_linear multiplies in float. Activations are rounded per 32 inputs to
 * d q, d = max|x| / 127, |q| <= 127, so a product differs from the float one by at most sum_j |w_j| d_j / 2 (and float
 * rounding). f16 and bf16 weights take float activations.
 *
 * Everything is cut into chunks of 64 inputs. In a chunk a weight is a[g] code + b[g], codes unsigned, g of 4 groups of
 * 16; a lane is 4 inputs, what one 32-bit sum of a dot-product instruction holds. A kernel is given ROWS
 * rows and may share among them what it loads of the activations. */
#ifndef D2Q_BACKEND_PACKED_H
#define D2Q_BACKEND_PACKED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "tensor/tensor.h"

#define PACKED_CHUNK 64
#define PACKED_ROWS 4

struct packed_chunk {
    int8_t q[64];
    float d[16]; /* of each lane (equal in 8 lanes) */
    float s[16]; /* d times the sum of the lane's q */
    /* only of the first of each four chunks, for each 16 inputs of the four: */
    float g[16];  /* d times the sum of q */
    float dg[16]; /* d */
};

/* What a kernel reads; row[] of PACKED_ROWS rows, which may be equal. */
struct packed_rows {
    int64_t n_in;
    const uint8_t *row[PACKED_ROWS];
    const uint16_t *scale[PACKED_ROWS]; /* qmat: of the row's groups */
    const uint8_t *zero[PACKED_ROWS];
    int64_t group, n_groups;            /* qmat: 16, 32 or a multiple of 64 */
};

/* out[i], i < PACKED_ROWS: the dot products. x: ceil(n_in / 64) chunks, zero past n_in; xf: the n_in floats. */
typedef void (*packed_fn)(const struct packed_rows *r, const struct packed_chunk *x, const float *xf, float *out);

/* Many tokens (prefill): PACKED_TILE rows are unpacked once, then multiplied with PACKED_TOKENS tokens at a time. Sums run over 32 or
 * 16 inputs in integers, a lane for each row. */
#define PACKED_TILE 16
#define PACKED_TOKENS 8

struct packed_unpacked { /* a chunk of a row */
    uint8_t q[64];
    float a[4], b[4];
};

typedef void (*packed_unpack_fn)(const struct packed_rows *r, int i, int64_t chunk, struct packed_unpacked *c);

struct packed_unpack {
    packed_unpack_fn type[DT_COUNT];
    packed_unpack_fn qmat[5];
};

struct packed_tile { /* a chunk of all rows */
    uint8_t q[16][PACKED_TILE][4];
    float a[4][PACKED_TILE], b[4][PACKED_TILE];
};

struct packed_dense { /* a chunk of a token */
    int8_t q[64];
    float d[4]; /* of each 16 */
    float s[4]; /* d times the sum of 16 q */
};

/* out[t][i]: the product of row i and token t. per: a and b change every 16 inputs, or 32. */
typedef void (*packed_gemm_fn)(const struct packed_tile *w, const struct packed_dense *const x[PACKED_TOKENS], int64_t chunks, int per,
                               float out[PACKED_TOKENS][PACKED_TILE]);

/* Decoding the same matrix again and again: its rows are repacked (packed_lanes.c) once, 16 side by side, a lane for each; then no sum
 * runs across lanes, and unpacking costs a third. The copy takes as much memory as the matrix (and up to 5 % more). */
struct packed_lanes { /* of a type */
    int bits, block, head; /* of a code; inputs and bytes of factors of a block */
    /* out[i]: the products of the rows of a tile. x as for packed_fn. */
    void (*rows)(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE]);
};

struct packed_slot { /* where a matrix's repacked copy stands */
    const void *of;  /* its data; of another, or of replaced data, the copy is not used */
    _Atomic(uint8_t *) tiles;
    atomic_int uses;
};

struct packed_kernels {
    const char *name; /* of isa.def */
    bool needs_vnni;
    void (*quantize)(const float *x, int64_t n, struct packed_chunk *c); /* n floats to ceil(n / 64) chunks */
    packed_fn type[DT_COUNT]; /* NULL: none; the row of DT_QMAT is empty */
    packed_fn qmat[5];        /* by bits */
    const struct packed_unpack *unpack; /* float16 types have none */
    packed_gemm_fn gemm;      /* NULL: many tokens are multiplied in float */
    int gemm_codes;           /* it takes types with at most so many codes */
    const struct packed_lanes *const *lanes; /* by type; NULL: none */
};

extern const struct packed_unpack packed_unpack_generic, packed_unpack_avx2, packed_unpack_neon;
extern const struct packed_kernels packed_generic, packed_avx2, packed_avx512, packed_neon;

/* Those that go with cpu_kernels(); packed_avx512 needs VNNI, without it avx2's are taken. */
const struct packed_kernels *packed_kernels(void);
/* NULL: w has no packed kernel (float32, groups of odd sizes, act-order); and no product of many tokens. */
packed_fn packed_find(const struct packed_kernels *k, const struct tensor *w);
packed_unpack_fn packed_find_unpack(const struct packed_kernels *k, const struct tensor *w);
/* Rows of w from row0 on for a kernel; rows past the end repeat the last one. */
void packed_take(const struct tensor *w, int64_t row0, struct packed_rows *r);

int64_t packed_tile_bytes(const struct packed_lanes *l, int64_t n_in);
/* Tiles of w, from mem_alloc; NULL: no such kernel for its type, or no memory. */
uint8_t *packed_lanes_make(const struct packed_kernels *k, const struct tensor *w);
/* Counts a use of w; the tiles once there were enough of them. NULL: use the matrix itself. Safe from several threads. */
const uint8_t *packed_slot_use(struct packed_slot *s, const struct packed_kernels *k, const struct tensor *w);
void packed_slot_release(struct packed_slot *s); /* as new */

extern const struct packed_lanes *const packed_lanes_avx512[DT_COUNT];

struct linear_part {
    const struct tensor *w;
    const float *bias; /* or NULL */
    float *y;          /* (n, n_out) */
    int accumulate;
    struct packed_slot *slot; /* or NULL: never repacked */
};

/* Several matrices times the same x (n, n_in): one round over all threads. Matrices that no kernel takes, and
 * many tokens, go through op_linear. */
int op_linear_packed(const struct linear_part *part, int n_parts, const float *x, int64_t n, struct err *e);

#endif
