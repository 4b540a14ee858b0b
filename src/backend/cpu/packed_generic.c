/* The packed kernels for generic; the Makefile gives this file its flags. */
#include "backend/packed.h"
#include "tensor/half.h"

#define KERNELS_ISA generic
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
        sum[g] = 0;
        for (int j = 16 * g; j < 16 * g + 16; j++)
            sum[g] += code[j] * x[j];
    }
}

#include "backend/cpu/packed_body.h"
