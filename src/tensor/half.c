#include "tensor/half.h"

#include <string.h>

static float bits_to_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t f32_to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
    if (exp == 31)
        return bits_to_f32(sign | 0x7f800000u | man << 13);
    if (exp == 0) /* zero or subnormal: man * 2^-24, exact in float32 */
        return bits_to_f32(sign | f32_to_bits((float)man * 0x1p-24f));
    return bits_to_f32(sign | (exp + 112) << 23 | man << 13);
}

uint16_t half_from_f32(float f)
{
    uint32_t u = f32_to_bits(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) /* NaN stays NaN */
        return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 aligns the mantissa, the FPU rounds to even */
        uint32_t r = f32_to_bits(bits_to_f32(a) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    a += 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | (a - 0x38000000u) >> 13);
}

float bf16_to_f32(uint16_t h)
{
    return bits_to_f32((uint32_t)h << 16);
}

uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float half_round(float f)
{
    return half_to_f32(half_from_f32(f));
}

void half_exact(const float *v, int64_t n, bool *f16, bool *bf16)
{
    for (int64_t i = 0; v && i < n && (*f16 || *bf16); i++) {
        *f16 = *f16 && half_round(v[i]) == v[i];
        *bf16 = *bf16 && bf16_to_f32(bf16_from_f32(v[i])) == v[i];
    }
}
