/* tile_body: the code of one struct tile_kernels; TILE_NAME is defined by the including file. */
#include <math.h>
#include <string.h>

#include "quant/tile.h"
#include "tensor/half.h"

#define R TILE_R
#define FOR_R for (int r = 0; r < R; r++)

static inline float clampf(float x, float lo, float hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* Round to nearest even without libm: exact for |x| < 2^22, and codes are far below. */
static inline float roundf_even(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    return (clampf(x, -4194303.0f, 4194303.0f) + magic) - magic;
}

/* A scale of zero makes every code z, and one that is so small that its inverse were infinite (0 of it: NaN) too. */
static inline float inverse(float s)
{
    return fabsf(s) >= 1.17549435e-38f ? 1.0f / s : 0.0f;
}

/* fp16 rounding of positive scales; a scale below the smallest normal fp16 becomes that. */
static inline float scale_round(float s)
{
    s = clampf(s, 6.103515625e-05f, 65504.0f);
    union { float f; uint32_t u; } v = { s };
    v.u += 0xfffu + ((v.u >> 13) & 1u);
    v.u &= ~0x1fffu;
    return v.f > 65504.0f ? 65504.0f : v.f;
}

#include "quant/tile_fit.h"

static void feedback(const struct grid *g, float *t, const float *u, const float *asym, int64_t ldu, int64_t j0,
                     int64_t n, int64_t jend, const struct tile_group *p, uint8_t *codes, float *err)
{
    const float *s = p->s, *z = p->z, *b = p->b;
    float inv[R], maxq = (float)g->maxq;
    FOR_R inv[r] = inverse(s[r]);
    for (int64_t j = j0; j < j0 + n; j++, codes += R, err += R) {
        const float *tj = t + j * R, *uj = u + j * ldu;
        float iu = 1.0f / uj[j], e[R];
        FOR_R {
            float q = clampf(roundf_even((tj[r] + b[r]) * inv[r] + z[r]), 0, maxq);
            codes[r] = (uint8_t)(int)q;
            e[r] = (tj[r] - (s[r] * (q - z[r]) - b[r])) * iu;
            err[r] = e[r];
        }
        for (int64_t k = j + 1; k < jend; k++) {
            float *tk = t + k * R, uk = uj[k];
            FOR_R tk[r] -= e[r] * uk;
        }
        for (int64_t k = j + 1; asym && k < jend; k++) {
            float *tk = t + k * R, pk = asym[j * ldu + k];
            FOR_R tk[r] += tj[r] * pk;
        }
    }
}

static void round_codes(const struct grid *g, const float *t, int64_t n, const struct tile_group *p, uint8_t *codes)
{
    const float *z = p->z, *b = p->b;
    float inv[R], maxq = (float)g->maxq;
    FOR_R inv[r] = inverse(p->s[r]);
    for (int64_t j = 0; j < n; j++, t += R, codes += R)
        FOR_R codes[r] = (uint8_t)(int)clampf(roundf_even((t[r] + b[r]) * inv[r] + z[r]), 0, maxq);
}

static void descend(const struct grid *g, float *p, const float *h, int64_t ldh, int64_t j0, int64_t n,
                    int64_t jbeg, int64_t jend, const struct tile_group *par, uint8_t *codes, float *dv,
                    float *gain)
{
    const float *s = par->s;
    float inv[R], maxq = (float)g->maxq;
    FOR_R {
        inv[r] = inverse(s[r]);
        gain[r] = 0;
    }
    for (int64_t j = j0; j < j0 + n; j++, codes += R, dv += R) {
        const float *pj = p + j * R, *hj = h + j * ldh;
        float ih = 1.0f / hj[j], moved = 0;
        FOR_R {
            float q = (float)codes[r];
            /* the value that makes this coordinate's gradient zero is value + p/h */
            float want = clampf(roundf_even(q + pj[r] * ih * inv[r]), 0, maxq);
            codes[r] = (uint8_t)(int)want;
            dv[r] = s[r] * (want - q);
            gain[r] += dv[r] * (2 * pj[r] - dv[r] * hj[j]);
            moved += (want - q) * (want - q);
        }
        if (moved > 0)
            for (int64_t k = jbeg; k < jend; k++) {
                float *pk = p + k * R, hk = hj[k];
                FOR_R pk[r] -= dv[r] * hk;
            }
    }
}

const struct tile_kernels TILE_NAME = { fit_super, fit, feedback, round_codes, descend };
