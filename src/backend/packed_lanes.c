/* Repacking of a matrix for decoding: see packed.h.
 *
 * A tile is 16 rows side by side. For each block (64 inputs, or the superblock of the K types) it has the 16 rows' factors, a lane for
 * each row, then for each chunk of 64 inputs its codes in planes of 4, 2 or 1 bits. A word is 4 inputs of all rows, 64 bytes when unpacked;
 * register r of a plane of b bits holds words r + k (2 b) at bits k b of each byte, so that one mask (and no shift where the bits above fit
 * into a byte) gives a word's codes. */
#include <string.h>

#include "backend/packed.h"
#include "base/mem.h"
#include "base/par.h"
#include "tensor/block.h"
#include "tensor/half.h"

#define AFTER 24 /* products of few tokens before a matrix is repacked, which costs the gain of some 50 */

static int chunk_bytes(const struct packed_lanes *l)
{
    return 128 * l->bits;
}

int64_t packed_tile_bytes(const struct packed_lanes *l, int64_t n_in)
{
    return (n_in + l->block - 1) / l->block * (l->head + l->block / 64 * chunk_bytes(l));
}

/* ---- codes ----------------------------------------------------------------- */

static void put_u32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}

/* Bits [from, from + n) of the codes of 16 words into a plane; out: this row's place in its first register. */
static inline __attribute__((always_inline)) uint8_t *put_plane(const uint32_t word[16], int from, int n, uint8_t *out)
{
    uint32_t mask = ((1u << n) - 1) * 0x01010101u;
#pragma GCC unroll 8
    for (int r = 0; r < 2 * n; r++) {
        uint32_t v = 0;
#pragma GCC unroll 8
        for (int k = 0; k < 8 / n; k++)
            v |= (word[r + 2 * n * k] >> from & mask) << (n * k);
        put_u32(out + 64 * r, v);
    }
    return out + 128 * n;
}

static void put_codes(const uint8_t q[64], int bits, uint8_t *out)
{
    uint32_t word[16];
    memcpy(word, q, sizeof word);
    if (bits >= 4)
        out = put_plane(word, 0, 4, out);
    else
        out = put_plane(word, 0, 2, out);
    if (bits == 3)
        put_plane(word, 2, 1, out);
    else if (bits == 5)
        put_plane(word, 4, 1, out);
    else if (bits == 6)
        put_plane(word, 4, 2, out);
}

/* ---- factors ----------------------------------------------------------------- */

static void put_half(uint8_t *head, int group, int lane, const uint8_t h[2])
{
    memcpy(head + 32 * group + 2 * lane, h, 2);
}

/* b: the row's block; left: inputs from it to the row's end. */
static void head_q4_0(const uint8_t *b, int64_t left, int lane, uint8_t *head)
{
    static const uint8_t zero[2];
    put_half(head, 0, lane, b);
    put_half(head, 1, lane, left > 32 ? b + sizeof(struct block_q4_0) : zero);
}

static void head_q2_0(const uint8_t *b, int64_t left, int lane, uint8_t *head)
{
    (void)left;
    put_half(head, 0, lane, b);
}

static void head_q2_k(const uint8_t *p, int64_t left, int lane, uint8_t *head)
{
    const struct block_q2_k *b = (const void *)p;
    (void)left;
    put_half(head, 0, lane, b->d);
    put_half(head, 1, lane, b->dmin);
    for (int g = 0; g < 16; g++)
        head[64 + 16 * g + lane] = b->scales[g];
}

static void head_q3_k(const uint8_t *p, int64_t left, int lane, uint8_t *head)
{
    const struct block_q3_k *b = (const void *)p;
    (void)left;
    put_half(head, 0, lane, b->d);
    for (int g = 0; g < 16; g++) {
        int lo = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4, hi = b->scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        head[32 + 16 * g + lane] = (uint8_t)((lo | hi << 4) - 32);
    }
}

static void head_k4(const uint8_t *p, int64_t left, int lane, uint8_t *head)
{
    const struct block_q4_k *b = (const void *)p;
    const uint8_t *sc = b->scales;
    (void)left;
    put_half(head, 0, lane, b->d);
    put_half(head, 1, lane, b->dmin);
    for (int g = 0; g < 8; g++) {
        head[64 + 16 * g + lane] = (uint8_t)(g < 4 ? sc[g] & 63 : (sc[g + 4] & 15) | (sc[g - 4] >> 6) << 4);
        head[192 + 16 * g + lane] = (uint8_t)(g < 4 ? sc[g + 4] & 63 : (sc[g + 4] >> 4) | (sc[g] >> 6) << 4);
    }
}

static void head_q6_k(const uint8_t *p, int64_t left, int lane, uint8_t *head)
{
    const struct block_q6_k *b = (const void *)p;
    (void)left;
    put_half(head, 0, lane, b->d);
    for (int g = 0; g < 16; g++)
        head[32 + 16 * g + lane] = (uint8_t)b->scales[g];
}

/* ---- tiles ------------------------------------------------------------------- */

typedef void (*head_fn)(const uint8_t *block, int64_t left, int lane, uint8_t *head);

static const head_fn heads[DT_COUNT] = {
    [DT_Q4_0] = head_q4_0, [DT_Q2_0] = head_q2_0, [DT_Q2_K] = head_q2_k, [DT_Q3_K] = head_q3_k,
    [DT_Q4_K] = head_k4, [DT_Q5_K] = head_k4, [DT_Q6_K] = head_q6_k,
};

struct lanes_job {
    const struct tensor *w;
    const struct packed_lanes *l;
    packed_unpack_fn unpack;
    head_fn head;
    uint8_t *out;
};

static void lanes_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct lanes_job *j = ctx;
    const struct dtype_info *d = &dtype_table[j->w->type];
    int64_t n_in = tensor_cols(j->w), size = packed_tile_bytes(j->l, n_in);
    int64_t stored = j->l->block / d->block_len * d->block_bytes; /* bytes of a block in the matrix */
    for (int lane = 0; lane < PACKED_TILE; lane++) {
        uint8_t *out = j->out + (int64_t)item * size;
        struct packed_rows r;
        packed_take(j->w, (int64_t)item * PACKED_TILE + lane, &r);
        for (int64_t at = 0; at < n_in; at += j->l->block) {
            j->head(r.row[0] + at / j->l->block * stored, n_in - at, lane, out);
            out += j->l->head;
            for (int64_t k = at / 64; k < (at + j->l->block) / 64; k++, out += chunk_bytes(j->l)) {
                struct packed_unpacked u;
                j->unpack(&r, 0, k, &u);
                put_codes(u.q, j->l->bits, out + 4 * lane);
            }
        }
    }
}

uint8_t *packed_lanes_make(const struct packed_kernels *k, const struct tensor *w)
{
    const struct packed_lanes *l = k->lanes ? k->lanes[w->type] : NULL;
    if (!l)
        return NULL;
    int64_t tiles = (tensor_rows(w) + PACKED_TILE - 1) / PACKED_TILE;
    struct lanes_job j = { w, l, k->unpack->type[w->type], heads[w->type], NULL };
    j.out = mem_alloc((size_t)tiles, (size_t)packed_tile_bytes(l, tensor_cols(w)));
    if (j.out)
        par_for((size_t)tiles, lanes_item, &j);
    return j.out;
}

const uint8_t *packed_slot_use(struct packed_slot *s, const struct packed_kernels *k, const struct tensor *w)
{
    if (!s || !k->lanes || !k->lanes[w->type] || s->of != w->data)
        return NULL;
    uint8_t *made = atomic_load(&s->tiles);
    if (made || atomic_fetch_add(&s->uses, 1) < AFTER)
        return made;
    made = packed_lanes_make(k, w);
    uint8_t *other = NULL;
    if (made && !atomic_compare_exchange_strong(&s->tiles, &other, made)) { /* another thread was faster */
        mem_free(made);
        made = other;
    }
    return made;
}

void packed_slot_release(struct packed_slot *s)
{
    mem_free(atomic_exchange(&s->tiles, NULL));
    atomic_store(&s->uses, 0);
}
