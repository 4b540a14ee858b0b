/* block_store: a block from its fields; the inverse of the decoders in block_*.c, bit for bit. */
#include "tensor/block.h"

#include <string.h>

#include "tensor/half.h"
#include "tensor/tensor.h"

static void store_u16(uint8_t *p, int v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* Two bits of element j of 256 in q2_k, q3_k, tq2_0: a half of 128 elements shares 32 bytes. */
static void store_2(uint8_t *qs, const uint8_t *q)
{
    for (int j = 0; j < 256; j++)
        qs[32 * (j / 128) + j % 32] |= (uint8_t)((q[j] & 3) << (2 * (j % 128 / 32)));
}

static void store_nibbles(uint8_t *qs, const uint8_t *q)
{
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void store_fifth(uint8_t *qh, const uint8_t *q)
{
    for (int j = 0; j < 32; j++)
        qh[j / 8] |= (uint8_t)((q[j] >> 4 & 1) << (j % 8));
}

static void store_q3_k(const struct block_fields *f, struct block_q3_k *b)
{
    store_u16(b->d, f->d);
    store_2(b->qs, f->q);
    for (int j = 0; j < 256; j++)
        b->hmask[j % 32] |= (uint8_t)((f->q[j] >> 2 & 1) << (j / 32));
    for (int g = 0; g < 16; g++) {
        int s = f->sc[g] + 32;
        b->scales[g % 8] |= (uint8_t)((s & 15) << (g < 8 ? 0 : 4));
        b->scales[8 + g % 4] |= (uint8_t)(s >> 4 << (2 * (g / 4)));
    }
}

/* The twelve bytes of six-bit scales and mins of q4_k and q5_k. */
static void store_k4_scales(const struct block_fields *f, uint8_t *s)
{
    for (int g = 0; g < 4; g++) {
        s[g] = (uint8_t)(f->sc[g] | f->sc[g + 4] >> 4 << 6);
        s[g + 4] = (uint8_t)(f->mn[g] | f->mn[g + 4] >> 4 << 6);
        s[g + 8] = (uint8_t)((f->sc[g + 4] & 15) | (f->mn[g + 4] & 15) << 4);
    }
}

static void store_low_nibbles(const struct block_fields *f, uint8_t *qs)
{
    for (int j = 0; j < 256; j++)
        qs[32 * (j / 64) + j % 32] |= (uint8_t)((f->q[j] & 15) << (4 * (j % 64 / 32)));
}

static void store_q5_k(const struct block_fields *f, struct block_q5_k *b)
{
    store_u16(b->d, f->d);
    store_u16(b->dmin, f->m);
    store_k4_scales(f, b->scales);
    store_low_nibbles(f, b->qs);
    for (int j = 0; j < 256; j++)
        b->qh[j % 32] |= (uint8_t)((f->q[j] >> 4 & 1) << (j / 32));
}

static void store_q6_k(const struct block_fields *f, struct block_q6_k *b)
{
    store_u16(b->d, f->d);
    for (int g = 0; g < 16; g++)
        b->scales[g] = (int8_t)f->sc[g];
    for (int j = 0; j < 256; j++) {
        int h = j / 128, run = j % 128 / 32, at = j % 32;
        b->ql[64 * h + 32 * (run & 1) + at] |= (uint8_t)((f->q[j] & 15) << (4 * (run / 2)));
        b->qh[32 * h + at] |= (uint8_t)((f->q[j] >> 4 & 3) << (2 * run));
    }
}

void block_store(enum dtype type, const struct block_fields *f, void *out)
{
    union {
        void *p;
        struct block_q2_0 *q2_0;
        struct block_tq2_0 *tq2_0;
        struct block_q4_0 *q4_0;
        struct block_q4_1 *q4_1;
        struct block_q5_0 *q5_0;
        struct block_q5_1 *q5_1;
        struct block_q8_0 *q8_0;
        struct block_q2_k *q2_k;
        struct block_q4_k *q4_k;
    } b = { out };
    memset(out, 0, (size_t)dtype_table[type].block_bytes);
    switch (type) {
    case DT_Q2_0:
        store_u16(b.q2_0->d, f->d);
        for (int j = 0; j < 64; j++)
            b.q2_0->qs[j / 4] |= (uint8_t)((f->q[j] & 3) << (2 * (j % 4)));
        break;
    case DT_TQ2_0:
        store_u16(b.tq2_0->d, f->d);
        store_2(b.tq2_0->qs, f->q);
        break;
    case DT_Q4_0:
        store_u16(b.q4_0->d, f->d);
        store_nibbles(b.q4_0->qs, f->q);
        break;
    case DT_Q4_1:
        store_u16(b.q4_1->d, f->d);
        store_u16(b.q4_1->m, f->m);
        store_nibbles(b.q4_1->qs, f->q);
        break;
    case DT_Q5_0:
        store_u16(b.q5_0->d, f->d);
        store_nibbles(b.q5_0->qs, f->q);
        store_fifth(b.q5_0->qh, f->q);
        break;
    case DT_Q5_1:
        store_u16(b.q5_1->d, f->d);
        store_u16(b.q5_1->m, f->m);
        store_nibbles(b.q5_1->qs, f->q);
        store_fifth(b.q5_1->qh, f->q);
        break;
    case DT_Q8_0:
        store_u16(b.q8_0->d, f->d);
        for (int j = 0; j < 32; j++)
            b.q8_0->qs[j] = (int8_t)(f->q[j] - 128);
        break;
    case DT_Q2_K:
        store_u16(b.q2_k->d, f->d);
        store_u16(b.q2_k->dmin, f->m);
        for (int g = 0; g < 16; g++)
            b.q2_k->scales[g] = (uint8_t)(f->sc[g] | f->mn[g] << 4);
        store_2(b.q2_k->qs, f->q);
        break;
    case DT_Q3_K:
        store_q3_k(f, out);
        break;
    case DT_Q4_K:
        store_u16(b.q4_k->d, f->d);
        store_u16(b.q4_k->dmin, f->m);
        store_k4_scales(f, b.q4_k->scales);
        store_low_nibbles(f, b.q4_k->qs);
        break;
    case DT_Q5_K:
        store_q5_k(f, out);
        break;
    case DT_Q6_K:
        store_q6_k(f, out);
        break;
    default: /* float types have no fields */
        break;
    }
}

uint8_t *block_factor(enum dtype type, uint8_t *block, int k)
{
    switch (type) {
    case DT_Q4_1:
    case DT_Q5_1:
    case DT_Q4_K:
    case DT_Q5_K:
        return block + 2 * k;
    case DT_Q2_K:
        return block + 80 + 2 * k;
    case DT_Q3_K:
    case DT_Q6_K:
    case DT_TQ2_0:
        return k ? NULL : block + dtype_table[type].block_bytes - 2;
    default:
        return k ? NULL : block;
    }
}

bool block_scale_row(enum dtype type, void *row, int64_t n, float factor)
{
    const struct dtype_info *t = &dtype_table[type];
    uint8_t *b = row, *at;
    for (int64_t j = 0; j < n; j += t->block_len, b += t->block_bytes)
        for (int k = 0; k < 2 && (at = block_factor(type, b, k)); k++) {
            float v = half_to_f32(load_u16(at)) * factor;
            if (!(v <= 65504.0f && v >= -65504.0f))
                return false;
            store_u16(at, half_from_f32(v));
        }
    return true;
}
