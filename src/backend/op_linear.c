/* op_linear: y = x W^T + bias for weights of any type.
 *
 * Rows of W that are not plain float32 are unpacked once per call into a scratch of at most
 * CHUNK_BYTES (shared: all threads fill it, then all multiply with it), so the price of unpacking
 * is spread over all tokens and the scratch stays in the last-level cache. The products are cut into tiles of
 * TOKENS x ROWS, a grid of the shape alone. A few tokens (decoding) instead run dot products over rows
 * of W, bound by memory; there a result does not even depend on the number of tokens. */
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/linalg.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/par.h"

#define TOKENS 256            /* rows of y in a tile */
#define ROWS 192              /* columns of y in a tile: rows of W */
#define CHUNK_BYTES (8 << 20) /* unpacked weights at a time, one tile of ROWS at least */
#define UNPACK_ELEMENTS 32768 /* weights unpacked by one item */
#define FEW 8                 /* up to so many tokens take the dot products */

struct linear_job {
    const struct cpu_kernels *k;
    const struct tensor *w;
    const float *bias, *x;
    float *y;
    int64_t n, n_in, n_out;
    int accumulate;
    const float *rows;     /* float32 rows [row0, row0+n_rows) of W */
    int64_t row0, n_rows;
    int64_t step, across;  /* rows per item (unpack, dots); tiles across (products) */
    float *scratch;        /* unpack: the chunk; dots: one row per worker */
};

/* Can be used where it lies; tensors in a file need not be aligned. */
static bool stored_plain(const struct tensor *w)
{
    return w->type == DT_F32 && !w->perm_dim && (uintptr_t)w->data % sizeof(float) == 0;
}

/* tensor_rows_f32, with the conversions that gain from vector code taken from the kernels. */
static void unpack_rows(const struct linear_job *j, int64_t row0, int64_t n, float *dst)
{
    if (j->w->type != DT_F16 && j->w->type != DT_BF16) {
        tensor_rows_f32(j->w, row0, n, dst);
        return;
    }
    for (int64_t i = 0; i < n; i++, dst += j->n_in) {
        const uint8_t *row = (const uint8_t *)j->w->data + 2 * j->n_in * tensor_stored_row(j->w, row0 + i);
        (j->w->type == DT_F16 ? j->k->f16_row : j->k->bf16_row)(row, dst, j->n_in);
    }
}

/* ---- a few tokens ---------------------------------------------------------- */

static void dots_item(void *ctx, size_t item, int worker)
{
    const struct linear_job *j = ctx;
    int64_t r0 = (int64_t)item * j->step, r1 = min_i64(r0 + j->step, j->n_out);
    float dot[FEW], *row = j->scratch ? j->scratch + worker * j->n_in : NULL;
    for (int64_t r = r0; r < r1; r++) {
        const float *w = j->rows ? j->rows + r * j->n_in : row;
        if (!j->rows)
            unpack_rows(j, r, 1, row);
        j->k->dots(w, j->x, j->n_in, j->n, j->n_in, dot);
        for (int64_t t = 0; t < j->n; t++) {
            float *y = j->y + t * j->n_out + r, v = dot[t] + (j->bias ? j->bias[r] : 0.0f);
            *y = j->accumulate ? *y + v : v;
        }
    }
}

static int linear_few(struct linear_job *j, struct err *e)
{
    size_t workers = (size_t)par_threads();
    if (!j->rows && !(j->scratch = mem_alloc(workers * (size_t)j->n_in, sizeof(float))))
        return err_nomem(e, "a row of weights per thread", workers * (size_t)j->n_in * sizeof(float));
    j->step = ceil_div(UNPACK_ELEMENTS, j->n_in);
    par_for((size_t)ceil_div(j->n_out, j->step), dots_item, j);
    mem_free(j->scratch);
    return 0;
}

/* ---- many tokens ------------------------------------------------------------ */

static void unpack_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct linear_job *j = ctx;
    int64_t r0 = (int64_t)item * j->step;
    unpack_rows(j, j->row0 + r0, min_i64(j->step, j->n_rows - r0), j->scratch + r0 * j->n_in);
}

static void product_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct linear_job *j = ctx;
    int64_t t0 = (int64_t)item / j->across * TOKENS, r0 = (int64_t)item % j->across * ROWS;
    int64_t nt = min_i64(TOKENS, j->n - t0), nr = min_i64(ROWS, j->n_rows - r0);
    float *y = j->y + t0 * j->n_out + j->row0 + r0, beta = j->accumulate ? 1.0f : 0.0f;
    if (j->bias) {
        const float *bias = j->bias + j->row0 + r0;
        for (int64_t t = 0; t < nt; t++)
            for (int64_t r = 0; r < nr; r++)
                y[t * j->n_out + r] = (j->accumulate ? y[t * j->n_out + r] : 0.0f) + bias[r];
        beta = 1.0f;
    }
    la_sgemm_tile(0, 1, nt, nr, j->n_in, 1.0f, j->x + t0 * j->n_in, j->n_in, j->rows + r0 * j->n_in, j->n_in,
                  beta, y, j->n_out);
}

static void products(struct linear_job *j)
{
    j->across = ceil_div(j->n_rows, ROWS);
    par_for((size_t)(ceil_div(j->n, TOKENS) * j->across), product_item, j);
}

static int linear_many(struct linear_job *j, struct err *e)
{
    if (j->rows) {
        j->n_rows = j->n_out;
        products(j);
        return 0;
    }
    int64_t tiles = CHUNK_BYTES / (ROWS * (int64_t)sizeof(float) * j->n_in);
    int64_t chunk = min_i64((tiles > 0 ? tiles : 1) * ROWS, j->n_out);
    j->scratch = mem_alloc((size_t)(chunk * j->n_in), sizeof(float));
    if (!j->scratch)
        return err_nomem(e, "unpacked weights", (size_t)(chunk * j->n_in) * sizeof(float));
    j->rows = j->scratch;
    j->step = ceil_div(UNPACK_ELEMENTS, j->n_in);
    for (j->row0 = 0; j->row0 < j->n_out; j->row0 += chunk) {
        j->n_rows = min_i64(chunk, j->n_out - j->row0);
        par_for((size_t)ceil_div(j->n_rows, j->step), unpack_item, j);
        products(j);
    }
    mem_free(j->scratch);
    return 0;
}

int op_linear(const struct tensor *w, const float *bias, const float *x, int64_t n, float *y,
              int accumulate, struct err *e)
{
    struct linear_job j = { .k = cpu_kernels(), .w = w, .bias = bias, .x = x, .y = y, .n = n,
                            .n_in = tensor_cols(w), .n_out = tensor_rows(w), .accumulate = accumulate,
                            .rows = stored_plain(w) ? w->data : NULL };
    if (n <= 0 || j.n_out <= 0)
        return 0;
    return n <= FEW && !backend_plain() ? linear_few(&j, e) : linear_many(&j, e);
}
