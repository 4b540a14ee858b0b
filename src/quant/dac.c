/* DAC, the deviation-aware correction at the norm after attention: mu = mean over tokens of (H - H~), H and H~ the
 * outputs of that norm in the float and the quantized model (with DAC_BLOCK: of this block's attention, float and quantized, on the
 * quantized model's states, so that no correction answers an earlier one). It becomes an offset of gate's and up's input, which is
 * carried exactly as their biases b = W_q mu. Sinks are in the mean like any token, for behind a norm they are no larger (about one in a
 * sequence; mu without them has a cosine above 0.998 with mu, doc/results.md). A block keeps the share of mu that brings its
 * output on held-out sequences nearest to the float path's, with float FFN weights; often none. */
#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "quant/block.h"
#include "tensor/half.h"

int64_t held_out(const struct calib *c)
{
    if (c->n < 2)
        return c->n;
    int64_t n = c->n / 8;
    return c->n - (n > 0 ? n : 1);
}

/* Block output with the FFN in float on x + share * mu: adds the squared distance to `want` (NULL: stores it there). */
static int ffn_output(struct block *b, const float *h, const float *mu, float share, int64_t n,
                      float *out, struct err *e)
{
    struct run *r = b->run;
    int64_t d = r->m->hp.n_embd;
    float *x = r->ff.x;
    fwd_ffn_in(r->m, &b->ff, h, n, x);
    for (int64_t t = 0; mu && t < n; t++)
        for (int64_t j = 0; j < d; j++)
            x[t * d + j] += share * mu[j];
    memcpy(out, h, (size_t)(n * d) * sizeof *out);
    if (fwd_act(&b->ff, &r->ff, x, n, r->ff.g, e))
        return -1;
    return fwd_ffn_out(&b->ff, r->ff.g, n, out, e);
}

static double distance(const float *a, const float *b, const float *f, int64_t n, int64_t d)
{
    double sum = 0;
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < d; j++) {
            double v = (double)f[t] * (a[t * d + j] - b[t * d + j]);
            sum += v * v;
        }
    return sum;
}

#define N_SHARES 4
static const float shares[N_SHARES] = { 0, 0.25f, 0.5f, 1 };

int block_dac(struct block *b, const double *mean_diff, float *mu, struct err *e)
{
    struct run *r = b->run;
    const struct calib *c = r->calib;
    int64_t d = r->m->hp.n_embd;
    double cost[N_SHARES] = { 0 }, size = 0;
    for (int64_t j = 0; j < d; j++) {
        mu[j] = (float)mean_diff[j];
        size += mean_diff[j] * mean_diff[j];
    }
    b->out->dac_shift = sqrt(size / (double)d);
    if (!r->o->dac_accept) {
        b->out->dac_share = 1;
        return 1;
    }
    if (held_out(c) == c->n)
        return 0; /* nothing to judge it by */
    struct arena a;
    arena_init(&a);
    float *want = arena_alloc(&a, (size_t)(r->longest * d), sizeof *want);
    float *got = arena_alloc(&a, (size_t)(r->longest * d), sizeof *got);
    float *f = arena_alloc(&a, (size_t)(2 * r->longest), sizeof *f);
    int rc = want && got && f ? 0 : err_nomem(e, "DAC", (size_t)(r->longest * d) * 8);
    for (int64_t i = held_out(c); !rc && i < c->n; i++) {
        int64_t t0 = c->start[i], n = c->start[i + 1] - t0;
        rc = ffn_output(b, r->hf + t0 * d, NULL, 0, n, want, e);
        if (!rc)
            sink_weights(SINKS_SKIP, want, n, d, f, f + r->longest);
        for (int k = 0; !rc && k < N_SHARES; k++) {
            rc = ffn_output(b, r->hq + t0 * d, mu, shares[k], n, got, e);
            if (!rc)
                cost[k] += distance(want, got, f, n, d);
        }
    }
    arena_release(&a);
    if (rc)
        return -1;
    int best = 0;
    for (int k = 1; k < N_SHARES; k++)
        if (cost[k] < cost[best])
            best = k;
    b->out->dac_share = shares[best];
    b->out->dac_gain = cost[0] > 0 ? 1 - cost[best] / cost[0] : 0;
    for (int64_t j = 0; j < d; j++)
        mu[j] *= shares[best];
    return best > 0;
}

int block_dac_bias(struct block *b, const float *mu, struct err *e)
{
    struct model *m = b->run->m;
    int64_t d = m->hp.n_embd;
    float *x = arena_alloc(&b->arena, (size_t)d, sizeof *x);
    if (!x)
        return err_nomem(e, "DAC bias", (size_t)d * sizeof *x);
    for (int64_t j = 0; j < d; j++) /* the codes are those of W / s^c */
        x[j] = b->norm_scale ? mu[j] * b->norm_scale[j] : mu[j];
    for (int role = ROLE_GATE; role <= ROLE_UP; role++) {
        struct linear *l = &b->fq->lin[role];
        int64_t n_out = tensor_rows(&l->w);
        float *bias = arena_alloc(&m->arena, (size_t)n_out, sizeof *bias);
        if (!bias)
            return err_nomem(e, "DAC bias", (size_t)n_out * sizeof *bias);
        if (op_linear(&l->w, l->b, x, 1, bias, 0, e))
            return -1;
        l->b = bias;
    }
    return 0;
}
