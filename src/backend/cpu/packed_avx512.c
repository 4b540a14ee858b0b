/* The packed kernels for AVX-512 with VNNI: a chunk of 64 inputs in one register, one dpbusd for 16 lanes of 4 products; a lane is
 * scaled by its row's a and the activations' d in float.
 *
 * Rows are read one after the other, as they lie in memory: several short ones at once and neither the processor's prefetching
 * nor ours keeps up (9 instead of 21 GB/s on rows of 576 f16). Long ones go four at once, sharing what is loaded of x,
 * which the first-level cache does not hold (17 instead of 11 GB/s on rows of 8,960).
 * The last chunk of a row may be short: it is copied to zeros first, so that no load passes the end of the row. */
#pragma GCC target("avx512vnni")
#include <immintrin.h>
#include <string.h>

#include "backend/packed.h"
#include "tensor/block.h"

#define INLINE static inline __attribute__((always_inline))
#define LONG 4096
#define AHEAD 2048 /* bytes from what is read to what is fetched meanwhile; may lie past the end of everything */
#define AHEAD_FLOAT 8192
#define FAR 32768
#define NEAR 1024
#define ROWS PACKED_ROWS

INLINE float half(const uint8_t *p)
{
    return _cvtsh_ss(load_u16(p));
}

INLINE __m512i load16(const void *p) /* bytes, one in each 32-bit lane */
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

INLINE __m512i twice(const void *p) /* 32 bytes in both halves */
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
}

INLINE __m512i and8(__m512i v, int mask)
{
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}

INLINE void fetch(const uint8_t *p, int64_t bytes, int64_t ahead)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)(p + ahead + i), _MM_HINT_T0);
}

/* Of rows one at a time what lies AHEAD, of four the next four, unless they are so long that the cache would not hold them. */
INLINE int64_t distance(const struct packed_rows *r, int n)
{
    int64_t next = r->row[ROWS - 1] - r->row[0];
    return n == 1 ? AHEAD : next > 0 && next < FAR ? next + (r->row[1] - r->row[0]) : NEAR;
}

/* The sums of four registers. */
INLINE void store_sums(const __m512 v[ROWS], float *out)
{
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
    __m512 s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

/* BODY does n rows from `first` on; n is a constant in either use. */
#define EACH_ROW(BODY, ...)                              \
    do {                                                 \
        __m512 sums[ROWS];                               \
        if (r->n_in > LONG)                              \
            BODY(r, 0, ROWS, sums, __VA_ARGS__);         \
        else                                             \
            for (int row = 0; row < ROWS; row++)         \
                BODY(r, row, 1, sums, __VA_ARGS__);      \
        store_sums(sums, out);                           \
    } while (0)

/* lane / 4 or lane / 8, plus what is added */
INLINE __m512i lane4(int add)
{
    return _mm512_add_epi32(_mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), _mm512_set1_epi32(add));
}

INLINE __m512i lane8(int add)
{
    return _mm512_add_epi32(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), _mm512_set1_epi32(add));
}

/* One chunk of x. */
struct act {
    __m512i q;
    __m512 d, s;
};

INLINE struct act load_act(const struct packed_chunk *x)
{
    return (struct act){ _mm512_loadu_si512(x->q), _mm512_loadu_ps(x->d), _mm512_loadu_ps(x->s) };
}

/* d times the lanes' sums of code * activation */
INLINE __m512 products(__m512i code, const struct act *x)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), code, x->q)), x->d);
}

/* ---- rows of chunks that stand alone ------------------------------------------ */

/* A chunk: value = a (code + z). */
struct flat {
    __m512i code;
    __m512 a, z;
};

typedef struct flat (*flat_fn)(const uint8_t *p, const struct packed_rows *r, int i, int64_t k);

INLINE void flat_step(const uint8_t *const *p, const struct packed_rows *r, int first, int n, int64_t k,
                      const struct packed_chunk *c, flat_fn fn, __m512 *acc)
{
    struct act x = load_act(c);
    for (int i = 0; i < n; i++) {
        struct flat f = fn(p[i], r, first + i, k);
        acc[i] = _mm512_fmadd_ps(f.a, _mm512_fmadd_ps(f.z, x.s, products(f.code, &x)), acc[i]);
    }
}

/* bytes: of a full chunk; short_bytes: of the last one where n_in is no multiple of 64 */
INLINE void flat_rows(const struct packed_rows *r, int first, int n, __m512 *sums, const struct packed_chunk *x, flat_fn fn,
                      int64_t bytes, int64_t short_bytes)
{
    const uint8_t *p[ROWS];
    __m512 acc[ROWS];
    int64_t k = 0, ahead = distance(r, n);
    for (int i = 0; i < n; i++) {
        p[i] = r->row[first + i];
        acc[i] = _mm512_setzero_ps();
    }
    for (; 64 * k + 64 <= r->n_in; k++) {
        flat_step(p, r, first, n, k, x + k, fn, acc);
        for (int i = 0; i < n; i++) {
            fetch(p[i], bytes, ahead);
            p[i] += bytes;
        }
    }
    if (64 * k < r->n_in) {
        uint8_t tail[ROWS][80] = { 0 };
        for (int i = 0; i < n; i++) {
            memcpy(tail[i], p[i], (size_t)short_bytes);
            p[i] = tail[i];
        }
        flat_step(p, r, first, n, k, x + k, fn, acc);
    }
    for (int i = 0; i < n; i++)
        sums[first + i] = acc[i];
}

/* fp16 at p and p + 18 or so, for the lanes of either half. */
INLINE __m512 two_halves(const uint8_t *p, const uint8_t *q)
{
    __m128i h = _mm_insert_epi16(_mm_cvtsi32_si128(load_u16(p)), load_u16(q), 1);
    return _mm512_permutexvar_ps(lane8(0), _mm512_castps128_ps512(_mm_cvtph_ps(h)));
}

INLINE __m512i nibbles(const uint8_t *p, const uint8_t *q)
{
    __m512i lo = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m512i v = _mm512_inserti32x4(_mm512_shuffle_i32x4(lo, lo, 0), _mm_loadu_si128((const __m128i *)(const void *)q), 2);
    v = _mm512_shuffle_i32x4(v, v, 0xa0); /* p p q q */
    return and8(_mm512_srlv_epi64(v, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0)), 15);
}

INLINE struct flat flat_q4_0(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    (void)r, (void)i, (void)k;
    /* 16-bit words of two blocks: a half and 8 of codes each */
    const __m512i words = _mm512_set_epi16(17, 16, 15, 14, 13, 12, 11, 10, 17, 16, 15, 14, 13, 12, 11, 10,
                                           8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1);
    const __m256i halves = _mm256_set_epi16(9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512i v = _mm512_maskz_loadu_epi16(0x3ffff, p);
    __m512i code = and8(_mm512_srlv_epi64(_mm512_permutexvar_epi16(words, v), _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0)), 15);
    __m512 a = _mm512_cvtph_ps(_mm256_permutexvar_epi16(halves, _mm512_castsi512_si256(v)));
    return (struct flat){ code, a, _mm512_set1_ps(-8) };
}

INLINE struct flat flat_q8_0(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    (void)r, (void)i, (void)k;
    __m256i lo = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2));
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(p + 36));
    __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
    return (struct flat){ _mm512_xor_si512(v, _mm512_set1_epi8((char)128)), two_halves(p, p + 34), _mm512_set1_ps(-128) };
}

INLINE __m512i pairs_of_bits(const void *p) /* 16 bytes, four codes in each, lowest bits first */
{
    __m512i v = load16(p), t = _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
    return and8(_mm512_or_si512(t, _mm512_slli_epi32(t, 6)), 3);
}

INLINE struct flat flat_q2_0(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    (void)r, (void)i, (void)k;
    return (struct flat){ pairs_of_bits(p + 2), _mm512_set1_ps(half(p)), _mm512_set1_ps(-1) };
}

/* Scale and minus zero of the groups of chunk k. */
INLINE void groups(struct flat *f, const struct packed_rows *r, int i, int64_t k)
{
    const uint16_t *s = r->scale[i];
    const uint8_t *z = r->zero[i];
    if (r->group % 64 == 0) {
        int64_t g = 64 * k / r->group;
        f->a = _mm512_set1_ps(_cvtsh_ss(s[g]));
        f->z = _mm512_set1_ps(-(float)z[g]);
        return;
    }
    float a[4], b[4];
    for (int l = 0; l < 4; l++) {
        int64_t g = (64 * k + 16 * l) / r->group;
        g = g < r->n_groups ? g : r->n_groups - 1;
        a[l] = _cvtsh_ss(s[g]);
        b[l] = -(float)z[g];
    }
    f->a = _mm512_permutexvar_ps(lane4(0), _mm512_castps128_ps512(_mm_loadu_ps(a)));
    f->z = _mm512_permutexvar_ps(lane4(0), _mm512_castps128_ps512(_mm_loadu_ps(b)));
}

INLINE struct flat flat_int2(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    struct flat f = { .code = pairs_of_bits(p) };
    groups(&f, r, i, k);
    return f;
}

/* Lane i's 12 bits begin at bit 12 i: two 16-bit words hold them. */
INLINE struct flat flat_int3(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    struct flat f;
    const __m512i words = _mm512_set_epi16(12, 11, 11, 10, 10, 9, 10, 9, 9, 8, 8, 7, 7, 6, 7, 6,
                                           6, 5, 5, 4, 4, 3, 4, 3, 3, 2, 2, 1, 1, 0, 1, 0);
    const __m512i shift = _mm512_set_epi32(4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0);
    __m512i v = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(0xffffff, p));
    v = _mm512_srlv_epi32(_mm512_permutexvar_epi16(words, v), shift);
    v = _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi32(0x3f)),
                        _mm512_and_si512(_mm512_slli_epi32(v, 10), _mm512_set1_epi32(0x3f0000)));
    f.code = _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi32(0x070007)),
                             _mm512_and_si512(_mm512_slli_epi32(v, 5), _mm512_set1_epi32(0x07000700)));
    groups(&f, r, i, k);
    return f;
}

INLINE struct flat flat_int4(const uint8_t *p, const struct packed_rows *r, int i, int64_t k)
{
    struct flat f;
    __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
    f.code = and8(_mm512_or_si512(v, _mm512_slli_epi16(v, 4)), 15);
    groups(&f, r, i, k);
    return f;
}

#define FLAT(NAME, BYTES, SHORT)                                                                          \
    static void rows_##NAME(const struct packed_rows *r, const struct packed_chunk *x, const float *xf,   \
                            float *out)                                                                   \
    {                                                                                                     \
        (void)xf;                                                                                         \
        EACH_ROW(flat_rows, x, flat_##NAME, BYTES, SHORT);                                                  \
    }
FLAT(q4_0, 36, 18)
FLAT(q8_0, 68, 34)
FLAT(q2_0, 18, 0)
FLAT(int2, 16, (r->n_in % 64 * 2 + 7) / 8)
FLAT(int3, 24, (r->n_in % 64 * 3 + 7) / 8)
FLAT(int4, 32, (r->n_in % 64 * 4 + 7) / 8)

/* q4_1 has a minimum of its own: value = a code + m. */
static void rows_q4_1(const struct packed_rows *r, const struct packed_chunk *x, const float *xf, float *out)
{
    (void)xf;
    for (int i = 0; i < ROWS; i++) {
        const uint8_t *p = r->row[i];
        uint8_t tail[40] = { 0 };
        __m512 acc = _mm512_setzero_ps();
        for (int64_t j = 0; j < r->n_in; j += 64, p += 40) {
            struct act v = load_act(x + j / 64);
            if (j + 64 > r->n_in) {
                memcpy(tail, p, 20);
                p = tail;
            }
            acc = _mm512_fmadd_ps(two_halves(p, p + 20), products(nibbles(p + 4, p + 24), &v), acc);
            acc = _mm512_fmadd_ps(two_halves(p + 2, p + 22), v.s, acc);
        }
        out[i] = _mm512_reduce_add_ps(acc);
    }
}

/* ---- superblocks of 256: the factors of all 16 groups at once, then four chunks --------------- */

struct factors {
    __m512 a, b;
};

typedef struct factors (*factors_fn)(const uint8_t *block);
typedef __m512i (*codes_fn)(const uint8_t *block, int s);

/* Scales and what is added, of all 16 groups: value = a code + b. Those of 32 stand twice. */
INLINE void super_rows(const struct packed_rows *r, int first, int n, __m512 *sums, const struct packed_chunk *x, int64_t bytes,
                       factors_fn factors, codes_fn codes)
{
    __m512 acc[ROWS];
    int64_t ahead = distance(r, n);
    for (int i = 0; i < n; i++)
        acc[i] = _mm512_setzero_ps();
    for (int64_t k = 0; 256 * k < r->n_in; k++, x += 4) {
        struct factors f[ROWS];
        __m512 g = _mm512_loadu_ps(x->g), d = _mm512_loadu_ps(x->dg);
        for (int i = 0; i < n; i++) {
            f[i] = factors(r->row[first + i] + k * bytes);
            acc[i] = _mm512_fmadd_ps(f[i].b, g, acc[i]);
            f[i].a = _mm512_mul_ps(f[i].a, d);
            fetch(r->row[first + i] + k * bytes, bytes, ahead);
        }
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            __m512i q = _mm512_loadu_si512(x[s].q);
            for (int i = 0; i < n; i++) {
                __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes(r->row[first + i] + k * bytes, s), q);
                acc[i] = _mm512_fmadd_ps(_mm512_permutexvar_ps(lane4(4 * s), f[i].a), _mm512_cvtepi32_ps(sum), acc[i]);
            }
        }
    }
    for (int i = 0; i < n; i++)
        sums[first + i] = acc[i];
}

/* a (code - zero) */
INLINE struct factors centred(__m512 a, int zero)
{
    return (struct factors){ a, _mm512_mul_ps(a, _mm512_set1_ps((float)-zero)) };
}

/* Runs of 32 at shifts s0 and s1 of the same 32 bytes. */
INLINE __m512i two_runs(const uint8_t *p, int s0, int s1)
{
    __m512i shift = _mm512_inserti64x4(_mm512_set1_epi64(s0), _mm256_set1_epi64x(s1), 1);
    return _mm512_srlv_epi64(twice(p), shift);
}

INLINE __m512i two_bits(const uint8_t *qs, int s)
{
    return and8(two_runs(qs + 32 * (s / 2), 4 * (s & 1), 4 * (s & 1) + 2), 3);
}

/* bit where bits 2 s and 2 s + 1 of 32 bytes are set, in the first and second run */
INLINE __m512i high_bits(__m512i code, const uint8_t *p, int s, int bit)
{
    __m512i which = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << (2 * s))), _mm256_set1_epi8((char)(2 << (2 * s))), 1);
    __mmask64 m = _mm512_test_epi8_mask(twice(p), which);
    return _mm512_mask_add_epi8(code, m, code, _mm512_set1_epi8((char)bit));
}

INLINE __m512i codes_q2_k(const uint8_t *p, int s)
{
    return two_bits(((const struct block_q2_k *)(const void *)p)->qs, s);
}

INLINE struct factors factors_q2_k(const uint8_t *p)
{
    const struct block_q2_k *b = (const void *)p;
    __m512i v = load16(b->scales);
    __m512 a = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15))), m = _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4));
    return (struct factors){ _mm512_mul_ps(a, _mm512_set1_ps(half(b->d))), _mm512_mul_ps(m, _mm512_set1_ps(-half(b->dmin))) };
}

INLINE __m512i codes_tq2_0(const uint8_t *p, int s)
{
    return two_bits(p, s);
}

INLINE struct factors factors_tq2_0(const uint8_t *p)
{
    return centred(_mm512_set1_ps(half(p + 64)), 1);
}

INLINE __m512i codes_q3_k(const uint8_t *p, int s)
{
    const struct block_q3_k *b = (const void *)p;
    return high_bits(two_bits(b->qs, s), b->hmask, s, 4);
}

INLINE struct factors factors_q3_k(const uint8_t *p)
{
    const struct block_q3_k *b = (const void *)p;
    uint64_t lo;
    int32_t hi;
    memcpy(&lo, b->scales, 8);
    memcpy(&hi, b->scales + 8, 4);
    __m128i l = _mm_and_si128(_mm_set_epi64x((int64_t)(lo >> 4), (int64_t)lo), _mm_set1_epi8(15));
    __m128i h = _mm_and_si128(_mm_srlv_epi32(_mm_set1_epi32(hi), _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
    __m128i v = _mm_sub_epi8(_mm_or_si128(l, _mm_slli_epi16(h, 4)), _mm_set1_epi8(32));
    return centred(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)), _mm512_set1_ps(half(b->d))), 4);
}

/* Scales and mins of 8 groups of 32. */
INLINE struct factors factors_k4(const uint8_t *p)
{
    uint32_t u[3];
    memcpy(u, p + 4, 12);
    uint32_t x = (u[2] & 0x0f0f0f0f) | (u[0] >> 6 & 0x03030303) << 4;
    uint32_t y = (u[2] >> 4 & 0x0f0f0f0f) | (u[1] >> 6 & 0x03030303) << 4;
    __m128i v = _mm_set_epi32((int)y, (int)(u[1] & 0x3f3f3f3f), (int)x, (int)(u[0] & 0x3f3f3f3f));
    __m512 f = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(half(p)), _mm512_set1_ps(-half(p + 2)));
    __m512 all = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)), f);
    const __m512i lo = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return (struct factors){ _mm512_permutexvar_ps(lo, all),
                             _mm512_permutexvar_ps(_mm512_add_epi32(lo, _mm512_set1_epi32(8)), all) };
}

INLINE __m512i codes_q4_k(const uint8_t *p, int s)
{
    return and8(two_runs(((const struct block_q4_k *)(const void *)p)->qs + 32 * s, 0, 4), 15);
}

INLINE __m512i codes_q5_k(const uint8_t *p, int s)
{
    const struct block_q5_k *b = (const void *)p;
    return high_bits(and8(two_runs(b->qs + 32 * s, 0, 4), 15), b->qh, s, 16);
}

INLINE __m512i codes_q6_k(const uint8_t *p, int s)
{
    const struct block_q6_k *b = (const void *)p;
    __m512i l = and8(_mm512_srli_epi64(_mm512_loadu_si512(b->ql + 64 * (s / 2)), (unsigned)(4 * (s & 1))), 15);
    __m512i h = and8(two_runs(b->qh + 32 * (s / 2), 4 * (s & 1), 4 * (s & 1) + 2), 3);
    return _mm512_or_si512(l, _mm512_slli_epi16(h, 4));
}

INLINE struct factors factors_q6_k(const uint8_t *p)
{
    const struct block_q6_k *b = (const void *)p;
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)b->scales);
    return centred(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)), _mm512_set1_ps(half(b->d))), 32);
}

#define SUPER(NAME, FACTORS)                                                                              \
    static void rows_##NAME(const struct packed_rows *r, const struct packed_chunk *x, const float *xf,   \
                            float *out)                                                                   \
    {                                                                                                     \
        (void)xf;                                                                                         \
        __m512 sums[ROWS];                                                                                \
        for (int i = 0; i < ROWS; i++)                                                                    \
            super_rows(r, i, 1, sums, x, sizeof(struct block_##NAME), FACTORS, codes_##NAME);             \
        store_sums(sums, out);                                                                            \
    }
SUPER(q2_k, factors_q2_k)
SUPER(tq2_0, factors_tq2_0)
SUPER(q3_k, factors_q3_k)
SUPER(q4_k, factors_k4)
SUPER(q5_k, factors_k4)
SUPER(q6_k, factors_q6_k)

/* ---- floats of 16 bits --------------------------------------------------------------- */

INLINE __m512 widen(__m256i v, int bf)
{
    return bf ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)) : _mm512_cvtph_ps(v);
}

INLINE void float_rows(const struct packed_rows *r, int first, int n, __m512 *sums, const float *x, int bf)
{
    __m512 acc[2][ROWS];
    int64_t j = 0;
    for (int i = 0; i < n; i++)
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    for (; j + 32 <= r->n_in; j += 32) {
        for (int h = 0; h < 2; h++) {
            __m512 v = _mm512_loadu_ps(x + j + 16 * h);
            for (int i = 0; i < n; i++) {
                __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)(r->row[first + i] + 2 * j + 32 * h));
                acc[h][i] = _mm512_fmadd_ps(widen(w, bf), v, acc[h][i]);
            }
        }
        for (int i = 0; i < n; i++)
            _mm_prefetch((const char *)r->row[first + i] + 2 * j + AHEAD_FLOAT, _MM_HINT_T1);
    }
    for (; j < r->n_in; j += 16) {
        __mmask16 m = (__mmask16)(r->n_in - j < 16 ? (1 << (r->n_in - j)) - 1 : 0xffff);
        __m512 v = _mm512_maskz_loadu_ps(m, x + j);
        for (int i = 0; i < n; i++)
            acc[0][i] = _mm512_fmadd_ps(widen(_mm256_maskz_loadu_epi16(m, r->row[first + i] + 2 * j), bf), v, acc[0][i]);
    }
    for (int i = 0; i < n; i++)
        sums[first + i] = _mm512_add_ps(acc[0][i], acc[1][i]);
}

static void rows_f16(const struct packed_rows *r, const struct packed_chunk *x, const float *xf, float *out)
{
    (void)x;
    EACH_ROW(float_rows, xf, 0);
}

static void rows_bf16(const struct packed_rows *r, const struct packed_chunk *x, const float *xf, float *out)
{
    (void)x;
    EACH_ROW(float_rows, xf, 1);
}

/* ---- activations ------------------------------------------------------------------------ */

/* 32 floats, zeros past n. */
INLINE void quantize_half(const float *x, int64_t n, struct packed_chunk *c, int half)
{
    const __mmask16 m0 = (__mmask16)(n >= 16 ? 0xffff : (1 << n) - 1);
    const __mmask16 m1 = (__mmask16)(n >= 32 ? 0xffff : n > 16 ? (1 << (n - 16)) - 1 : 0);
    __m512 v0 = _mm512_maskz_loadu_ps(m0, x), v1 = _mm512_maskz_loadu_ps(m1, x + 16);
    float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v0), _mm512_abs_ps(v1)));
    float d = max / 127, inv = d > 0 ? 1 / d : 0;
    if (!(inv <= 3e38f))
        d = inv = 0;
    /* 0 x is NaN where x is no number or infinite, and so are the products then */
    const __m512 none = _mm512_setzero_ps();
    d += _mm512_reduce_add_ps(_mm512_add_ps(_mm512_mul_ps(v0, none), _mm512_mul_ps(v1, none)));
    __m128i q0 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v0, _mm512_set1_ps(inv))));
    __m128i q1 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v1, _mm512_set1_ps(inv))));
    __m256i q = _mm256_inserti128_si256(_mm256_castsi128_si256(q0), q1, 1);
    __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    _mm256_storeu_si256((__m256i *)(void *)(c->q + 32 * half), q);
    _mm256_storeu_ps(c->d + 8 * half, _mm256_set1_ps(d));
    _mm256_storeu_ps(c->s + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(d)));
}

static void quantize(const float *x, int64_t n, struct packed_chunk *c)
{
    for (int k = 0; n > 0; n -= 64, x += 64, c++, k = (k + 1) & 3) {
        quantize_half(x, n < 32 ? n : 32, c, 0);
        quantize_half(n > 32 ? x + 32 : x, n > 32 ? n - 32 < 32 ? n - 32 : 32 : 0, c, 1);
        /* lanes of a group: pairs, then pairs of pairs */
        __m512 s = _mm512_loadu_ps(c->s);
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
        const __m512i at = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
        _mm_storeu_ps(c[-k].g + 4 * k, _mm512_castps512_ps128(_mm512_permutexvar_ps(at, s)));
        _mm_storeu_ps(c[-k].dg + 4 * k, _mm512_castps512_ps128(_mm512_permutexvar_ps(at, _mm512_loadu_ps(c->d))));
    }
}

/* ---- many tokens -------------------------------------------------------------------------- */

/* One run of 16 or 32 inputs with consecutive dpbusd: n words of 4 inputs. */
INLINE void gemm_run(const struct packed_tile *w, const struct packed_dense *const *x, int64_t k, int word, int n, __m512 *acc)
{
    __m512i code[8];
    int g = word / 4;
    for (int j = 0; j < n; j++)
        code[j] = _mm512_loadu_si512(w->q[word + j]);
    __m512 a = _mm512_loadu_ps(w->a[g]), b = _mm512_loadu_ps(w->b[g]);
#pragma GCC unroll 8
    for (int t = 0; t < PACKED_TOKENS; t++) {
        const struct packed_dense *c = x[t] + k;
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) {
            int32_t four;
            memcpy(&four, c->q + 4 * (word + j), 4);
            sum = _mm512_dpbusd_epi32(sum, code[j], _mm512_set1_epi32(four));
        }
        float s = n == 8 ? c->s[g] + c->s[g + 1] : c->s[g];
        acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), a), _mm512_set1_ps(c->d[g]), acc[t]);
        acc[t] = _mm512_fmadd_ps(b, _mm512_set1_ps(s), acc[t]);
    }
}

INLINE void gemm_per(const struct packed_tile *w, const struct packed_dense *const *x, int64_t chunks, int words,
                     float out[PACKED_TOKENS][PACKED_TILE])
{
    __m512 acc[PACKED_TOKENS];
    for (int t = 0; t < PACKED_TOKENS; t++)
        acc[t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < chunks; k++)
        for (int word = 0; word < 16; word += words)
            gemm_run(w + k, x, k, word, words, acc);
    for (int t = 0; t < PACKED_TOKENS; t++)
        _mm512_storeu_ps(out[t], acc[t]);
}

static void gemm(const struct packed_tile *w, const struct packed_dense *const x[PACKED_TOKENS], int64_t chunks, int per,
                 float out[PACKED_TOKENS][PACKED_TILE])
{
    if (per == 16)
        gemm_per(w, x, chunks, 4, out);
    else
        gemm_per(w, x, chunks, 8, out);
}

const struct packed_kernels packed_avx512 = {
    .name = "avx512",
    .needs_vnni = true,
    .quantize = quantize,
    .type = { [DT_F16] = rows_f16, [DT_BF16] = rows_bf16, [DT_Q4_0] = rows_q4_0, [DT_Q4_1] = rows_q4_1,
              [DT_Q8_0] = rows_q8_0, [DT_Q2_K] = rows_q2_k, [DT_Q3_K] = rows_q3_k, [DT_Q4_K] = rows_q4_k,
              [DT_Q5_K] = rows_q5_k, [DT_Q6_K] = rows_q6_k, [DT_TQ2_0] = rows_tq2_0, [DT_Q2_0] = rows_q2_0 },
    .qmat = { [2] = rows_int2, [3] = rows_int3, [4] = rows_int4 },
    .unpack = &packed_unpack_avx2,
    .gemm = gemm,
    .gemm_codes = 256,
    .lanes = packed_lanes_avx512,
};
