/* Blocks of 32: q4_0, q4_1, q5_0, q5_1, q8_0; byte j of qs holds element j (low) and j+16 (high nibble). Blocks of 64:
 * q2_0; byte j holds elements 4j to 4j+3, lowest bits first. */
#include "tensor/block.h"
#include "tensor/half.h"

void dtype_q4_0_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q4_0 *b = row;
    for (; n > 0; n -= 32, b++, dst += 32) {
        float d = half_to_f32(load_u16(b->d));
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)((b->qs[j] & 15) - 8) * d;
            dst[j + 16] = (float)((b->qs[j] >> 4) - 8) * d;
        }
    }
}

void dtype_q4_1_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q4_1 *b = row;
    for (; n > 0; n -= 32, b++, dst += 32) {
        float d = half_to_f32(load_u16(b->d)), m = half_to_f32(load_u16(b->m));
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)(b->qs[j] & 15) * d + m;
            dst[j + 16] = (float)(b->qs[j] >> 4) * d + m;
        }
    }
}

/* Bit i of qh is the fifth bit of element i. */
static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

void dtype_q5_0_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q5_0 *b = row;
    for (; n > 0; n -= 32, b++, dst += 32) {
        float d = half_to_f32(load_u16(b->d));
        uint32_t qh = load_u32(b->qh);
        for (int j = 0; j < 16; j++) {
            int lo = (b->qs[j] & 15) | (int)(qh >> j & 1) << 4;
            int hi = (b->qs[j] >> 4) | (int)(qh >> (j + 16) & 1) << 4;
            dst[j] = (float)(lo - 16) * d;
            dst[j + 16] = (float)(hi - 16) * d;
        }
    }
}

void dtype_q5_1_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q5_1 *b = row;
    for (; n > 0; n -= 32, b++, dst += 32) {
        float d = half_to_f32(load_u16(b->d)), m = half_to_f32(load_u16(b->m));
        uint32_t qh = load_u32(b->qh);
        for (int j = 0; j < 16; j++) {
            int lo = (b->qs[j] & 15) | (int)(qh >> j & 1) << 4;
            int hi = (b->qs[j] >> 4) | (int)(qh >> (j + 16) & 1) << 4;
            dst[j] = (float)lo * d + m;
            dst[j + 16] = (float)hi * d + m;
        }
    }
}

void dtype_q8_0_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q8_0 *b = row;
    for (; n > 0; n -= 32, b++, dst += 32) {
        float d = half_to_f32(load_u16(b->d));
        for (int j = 0; j < 32; j++)
            dst[j] = (float)b->qs[j] * d;
    }
}

void dtype_q2_0_to_f32(const void *row, float *dst, int64_t n)
{
    const struct block_q2_0 *b = row;
    for (; n > 0; n -= 64, b++, dst += 64) {
        float d = half_to_f32(load_u16(b->d));
        for (int j = 0; j < 64; j++)
            dst[j] = (float)((b->qs[j / 4] >> (2 * (j % 4)) & 3) - 1) * d;
    }
}
