/* Choice of packed kernels and the loop over rows: see packed.h. */
#include "backend/packed.h"

#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/par.h"

#define ITEM_BYTES 24576 /* packed weights of one item */
#define TILE_BYTES 196608 /* unpacked rows of an item of many tokens */
#define FEW 8            /* up to so many tokens take the row kernels */
#define MAX_PARTS 4

static const struct packed_kernels *const choices[] = {
#define ISA(name, like) &packed_##like,
#include "backend/cpu/isa.def"
#undef ISA
};

/* The row of isa.def that cpu_kernels() is, or the next narrower one that this machine can run. */
const struct packed_kernels *packed_kernels(void)
{
    const char *isa = cpu_kernels()->name;
    size_t i = sizeof choices / sizeof *choices - 1;
    while (i > 0 && strcmp(backend_isa_name((int)i), isa))
        i--;
    while (i > 0 && choices[i]->needs_vnni && !cpu_has_avx512_vnni())
        i--;
    return choices[i];
}

/* Groups fall on the borders that the kernels know. */
static bool whole_groups(const struct qmat *q)
{
    bool whole = q->group >= q->n_in || q->group % 64 == 0 || q->group == 16 || q->group == 32;
    return !q->g_idx && whole && q->bits < 5;
}

packed_fn packed_find(const struct packed_kernels *k, const struct tensor *w)
{
    if (w->type != DT_QMAT)
        return k->type[w->type];
    return whole_groups(w->q) ? k->qmat[w->q->bits] : NULL;
}

packed_unpack_fn packed_find_unpack(const struct packed_kernels *k, const struct tensor *w)
{
    if (!k->gemm || (w->type == DT_Q8_0 && k->gemm_codes < 256))
        return NULL;
    if (w->type != DT_QMAT)
        return k->unpack->type[w->type];
    return whole_groups(w->q) ? k->unpack->qmat[w->q->bits] : NULL;
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
    const struct packed_lanes *lanes[MAX_PARTS]; /* of tiles, where there are any */
    const uint8_t *tiles[MAX_PARTS];
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

/* n products of rows from `row` on with token t. */
static void store_rows(const struct linear_part *part, int64_t t, int64_t row, int64_t n, const float *out)
{
    for (int64_t i = 0; i < n; i++) {
        float *y = part->y + t * tensor_rows(part->w) + row + i, v = out[i] + (part->bias ? part->bias[row + i] : 0.0f);
        *y = part->accumulate ? *y + v : v;
    }
}

static void packed_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct packed_job *j = ctx;
    int p = 0;
    while (item >= j->first[p + 1])
        p++;
    const struct linear_part *part = &j->part[p];
    int64_t n_out = tensor_rows(part->w), start = (int64_t)(item - j->first[p]) * j->step[p], end = start + j->step[p];
    int64_t at_once = j->tiles[p] ? PACKED_TILE : PACKED_ROWS;
    const uint8_t *tile = j->tiles[p] ? j->tiles[p] + start / PACKED_TILE * packed_tile_bytes(j->lanes[p], j->n_in) : NULL;
    struct packed_rows r;
    end = end < n_out ? end : n_out;
    for (int64_t row = start; row < end; row += at_once) {
        float out[PACKED_TILE];
        if (!tile && (row == start || row + PACKED_ROWS > n_out || !next_rows(part->w, &r)))
            packed_take(part->w, row, &r);
        for (int64_t t = 0; t < j->n; t++) {
            if (tile)
                j->lanes[p]->rows(tile, j->n_in, j->x + t * j->chunks, out);
            else
                j->fn[p](&r, j->x + t * j->chunks, j->xf + t * j->n_in, out);
            store_rows(part, t, row, end - row < at_once ? end - row : at_once, out);
        }
        if (tile)
            tile += packed_tile_bytes(j->lanes[p], j->n_in);
    }
}

/* Rows of about ITEM_BYTES, whole tiles. */
static int64_t rows_of_item(const struct tensor *w, int64_t at_once)
{
    double bits = w->type == DT_QMAT ? w->q->bits : dtype_bits(w->type);
    int64_t rows = (int64_t)(ITEM_BYTES * 8 / (bits * (double)tensor_cols(w)));
    return (rows < at_once ? 1 : rows / at_once) * at_once;
}

/* ---- many tokens: see packed.h ------------------------------------------------ */

struct gemm_job {
    const struct linear_part *part;
    packed_unpack_fn unpack;
    packed_gemm_fn gemm;
    const struct packed_dense *x; /* (n, chunks) */
    struct packed_tile *scratch;  /* (threads, tiles, chunks) */
    int64_t n, chunks, tiles;     /* tiles: of an item */
    int per;
};

/* The chunk as its sums are used: of 16 inputs. */
static void make_dense(const struct packed_chunk *c, struct packed_dense *x)
{
    memcpy(x->q, c->q, sizeof x->q);
    for (int g = 0; g < 4; g++) {
        const float *s = c->s + 4 * g;
        x->d[g] = c->d[4 * g];
        x->s[g] = (s[0] + s[1]) + (s[2] + s[3]);
    }
}

static void unpack_tile(const struct gemm_job *j, int64_t row, struct packed_tile *tile)
{
    for (int i = 0; i < PACKED_TILE; i++) {
        struct packed_rows r;
        struct packed_unpacked u;
        packed_take(j->part->w, row + i < tensor_rows(j->part->w) ? row + i : tensor_rows(j->part->w) - 1, &r);
        for (int64_t k = 0; k < j->chunks; k++) {
            j->unpack(&r, 0, k, &u);
            for (int l = 0; l < 16; l++)
                memcpy(tile[k].q[l][i], u.q + 4 * l, 4);
            for (int g = 0; g < 4; g++) {
                tile[k].a[g][i] = u.a[g];
                tile[k].b[g][i] = u.b[g];
            }
        }
    }
}

static void gemm_store(const struct linear_part *part, int64_t row, int64_t t0, int64_t n, float out[PACKED_TOKENS][PACKED_TILE])
{
    int64_t n_out = tensor_rows(part->w), rows = n_out - row < PACKED_TILE ? n_out - row : PACKED_TILE;
    for (int64_t t = 0; t < PACKED_TOKENS && t0 + t < n; t++) {
        float *y = part->y + (t0 + t) * n_out + row;
        for (int64_t i = 0; i < rows; i++) {
            float v = out[t][i] + (part->bias ? part->bias[row + i] : 0.0f);
            y[i] = part->accumulate ? y[i] + v : v;
        }
    }
}

static void gemm_item(void *ctx, size_t item, int worker)
{
    const struct gemm_job *j = ctx;
    int64_t n_out = tensor_rows(j->part->w), row = (int64_t)item * j->tiles * PACKED_TILE;
    struct packed_tile *tile = j->scratch + worker * j->tiles * j->chunks;
    int64_t tiles = (n_out - row + PACKED_TILE - 1) / PACKED_TILE;
    tiles = tiles < j->tiles ? tiles : j->tiles;
    for (int64_t i = 0; i < tiles; i++)
        unpack_tile(j, row + i * PACKED_TILE, tile + i * j->chunks);
    for (int64_t t0 = 0; t0 < j->n; t0 += PACKED_TOKENS) {
        const struct packed_dense *x[PACKED_TOKENS];
        float out[PACKED_TOKENS][PACKED_TILE];
        for (int64_t t = 0; t < PACKED_TOKENS; t++)
            x[t] = j->x + (t0 + t < j->n ? t0 + t : j->n - 1) * j->chunks;
        for (int64_t i = 0; i < tiles; i++) {
            j->gemm(tile + i * j->chunks, x, j->chunks, j->per, out);
            gemm_store(j->part, row + i * PACKED_TILE, t0, j->n, out);
        }
    }
}

struct dense_job {
    const struct packed_kernels *k;
    const float *x;
    struct packed_dense *out;
    int64_t n_in, chunks;
};

static void dense_item(void *ctx, size_t t, int worker)
{
    (void)worker;
    const struct dense_job *j = ctx;
    int64_t at = (int64_t)t;
    for (int64_t k = 0; k < j->chunks; k++) {
        struct packed_chunk c;
        int64_t left = j->n_in - 64 * k;
        j->k->quantize(j->x + at * j->n_in + 64 * k, left < 64 ? left : 64, &c);
        make_dense(&c, j->out + at * j->chunks + k);
    }
}

/* Whether a and b change within 32 inputs. */
static int per_of(const struct tensor *w)
{
    bool fine = w->type == DT_QMAT ? w->q->group == 16 : w->type == DT_Q2_K || w->type == DT_Q3_K || w->type == DT_Q6_K;
    return fine ? 16 : 32;
}

static int linear_gemm(const struct packed_kernels *k, const struct linear_part *part, int n_parts, const float *x, int64_t n,
                       struct err *e)
{
    int64_t n_in = tensor_cols(part->w), chunks = (n_in + 63) / 64, tiles = TILE_BYTES / ((int64_t)sizeof(struct packed_tile) * chunks);
    tiles = tiles < 1 ? 1 : tiles;
    size_t count = (size_t)(n * chunks), scratch = (size_t)(par_threads() * tiles * chunks);
    struct dense_job dense = { .k = k, .x = x, .n_in = n_in, .chunks = chunks };
    struct gemm_job j = { .gemm = k->gemm, .n = n, .chunks = chunks, .tiles = tiles };
    dense.out = mem_alloc(count, sizeof *dense.out);
    j.scratch = mem_alloc(scratch, sizeof *j.scratch);
    int rc = dense.out && j.scratch ? 0 : err_nomem(e, "prompt in 8 bits", count * sizeof *dense.out + scratch * sizeof *j.scratch);
    if (!rc)
        par_for((size_t)n, dense_item, &dense);
    j.x = dense.out;
    for (int p = 0; p < n_parts && !rc; p++) {
        j.part = part + p;
        j.unpack = packed_find_unpack(k, part[p].w);
        j.per = per_of(part[p].w);
        int64_t rows = tiles * PACKED_TILE;
        par_for((size_t)((tensor_rows(part[p].w) + rows - 1) / rows), gemm_item, &j);
    }
    mem_free(dense.out);
    mem_free(j.scratch);
    return rc;
}

int op_linear_packed(const struct linear_part *part, int n_parts, const float *x, int64_t n, struct err *e)
{
    const struct packed_kernels *k = packed_kernels();
    struct packed_job j = { .part = part, .n_parts = n_parts, .xf = x, .n = n, .n_in = tensor_cols(part->w) };
    bool all = n <= FEW && n_parts <= MAX_PARTS, many = n > FEW;
    for (int p = 0; p < n_parts && many; p++)
        many = packed_find_unpack(k, part[p].w) != NULL;
    if (many)
        return linear_gemm(k, part, n_parts, x, n, e);
    for (int p = 0; p < n_parts && all; p++) {
        j.fn[p] = packed_find(k, part[p].w);
        j.tiles[p] = packed_slot_use(part[p].slot, k, part[p].w);
        j.lanes[p] = j.tiles[p] ? k->lanes[part[p].w->type] : NULL;
        j.step[p] = j.fn[p] ? rows_of_item(part[p].w, j.tiles[p] ? PACKED_TILE : PACKED_ROWS) : 1;
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
