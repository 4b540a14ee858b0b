/* packed_body: the packed kernels in plain C, for generic, avx2 and neon; KERNELS_ISA, INLINE, half and dot_groups are
 * defined by the including file, and GEMM, its product of many tokens (codes below 64) or NULL.
 *
 * A type is its unpacking of one chunk of 64 inputs to codes, a and b (see packed.h); the rest is common. The
 * including file has dot_groups, the sums of 16 products of bytes, for its instruction set (integers, so all agree to
 * the bit there), and half, the value of fp16 bits. */
#include <math.h>
#include <string.h>

#include "tensor/block.h"

INLINE void put(struct packed_unpacked *c, int g, int n, float a, float b)
{
    for (int i = g; i < g + n; i++) {
        c->a[i] = a;
        c->b[i] = b;
    }
}

/* out[j] = in[j] >> shift & mask, or that << left added to it, eight bytes as one word: no byte gets bits of its neighbour, since mask has none
 * that `shift` brings in. Compilers make far worse of loops over bytes. */
INLINE void bits_of(const uint8_t *in, int n, int shift, uint64_t mask, uint8_t *out)
{
    for (int j = 0; j < n; j += 8) {
        uint64_t v;
        memcpy(&v, in + j, 8);
        v = v >> shift & mask * 0x0101010101010101u;
        memcpy(out + j, &v, 8);
    }
}

INLINE void add_bits(const uint8_t *in, int n, int shift, uint64_t mask, int left, uint8_t *out)
{
    for (int j = 0; j < n; j += 8) {
        uint64_t v, to;
        memcpy(&v, in + j, 8);
        memcpy(&to, out + j, 8);
        to |= (v >> shift & mask * 0x0101010101010101u) << left;
        memcpy(out + j, &to, 8);
    }
}

typedef void (*unpack_fn)(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c);

INLINE float add_chunk(const struct packed_unpacked *c, const struct packed_chunk *x)
{
    int32_t sum[4];
    float v = 0;
    dot_groups(c->q, x->q, sum);
    for (int g = 0; g < 4; g++) {
        const float *s = x->s + 4 * g;
        v += c->a[g] * (x->d[4 * g] * (float)sum[g]) + c->b[g] * ((s[0] + s[1]) + (s[2] + s[3]));
    }
    return v;
}

INLINE void run(const struct packed_rows *r, const struct packed_chunk *x, float *out, unpack_fn unpack)
{
    for (int i = 0; i < PACKED_ROWS; i++) {
        float acc = 0;
        for (int64_t k = 0; 64 * k < r->n_in; k++) {
            struct packed_unpacked c;
            unpack(r, i, k, &c);
            acc += add_chunk(&c, x + k);
        }
        out[i] = acc;
    }
}

/* ---- blocks of 32: the last chunk may hold one alone ------------------------- */

#define NIBBLES(NAME, BIAS)                                                                        \
    INLINE void unpack_##NAME(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)      \
    {                                                                                              \
        const struct block_##NAME *b = (const void *)r->row[i];                                    \
        for (int h = 0; h < 2; h++) {                                                              \
            if (64 * k + 32 * h >= r->n_in) {                                                      \
                memset(c->q + 32, 0, 32);                                                          \
                put(c, 2, 2, 0, 0);                                                                \
                break;                                                                             \
            }                                                                                      \
            const struct block_##NAME *e = b + 2 * k + h;                                          \
            bits_of(e->qs, 16, 0, 15, c->q + 32 * h);                                              \
            bits_of(e->qs, 16, 4, 15, c->q + 32 * h + 16);                                         \
            float d = half(load_u16(e->d));                                                        \
            put(c, 2 * h, 2, d, BIAS);                                                             \
        }                                                                                          \
    }
NIBBLES(q4_0, -8 * d)
NIBBLES(q4_1, half(load_u16(e->m)))

INLINE void unpack_q8_0(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    const struct block_q8_0 *b = (const void *)r->row[i];
    for (int h = 0; h < 2; h++) {
        if (64 * k + 32 * h >= r->n_in) {
            memset(c->q + 32, 0, 32);
            put(c, 2, 2, 0, 0);
            break;
        }
        const struct block_q8_0 *e = b + 2 * k + h;
        for (int j = 0; j < 32; j += 8) {
            uint64_t v;
            memcpy(&v, e->qs + j, 8);
            v ^= 0x8080808080808080u;
            memcpy(c->q + 32 * h + j, &v, 8);
        }
        float d = half(load_u16(e->d));
        put(c, 2 * h, 2, d, -128 * d);
    }
}

INLINE void unpack_q2_0(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    const struct block_q2_0 *b = (const struct block_q2_0 *)(const void *)r->row[i] + k;
    for (int j = 0; j < 16; j++)
        for (int l = 0; l < 4; l++)
            c->q[4 * j + l] = b->qs[j] >> (2 * l) & 3;
    float d = half(load_u16(b->d));
    put(c, 0, 4, d, -d);
}

/* ---- superblocks of 256: chunk s of 4 ------------------------------------------- */

#define SUPER(NAME) \
    const struct block_##NAME *b = (const struct block_##NAME *)(const void *)r->row[i] + k / 4; \
    int s = (int)(k & 3)

/* Two runs of 32 two-bit codes. */
INLINE void two_bits(const uint8_t *qs, int s, uint8_t *q)
{
    const uint8_t *p = qs + 32 * (s / 2);
    int shift = 4 * (s & 1);
    bits_of(p, 32, shift, 3, q);
    bits_of(p, 32, shift + 2, 3, q + 32);
}

INLINE void unpack_q2_k(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(q2_k);
    two_bits(b->qs, s, c->q);
    float d = half(load_u16(b->d)), m = half(load_u16(b->dmin));
    for (int g = 0; g < 4; g++)
        put(c, g, 1, d * (float)(b->scales[4 * s + g] & 15), -m * (float)(b->scales[4 * s + g] >> 4));
}

INLINE void unpack_tq2_0(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(tq2_0);
    two_bits(b->qs, s, c->q);
    float d = half(load_u16(b->d));
    put(c, 0, 4, d, -d);
}

INLINE void unpack_q3_k(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(q3_k);
    two_bits(b->qs, s, c->q);
    add_bits(b->hmask, 32, 2 * s, 1, 2, c->q);
    add_bits(b->hmask, 32, 2 * s + 1, 1, 2, c->q + 32);
    float d = half(load_u16(b->d));
    for (int g = 0; g < 4; g++) {
        int lo = s < 2 ? b->scales[4 * s + g] & 15 : b->scales[4 * s + g - 8] >> 4;
        float a = d * (float)((lo | (b->scales[8 + g] >> (2 * s) & 3) << 4) - 32);
        put(c, g, 1, a, -4 * a);
    }
}

INLINE void k4_scales(const uint8_t *sc, int s, float d, float m, struct packed_unpacked *c)
{
    for (int h = 0; h < 2; h++) {
        int g = 2 * s + h;
        int x = g < 4 ? sc[g] & 63 : (sc[g + 4] & 15) | (sc[g - 4] >> 6) << 4;
        int y = g < 4 ? sc[g + 4] & 63 : (sc[g + 4] >> 4) | (sc[g] >> 6) << 4;
        put(c, 2 * h, 2, d * (float)x, -m * (float)y);
    }
}

INLINE void unpack_q4_k(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(q4_k);
    bits_of(b->qs + 32 * s, 32, 0, 15, c->q);
    bits_of(b->qs + 32 * s, 32, 4, 15, c->q + 32);
    k4_scales(b->scales, s, half(load_u16(b->d)), half(load_u16(b->dmin)), c);
}

INLINE void unpack_q5_k(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(q5_k);
    bits_of(b->qs + 32 * s, 32, 0, 15, c->q);
    bits_of(b->qs + 32 * s, 32, 4, 15, c->q + 32);
    add_bits(b->qh, 32, 2 * s, 1, 4, c->q);
    add_bits(b->qh, 32, 2 * s + 1, 1, 4, c->q + 32);
    k4_scales(b->scales, s, half(load_u16(b->d)), half(load_u16(b->dmin)), c);
}

INLINE void unpack_q6_k(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    SUPER(q6_k);
    const uint8_t *ql = b->ql + 64 * (s / 2), *qh = b->qh + 32 * (s / 2);
    int run = 2 * (s & 1);
    bits_of(ql, 64, 4 * (s & 1), 15, c->q);
    add_bits(qh, 32, 2 * run, 3, 4, c->q);
    add_bits(qh, 32, 2 * run + 2, 3, 4, c->q + 32);
    float d = half(load_u16(b->d));
    for (int g = 0; g < 4; g++) {
        float a = d * (float)b->scales[4 * s + g];
        put(c, g, 1, a, -32 * a);
    }
}

/* ---- grouped integers ------------------------------------------------------------ */

INLINE void unpack_qmat(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c, int bits)
{
    uint8_t p[32 + 4] = { 0 };
    int64_t left = r->n_in - 64 * k, n = left < 64 ? (left * bits + 7) / 8 : 8 * bits;
    memcpy(p, r->row[i] + 8 * bits * k, (size_t)n);
    for (int j = 0; j < 64; j++)
        c->q[j] = (uint8_t)(load_u16(p + j * bits / 8) >> (j * bits & 7) & ((1 << bits) - 1));
    for (int g = 0; g < 4; g++) {
        int64_t at = (64 * k + 16 * g) / r->group;
        at = at < r->n_groups ? at : r->n_groups - 1;
        float a = half(r->scale[i][at]);
        put(c, g, 1, a, -a * (float)r->zero[i][at]);
    }
}

INLINE void unpack_int2(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    unpack_qmat(r, i, k, c, 2);
}

INLINE void unpack_int3(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    unpack_qmat(r, i, k, c, 3);
}

INLINE void unpack_int4(const struct packed_rows *r, int i, int64_t k, struct packed_unpacked *c)
{
    unpack_qmat(r, i, k, c, 4);
}

#define KERNEL(NAME)                                                                                      \
    static void rows_##NAME(const struct packed_rows *r, const struct packed_chunk *x, const float *xf,   \
                            float *out)                                                                   \
    {                                                                                                     \
        (void)xf;                                                                                         \
        run(r, x, out, unpack_##NAME);                                                                    \
    }
KERNEL(q4_0) KERNEL(q4_1) KERNEL(q8_0) KERNEL(q2_0) KERNEL(tq2_0) KERNEL(q2_k) KERNEL(q3_k) KERNEL(q4_k)
KERNEL(q5_k) KERNEL(q6_k) KERNEL(int2) KERNEL(int3) KERNEL(int4)

/* ---- floats of 16 bits --------------------------------------------------------------- */

/* Eight lanes, added in order. */
#define FLOATS(NAME, VALUE)                                                                               \
    static void rows_##NAME(const struct packed_rows *r, const struct packed_chunk *x, const float *xf,   \
                            float *out)                                                                   \
    {                                                                                                     \
        (void)x;                                                                                          \
        for (int i = 0; i < PACKED_ROWS; i++) {                                                           \
            float lane[8] = { 0 };                                                                        \
            const uint8_t *p = r->row[i];                                                                 \
            int64_t j = 0;                                                                                \
            for (; j + 8 <= r->n_in; j += 8)                                                              \
                for (int l = 0; l < 8; l++)                                                               \
                    lane[l] += VALUE(load_u16(p + 2 * (j + l))) * xf[j + l];                              \
            for (int l = 0; j < r->n_in; j++, l++)                                                        \
                lane[l] += VALUE(load_u16(p + 2 * j)) * xf[j];                                            \
            out[i] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])); \
        }                                                                                                 \
    }
FLOATS(f16, half)
FLOATS(bf16, bf16_to_f32)

/* ---- activations ------------------------------------------------------------------------ */

static void quantize_half(const float *x, int n, struct packed_chunk *c, int half)
{
    float max = 0, zero = 0; /* zero: NaN if one of them is no number or infinite */
    for (int j = 0; j < n; j++) {
        max = fabsf(x[j]) > max ? fabsf(x[j]) : max;
        zero += x[j] * 0;
    }
    float d = max / 127, inv = d > 0 ? 1 / d : 0;
    if (!(inv <= 3e38f)) /* subnormal: nothing of it survives */
        d = inv = 0;
    d += zero; /* then so are the products */
    int8_t *q = c->q + 32 * half;
    for (int j = 0; j < n; j++) {
        float v = zero == 0 ? x[j] * inv : 0;
        q[j] = (int8_t)(v + (v < 0 ? -0.5f : 0.5f));
    }
    for (int l = 0; l < 8; l++) {
        c->d[8 * half + l] = d;
        c->s[8 * half + l] = d * (float)(q[4 * l] + q[4 * l + 1] + q[4 * l + 2] + q[4 * l + 3]);
    }
}

static void quantize(const float *x, int64_t n, struct packed_chunk *c)
{
    for (int k = 0; n > 0; n -= 64, x += 64, c++, k = (k + 1) & 3) {
        if (n < 64)
            memset(c, 0, sizeof *c);
        for (int half = 0; half < 2 && n > 32 * half; half++)
            quantize_half(x + 32 * half, n - 32 * half < 32 ? (int)(n - 32 * half) : 32, c, half);
        for (int g = 0; g < 4; g++) {
            const float *s = c->s + 4 * g;
            c[-k].g[4 * k + g] = (s[0] + s[1]) + (s[2] + s[3]);
            c[-k].dg[4 * k + g] = c->d[4 * g];
        }
    }
}

#define TABLE_(isa) packed_##isa
#define TABLE(isa) TABLE_(isa)
#define NAME_(isa) #isa
#define NAME(isa) NAME_(isa)

#define UNPACK_(isa) packed_unpack_##isa
#define UNPACK(isa) UNPACK_(isa)

const struct packed_unpack UNPACK(KERNELS_ISA) = {
    .type = { [DT_Q4_0] = unpack_q4_0, [DT_Q4_1] = unpack_q4_1, [DT_Q8_0] = unpack_q8_0, [DT_Q2_K] = unpack_q2_k,
              [DT_Q3_K] = unpack_q3_k, [DT_Q4_K] = unpack_q4_k, [DT_Q5_K] = unpack_q5_k, [DT_Q6_K] = unpack_q6_k,
              [DT_TQ2_0] = unpack_tq2_0, [DT_Q2_0] = unpack_q2_0 },
    .qmat = { [2] = unpack_int2, [3] = unpack_int3, [4] = unpack_int4 },
};

const struct packed_kernels TABLE(KERNELS_ISA) = {
    .name = NAME(KERNELS_ISA),
    .quantize = quantize,
    .type = { [DT_F16] = rows_f16, [DT_BF16] = rows_bf16, [DT_Q4_0] = rows_q4_0, [DT_Q4_1] = rows_q4_1,
              [DT_Q8_0] = rows_q8_0, [DT_Q2_K] = rows_q2_k, [DT_Q3_K] = rows_q3_k, [DT_Q4_K] = rows_q4_k,
              [DT_Q5_K] = rows_q5_k, [DT_Q6_K] = rows_q6_k, [DT_TQ2_0] = rows_tq2_0, [DT_Q2_0] = rows_q2_0 },
    .qmat = { [2] = rows_int2, [3] = rows_int3, [4] = rows_int4 },
    .unpack = &UNPACK(KERNELS_ISA),
    .gemm = GEMM,
    .gemm_codes = 64,
};
