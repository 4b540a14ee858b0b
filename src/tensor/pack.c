/* pack: the table of grids and the fields of their blocks. A group has one scale s and one zero z, w = s (c - z):
 *
 *   q2_0, tq2_0   (q - 1) d              z = 1: q = c, d = s;  z = 2: q = 3 - c, d = -s
 *   q3_K          d sc (q - 4)           z = 4: q = c;  z = 3: q = 7 - c and the negative scale
 *   q4_0, q5_0    (q - 8, 16) d          any z with 0 <= q = c - z + 8 (16) <= 15 (31): so 2 and 3 (4) bits with any z
 *                                        4 bits, z = 7: q = 15 - c, d = -s
 *   q8_0          q d                    z = 128
 *   q2_K, q4_K    d sc q - dmin m        one group a block: d = dmin = s, sc = 1, m = z
 *   q2_K, q3_K    scales s = d k         q2_K: sc = m = k, dmin = 2 d (z = 2); q3_K: sc = k (z = 4)
 * Products of a fp16 number and an integer below 2^11 are exact in float32, hence so are both sides. */
#include "tensor/pack.h"

#include <math.h>
#include <string.h>

#include "tensor/half.h"

#define QK 256 /* elements of a K type's block */

const char pack_grids[] = "2 bits: --grid sym or signfree with a --group that is a multiple of 64, asym with a multiple of 256 "
                          "(q2_k) or of 32 (in q4_0), portable; 3 bits: sym with a multiple of 256 (q3_k), sym or asym with a "
                          "multiple of 32 (in q4_0), portable; 4 bits: sym with a multiple of 32, asym with a multiple of 32 "
                          "(in q5_0) or 256 (q4_k); in each case the width of the matrix too; or a type's own grid";

/* In the order in which they are tried: snapped scales were made for the K types, else the smallest first. zmin, zmax: zero points that the type can hold. */
static const struct packer {
    int bits, zmin, zmax;
    enum dtype type;
    int block;    /* a group is a multiple of it; snapped: the block holds groups of 16 and more */
    bool snapped;
} packers[] = {
    { 2, 2, 2, DT_Q2_K, 16, true },     { 3, 4, 4, DT_Q3_K, 16, true },   { 2, 1, 2, DT_TQ2_0, 256, false },
    { 2, 1, 2, DT_Q2_0, 64, false },    { 2, 0, 15, DT_Q2_K, 256, false }, { 2, 0, 8, DT_Q4_0, 32, false },
    { 3, 3, 4, DT_Q3_K, 256, false },   { 3, 0, 8, DT_Q4_0, 32, false },   { 4, 7, 8, DT_Q4_0, 32, false },
    { 4, 0, 63, DT_Q4_K, 256, false }, { 4, 0, 16, DT_Q5_0, 32, false }, { 8, 128, 128, DT_Q8_0, 32, false },
};

static int snap_max(int bits)
{
    return bits == 2 ? 15 : 31;
}

float pack_snap(const uint16_t *scale, int64_t n, int kmax)
{
    float top = 0;
    for (int64_t i = 0; i < n; i++) {
        float s = half_to_f32(scale[i]);
        if (!(s > 0))
            return 0;
        top = s > top ? s : top;
    }
    for (int k = 1; k <= kmax; k++) {
        float d = half_round(top / (float)k);
        bool all = d * (float)k == top;
        for (int64_t i = 0; all && i < n; i++) {
            float s = half_to_f32(scale[i]), m = rintf(s / d);
            all = m >= 1 && d * m == s;
        }
        if (all && half_to_f32(half_from_f32(2 * d)) == 2 * d)
            return d;
    }
    return 0;
}

static bool snapped(const struct qmat *q)
{
    if (q->group % 16 || q->group >= QK || QK % q->group || q->n_in % QK)
        return false;
    int per = QK / q->group;
    for (int64_t i = 0; i < q->n_out * q->n_groups; i += per)
        if (pack_snap(q->scale + i, per, snap_max(q->bits)) == 0)
            return false;
    return true;
}

struct pack_grid pack_grid_of(const struct qmat *q)
{
    struct pack_grid g = { q->bits, q->group, 255, 0, false, q->n_in };
    for (int64_t i = 0; i < q->n_out * q->n_groups; i++) {
        g.zmin = q->zero[i] < g.zmin ? q->zero[i] : g.zmin;
        g.zmax = q->zero[i] > g.zmax ? q->zero[i] : g.zmax;
    }
    g.snapped = (q->bits == 2 || q->bits == 3) && snapped(q);
    return g;
}

static bool holds(const struct packer *p, const struct pack_grid *g)
{
    int64_t len = dtype_table[p->type].block_len;
    return p->bits == g->bits && p->zmin <= g->zmin && p->zmax >= g->zmax && g->n_in % len == 0 &&
           (p->snapped ? g->snapped : g->group >= g->n_in || g->group % p->block == 0);
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
    for (int64_t j = 0; q->g_idx && j < q->n_in; j++)
        if (q->g_idx[j] != j / q->group)
            return err_set(e, ERR_UNSUPPORTED, "tensor %s: input %lld is of group %d, but GGUF has its groups in order "
                           "(activation order without static groups)", name, (long long)j, (int)q->g_idx[j]);
    for (int64_t i = 0; i < q->n_out * q->n_groups; i++)
        if ((q->scale[i] & 0x7c00) == 0x7c00)
            return err_set(e, ERR_NUMERIC, "tensor %s: scale of output %lld, group %lld is not finite", name,
                           (long long)(i / q->n_groups), (long long)(i % q->n_groups));
    if (!packer_of(&g, type))
        return err_set(e, ERR_UNSUPPORTED, "tensor %s: %d bits, group %d, zeros %d to %d, rows of %lld do not fit %s", name,
                       q->bits, q->group, g.zmin, g.zmax, (long long)q->n_in, dtype_table[type].name);
    return 0;
}

uint16_t pack_group(enum dtype type, const uint8_t *c, int n, uint16_t scale, int zero, int bits, struct block_fields *f, int at)
{
    int maxq = (1 << bits) - 1, shift = 0;
    bool flip = false;
    switch (type) {
    case DT_Q2_0:
    case DT_TQ2_0:
        flip = zero == 2;
        break;
    case DT_Q3_K:
        flip = zero == 3;
        break;
    case DT_Q4_0:
        flip = bits == 4 && zero == 7;
        shift = bits == 4 ? 0 : 8 - zero;
        break;
    case DT_Q5_0:
        flip = bits == 5 && zero == 15;
        shift = bits == 5 ? 0 : 16 - zero;
        break;
    default:
        break;
    }
    for (int j = 0; j < n; j++)
        f->q[at + j] = (uint8_t)(flip ? maxq - c[j] : c[j] + shift);
    return flip ? scale ^ 0x8000 : scale;
}

/* The block that begins at input j of a row whose scales and zeros are s, z. */
static void fill(const struct packer *p, const struct qmat *q, const uint8_t *codes, int64_t j, const uint16_t *s,
                 const uint8_t *z, struct block_fields *f)
{
    int len = dtype_table[p->type].block_len;
    int64_t g = j / q->group;
    if (!p->snapped) {
        f->d = f->m = pack_group(p->type, codes + j, len, s[g], z[g], q->bits, f, 0);
        for (int i = 0; i < 16; i++) {
            f->sc[i] = 1;
            f->mn[i] = z[g];
        }
        return;
    }
    int per = QK / q->group, sub = q->group / 16;
    float d = pack_snap(s + g, per, snap_max(q->bits));
    memcpy(f->q, codes + j, QK);
    f->d = half_from_f32(d);
    f->m = half_from_f32(2 * d);
    for (int i = 0; i < 16; i++)
        f->sc[i] = f->mn[i] = (int16_t)rintf(half_to_f32(s[g + i / sub]) / d);
}

void pack_row(const struct qmat *q, int64_t row, enum dtype type, uint8_t *codes, void *out)
{
    struct block_fields f;
    const struct dtype_info *d = &dtype_table[type];
    const uint16_t *s = q->scale + row * q->n_groups;
    const uint8_t *z = q->zero + row * q->n_groups;
    uint8_t *dst = out;
    qmat_get_codes(q, row, codes);
    /* one row's own zeros and scales suffice: whatever the others have, the type was checked to hold all */
    struct pack_grid g = { q->bits, q->group, z[0], z[0], false, q->n_in };
    for (int64_t i = 1; i < q->n_groups; i++) {
        g.zmin = z[i] < g.zmin ? z[i] : g.zmin;
        g.zmax = z[i] > g.zmax ? z[i] : g.zmax;
    }
    const struct packer *p = packer_of(&g, type);
    if (!p) {
        g.snapped = true;
        p = packer_of(&g, type);
    }
    for (int64_t j = 0; p && j < q->n_in; j += d->block_len, dst += d->block_bytes) {
        fill(p, q, codes, j, s, z, &f);
        block_store(type, &f, dst);
    }
}
