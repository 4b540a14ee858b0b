/* tile_body: the code of one struct tile_kernels; TILE_NAME is defined by the including file. */
#include <math.h>

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

/* fp16 rounding of positive scales; a scale below the smallest normal fp16 becomes that. */
static inline float scale_round(float s)
{
    s = clampf(s, 6.103515625e-05f, 65504.0f);
    union { float f; uint32_t u; } v = { s };
    v.u += 0xfffu + ((v.u >> 13) & 1u);
    v.u &= ~0x1fffu;
    return v.f > 65504.0f ? 65504.0f : v.f;
}

/* err[r] = sum_j hw[j] * (w - value(code(w)))^2 */
static void grid_error(const struct grid *g, const float *w, const float *hw, int64_t n,
                       const float *s, const float *z, float *err)
{
    float inv[R], maxq = (float)g->maxq;
    FOR_R {
        inv[r] = 1.0f / s[r];
        err[r] = 0;
    }
    for (int64_t j = 0; j < n; j++) {
        const float *wj = w + j * R;
        float h = hw ? hw[j] : 1.0f;
        FOR_R {
            float q = clampf(roundf_even(wj[r] * inv[r] + z[r]), 0, maxq);
            float d = wj[r] - s[r] * (q - z[r]);
            err[r] += h * d * d;
        }
    }
}

/* Least squares scale for the codes that s, z give: s' = sum h w c / sum h c^2, c = q - z. */
static void grid_refit(const struct grid *g, const float *w, const float *hw, int64_t n,
                       const float *s, const float *z, float *out)
{
    float inv[R], num[R], den[R], maxq = (float)g->maxq;
    FOR_R {
        inv[r] = 1.0f / s[r];
        num[r] = den[r] = 0;
    }
    for (int64_t j = 0; j < n; j++) {
        const float *wj = w + j * R;
        float h = hw ? hw[j] : 1.0f;
        FOR_R {
            float c = clampf(roundf_even(wj[r] * inv[r] + z[r]), 0, maxq) - z[r];
            num[r] += h * wj[r] * c;
            den[r] += h * c * c;
        }
    }
    FOR_R {
        float v = den[r] > 0 ? num[r] / den[r] : s[r];
        out[r] = scale_round(v > 0 ? v : s[r]);
    }
}

static void keep_better(const float *s, const float *z, const float *err, float *best_s, float *best_z,
                        float *best)
{
    FOR_R {
        bool better = err[r] < best[r];
        best_s[r] = better ? s[r] : best_s[r];
        best_z[r] = better ? z[r] : best_z[r];
        best[r] = better ? err[r] : best[r];
    }
}

static void fit(const struct grid *g, const float *w, const float *hw, int64_t n, float *s, float *z)
{
    float lo[R], hi[R], maxq = (float)g->maxq, mid = (maxq + 1) / 2, zmin = (float)g->zmin;
    FOR_R lo[r] = hi[r] = 0; /* the range contains 0 */
    for (int64_t j = 0; j < n; j++)
        FOR_R {
            float v = w[j * R + r];
            lo[r] = v < lo[r] ? v : lo[r];
            hi[r] = v > hi[r] ? v : hi[r];
        }
    FOR_R {
        float top = hi[r] > -lo[r] ? hi[r] : -lo[r];
        if (g->sym) {
            lo[r] = -top;
            hi[r] = top;
        }
        if (top <= 0) { /* an all-zero group */
            lo[r] = -1;
            hi[r] = 1;
        }
        s[r] = scale_round((hi[r] - lo[r]) / maxq);
        z[r] = g->sym ? mid : clampf(roundf_even(-lo[r] / s[r]), zmin, maxq);
    }
    if (g->search == SEARCH_MINMAX)
        return;
    if (g->search == SEARCH_MSE)
        hw = NULL;
    float best[R], cs[R], cz[R], err[R];
    grid_error(g, w, hw, n, s, z, best);
    int n_zero = g->sym ? 1 : 3;
    for (int step = 0; step < 60; step += 2) {
        float p = 1.0f - 0.0125f * (float)step;
        for (int k = 0; k < n_zero; k++) {
            FOR_R {
                cs[r] = scale_round(p * (hi[r] - lo[r]) / maxq);
                cz[r] = g->sym ? mid : clampf(roundf_even(-p * lo[r] / cs[r]) + (float)(k - 1), zmin, maxq);
            }
            grid_error(g, w, hw, n, cs, cz, err);
            keep_better(cs, cz, err, s, z, best);
        }
    }
    for (int round = 0; round < 2; round++) {
        grid_refit(g, w, hw, n, s, z, cs);
        grid_error(g, w, hw, n, cs, z, err);
        keep_better(cs, z, err, s, z, best);
    }
}

static void feedback(const struct grid *g, float *t, const float *u, int64_t ldu, int64_t j0, int64_t n,
                     int64_t jend, const float *s, const float *z, uint8_t *codes, float *err)
{
    float inv[R], maxq = (float)g->maxq;
    FOR_R inv[r] = 1.0f / s[r];
    for (int64_t j = j0; j < j0 + n; j++, codes += R, err += R) {
        const float *tj = t + j * R, *uj = u + j * ldu;
        float iu = 1.0f / uj[j], e[R];
        FOR_R {
            float q = clampf(roundf_even(tj[r] * inv[r] + z[r]), 0, maxq);
            codes[r] = (uint8_t)(int)q;
            e[r] = (tj[r] - s[r] * (q - z[r])) * iu;
            err[r] = e[r];
        }
        for (int64_t k = j + 1; k < jend; k++) {
            float *tk = t + k * R, uk = uj[k];
            FOR_R tk[r] -= e[r] * uk;
        }
    }
}

static void round_codes(const struct grid *g, const float *t, int64_t n, const float *s, const float *z,
                        uint8_t *codes)
{
    float inv[R], maxq = (float)g->maxq;
    FOR_R inv[r] = 1.0f / s[r];
    for (int64_t j = 0; j < n; j++, t += R, codes += R)
        FOR_R codes[r] = (uint8_t)(int)clampf(roundf_even(t[r] * inv[r] + z[r]), 0, maxq);
}

static void descend(const struct grid *g, float *p, const float *h, int64_t ldh, int64_t j0, int64_t n,
                    int64_t jbeg, int64_t jend, const float *s, uint8_t *codes, float *dv)
{
    float inv[R], maxq = (float)g->maxq;
    FOR_R inv[r] = 1.0f / s[r];
    for (int64_t j = j0; j < j0 + n; j++, codes += R, dv += R) {
        const float *pj = p + j * R, *hj = h + j * ldh;
        float ih = 1.0f / hj[j], moved = 0;
        FOR_R {
            float q = (float)codes[r];
            /* the value that makes this coordinate's gradient zero is value + p/h */
            float want = clampf(roundf_even(q + pj[r] * ih * inv[r]), 0, maxq);
            codes[r] = (uint8_t)(int)want;
            dv[r] = s[r] * (want - q);
            moved += (want - q) * (want - q);
        }
        if (moved > 0)
            for (int64_t k = jbeg; k < jend; k++) {
                float *pk = p + k * R, hk = hj[k];
                FOR_R pk[r] -= dv[r] * hk;
            }
    }
}

const struct tile_kernels TILE_NAME = { fit, feedback, round_codes, descend };
