/* tensor: a named, typed, shaped view of weights.
 *
 * Shapes are in Hugging Face order: a matrix is (n_out, n_in), dim[0] = n_out,
 * rows contiguous. A view never owns its data: it points into a file mapping or
 * an arena that outlives it.
 *
 * Rows may be stored permuted: GGUF files of the llama family keep the rows of
 * q and k as (head, pair, half) instead of (head, half, pair), see formats.md
 * "q/k row permutation". perm_dim says so, and every reader here goes through
 * tensor_stored_row, so all above sees Hugging Face order and nothing is copied. */
#ifndef D2Q_TENSOR_TENSOR_H
#define D2Q_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

enum dtype {
#define DTYPE(id, name, ggml_id, ftype, block_len, bytes) id,
#include "tensor/dtypes.def"
#undef DTYPE
    DT_QMAT, /* grouped integers, struct qmat */
    DT_COUNT,
};

struct dtype_info {
    const char *name;
    int ggml_id;   /* -1: not in GGUF */
    int ftype;     /* general.file_type, -1: none */
    int block_len; /* elements */
    int block_bytes;
    /* n (a multiple of block_len) elements of one row; bit-equal to ggml's reference */
    void (*to_f32)(const void *row, float *dst, int64_t n);
};

extern const struct dtype_info dtype_table[DT_COUNT]; /* DT_QMAT's row has only a name */

/* Bits a weight, not of DT_QMAT. */
double dtype_bits(enum dtype type);
/* DT_COUNT when there is none. */
enum dtype dtype_by_name(const char *name);
enum dtype dtype_by_ggml_id(uint32_t id);

/* Grouped integer weights, the in-memory form of GPTQ and compressed-tensors:
 *
 *     W[i][j] = scale[i][g] * (code[i][j] - zero[i][g]),   g = g_idx ? g_idx[j] : j / group
 *
 * computed in float32 from the fp16 scale, left to right: what a reader of the
 * file computes. The last group is short when group does not divide n_in. */
struct qmat {
    int bits;     /* 2, 3, 4 or 8 */
    int group;    /* inputs per group, > 0 */
    bool sym;     /* zero is 2^(bits-1) everywhere */
    int64_t n_out, n_in;
    int64_t n_groups;       /* ceil(n_in / group) */
    int64_t row_words;      /* 32-bit words per row of codes: ceil(n_in*bits / 32) */
    uint32_t *codes;        /* (n_out, row_words), dense LSB-first bit stream along inputs */
    uint16_t *scale;        /* (n_out, n_groups) fp16 bits */
    uint8_t *zero;          /* (n_out, n_groups), 0 .. 2^bits - 1 (v1 files: 1 .. 2^bits) */
    int32_t *g_idx;         /* (n_in) or NULL */
};

/* Allocates the arrays in a, cleared. */
int qmat_init(struct qmat *q, struct arena *a, int64_t n_out, int64_t n_in, int bits, int group,
              bool sym, struct err *e);
/* The j-th code of a dense LSB-first bit stream. */
static inline uint32_t code_at(const uint32_t *words, int64_t j, int bits)
{
    const uint32_t *w = words + (j * bits >> 5);
    int shift = (int)(j * bits & 31);
    uint32_t v = w[0] >> shift;
    if (shift + bits > 32)
        v |= w[1] << (32 - shift);
    return v & ((1u << bits) - 1);
}

void qmat_set_codes(struct qmat *q, int64_t row, const uint8_t *codes); /* n_in codes of one row */
void qmat_get_codes(const struct qmat *q, int64_t row, uint8_t *codes);
void qmat_row_f32(const struct qmat *q, int64_t row, float *dst); /* n_in floats */
/* Bits per weight, scales and zeros counted as the GPTQ format stores them. */
double qmat_bpw(const struct qmat *q);

struct tensor {
    const char *name; /* as in its file; for messages */
    enum dtype type;
    int n_dims;
    int64_t dim[4];         /* slowest first; unused dims are 1 */
    const void *data;       /* NULL for DT_QMAT */
    size_t size;            /* bytes of data */
    const struct qmat *q;   /* DT_QMAT only */
    int64_t perm_dim;       /* 0, or head_dim of the row permutation described above */
};

int64_t tensor_count(const struct tensor *t); /* elements */
int64_t tensor_cols(const struct tensor *t);  /* elements of one row: the last dim */
int64_t tensor_rows(const struct tensor *t);  /* tensor_count / tensor_cols */
/* Bytes of n elements in rows of `cols`; -1 with an error if cols is no multiple of the block or it overflows. */
int64_t tensor_bytes(enum dtype type, int64_t rows, int64_t cols, const char *what, struct err *e);
/* Where the logical row (Hugging Face order) is stored. */
int64_t tensor_stored_row(const struct tensor *t, int64_t row);
/* Rows [row0, row0+n) as float32, dst (n, cols). */
void tensor_rows_f32(const struct tensor *t, int64_t row0, int64_t n, float *dst);
/* The whole of it, dst (count). */
void tensor_to_f32(const struct tensor *t, float *dst);
/* A view of float32 data. */
struct tensor tensor_f32(const char *name, const float *data, int64_t rows, int64_t cols);
/* Fails naming the tensor, expected and found, or its unknown type (DT_COUNT), of which no value can be read. cols < 0: one-dimensional. */
int tensor_expect(const struct tensor *t, int64_t rows, int64_t cols, struct err *e);

#endif
