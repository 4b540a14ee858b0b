/* Types without blocks: f32, f16, bf16. Data in a file need not be aligned, hence memcpy. */
#include <string.h>

#include "tensor/block.h"
#include "tensor/half.h"

void dtype_f32_to_f32(const void *row, float *dst, int64_t n)
{
    memcpy(dst, row, (size_t)n * sizeof *dst);
}

void dtype_f16_to_f32(const void *row, float *dst, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++)
        dst[i] = half_to_f32(load_u16(p + 2 * i));
}

void dtype_bf16_to_f32(const void *row, float *dst, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++)
        dst[i] = bf16_to_f32(load_u16(p + 2 * i));
}
