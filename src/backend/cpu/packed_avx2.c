/* The packed kernels for avx2; the Makefile gives this file its flags. */
#include <immintrin.h>

#include "backend/packed.h"
#include "tensor/half.h"

#define KERNELS_ISA avx2
#define INLINE static inline __attribute__((always_inline))

INLINE float half(uint16_t h)
{
    return _cvtsh_ss(h);
}

/* sum[g] of 16 codes times 16 activations, codes 0..255, activations -127..127 */
INLINE void dot_groups(const uint8_t *code, const int8_t *x, int32_t sum[4])
{
    __m256i p[4];
    for (int g = 0; g < 4; g++) {
        __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(code + 16 * g)));
        __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(x + 16 * g)));
        p[g] = _mm256_madd_epi16(c, v);
    }
    __m256i h = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    _mm_storeu_si128((__m128i *)(void *)sum, s);
}

#include "backend/cpu/packed_body.h"
