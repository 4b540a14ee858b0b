/* tile_fit: parameters of groups. Part of tile_body.h, compiled once per instruction set.
 *
 * A parameter is found by trying: candidates around what the range of the group asks for, then the least-squares scale
 * (and offset) of the best one's codes; what counts is the weighted error with parameters rounded as they are stored. */

#define SUBS 16 /* most groups of a superblock */

static const float no_offset[R];

/* err[r] = sum_j hw[j] * (w - value(code(w)))^2 */
static void grid_error(const struct grid *g, const float *w, const float *hw, int64_t n, const float *s, const float *z,
                       const float *b, float *err)
{
    float inv[R], maxq = (float)g->maxq;
    FOR_R {
        inv[r] = inverse(s[r]);
        err[r] = 0;
    }
    for (int64_t j = 0; j < n; j++) {
        const float *wj = w + j * R;
        float h = hw ? hw[j] : 1.0f;
        FOR_R {
            float q = clampf(roundf_even((wj[r] + b[r]) * inv[r] + z[r]), 0, maxq);
            float d = wj[r] - (s[r] * (q - z[r]) - b[r]);
            err[r] += h * d * d;
        }
    }
}

/* Least squares scale for the codes that s, z give: s' = sum h w c / sum h c^2, c = q - z; den is their curvature. */
static void refit_scale(const struct grid *g, const float *w, const float *hw, int64_t n, const float *s, const float *z,
                        float *out, float *den)
{
    float inv[R], num[R], maxq = (float)g->maxq;
    FOR_R {
        inv[r] = inverse(s[r]);
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
        out[r] = v * s[r] > 0 ? v : s[r]; /* never through zero */
    }
}

static void keep_better(const float *s, const float *z, const float *b, const float *err, struct tile_group *best,
                        float *best_err)
{
    FOR_R {
        bool better = err[r] < best_err[r];
        best->s[r] = better ? s[r] : best->s[r];
        best->z[r] = better ? z[r] : best->z[r];
        best->b[r] = better ? b[r] : best->b[r];
        best_err[r] = better ? err[r] : best_err[r];
    }
}

/* lo <= 0 <= hi; a group of zeros counts as -none..none. */
static void range(const float *w, int64_t n, bool symmetric, float none, float *lo, float *hi)
{
    FOR_R lo[r] = hi[r] = 0;
    for (int64_t j = 0; j < n; j++)
        FOR_R {
            float v = w[j * R + r];
            lo[r] = v < lo[r] ? v : lo[r];
            hi[r] = v > hi[r] ? v : hi[r];
        }
    FOR_R {
        float top = hi[r] > -lo[r] ? hi[r] : -lo[r];
        if (symmetric) {
            lo[r] = -top;
            hi[r] = top;
        }
        if (top <= 0) {
            lo[r] = -none;
            hi[r] = none;
        }
    }
}

/* ---- one level: s fp16, z an integer ---- */

static void fit_int(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                    struct tile_group *out)
{
    float lo[R], hi[R], maxq = (float)g->maxq, mid = (maxq + 1) / 2, zmin = (float)g->zmin, zmax = (float)g->zmax;
    bool sym = g->zmax - g->zmin <= 1; /* the zero point does not follow the range */
    range(w, n, sym, 1, lo, hi);
    FOR_R {
        out->s[r] = scale_round((hi[r] - lo[r]) / maxq);
        out->z[r] = sym ? mid : clampf(roundf_even(-lo[r] / out->s[r]), zmin, zmax);
        out->b[r] = 0;
    }
    if (search == SEARCH_MINMAX)
        return;
    float best[R], cs[R], cz[R], err[R], den[R];
    grid_error(g, w, hw, n, out->s, out->z, no_offset, best);
    int n_zero = sym ? g->zmax - g->zmin + 1 : 3;
    for (int step = 0; step < 60; step += 2) {
        float p = 1.0f - 0.0125f * (float)step;
        for (int k = 0; k < n_zero; k++) {
            FOR_R {
                cs[r] = scale_round(p * (hi[r] - lo[r]) / maxq);
                cz[r] = sym ? zmin + (float)k : clampf(roundf_even(-p * lo[r] / cs[r]) + (float)(k - 1), zmin, zmax);
            }
            grid_error(g, w, hw, n, cs, cz, no_offset, err);
            keep_better(cs, cz, no_offset, err, out, best);
        }
    }
    for (int round = 0; round < 2; round++) {
        refit_scale(g, w, hw, n, out->s, out->z, cs, den);
        FOR_R cs[r] = scale_round(cs[r]);
        grid_error(g, w, hw, n, cs, out->z, no_offset, err);
        keep_better(cs, out->z, no_offset, err, out, best);
    }
}

/* ---- scale and offset, both free ---- */

/* Least squares s, b for the codes that s, b give; offset_any: b may be negative. curv (2, R): of s and of b. */
static void refit_affine(const struct grid *g, const float *w, const float *hw, int64_t n, bool offset_any,
                         const float *s, const float *b, float *so, float *bo, float *curv)
{
    float inv[R], sq[R], sqq[R], sw[R], swq[R], maxq = (float)g->maxq, sh = 0;
    FOR_R {
        inv[r] = inverse(s[r]);
        sq[r] = sqq[r] = sw[r] = swq[r] = 0;
    }
    for (int64_t j = 0; j < n; j++) {
        const float *wj = w + j * R;
        float h = hw ? hw[j] : 1.0f;
        sh += h;
        FOR_R {
            float q = clampf(roundf_even((wj[r] + b[r]) * inv[r]), 0, maxq), hq = h * q;
            sq[r] += hq;
            sqq[r] += hq * q;
            sw[r] += h * wj[r];
            swq[r] += hq * wj[r];
        }
    }
    FOR_R {
        float det = sh * sqq[r] - sq[r] * sq[r], s1 = s[r], b1 = b[r];
        if (det > 1e-6f * sh * sqq[r]) {
            s1 = (sh * swq[r] - sq[r] * sw[r]) / det;
            b1 = (s1 * sq[r] - sw[r]) / sh;
        }
        if (b1 < 0 && !offset_any) {
            b1 = 0;
            s1 = sqq[r] > 0 ? swq[r] / sqq[r] : s1;
        }
        so[r] = s1 > 0 ? s1 : s[r];
        bo[r] = s1 > 0 ? b1 : b[r];
        curv[r] = sqq[r];
        curv[R + r] = sh;
    }
}

static void best_affine(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                        bool offset_any, struct tile_group *out, float *curv)
{
    float lo[R], hi[R], maxq = (float)g->maxq, cs[R], cb[R], err[R], best[R], unused[2 * R];
    range(w, n, false, 0, lo, hi);
    if (offset_any) { /* the true minimum, above zero too */
        FOR_R lo[r] = w[r];
        for (int64_t j = 1; j < n; j++)
            FOR_R lo[r] = w[j * R + r] < lo[r] ? w[j * R + r] : lo[r];
    }
    FOR_R {
        out->s[r] = (hi[r] - lo[r]) / maxq;
        out->b[r] = -lo[r];
        out->z[r] = 0;
    }
    grid_error(g, w, hw, n, out->s, out->z, out->b, best);
    /* the fewer levels, the more of the range is worth cutting off */
    float cut = g->bits == 2 ? 0.045f : g->bits == 3 ? 0.03f : g->bits == 4 ? 0.015f : 0.008f;
    for (int step = 0; search != SEARCH_MINMAX && step < 12; step++) {
        float p = 1.0f - cut * (float)step;
        FOR_R {
            cs[r] = p * (hi[r] - lo[r]) / maxq;
            cb[r] = -p * lo[r];
        }
        for (int round = 0; round < 2; round++) {
            refit_affine(g, w, hw, n, offset_any, cs, cb, cs, cb, unused);
            grid_error(g, w, hw, n, cs, out->z, cb, err);
            keep_better(cs, out->z, cb, err, out, best);
        }
    }
    if (curv)
        refit_affine(g, w, hw, n, offset_any, out->s, out->b, cs, cb, curv);
}

static void fit_affine(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                       struct tile_group *out)
{
    best_affine(g, search, w, hw, n, true, out, NULL);
    FOR_R {
        out->s[r] = half_round(clampf(out->s[r], 6.103515625e-05f, 65504.0f));
        out->b[r] = half_round(clampf(out->b[r], -65504.0f, 65504.0f));
    }
}

/* ---- a signed scale alone ---- */

static void best_scale(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                       struct tile_group *out, float *curv)
{
    float lo[R], hi[R], cs[R], err[R], best[R], den[R], mid = (float)g->zmin;
    range(w, n, true, 0, lo, hi);
    FOR_R {
        out->s[r] = 2 * hi[r] / (float)g->maxq;
        out->z[r] = mid;
        out->b[r] = 0;
    }
    grid_error(g, w, hw, n, out->s, out->z, no_offset, best);
    int steps = g->bits == 2 ? 24 : g->bits == 3 ? 18 : 12;
    float cut = g->bits == 2 ? 0.03f : g->bits == 3 ? 0.03f : 0.01f;
    for (int sign = 1; search != SEARCH_MINMAX && sign >= (g->sc_min < 0 ? -1 : 1); sign -= 2)
        for (int step = 0; step < steps; step++) {
            FOR_R cs[r] = (float)sign * (1.05f - cut * (float)step) * 2 * hi[r] / (float)g->maxq;
            grid_error(g, w, hw, n, cs, out->z, no_offset, err);
            keep_better(cs, out->z, no_offset, err, out, best);
        }
    for (int round = 0; search != SEARCH_MINMAX && round < 2; round++) {
        refit_scale(g, w, hw, n, out->s, out->z, cs, den);
        grid_error(g, w, hw, n, cs, out->z, no_offset, err);
        keep_better(cs, out->z, no_offset, err, out, best);
    }
    if (curv)
        refit_scale(g, w, hw, n, out->s, out->z, cs, curv);
}

/* ---- two levels ---- */

/* The unit of which the values v (n, R) become multiples k, kmin <= k <= kmax, at least cost sum c (v - unit k)^2. */
static void best_unit(const float *v, const float *c, int64_t n, int kmin, int kmax, int bits, float *unit)
{
    float top[R], best[R];
    FOR_R {
        top[r] = 0;
        best[r] = INFINITY;
        unit[r] = 0;
    }
    for (int64_t i = 0; i < n; i++)
        FOR_R top[r] = fabsf(v[i * R + r]) > top[r] ? fabsf(v[i * R + r]) : top[r];
    for (int step = 0; step < 24; step++) {
        float at = (float)kmax * (1.1f - 0.02f * (float)step), cand[R], inv[R], cost[R];
        FOR_R {
            cand[r] = grid_unit_round(top[r] / at, bits);
            inv[r] = inverse(cand[r]);
            cost[r] = 0;
        }
        for (int64_t i = 0; i < n; i++)
            FOR_R {
                float k = clampf(roundf_even(v[i * R + r] * inv[r]), (float)kmin, (float)kmax);
                float d = v[i * R + r] - cand[r] * k;
                cost[r] += c[i * R + r] * d * d;
            }
        FOR_R {
            bool better = cost[r] < best[r];
            unit[r] = better ? cand[r] : unit[r];
            best[r] = better ? cost[r] : best[r];
        }
    }
}

static void fit_super(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                      struct tile_super *out)
{
    float s[SUBS * R], b[SUBS * R], cs[SUBS * R], cb[SUBS * R], curv[2 * R];
    struct tile_group p;
    int64_t subs = n / g->group;
    for (int64_t i = 0; i < subs; i++) {
        const float *wi = w + i * g->group * R, *hi = hw ? hw + i * g->group : NULL;
        if (g->kind == KIND_TWO_AFFINE)
            best_affine(g, search, wi, hi, g->group, false, &p, curv);
        else
            best_scale(g, search, wi, hi, g->group, &p, curv);
        FOR_R {
            s[i * R + r] = p.s[r];
            b[i * R + r] = p.b[r];
            cs[i * R + r] = curv[r];
            cb[i * R + r] = g->kind == KIND_TWO_AFFINE ? curv[R + r] : 0;
        }
    }
    best_unit(s, cs, subs, g->sc_min, g->sc_max, g->d_bits, out->d);
    if (g->kind == KIND_TWO_AFFINE)
        best_unit(b, cb, subs, 0, g->m_max, 11, out->m);
    else
        FOR_R out->m[r] = 0;
}

/* The integers beside (s, b): two rounds over their neighbours, the best exact error wins. */
static void fit_two(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                    const struct tile_super *super, struct tile_group *out)
{
    struct tile_group p;
    float sc[R], mn[R], best[R], err[R], s[R], b[R], csc[R], cmn[R];
    bool affine = g->kind == KIND_TWO_AFFINE;
    if (affine)
        best_affine(g, search, w, hw, n, false, &p, NULL);
    else
        best_scale(g, search, w, hw, n, &p, NULL);
    FOR_R {
        sc[r] = clampf(roundf_even(p.s[r] * inverse(super->d[r])), (float)g->sc_min, (float)g->sc_max);
        mn[r] = clampf(roundf_even(p.b[r] * inverse(super->m[r])), 0, (float)g->m_max);
        s[r] = super->d[r] * sc[r];
        b[r] = super->m[r] * mn[r];
    }
    grid_error(g, w, hw, n, s, p.z, b, best);
    int reach = affine ? 1 : 2;
    for (int round = 0; search != SEARCH_MINMAX && round < 2; round++) {
        float at_sc[R], at_mn[R];
        memcpy(at_sc, sc, sizeof sc);
        memcpy(at_mn, mn, sizeof mn);
        for (int i = -reach; i <= reach; i++)
            for (int k = affine ? -1 : 0; k <= (affine ? 1 : 0); k++) {
                if (!i && !k)
                    continue;
                FOR_R {
                    csc[r] = clampf(at_sc[r] + (float)i, (float)g->sc_min, (float)g->sc_max);
                    cmn[r] = clampf(at_mn[r] + (float)k, 0, (float)g->m_max);
                    s[r] = super->d[r] * csc[r];
                    b[r] = super->m[r] * cmn[r];
                }
                grid_error(g, w, hw, n, s, p.z, b, err);
                FOR_R {
                    bool better = err[r] < best[r];
                    sc[r] = better ? csc[r] : sc[r];
                    mn[r] = better ? cmn[r] : mn[r];
                    best[r] = better ? err[r] : best[r];
                }
            }
    }
    FOR_R {
        out->sc[r] = (int16_t)sc[r];
        out->mn[r] = (int16_t)mn[r];
        out->s[r] = super->d[r] * sc[r];
        out->b[r] = super->m[r] * mn[r];
        out->z[r] = p.z[r];
    }
}

static void fit(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                const struct tile_super *super, struct tile_group *out)
{
    if (search == SEARCH_MSE)
        hw = NULL;
    if (g->kind == KIND_INT)
        fit_int(g, search, w, hw, n, out);
    else if (g->kind == KIND_AFFINE)
        fit_affine(g, search, w, hw, n, out);
    else
        fit_two(g, search, w, hw, n, super, out);
}
