/* Choice of packed kernels and the loop over rows: see packed.h. */
#include "backend/packed.h"

#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/par.h"

#define ITEM_BYTES 24576 /* packed weights of one item */
#define FEW 8            /* up to so many tokens come here, more are unpacked and multiplied in float */
#define MAX_PARTS 4

static const struct packed_kernels *const choices[] = {
#define ISA(name) &packed_##name,
#include "backend/cpu/isa.def"
#undef ISA
};

/* The row of isa.def that cpu_kernels() is, or the next narrower one that this machine can run. */
const struct packed_kernels *packed_kernels(void)
{
    const char *isa = cpu_kernels()->name;
    size_t i = sizeof choices / sizeof *choices - 1;
    while (i > 0 && strcmp(choices[i]->name, isa))
        i--;
    while (i > 0 && choices[i]->needs_vnni && !cpu_has_avx512_vnni())
        i--;
    return choices[i];
}

packed_fn packed_find(const struct packed_kernels *k, const struct tensor *w)
{
    if (w->type != DT_QMAT)
        return k->type[w->type];
    const struct qmat *q = w->q;
    bool whole = q->group >= q->n_in || q->group % 64 == 0 || q->group == 16 || q->group == 32;
    return !q->g_idx && whole && q->bits < 5 ? k->qmat[q->bits] : NULL;
}

void packed_take(const struct tensor *w, int64_t row0, struct packed_rows *r)
{
    int64_t n_out = tensor_rows(w);
    const struct dtype_info *d = &dtype_table[w->type];
    r->n_in = tensor_cols(w);
    for (int i = 0; i < PACKED_ROWS; i++) {
        int64_t at = tensor_stored_row(w, row0 + i < n_out ? row0 + i : n_out - 1);
        if (w->type == DT_QMAT) {
            r->row[i] = (const uint8_t *)(w->q->codes + at * w->q->row_words);
            r->scale[i] = w->q->scale + at * w->q->n_groups;
            r->zero[i] = w->q->zero + at * w->q->n_groups;
            r->n_groups = w->q->n_groups;
            r->group = w->q->group >= r->n_in ? (r->n_in + 63) / 64 * 64 : w->q->group;
        } else {
            r->row[i] = (const uint8_t *)w->data + at * (r->n_in / d->block_len) * d->block_bytes;
        }
    }
}

/* ---- the product ----------------------------------------------------------- */

struct packed_job {
    const struct linear_part *part;
    packed_fn fn[MAX_PARTS];
    int64_t step[MAX_PARTS];      /* rows of an item */
    size_t first[MAX_PARTS + 1];  /* item with which a part begins */
    int n_parts;
    const struct packed_chunk *x; /* (n, chunks) */
    const float *xf;
    int64_t n, n_in, chunks;
};

/* From the rows taken to the next: for types whose rows simply follow each other. */
static inline bool next_rows(const struct tensor *w, struct packed_rows *r)
{
    if (w->type == DT_QMAT || w->perm_dim)
        return false;
    int64_t bytes = r->row[1] - r->row[0];
    for (int i = 0; i < PACKED_ROWS; i++)
        r->row[i] += PACKED_ROWS * bytes;
    return true;
}

static void packed_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct packed_job *j = ctx;
    int p = 0;
    while (item >= j->first[p + 1])
        p++;
    const struct linear_part *part = &j->part[p];
    int64_t n_out = tensor_rows(part->w), start = (int64_t)(item - j->first[p]) * j->step[p];
    int64_t row = start, end = start + j->step[p];
    struct packed_rows r;
    for (end = end < n_out ? end : n_out; row < end; row += PACKED_ROWS) {
        float out[PACKED_ROWS];
        if (row == start || row + PACKED_ROWS > n_out || !next_rows(part->w, &r))
            packed_take(part->w, row, &r);
        for (int64_t t = 0; t < j->n; t++) {
            j->fn[p](&r, j->x + t * j->chunks, j->xf + t * j->n_in, out);
            for (int64_t i = 0; i < PACKED_ROWS && row + i < end; i++) {
                float *y = part->y + t * n_out + row + i, v = out[i] + (part->bias ? part->bias[row + i] : 0.0f);
                *y = part->accumulate ? *y + v : v;
            }
        }
    }
}

/* Rows of about ITEM_BYTES. */
static int64_t rows_of_item(const struct tensor *w)
{
    double bits = w->type == DT_QMAT ? w->q->bits : 8.0 * dtype_table[w->type].block_bytes / dtype_table[w->type].block_len;
    int64_t rows = (int64_t)(ITEM_BYTES * 8 / (bits * (double)tensor_cols(w)));
    return (rows < PACKED_ROWS ? 1 : rows / PACKED_ROWS) * PACKED_ROWS;
}

int op_linear_packed(const struct linear_part *part, int n_parts, const float *x, int64_t n, struct err *e)
{
    const struct packed_kernels *k = packed_kernels();
    struct packed_job j = { .part = part, .n_parts = n_parts, .xf = x, .n = n, .n_in = tensor_cols(part->w) };
    bool all = n <= FEW && n_parts <= MAX_PARTS;
    for (int p = 0; p < n_parts && all; p++) {
        j.fn[p] = packed_find(k, part[p].w);
        j.step[p] = j.fn[p] ? rows_of_item(part[p].w) : 1;
        j.first[p + 1] = j.first[p] + (size_t)((tensor_rows(part[p].w) + j.step[p] - 1) / j.step[p]);
        all = j.fn[p] != NULL;
    }
    if (!all) {
        for (int p = 0; p < n_parts; p++)
            if (n_parts > 1 ? op_linear_packed(part + p, 1, x, n, e)
                            : op_linear(part[p].w, part[p].bias, x, n, part[p].y, part[p].accumulate, e))
                return -1;
        return 0;
    }
    j.chunks = (j.n_in + 63) / 64;
    size_t count = (size_t)(n * j.chunks);
    struct packed_chunk *c = mem_alloc(count, sizeof *c);
    if (!c)
        return err_nomem(e, "activations in 8 bits", count * sizeof *c);
    for (int64_t t = 0; t < n; t++)
        k->quantize(x + t * j.n_in, j.n_in, c + t * j.chunks);
    j.x = c;
    par_for(j.first[n_parts], packed_item, &j);
    mem_free(c);
    return 0;
}
