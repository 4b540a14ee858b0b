/* pack: the table of grids and their blocks. A block lies in one group, so it has one scale and one zero.
 *
 * w = s (c - z) in each type:
 *   q2_0, tq2_0   (q - 1) d              z = 2: q = 3 - c, d = -s
 *   q2_K, q4_K    d sc q - dmin m        d = dmin = s, sc = 1, m = z
 *   q3_K          d (sc - 32) (q - 4)    z = 4: sc = 33, d = s
 *   q4_0          (q - 8) d              z = 8, or z = 4 with q = c + 4
 *   q8_0          q d                    z = 128: q = c - 128
 * Products of a fp16 number and an integer below 2^11 are exact in float32, hence so are both sides. */
#include "tensor/pack.h"

#include <string.h>

#include "tensor/block.h"

const char pack_grids[] = "2 bits: --grid sym with a --group that is a multiple of 64, or --grid asym with a multiple of 256; "
                          "3 bits: --grid sym with a multiple of 32; 4 bits: --grid sym with a multiple of 32, or --grid "
                          "asym with a multiple of 256; in each case the width of the matrix too";

static void store_u16(uint8_t *p, int v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void block_q2_0(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_q2_0 *b = out;
    (void)zero;
    store_u16(b->d, scale ^ 0x8000);
    for (int j = 0; j < 64; j++)
        b->qs[j / 4] |= (uint8_t)((3 - c[j]) << (2 * (j % 4)));
}

static void block_tq2_0(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_tq2_0 *b = out;
    (void)zero;
    store_u16(b->d, scale ^ 0x8000);
    for (int j = 0; j < 256; j++)
        b->qs[32 * (j / 128) + j % 32] |= (uint8_t)((3 - c[j]) << (2 * (j % 128 / 32)));
}

static void block_q2_k(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_q2_k *b = out;
    store_u16(b->d, scale);
    store_u16(b->dmin, scale);
    memset(b->scales, 1 | zero << 4, sizeof b->scales);
    for (int j = 0; j < 256; j++)
        b->qs[32 * (j / 128) + j % 32] |= (uint8_t)(c[j] << (2 * (j % 128 / 32)));
}

static void block_q3_k(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_q3_k *b = out;
    (void)zero;
    store_u16(b->d, scale);
    memset(b->scales, 0x11, 8); /* sixteen times 33 = 1 | 2 << 4 */
    memset(b->scales + 8, 0xaa, 4);
    for (int j = 0; j < 256; j++) {
        b->qs[32 * (j / 128) + j % 32] |= (uint8_t)((c[j] & 3) << (2 * (j % 128 / 32)));
        b->hmask[j % 32] |= (uint8_t)((c[j] >> 2) << (j / 32));
    }
}

static void block_q4_k(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_q4_k *b = out;
    store_u16(b->d, scale);
    store_u16(b->dmin, scale);
    memset(b->scales, 1, 4);                          /* scales of blocks 0-3; the high bits of 4-7's are 0 */
    memset(b->scales + 4, zero | zero >> 4 << 6, 4);  /* mins of 0-3 (six bits), high bits of 4-7's */
    memset(b->scales + 8, 1 | (zero & 15) << 4, 4);   /* low bits of scales and mins of 4-7 */
    for (int j = 0; j < 256; j++)
        b->qs[32 * (j / 64) + j % 32] |= (uint8_t)(c[j] << (4 * (j % 64 / 32)));
}

static void pack_nibbles(const uint8_t *c, int scale, int shift, void *out)
{
    struct block_q4_0 *b = out;
    store_u16(b->d, scale);
    for (int j = 0; j < 16; j++)
        b->qs[j] = (uint8_t)((c[j] + shift) | (c[j + 16] + shift) << 4);
}

/* Of 3 bits (zero 4) or 4 bits (zero 8). */
static void block_q4_0(const uint8_t *c, int scale, int zero, void *out)
{
    pack_nibbles(c, scale, 8 - zero, out);
}

static void block_q8_0(const uint8_t *c, int scale, int zero, void *out)
{
    struct block_q8_0 *b = out;
    store_u16(b->d, scale);
    for (int j = 0; j < 32; j++)
        b->qs[j] = (int8_t)(c[j] - zero);
}

/* In the order in which they are tried. */
static const struct packer {
    int bits;
    bool sym;
    enum dtype type;
    void (*block)(const uint8_t *codes, int scale, int zero, void *out); /* out is cleared */
} packers[] = {
    { 2, true, DT_TQ2_0, block_tq2_0 }, { 2, true, DT_Q2_0, block_q2_0 }, { 2, false, DT_Q2_K, block_q2_k },
    { 3, true, DT_Q3_K, block_q3_k },   { 3, true, DT_Q4_0, block_q4_0 }, { 4, true, DT_Q4_0, block_q4_0 },
    { 4, false, DT_Q4_K, block_q4_k },  { 8, true, DT_Q8_0, block_q8_0 },
};

struct pack_grid pack_grid_of(const struct qmat *q)
{
    return (struct pack_grid){ q->bits, q->group, q->sym, q->n_in };
}

static bool holds(const struct packer *p, const struct pack_grid *g)
{
    int64_t len = dtype_table[p->type].block_len;
    return p->bits == g->bits && p->sym == g->sym && g->n_in % len == 0 && (g->group >= g->n_in || g->group % len == 0);
}

static const struct packer *packer_of(const struct pack_grid *g, enum dtype type)
{
    for (size_t i = 0; i < sizeof packers / sizeof *packers; i++)
        if ((type == DT_COUNT || packers[i].type == type) && holds(&packers[i], g))
            return &packers[i];
    return NULL;
}

enum dtype pack_type(const struct pack_grid *g)
{
    const struct packer *p = packer_of(g, DT_COUNT);
    return p ? p->type : DT_COUNT;
}

int pack_check(const struct qmat *q, enum dtype type, const char *name, struct err *e)
{
    const struct pack_grid g = pack_grid_of(q);
    const int mid = 1 << (q->bits - 1), max = type == DT_Q2_K ? 15 : type == DT_Q4_K ? 63 : 255;
    if (!packer_of(&g, type))
        return err_set(e, ERR_UNSUPPORTED, "tensor %s: %d bits, group %d, %s, rows of %lld do not fit %s", name, q->bits,
                       q->group, q->sym ? "symmetric" : "asymmetric", (long long)q->n_in, dtype_table[type].name);
    for (int64_t j = 0; q->g_idx && j < q->n_in; j++)
        if (q->g_idx[j] != j / q->group)
            return err_set(e, ERR_UNSUPPORTED, "tensor %s: input %lld is of group %d, but GGUF has its groups in order "
                           "(activation order without static groups)", name, (long long)j, (int)q->g_idx[j]);
    for (int64_t i = 0; i < q->n_out * q->n_groups; i++) {
        if ((q->scale[i] & 0x7c00) == 0x7c00)
            return err_set(e, ERR_NUMERIC, "tensor %s: scale of output %lld, group %lld is not finite", name,
                           (long long)(i / q->n_groups), (long long)(i % q->n_groups));
        if (q->sym ? q->zero[i] != mid : q->zero[i] > max)
            return err_set(e, ERR_UNSUPPORTED, "tensor %s: zero of output %lld, group %lld: expected %s%d, found %d", name,
                           (long long)(i / q->n_groups), (long long)(i % q->n_groups), q->sym ? "" : "at most ",
                           q->sym ? mid : max, q->zero[i]);
    }
    return 0;
}

void pack_row(const struct qmat *q, int64_t row, enum dtype type, uint8_t *codes, void *out)
{
    const struct pack_grid g = pack_grid_of(q);
    const struct packer *p = packer_of(&g, type);
    const struct dtype_info *d = &dtype_table[type];
    uint8_t *dst = out;
    qmat_get_codes(q, row, codes);
    memset(dst, 0, (size_t)(q->n_in / d->block_len * d->block_bytes));
    for (int64_t j = 0; j < q->n_in; j += d->block_len, dst += d->block_bytes) {
        int64_t at = row * q->n_groups + j / q->group;
        p->block(codes + j, q->scale[at], q->zero[at], dst);
    }
}
