/* The packed kernels for neon; the Makefile gives this file its flags. */
#include <arm_neon.h>

#include "backend/packed.h"
#include "tensor/half.h"

#define KERNELS_ISA neon
#define GEMM NULL
#define INLINE static inline __attribute__((always_inline))

INLINE float half(uint16_t h)
{
    return half_to_f32(h);
}

/* sum[g] of 16 codes times 16 activations, codes 0..255, activations -127..127 */
INLINE void dot_groups(const uint8_t *code, const int8_t *x, int32_t sum[4])
{
    for (int g = 0; g < 4; g++) {
        uint8x16_t c = vld1q_u8(code + 16 * g);
        int8x16_t v = vld1q_s8(x + 16 * g);
        int16x8_t c0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c))), c1 = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(c)));
        int16x8_t v0 = vmovl_s8(vget_low_s8(v)), v1 = vmovl_s8(vget_high_s8(v));
        int32x4_t p = vmull_s16(vget_low_s16(c0), vget_low_s16(v0));
        p = vmlal_s16(p, vget_high_s16(c0), vget_high_s16(v0));
        p = vmlal_s16(p, vget_low_s16(c1), vget_low_s16(v1));
        p = vmlal_s16(p, vget_high_s16(c1), vget_high_s16(v1));
        sum[g] = vaddvq_s32(p);
    }
}

#include "backend/cpu/packed_body.h"
