/* Products of repacked rows (packed_lanes.c) for AVX-512 with VNNI: 16 rows in the lanes of a register, the activations broadcast.
 *
 * Codes that do not stand at bit 0 of their byte are masked, not shifted: a sum is then 4, 16 or 64 times too large, which the float
 * sums of that place undo at the end, exactly. */
#pragma GCC target("avx512vnni")
#include <immintrin.h>
#include <string.h>

#include "backend/packed.h"

#define INLINE static inline __attribute__((always_inline))
#define AHEAD 8192 /* bytes; may lie past the end of everything */

INLINE __m512i word(const int8_t *q, int w) /* 4 activations, for all rows */
{
    int32_t four;
    memcpy(&four, q + 4 * w, 4);
    return _mm512_set1_epi32(four);
}

INLINE __m512i load(const uint8_t *p, int reg)
{
    return _mm512_loadu_si512(p + 64 * reg);
}

INLINE __m512i and8(__m512i v, int mask)
{
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}

INLINE __m512 halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE __m512 bytes_u(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

INLINE __m512 bytes_s(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

INLINE __m512 add_times(__m512 acc, __m512 v, float f)
{
    return _mm512_fmadd_ps(v, _mm512_set1_ps(f), acc);
}

INLINE void fetch(const uint8_t *p, int bytes)
{
    for (int i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
}

/* v shifted by n to the right, or the left */
INLINE __m512i shift(__m512i v, int n)
{
    return n > 0 ? _mm512_srli_epi64(v, (unsigned)n) : n < 0 ? _mm512_slli_epi64(v, (unsigned)-n) : v;
}

/* Codes of word w of a plane of n bits, moved to bit `to`; the other bits are dirt. */
INLINE __m512i plane(const uint8_t *p, int n, int w, int to)
{
    return shift(load(p, w % (2 * n)), w / (2 * n) * n - to);
}

INLINE __m512i or_masked(__m512i a, __m512i b, int mask) /* a | b & mask */
{
    return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi8((char)mask), 0xf8);
}

/* ---- rows of chunks ---------------------------------------------------------- */

/* Sums of the nibbles of a chunk, 16 times too large for the second 32 inputs. */
INLINE void nibble_sums(const uint8_t *p, const int8_t *q, __m512i *lo, __m512i *hi)
{
    *lo = *hi = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
        __m512i v = load(p, r);
        *lo = _mm512_dpbusd_epi32(*lo, and8(v, 15), word(q, r));
        *hi = _mm512_dpbusd_epi32(*hi, and8(v, 0xf0), word(q, 8 + r));
    }
}

/* Of the pairs of bits, 16 inputs each, 1, 4, 16 and 64 times. */
INLINE void pair_sums(const uint8_t *p, const int8_t *q, __m512i sum[4])
{
    for (int g = 0; g < 4; g++)
        sum[g] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m512i v = load(p, r);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            sum[g] = _mm512_dpbusd_epi32(sum[g], and8(v, 3 << (2 * g)), word(q, 4 * g + r));
    }
}

static void lanes_q4_0(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    __m512 lo = _mm512_setzero_ps(), hi = lo, eights = lo;
    for (int64_t k = 0; 64 * k < n_in; k++, tile += 64 + 512) {
        const float *s = x[k & ~3].g + 4 * (k & 3), *d = x[k].d;
        __m512i l, h;
        __m512 a0 = halves(tile), a1 = halves(tile + 32);
        nibble_sums(tile + 64, x[k].q, &l, &h);
        lo = _mm512_fmadd_ps(_mm512_mul_ps(a0, _mm512_set1_ps(d[0])), _mm512_cvtepi32_ps(l), lo);
        hi = _mm512_fmadd_ps(_mm512_mul_ps(a1, _mm512_set1_ps(d[8])), _mm512_cvtepi32_ps(h), hi);
        eights = add_times(add_times(eights, a0, s[0] + s[1]), a1, s[2] + s[3]);
        fetch(tile, 64 + 512);
    }
    _mm512_storeu_ps(out, add_times(add_times(lo, hi, 1.0f / 16), eights, -8));
}

static void lanes_q2_0(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    __m512 acc[4], ones = _mm512_setzero_ps();
    for (int g = 0; g < 4; g++)
        acc[g] = _mm512_setzero_ps();
    for (int64_t k = 0; 64 * k < n_in; k++, tile += 32 + 256) {
        const float *s = x[k & ~3].g + 4 * (k & 3), *d = x[k].d;
        __m512i sum[4];
        __m512 a = halves(tile), a0 = _mm512_mul_ps(a, _mm512_set1_ps(d[0])), a1 = _mm512_mul_ps(a, _mm512_set1_ps(d[8]));
        pair_sums(tile + 32, x[k].q, sum);
        for (int g = 0; g < 4; g++)
            acc[g] = _mm512_fmadd_ps(g < 2 ? a0 : a1, _mm512_cvtepi32_ps(sum[g]), acc[g]);
        ones = add_times(ones, a, (s[0] + s[1]) + (s[2] + s[3]));
        fetch(tile, 32 + 256);
    }
    acc[0] = add_times(add_times(add_times(acc[0], acc[1], 1.0f / 4), acc[2], 1.0f / 16), acc[3], 1.0f / 64);
    _mm512_storeu_ps(out, _mm512_sub_ps(acc[0], ones));
}

/* ---- superblocks --------------------------------------------------------------- */

/* What a superblock adds up before d and dmin: by the place of its codes, and of the minima. */
struct sums {
    __m512 at[4], min;
};

INLINE struct sums no_sums(void)
{
    __m512 z = _mm512_setzero_ps();
    return (struct sums){ { z, z, z, z }, z };
}

/* sum times d and scale, added to acc */
INLINE __m512 add_group(__m512 acc, __m512i sum, float d, __m512 scale)
{
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(d)), scale, acc);
}

static void lanes_q2_k(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; 256 * k < n_in; k++, x += 4, tile += 320 + 4 * 256) {
        struct sums t = no_sums();
        for (int s = 0; s < 4; s++) {
            const uint8_t *scale = tile + 64 + 64 * s;
            __m512i sum[4];
            pair_sums(tile + 320 + 256 * s, x[s].q, sum);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(scale + 16 * g)));
                t.at[g] = add_group(t.at[g], sum[g], x->dg[4 * s + g], _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15))));
                t.min = add_times(t.min, _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4)), x->g[4 * s + g]);
            }
            fetch(tile + 320 * s, 320);
        }
        __m512 all = add_times(add_times(add_times(t.at[0], t.at[1], 1.0f / 4), t.at[2], 1.0f / 16), t.at[3], 1.0f / 64);
        acc = _mm512_fmadd_ps(halves(tile), all, acc);
        acc = _mm512_fnmadd_ps(halves(tile + 32), t.min, acc);
    }
    _mm512_storeu_ps(out, acc);
}

static void lanes_q4_k(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; 256 * k < n_in; k++, x += 4, tile += 320 + 4 * 512) {
        struct sums t = no_sums();
        for (int s = 0; s < 4; s++) {
            const uint8_t *scale = tile + 64 + 32 * s, *min = tile + 192 + 32 * s;
            const float *g = x->g + 4 * s;
            __m512i l, h;
            nibble_sums(tile + 320 + 512 * s, x[s].q, &l, &h);
            t.at[0] = add_group(t.at[0], l, x[s].d[0], bytes_u(scale));
            t.at[1] = add_group(t.at[1], h, x[s].d[8], bytes_u(scale + 16));
            t.min = add_times(add_times(t.min, bytes_u(min), g[0] + g[1]), bytes_u(min + 16), g[2] + g[3]);
            fetch(tile + 592 * s, 592);
        }
        acc = _mm512_fmadd_ps(halves(tile), add_times(t.at[0], t.at[1], 1.0f / 16), acc);
        acc = _mm512_fnmadd_ps(halves(tile + 32), t.min, acc);
    }
    _mm512_storeu_ps(out, acc);
}

/* Code of word w of a chunk, at bit 0. */
typedef __m512i (*word_fn)(const uint8_t *p, int w);

INLINE __m512i word_q3(const uint8_t *p, int w)
{
    return or_masked(and8(plane(p, 2, w, 0), 3), plane(p + 256, 1, w, 2), 4);
}

INLINE __m512i word_q5(const uint8_t *p, int w)
{
    return or_masked(and8(plane(p, 4, w, 0), 15), plane(p + 512, 1, w, 4), 16);
}

INLINE __m512i word_q6(const uint8_t *p, int w)
{
    return or_masked(and8(plane(p, 4, w, 0), 15), plane(p + 512, 2, w, 4), 48);
}

/* Symmetric types with 16 signed scales: value = d scale (code - zero). */
INLINE void symmetric(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float *out, int bits, int zero, word_fn code)
{
    const int bytes = 128 * bits;
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; 256 * k < n_in; k++, x += 4, tile += 288 + 4 * bytes) {
        struct sums t = no_sums();
        for (int s = 0; s < 4; s++) {
            const uint8_t *p = tile + 288 + bytes * s;
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                __m512 scale = bytes_s(tile + 32 + 16 * (4 * s + g));
                __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
                for (int w = 4 * g; w < 4 * g + 4; w++)
                    sum = _mm512_dpbusd_epi32(sum, code(p, w), word(x[s].q, w));
                t.at[g] = add_group(t.at[g], sum, x->dg[4 * s + g], scale);
                t.min = add_times(t.min, scale, x->g[4 * s + g]);
            }
            fetch(tile + (72 + bytes) * s, 72 + bytes);
        }
        __m512 all = _mm512_add_ps(_mm512_add_ps(t.at[0], t.at[1]), _mm512_add_ps(t.at[2], t.at[3]));
        acc = _mm512_fmadd_ps(halves(tile), add_times(all, t.min, (float)-zero), acc);
    }
    _mm512_storeu_ps(out, acc);
}

static void lanes_q3_k(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    symmetric(tile, n_in, x, out, 3, 4, word_q3);
}

static void lanes_q6_k(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    symmetric(tile, n_in, x, out, 6, 32, word_q6);
}

static void lanes_q5_k(const uint8_t *tile, int64_t n_in, const struct packed_chunk *x, float out[PACKED_TILE])
{
    __m512 acc = _mm512_setzero_ps();
    for (int64_t k = 0; 256 * k < n_in; k++, x += 4, tile += 320 + 4 * 640) {
        struct sums t = no_sums();
        for (int s = 0; s < 4; s++) {
            const uint8_t *p = tile + 320 + 640 * s;
            const float *sum_x = x->g + 4 * s;
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
                for (int w = 8 * g; w < 8 * g + 8; w++)
                    sum = _mm512_dpbusd_epi32(sum, word_q5(p, w), word(x[s].q, w));
                t.at[g] = add_group(t.at[g], sum, x[s].d[8 * g], bytes_u(tile + 64 + 16 * (2 * s + g)));
                t.min = add_times(t.min, bytes_u(tile + 192 + 16 * (2 * s + g)), sum_x[2 * g] + sum_x[2 * g + 1]);
            }
            fetch(tile + 720 * s, 720);
        }
        acc = _mm512_fmadd_ps(halves(tile), _mm512_add_ps(t.at[0], t.at[1]), acc);
        acc = _mm512_fnmadd_ps(halves(tile + 32), t.min, acc);
    }
    _mm512_storeu_ps(out, acc);
}

#define LANES(BITS, BLOCK, HEAD, FN) &(const struct packed_lanes){ BITS, BLOCK, HEAD, FN }

const struct packed_lanes *const packed_lanes_avx512[DT_COUNT] = {
    [DT_Q4_0] = LANES(4, 64, 64, lanes_q4_0), [DT_Q2_0] = LANES(2, 64, 32, lanes_q2_0),
    [DT_Q2_K] = LANES(2, 256, 320, lanes_q2_k), [DT_Q3_K] = LANES(3, 256, 288, lanes_q3_k),
    [DT_Q4_K] = LANES(4, 256, 320, lanes_q4_k), [DT_Q5_K] = LANES(5, 256, 320, lanes_q5_k),
    [DT_Q6_K] = LANES(6, 256, 288, lanes_q6_k),
};
