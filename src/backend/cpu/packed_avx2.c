/* The packed kernels for avx2; the Makefile gives this file its flags. */
#include <immintrin.h>
#include <string.h>

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

/* ---- many tokens --------------------------------------------------------------------------- */

#define GEMM gemm

/* 8 rows and 4 tokens: registers for more there are not. One run of n words with the same factors. Codes up to 63: the sum of
 * four products fits into 16 bits. */
INLINE void gemm_run(const struct packed_tile *w, int rows, const struct packed_dense *const *x, int64_t k, int word, int n, __m256 *acc)
{
    const __m256i ones = _mm256_set1_epi16(1);
    int g = word / 4;
    __m256 a = _mm256_loadu_ps(w->a[g] + rows), b = _mm256_loadu_ps(w->b[g] + rows);
    __m256i sum[4] = { _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256() };
#pragma GCC unroll 4
    for (int j = word; j < word + n; j += 2) {
        __m256i c0 = _mm256_loadu_si256((const __m256i *)(const void *)w->q[j][rows]);
        __m256i c1 = _mm256_loadu_si256((const __m256i *)(const void *)w->q[j + 1][rows]);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            int32_t four[2];
            memcpy(four, x[t][k].q + 4 * j, 8);
            __m256i p = _mm256_add_epi16(_mm256_maddubs_epi16(c0, _mm256_set1_epi32(four[0])),
                                         _mm256_maddubs_epi16(c1, _mm256_set1_epi32(four[1])));
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(p, ones));
        }
    }
    for (int t = 0; t < 4; t++) {
        const struct packed_dense *c = x[t] + k;
        float s = n == 8 ? c->s[g] + c->s[g + 1] : c->s[g];
        acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[t]), a), _mm256_set1_ps(c->d[g]), acc[t]);
        acc[t] = _mm256_fmadd_ps(b, _mm256_set1_ps(s), acc[t]);
    }
}

INLINE void gemm_per(const struct packed_tile *w, const struct packed_dense *const *x, int64_t chunks, int words,
                     float out[PACKED_TOKENS][PACKED_TILE])
{
    for (int t0 = 0; t0 < PACKED_TOKENS; t0 += 4)
        for (int rows = 0; rows < PACKED_TILE; rows += 8) {
            __m256 acc[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
            for (int64_t k = 0; k < chunks; k++)
                for (int word = 0; word < 16; word += words)
                    gemm_run(w + k, rows, x + t0, k, word, words, acc);
            for (int t = 0; t < 4; t++)
                _mm256_storeu_ps(out[t0 + t] + rows, acc[t]);
        }
}

static void gemm(const struct packed_tile *w, const struct packed_dense *const x[PACKED_TOKENS], int64_t chunks, int per,
                 float out[PACKED_TOKENS][PACKED_TILE])
{
    if (per == 16)
        gemm_per(w, x, chunks, 4, out);
    else
        gemm_per(w, x, chunks, 8, out);
}

#include "backend/cpu/packed_body.h"
