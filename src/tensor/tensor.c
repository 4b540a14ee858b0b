#include "tensor/tensor.h"

#include <string.h>

#include "base/par.h"
#include "tensor/block.h"
#include "tensor/half.h"

const struct dtype_info dtype_table[DT_COUNT] = {
#define DTYPE(id, nm, ggml, ft, len, bytes) \
    [id] = { #nm, ggml, ft, len, bytes, dtype_##nm##_to_f32 },
#include "tensor/dtypes.def"
#undef DTYPE
    [DT_QMAT] = { "int", -1, -1, 1, 0, NULL },
};

double dtype_bits(enum dtype type)
{
    return 8.0 * dtype_table[type].block_bytes / dtype_table[type].block_len;
}

enum dtype dtype_by_name(const char *name)
{
    int t = 0;
    while (t < DT_QMAT && strcmp(dtype_table[t].name, name))
        t++;
    return t < DT_QMAT ? (enum dtype)t : DT_COUNT;
}

enum dtype dtype_by_ggml_id(uint32_t id)
{
    int t = 0;
    while (t < DT_QMAT && (uint32_t)dtype_table[t].ggml_id != id)
        t++;
    return t < DT_QMAT ? (enum dtype)t : DT_COUNT;
}

/* ---- tensor ------------------------------------------------------------ */

int64_t tensor_count(const struct tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3];
}

int64_t tensor_cols(const struct tensor *t)
{
    return t->dim[t->n_dims > 0 ? t->n_dims - 1 : 0];
}

int64_t tensor_rows(const struct tensor *t)
{
    int64_t cols = tensor_cols(t);
    return cols ? tensor_count(t) / cols : 0;
}

int64_t tensor_bytes(enum dtype type, int64_t rows, int64_t cols, const char *what, struct err *e)
{
    const struct dtype_info *d = &dtype_table[type];
    int64_t bytes;
    if (cols % d->block_len)
        return err_set(e, ERR_FORMAT, "%s: rows of %lld elements, expected a multiple of %d for type %s",
                       what, (long long)cols, d->block_len, d->name);
    if (rows < 0 || cols < 0 || __builtin_mul_overflow(cols / d->block_len, d->block_bytes, &bytes) ||
        __builtin_mul_overflow(bytes, rows, &bytes))
        return err_set(e, ERR_FORMAT, "%s: shape %lld x %lld is too large", what, (long long)rows,
                       (long long)cols);
    return bytes;
}

int64_t tensor_stored_row(const struct tensor *t, int64_t row)
{
    int64_t d = t->perm_dim;
    if (!d)
        return row;
    /* logical (head, half, pair) is stored at (head, pair, half) */
    int64_t head = row / d, r = row % d, half = r / (d / 2), pair = r % (d / 2);
    return head * d + pair * 2 + half;
}

void tensor_rows_f32(const struct tensor *t, int64_t row0, int64_t n, float *dst)
{
    int64_t cols = tensor_cols(t);
    const struct dtype_info *d = &dtype_table[t->type];
    for (int64_t i = 0; i < n; i++, dst += cols) {
        int64_t row = tensor_stored_row(t, row0 + i);
        if (t->type == DT_QMAT)
            qmat_row_f32(t->q, row, dst);
        else
            d->to_f32((const uint8_t *)t->data + row * (cols / d->block_len) * d->block_bytes, dst, cols);
    }
}

struct to_f32_job {
    const struct tensor *t;
    float *dst;
};

#define ROWS_PER_ITEM 64

static void to_f32_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct to_f32_job *j = ctx;
    int64_t row0 = (int64_t)i * ROWS_PER_ITEM, n = tensor_rows(j->t) - row0;
    tensor_rows_f32(j->t, row0, n < ROWS_PER_ITEM ? n : ROWS_PER_ITEM, j->dst + row0 * tensor_cols(j->t));
}

void tensor_to_f32(const struct tensor *t, float *dst)
{
    struct to_f32_job j = { t, dst };
    par_for((size_t)((tensor_rows(t) + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM), to_f32_item, &j);
}

struct tensor tensor_f32(const char *name, const float *data, int64_t rows, int64_t cols)
{
    return (struct tensor){ .name = name, .type = DT_F32, .n_dims = 2, .dim = { rows, cols, 1, 1 },
                            .data = data, .size = (size_t)(rows * cols) * sizeof(float) };
}

int tensor_expect(const struct tensor *t, int64_t rows, int64_t cols, struct err *e)
{
    bool one = cols < 0;
    if (t->n_dims == (one ? 1 : 2) && t->dim[0] == rows && (one || t->dim[1] == cols))
        return t->type != DT_COUNT ? 0 : err_set(e, ERR_UNSUPPORTED, "tensor %s: its type is not supported", t->name);
    if (one)
        return err_set(e, ERR_FORMAT, "tensor %s: expected shape [%lld], found %d dimensions [%lld, %lld]",
                       t->name, (long long)rows, t->n_dims, (long long)t->dim[0], (long long)t->dim[1]);
    return err_set(e, ERR_FORMAT, "tensor %s: expected shape [%lld, %lld], found %d dimensions [%lld, %lld]",
                   t->name, (long long)rows, (long long)cols, t->n_dims, (long long)t->dim[0],
                   (long long)t->dim[1]);
}

/* ---- grouped integers --------------------------------------------------- */

int qmat_init(struct qmat *q, struct arena *a, int64_t n_out, int64_t n_in, int bits, int group,
              bool sym, struct err *e)
{
    memset(q, 0, sizeof *q);
    q->bits = bits;
    q->group = group;
    q->sym = sym;
    q->n_out = n_out;
    q->n_in = n_in;
    q->n_groups = (n_in + group - 1) / group;
    q->row_words = (n_in * bits + 31) / 32;
    size_t words = (size_t)(n_out * q->row_words), params = (size_t)(n_out * q->n_groups);
    q->codes = arena_zalloc(a, words, sizeof *q->codes);
    q->scale = arena_zalloc(a, params, sizeof *q->scale);
    q->zero = arena_zalloc(a, params, sizeof *q->zero);
    if (!q->codes || !q->scale || !q->zero)
        return err_nomem(e, "quantized weights", words * 4 + params * 3);
    return 0;
}

void qmat_set_codes(struct qmat *q, int64_t row, const uint8_t *codes)
{
    uint32_t *w = q->codes + row * q->row_words;
    memset(w, 0, (size_t)q->row_words * sizeof *w);
    for (int64_t j = 0; j < q->n_in; j++) {
        int64_t bit = j * q->bits;
        int shift = (int)(bit & 31);
        w[bit >> 5] |= (uint32_t)codes[j] << shift;
        if (shift + q->bits > 32)
            w[(bit >> 5) + 1] |= (uint32_t)codes[j] >> (32 - shift);
    }
}

void qmat_get_codes(const struct qmat *q, int64_t row, uint8_t *codes)
{
    const uint32_t *w = q->codes + row * q->row_words;
    for (int64_t j = 0; j < q->n_in; j++)
        codes[j] = (uint8_t)code_at(w, j, q->bits);
}

/* Group g's value of every code of up to 4 bits, or of none. */
struct values {
    float of[16], s;
    int z;
};

static inline void values_init(struct values *v, const struct qmat *q, int64_t row, int64_t g, int bits)
{
    v->s = half_to_f32(q->scale[row * q->n_groups + g]);
    v->z = q->zero[row * q->n_groups + g];
    for (int c = 0; bits <= 4 && c < 1 << bits; c++)
        v->of[c] = v->s * (float)(c - v->z);
}

/* Inputs 0 .. 32 n: 32 codes are a whole number of words, and of one group. */
static inline __attribute__((always_inline)) void row_by_words(const struct qmat *q, int64_t row, int64_t n, int bits, float *dst)
{
    const uint32_t *w = q->codes + row * q->row_words;
    struct values v = { .s = 0 };
    for (int64_t i = 0; i < n; i++, w += bits, dst += 32) {
        if (i * 32 % q->group == 0)
            values_init(&v, q, row, i * 32 / q->group, bits);
#pragma GCC unroll 32
        for (int j = 0; j < 32; j++) {
            uint32_t c = code_at(w, j, bits);
            dst[j] = bits <= 4 ? v.of[c] : v.s * (float)((int)c - v.z);
        }
    }
}

void qmat_row_f32(const struct qmat *q, int64_t row, float *dst)
{
    const uint32_t *w = q->codes + row * q->row_words;
    const uint16_t *scale = q->scale + row * q->n_groups;
    const uint8_t *zero = q->zero + row * q->n_groups;
    int64_t whole = q->g_idx || q->group % 32 ? 0 : q->n_in / 32;
    switch (q->bits) { /* constants: each its own code */
    case 2: row_by_words(q, row, whole, 2, dst); break;
    case 3: row_by_words(q, row, whole, 3, dst); break;
    case 4: row_by_words(q, row, whole, 4, dst); break;
    case 8: row_by_words(q, row, whole, 8, dst); break;
    default: whole = 0;
    }
    for (int64_t j = whole * 32; j < q->n_in; j++) {
        int64_t g = q->g_idx ? q->g_idx[j] : j / q->group;
        dst[j] = half_to_f32(scale[g]) * (float)((int)code_at(w, j, q->bits) - zero[g]);
    }
}

double qmat_bpw(const struct qmat *q)
{
    double weights = (double)q->n_out * (double)q->n_in;
    double params = (double)q->n_out * (double)q->n_groups;
    return ((double)q->n_out * (double)q->row_words * 32 + params * (16 + q->bits)) / weights;
}
