/* body: the code of one struct cpu_kernels; KERNELS_ISA, KERNELS_SGEMM and narrow.h's sizes are defined by the including file.
 *
 * Written with GCC's vector types of 16 floats, which the compiler lowers to whatever the flags
 * allow (4 SSE, 2 AVX or 1 AVX-512 register), so all ISAs run the same operations in the same
 * order and differ only by fused multiply-adds. Tails go through zero-padded loads: an element's
 * result does not depend on its place in the row. */
#include <math.h>
#include <string.h>

#include "backend/cpu/kernels.h"

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef float vf8 __attribute__((vector_size(32)));
typedef double vd __attribute__((vector_size(64)));
typedef int64_t vl __attribute__((vector_size(64)));
typedef uint64_t vul __attribute__((vector_size(64)));

INLINE vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n < 16 lanes, the others are fill. */
INLINE vf load_part(const float *p, int64_t n, float fill)
{
    float t[LANES];
    for (int i = 0; i < LANES; i++)
        t[i] = fill;
    memcpy(t, p, (size_t)n * sizeof *p);
    return load(t);
}

INLINE void store_part(float *p, int64_t n, vf v)
{
    float t[LANES];
    store(t, v);
    memcpy(p, t, (size_t)n * sizeof *p);
}

INLINE vf splat(float x)
{
    return (vf){ 0 } + x;
}

INLINE vf pick(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

INLINE float lane_sum(vf v)
{
    float t[LANES];
    store(t, v);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++)
            t[i] += t[i + w];
    return t[0];
}

INLINE float lane_max(vf v)
{
    float t[LANES];
    store(t, v);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++)
            t[i] = t[i + w] > t[i] ? t[i + w] : t[i];
    return t[0];
}

INLINE double lane_sum_d(vd v)
{
    double t[8];
    memcpy(t, &v, sizeof v);
    return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]));
}

/* ---- products ------------------------------------------------------------ */

INLINE float dot(const float *x, const float *w, int64_t n)
{
    vf a0 = { 0 }, a1 = { 0 }, a2 = { 0 }, a3 = { 0 };
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        a0 += load(x + j) * load(w + j);
        a1 += load(x + j + 16) * load(w + j + 16);
        a2 += load(x + j + 32) * load(w + j + 32);
        a3 += load(x + j + 48) * load(w + j + 48);
    }
    for (; j + LANES <= n; j += LANES)
        a0 += load(x + j) * load(w + j);
    if (j < n)
        a1 += load_part(x + j, n - j, 0) * load_part(w + j, n - j, 0);
    return lane_sum((a0 + a1) + (a2 + a3));
}

static void dots(const float *x, const float *w, int64_t ldw, int64_t rows, int64_t n, float *out)
{
    for (int64_t i = 0; i < rows; i++)
        out[i] = dot(x, w + i * ldw, n);
}

static void weighted_sum(const float *p, const float *v, int64_t ldv, int64_t rows, int64_t n, float *out)
{
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        vf a0 = { 0 }, a1 = { 0 }, a2 = { 0 }, a3 = { 0 };
        for (int64_t i = 0; i < rows; i++) {
            const float *r = v + i * ldv + j;
            a0 += p[i] * load(r);
            a1 += p[i] * load(r + 16);
            a2 += p[i] * load(r + 32);
            a3 += p[i] * load(r + 48);
        }
        store(out + j, a0);
        store(out + j + 16, a1);
        store(out + j + 32, a2);
        store(out + j + 48, a3);
    }
    for (; j < n; j += LANES) {
        vf a = { 0 };
        int64_t left = n - j < LANES ? n - j : LANES;
        for (int64_t i = 0; i < rows; i++)
            a += p[i] * load_part(v + i * ldv + j, left, 0);
        store_part(out + j, left, a);
    }
}

static void add(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void rmsnorm(const float *x, const float *gain, int64_t n, float eps, float *y)
{
    vd a = { 0 };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        vf8 v;
        memcpy(&v, x + i, sizeof v);
        vd d = __builtin_convertvector(v, vd);
        a += d * d;
    }
    double sum = lane_sum_d(a);
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    float r = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    if (gain)
        for (i = 0; i < n; i++)
            y[i] = x[i] * r * gain[i];
    else
        for (i = 0; i < n; i++)
            y[i] = x[i] * r;
}

/* ---- exponentials -------------------------------------------------------- */

/* Cephes' expf: x = k ln 2 + r, a polynomial in r, 2^k from the exponent bits. NaN stays NaN. */
INLINE vf vexp(vf x)
{
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vi under = x < -87.0f;
    x = pick(under, splat(-87.0f), x);
    x = pick(x > 88.3f, splat(88.3f), x);
    vf t = x * 1.44269504088896341f + magic;
    vu k = (vu)t - (vu)magic;
    vf kf = t - magic;
    vf r = x - kf * 0.693359375f;
    r = r - kf * -2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return pick(under, splat(0), p * (vf)((k + 127u) << 23));
}

static void exp_inplace(float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(x + i, vexp(load(x + i)));
    if (i < n)
        store_part(x + i, n - i, vexp(load_part(x + i, n - i, 0)));
}

INLINE vf silu_times(vf g, vf u)
{
    return g / (1.0f + vexp(-g)) * u;
}

static void silu_mul(const float *gate, const float *up, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(out + i, silu_times(load(gate + i), load(up + i)));
    if (i < n)
        store_part(out + i, n - i, silu_times(load_part(gate + i, n - i, 0), load_part(up + i, n - i, 0)));
}

INLINE float max_of(const float *x, int64_t n)
{
    vf m = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf v = load(x + i);
        m = pick(v > m, v, m);
    }
    if (i < n) {
        vf v = load_part(x + i, n - i, -INFINITY);
        m = pick(v > m, v, m);
    }
    return lane_max(m);
}

static void softmax(float *x, int64_t n, float scale)
{
    float max = max_of(x, n);
    vf sum = { 0 };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf v = vexp((load(x + i) - max) * scale);
        sum += v;
        store(x + i, v);
    }
    if (i < n) {
        vf v = vexp((load_part(x + i, n - i, -INFINITY) - max) * scale);
        sum += v;
        store_part(x + i, n - i, v);
    }
    float inv = 1.0f / lane_sum(sum);
    for (i = 0; i < n; i++)
        x[i] *= inv;
}

/* Float lanes over short runs, collected in double. */
#define SUM_RUN (64 * LANES)

static double sum_exp(const float *x, int64_t n, float *max)
{
    float m = *max = max_of(x, n);
    double total = 0;
    for (int64_t b = 0; b < n; b += SUM_RUN) {
        int64_t end = n - b < SUM_RUN ? n : b + SUM_RUN, i = b;
        vf sum = { 0 };
        for (; i + LANES <= end; i += LANES)
            sum += vexp(load(x + i) - m);
        if (i < end)
            sum += vexp(load_part(x + i, end - i, -INFINITY) - m);
        float t[LANES];
        store(t, sum);
        for (int l = 0; l < LANES; l++)
            total += (double)t[l];
    }
    return total;
}

static double kl_sum(const float *ref, const float *x, int64_t n, float shift, float offset, float floor)
{
    double total = 0;
    for (int64_t b = 0; b < n; b += SUM_RUN) {
        int64_t end = n - b < SUM_RUN ? n : b + SUM_RUN, i = b;
        vf sum = { 0 };
        for (; i + LANES <= end; i += LANES) {
            vf r = load(ref + i);
            sum += pick(r > floor, vexp(r - shift) * (r - load(x + i) - offset), splat(0));
        }
        if (i < end) {
            vf r = load_part(ref + i, end - i, -INFINITY);
            sum += pick(r > floor, vexp(r - shift) * (r - load_part(x + i, end - i, 0) - offset), splat(0));
        }
        float t[LANES];
        store(t, sum);
        for (int l = 0; l < LANES; l++)
            total += (double)t[l];
    }
    return total;
}

/* ---- rotary positions ----------------------------------------------------- */

INLINE vd pick_d(vl mask, vd yes, vd no)
{
    return (vd)(((vl)yes & mask) | ((vl)no & ~mask));
}

/* sin and cos of a, |a| < 1.6e6: reduction by pi/2 in three parts (fdlibm's), fdlibm's polynomials. */
INLINE void vsincos(vd a, vd *sine, vd *cosine)
{
    const vd magic = (vd){ 0 } + 6755399441055744.0; /* 1.5 * 2^52 */
    vd t = a * 6.36619772367581382433e-01 + magic;
    vul k = (vul)t;
    vd q = t - magic;
    vd r = a - q * 1.57079632673412561417e+00;
    r = r - q * 6.07710050630396597660e-11;
    r = r - q * 2.02226624879595063154e-21;
    vd z = r * r;
    vd s = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z - 1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z - 1.66666666666666324348e-01;
    s = r + r * z * s;
    vd c = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-09;
    c = c * z - 2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z - 1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = 1.0 - z * 0.5 + z * z * c;
    vl odd = (vl)((vul){ 0 } - (k & 1));
    vul sign_s = (k & 2) << 62, sign_c = ((k + 1) & 2) << 62;
    *sine = (vd)((vul)pick_d(odd, c, s) ^ sign_s);
    *cosine = (vd)((vul)pick_d(odd, s, c) ^ sign_c);
}

static void rope_angles(int32_t pos, const float *inv_freq, int64_t n, float scale, float *c, float *s)
{
    for (int64_t i = 0; i < n; i += 8) {
        int64_t left = n - i < 8 ? n - i : 8;
        vf8 f = { 0 };
        memcpy(&f, inv_freq + i, (size_t)left * sizeof *inv_freq);
        vd sine, cosine;
        vsincos(__builtin_convertvector(f, vd) * (double)pos, &sine, &cosine);
        vf8 cf = __builtin_convertvector(cosine, vf8) * scale, sf = __builtin_convertvector(sine, vf8) * scale;
        memcpy(c + i, &cf, (size_t)left * sizeof *c);
        memcpy(s + i, &sf, (size_t)left * sizeof *s);
    }
}

static void rope(float *x, int64_t n_head, int64_t head_dim, const float *c, const float *s)
{
    int64_t half = head_dim / 2;
    for (int64_t h = 0; h < n_head; h++, x += head_dim) {
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            vf x0 = load(x + i), x1 = load(x + half + i), ci = load(c + i), si = load(s + i);
            store(x + i, x0 * ci - x1 * si);
            store(x + half + i, x1 * ci + x0 * si);
        }
        if (i < half) {
            int64_t left = half - i;
            vf x0 = load_part(x + i, left, 0), x1 = load_part(x + half + i, left, 0);
            vf ci = load_part(c + i, left, 0), si = load_part(s + i, left, 0);
            store_part(x + i, left, x0 * ci - x1 * si);
            store_part(x + half + i, left, x1 * ci + x0 * si);
        }
    }
}

/* ---- checks ---------------------------------------------------------------- */

static int64_t find_bad(const float *x, int64_t n)
{
    for (int64_t b = 0; b < n; b += 1024) {
        int64_t end = n - b < 1024 ? n : b + 1024;
        uint32_t bad = 0;
        for (int64_t i = b; i < end; i++) {
            uint32_t u;
            memcpy(&u, x + i, sizeof u);
            bad |= (u & 0x7f800000u) == 0x7f800000u;
        }
        for (int64_t i = b; bad && i < end; i++)
            if (!isfinite(x[i]))
                return i;
    }
    return -1;
}

static int64_t find_value(const float *x, int64_t n, float v)
{
    for (int64_t b = 0; b < n; b += 1024) {
        int64_t end = n - b < 1024 ? n : b + 1024;
        int found = 0;
        for (int64_t i = b; i < end; i++)
            found |= x[i] == v;
        for (int64_t i = b; found && i < end; i++)
            if (x[i] == v)
                return i;
    }
    return -1;
}

/* ---- unpacking -------------------------------------------------------------- */

INLINE uint32_t load_u16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* The half's bits, moved, are the float times 2^-112 exactly, subnormals too. */
static void f16_row(const void *row, float *dst, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = load_u16(p + 2 * i);
        union { uint32_t u; float f; } v = { (h & 0x7fff) << 13 };
        uint32_t special = (h & 0x7c00) == 0x7c00 ? v.u | 0x7f800000u : 0;
        v.f *= 0x1p112f;
        v.u = (special ? special : v.u) | (h & 0x8000) << 16;
        dst[i] = v.f;
    }
}

static void bf16_row(const void *row, float *dst, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++) {
        union { uint32_t u; float f; } v = { load_u16(p + 2 * i) << 16 };
        dst[i] = v.f;
    }
}

#include "backend/cpu/narrow.h"

#define TABLE_(isa) cpu_kernels_##isa
#define TABLE(isa) TABLE_(isa)
#define NAME_(isa) #isa
#define NAME(isa) NAME_(isa)

const struct cpu_kernels TABLE(KERNELS_ISA) = {
    NAME(KERNELS_ISA), dots, weighted_sum, rmsnorm, rope_angles, rope, silu_mul, add,
    exp_inplace, softmax, sum_exp, kl_sum, find_bad, find_value, f16_row, bf16_row, narrow, KERNELS_SGEMM,
};
