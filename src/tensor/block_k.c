/* Superblocks of 256: q2_k to q6_k, tq2_0. */
#include "tensor/block.h"
#include "tensor/half.h"

/* 16 groups of 16; a half of 128 elements shares 32 bytes of qs, two bits at a time. */
void dtype_q2_k_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q2_k *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d)), dmin = half_to_f32(load_u16(b->dmin));
        for (int g = 0; g < 16; g++, dst += 16) {
            const uint8_t *q = b->qs + 32 * (g / 8) + 16 * (g & 1);
            int shift = 2 * (g % 8 / 2);
            float dl = d * (float)(b->scales[g] & 15), ml = dmin * (float)(b->scales[g] >> 4);
            for (int j = 0; j < 16; j++)
                dst[j] = dl * (float)(q[j] >> shift & 3) - ml;
        }
    }
}

/* Six-bit scale g of 16: low four bits in bytes 0-7, high two in bytes 8-11. */
static int q3_k_scale(const uint8_t *s, int g)
{
    int lo = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
    return lo | (s[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
}

void dtype_q3_k_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q3_k *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d));
        for (int g = 0; g < 16; g++, dst += 16) {
            const uint8_t *q = b->qs + 32 * (g / 8) + 16 * (g & 1), *h = b->hmask + 16 * (g & 1);
            int shift = 2 * (g % 8 / 2), bit = g / 2;
            float dl = d * (float)(q3_k_scale(b->scales, g) - 32);
            for (int j = 0; j < 16; j++)
                dst[j] = dl * (float)((q[j] >> shift & 3) - (h[j] >> bit & 1 ? 0 : 4));
        }
    }
}

/* Six-bit scale and min of group g of 8, shared by q4_k and q5_k. */
static void k4_scale_min(const uint8_t *s, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
        *min = (s[g + 4] >> 4) | (s[g] >> 6) << 4;
    }
}

void dtype_q4_k_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q4_k *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d)), dmin = half_to_f32(load_u16(b->dmin));
        for (int g = 0; g < 8; g++, dst += 32) {
            int sc, m;
            k4_scale_min(b->scales, g, &sc, &m);
            float dl = d * (float)sc, ml = dmin * (float)m;
            const uint8_t *q = b->qs + 32 * (g / 2);
            int shift = 4 * (g & 1);
            for (int j = 0; j < 32; j++)
                dst[j] = dl * (float)(q[j] >> shift & 15) - ml;
        }
    }
}

void dtype_q5_k_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q5_k *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d)), dmin = half_to_f32(load_u16(b->dmin));
        for (int g = 0; g < 8; g++, dst += 32) {
            int sc, m;
            k4_scale_min(b->scales, g, &sc, &m);
            float dl = d * (float)sc, ml = dmin * (float)m;
            const uint8_t *q = b->qs + 32 * (g / 2);
            int shift = 4 * (g & 1);
            for (int j = 0; j < 32; j++)
                dst[j] = dl * (float)((q[j] >> shift & 15) + ((b->qh[j] >> g & 1) << 4)) - ml;
        }
    }
}

void dtype_q6_k_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q6_k *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d));
        for (int g = 0; g < 16; g++, dst += 16) {
            /* half h of 128: four runs of 32; runs 0,1 are low nibbles of ql's two runs, 2,3 the high ones */
            int h = g / 8, run = g % 8 / 2, at = 16 * (g & 1);
            const uint8_t *ql = b->ql + 64 * h + 32 * (run & 1) + at, *qh = b->qh + 32 * h + at;
            int lshift = 4 * (run / 2), hshift = 2 * run;
            float dl = d * (float)b->scales[g];
            for (int j = 0; j < 16; j++)
                dst[j] = dl * (float)(((ql[j] >> lshift & 15) | (qh[j] >> hshift & 3) << 4) - 32);
        }
    }
}

/* Each half of 128 elements shares 32 bytes, two bits at a time. */
void dtype_tq2_0_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_tq2_0 *b = row;
    for (; n > 0; n -= 256, b++) {
        float d = half_to_f32(load_u16(b->d));
        for (int run = 0; run < 8; run++, dst += 32)
            for (int j = 0; j < 32; j++)
                dst[j] = (float)((b->qs[32 * (run / 4) + j] >> (2 * (run % 4)) & 3) - 1) * d;
    }
}
