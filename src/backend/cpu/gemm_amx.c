/* amx_sgemm: a float product out of products of bfloat16 tiles, which this unit does 16 times faster than vector code does float ones.
 *
 * A float of 24 bits is the sum of three bfloat16 of 8 bits, exactly: x = hi + mid + lo. Of the nine products of two
 * such sums the six that matter are summed in float, largest first; what is dropped is below 2^-21 of |a b|, typically
 * 2^-24: the error is that of a float product. Where mid or lo are zero in a whole panel (float16 or quantized weights) their products are left out.
 *
 * Panels of A and B are packed into blocks of 16 rows x 32 of k, one of 1 KiB for each of the three parts. A 32-bit word
 * holds k = i and k = 16 + i; a block of A has a row of words for each row, a block of B for each i: one is the other transposed, and the layout
 * of the source says which comes for free. */
#include <immintrin.h>
#include <stdbool.h>

#include "backend/cpu/kernels.h"
#include "base/num.h"

#define KC 256
#define SIDE 256 /* rows of a panel */
#define STEPS (KC / 32)
#define BLOCK 1024
#define PARTS 3

struct panel {
    _Alignas(64) uint8_t block[SIDE / 16][STEPS][PARTS][BLOCK];
    int parts; /* 1: all mid and lo are zero; 2: all lo are */
};

/* In each thread that multiplies; too large for a stack that someone made small. */
static _Thread_local struct panel panel_a, panel_b;

struct source { /* a matrix of rows x k */
    const float *p;
    int64_t ld;
    bool k_major; /* (r, k) is p[k * ld + r], else p[r * ld + k] */
};

#define INLINE static inline __attribute__((always_inline))

/* Words of two times 16 floats, cut off after 16 bits, which are taken off the floats. */
INLINE __m512i take_part(__m512 *x0, __m512 *x1)
{
    const __m512i top = _mm512_set1_epi32((int)0xffff0000u);
    __m512i h0 = _mm512_castps_si512(*x0), h1 = _mm512_and_si512(_mm512_castps_si512(*x1), top);
    *x0 = _mm512_sub_ps(*x0, _mm512_castsi512_ps(_mm512_and_si512(h0, top)));
    *x1 = _mm512_sub_ps(*x1, _mm512_castsi512_ps(h1));
    return _mm512_or_si512(_mm512_srli_epi32(h0, 16), h1);
}

INLINE void transpose(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

struct block { /* rows <= 16 and k <= 32 of a source from p on; zero beyond */
    const float *p;
    int64_t ld, rows, k;
};

/* The i-th pair of 16 floats; whole: rows is 16 and k 32. */
INLINE void load_pair(const struct block *s, bool k_major, bool whole, int i, __m512 *x0, __m512 *x1)
{
    const float *p = s->p + i * s->ld, *q = p + (k_major ? 16 * s->ld : 16);
    if (whole) {
        *x0 = _mm512_loadu_ps(p);
        *x1 = _mm512_loadu_ps(q);
        return;
    }
    int64_t n0 = k_major ? (i < s->k ? s->rows : 0) : i < s->rows ? s->k : 0;
    int64_t n1 = k_major ? (i + 16 < s->k ? s->rows : 0) : i < s->rows ? s->k - 16 : 0;
    *x0 = n0 <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps((__mmask16)(n0 < 16 ? (1u << n0) - 1 : 0xffff), p);
    *x1 = n1 <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps((__mmask16)(n1 < 16 ? (1u << n1) - 1 : 0xffff), q);
}

/* any[0], any[1] collect mid and lo. A block that is to be turned is read once for each part: its words fill the registers. */
INLINE void pack_block(const struct block *s, bool k_major, bool whole, bool turn, uint8_t out[PARTS][BLOCK], __m512i any[2])
{
    if (!turn) {
#pragma GCC unroll 4
        for (int i = 0; i < 16; i++) {
            __m512 x0, x1;
            load_pair(s, k_major, whole, i, &x0, &x1);
            for (int p = 0; p < PARTS; p++) {
                __m512i w = take_part(&x0, &x1);
                _mm512_store_si512(out[p] + 64 * i, w);
                if (p)
                    any[p - 1] = _mm512_or_si512(any[p - 1], w);
            }
        }
        return;
    }
#pragma GCC unroll 3
    for (int p = 0; p < PARTS; p++) {
        __m512i w[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m512 x0, x1;
            load_pair(s, k_major, whole, i, &x0, &x1);
            for (int q = 0; q < p; q++)
                take_part(&x0, &x1);
            w[i] = take_part(&x0, &x1);
            if (p)
                any[p - 1] = _mm512_or_si512(any[p - 1], w[i]);
        }
        transpose(w);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            _mm512_store_si512(out[p] + 64 * i, w[i]);
    }
}

static void pack(const struct source *s, int64_t row0, int64_t rows, int64_t k0, int64_t k, bool of_a, struct panel *panel)
{
    __m512i any[2] = { _mm512_setzero_si512(), _mm512_setzero_si512() };
    bool turn = of_a == s->k_major;
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < k; c += 32) {
            int64_t row = row0 + r, at = k0 + c;
            struct block b = { s->p + (s->k_major ? at * s->ld + row : row * s->ld + at), s->ld, rows - r < 16 ? rows - r : 16, k - c < 32 ? k - c : 32 };
            uint8_t (*out)[BLOCK] = panel->block[r / 16][c / 32];
            if (b.rows < 16 || b.k < 32)
                pack_block(&b, s->k_major, false, turn, out, any);
            else if (s->k_major && turn) /* constants: each its own code */
                pack_block(&b, true, true, true, out, any);
            else if (s->k_major)
                pack_block(&b, true, true, false, out, any);
            else if (turn)
                pack_block(&b, false, true, true, out, any);
            else
                pack_block(&b, false, true, false, out, any);
        }
    panel->parts = _mm512_test_epi32_mask(any[1], any[1]) ? 3 : _mm512_test_epi32_mask(any[0], any[0]) ? 2 : 1;
}

/* Macros: tile registers are numbered at compile time. */
#define PRODUCTS() do { _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7); } while (0)
#define LOAD_A(part) do { _tile_loadd(4, a0[s][part], 64); _tile_loadd(5, a1[s][part], 64); } while (0)
#define LOAD_B(part) do { _tile_loadd(6, b0[s][part], 64); _tile_loadd(7, b1[s][part], 64); } while (0)

/* 2 x 2 tiles of A B over the panels' k, in c[0..3]: a row of tiles after the other. */
static void tiles(const struct panel *a, int64_t i, int64_t i1, const struct panel *b, int64_t j, int64_t j1, int64_t steps, float c[4][256])
{
    const uint8_t (*a0)[PARTS][BLOCK] = a->block[i], (*a1)[PARTS][BLOCK] = a->block[i1];
    const uint8_t (*b0)[PARTS][BLOCK] = b->block[j], (*b1)[PARTS][BLOCK] = b->block[j1];
    __asm__ volatile("" ::: "memory"); /* GCC does not know that tile loads read memory */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++) {
        LOAD_A(0);
        LOAD_B(0);
        PRODUCTS();
        if (b->parts > 2) {
            LOAD_B(2);
            PRODUCTS();
        }
        if (b->parts > 1) {
            LOAD_B(1);
            PRODUCTS();
        }
        if (a->parts > 1) {
            LOAD_A(1);
            if (b->parts > 1) {
                PRODUCTS();
                LOAD_B(0);
            }
            PRODUCTS();
        }
        if (a->parts > 2) {
            LOAD_A(2);
            PRODUCTS();
        }
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
}

/* c (m, n) := beta c + alpha t, m, n <= 16; beta 0 reads nothing. */
static void update(const float *t, int64_t m, int64_t n, float alpha, float beta, float *c, int64_t ldc)
{
    if (m <= 0 || n <= 0)
        return;
    __mmask16 in = (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
    for (int64_t i = 0; i < m && i < 16; i++, t += 16, c += ldc) {
        __m512 v = _mm512_mul_ps(_mm512_set1_ps(alpha), _mm512_loadu_ps(t));
        if (beta != 0)
            v = _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(in, c), v);
        _mm512_mask_storeu_ps(c, in, v);
    }
}

static void multiply(int64_t m, int64_t n, int64_t k, float alpha, float beta, float *c, int64_t ldc)
{
    _Alignas(64) float t[4][256];
    int64_t last_i = (m - 1) / 16, last_j = (n - 1) / 16, steps = (k + 31) / 32;
    for (int64_t j = 0; j <= last_j; j += 2)
        for (int64_t i = 0; i <= last_i; i += 2) {
            tiles(&panel_a, i, i < last_i ? i + 1 : i, &panel_b, j, j < last_j ? j + 1 : j, steps, t);
            for (int q = 0; q < 4; q++) {
                int64_t r = 16 * (i + q / 2), s = 16 * (j + q % 2);
                update(t[q], m - r, n - s, alpha, beta, c + r * ldc + s, ldc);
            }
        }
}

void amx_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
               int64_t ldb, float beta, float *c, int64_t ldc)
{
    /* static: GCC sees only its first bytes read, and would not store the rest */
    static const struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {
        .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 },
    };
    struct source sa = { a, lda, trans_a }, sb = { b, ldb, !trans_b };
    _tile_loadconfig(&shape);
    for (int64_t k0 = 0; k0 < k; k0 += KC, beta = 1)
        for (int64_t j0 = 0; j0 < n; j0 += SIDE) {
            int64_t nk = min_i64(KC, k - k0), nj = min_i64(SIDE, n - j0);
            pack(&sb, j0, nj, k0, nk, false, &panel_b);
            for (int64_t i0 = 0; i0 < m; i0 += SIDE) {
                int64_t mi = min_i64(SIDE, m - i0);
                pack(&sa, i0, mi, k0, nk, true, &panel_a);
                multiply(mi, nj, nk, alpha, beta, c + i0 * ldc + j0, ldc);
            }
        }
    _tile_release();
}
