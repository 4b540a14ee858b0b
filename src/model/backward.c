#include "model/backward.h"

#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/linalg.h"
#include "base/num.h"
#include "base/par.h"

#define CHUNK_FLOATS (2 << 20) /* unpacked weights at a time */
#define ACT 4096               /* elements of one item of silu */
#define TOKENS 16              /* of one item of elementwise work */

/* ---- pieces -------------------------------------------------------------------- */

struct unpack_job {
    const struct tensor *w;
    int64_t row0, n;
    float *dst;
};

static void unpack_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct unpack_job *j = ctx;
    int64_t first = (int64_t)i * 16;
    tensor_rows_f32(j->w, j->row0 + first, min_i64(16, j->n - first), j->dst + first * tensor_cols(j->w));
}

int bwd_linear(const struct tensor *w, const float *dy, int64_t n, float *dx, bool accumulate, struct err *e)
{
    int64_t n_out = tensor_rows(w), n_in = tensor_cols(w), chunk = CHUNK_FLOATS / n_in + 1;
    chunk = min_i64(chunk, n_out);
    float *rows = mem_alloc((size_t)(chunk * n_in), sizeof *rows);
    if (!rows)
        return err_nomem(e, w->name, (size_t)(chunk * n_in) * sizeof *rows);
    for (int64_t r = 0; r < n_out; r += chunk) {
        int64_t k = min_i64(chunk, n_out - r);
        struct unpack_job j = { w, r, k, rows };
        par_for((size_t)((k + 15) / 16), unpack_item, &j);
        la_sgemm(0, 0, n, n_in, k, 1, dy + r, n_out, rows, n_in, r || accumulate ? 1.0f : 0.0f, dx, n_in);
    }
    mem_free(rows);
    return 0;
}

struct norm_job {
    const float *x, *gain, *dy;
    int64_t n, dim;
    float eps, *dx, *part; /* part (items, dim) or NULL */
    bool accumulate;
};

static void norm_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct norm_job *j = ctx;
    int64_t d = j->dim, t1 = min_i64(((int64_t)item + 1) * TOKENS, j->n);
    float *part = j->part ? j->part + (int64_t)item * d : NULL;
    for (int64_t t = (int64_t)item * TOKENS; t < t1; t++) {
        const float *x = j->x + t * d, *dy = j->dy + t * d;
        float *dx = j->dx + t * d;
        double ss = 0, dot = 0;
        for (int64_t i = 0; i < d; i++) {
            ss += (double)x[i] * x[i];
            dot += (double)dy[i] * j->gain[i] * x[i];
        }
        float r = (float)(1 / sqrt(ss / (double)d + j->eps)), c = (float)(dot / (double)d) * r * r * r;
        for (int64_t i = 0; i < d; i++) {
            float v = r * dy[i] * j->gain[i] - c * x[i];
            if (part)
                part[i] += dy[i] * x[i] * r;
            dx[i] = j->accumulate ? dx[i] + v : v;
        }
    }
}

int bwd_rmsnorm(const float *x, const float *gain, const float *dy, int64_t n, int64_t dim, float eps, float *dx,
                bool accumulate, float *dgain, struct err *e)
{
    size_t items = (size_t)((n + TOKENS - 1) / TOKENS);
    struct norm_job j = { x, gain, dy, n, dim, eps, dx, NULL, accumulate };
    if (dgain && !(j.part = mem_zalloc(items * (size_t)dim, sizeof *j.part)))
        return err_nomem(e, "gradient of a norm", items * (size_t)dim * sizeof *j.part);
    par_for(items, norm_item, &j);
    for (size_t i = 0; dgain && i < items; i++) /* in order: the sum does not depend on threads */
        for (int64_t k = 0; k < dim; k++)
            dgain[k] += j.part[i * (size_t)dim + (size_t)k];
    mem_free(j.part);
    return 0;
}

/* ---- attention ------------------------------------------------------------------- */

struct attention_job {
    const struct hparams *hp;
    const struct bwd *b;
    int64_t n;
    float *scratch; /* two (n, n) for each worker */
};

/* p (n, n) := softmax of the causal scores of query head h */
static void probabilities(const struct attention_job *j, int64_t h, int64_t kv, float *p)
{
    const struct hparams *hp = j->hp;
    int64_t n = j->n, hd = hp->head_dim, ldq = hp->n_head * hd, ldk = hp->n_head_kv * hd;
    float scale = (float)(1 / sqrt((double)hd));
    la_sgemm_tile(0, 1, n, n, hd, scale, j->b->f.q + h * hd, ldq, j->b->f.k + kv * hd, ldk, 0, p, n);
    for (int64_t t = 0; t < n; t++) {
        float *row = p + t * n;
        int64_t first = hp->window && t >= hp->window ? t - hp->window + 1 : 0;
        cpu_kernels()->softmax(row + first, t + 1 - first, 1);
        memset(row, 0, (size_t)first * sizeof *row);
        memset(row + t + 1, 0, (size_t)(n - t - 1) * sizeof *row);
    }
}

/* One head of keys and values with the query heads that share it. */
static void attention_item(void *ctx, size_t kv, int worker)
{
    const struct attention_job *j = ctx;
    const struct hparams *hp = j->hp;
    const struct bwd *b = j->b;
    int64_t n = j->n, hd = hp->head_dim, ldq = hp->n_head * hd, ldk = hp->n_head_kv * hd, per = hp->n_head / hp->n_head_kv;
    float *p = j->scratch + (int64_t)worker * 2 * n * n, *dp = p + n * n, scale = (float)(1 / sqrt((double)hd));
    for (int64_t i = 0; i < per; i++) {
        int64_t h = (int64_t)kv * per + i;
        float beta = i ? 1.0f : 0.0f;
        probabilities(j, h, (int64_t)kv, p);
        la_sgemm_tile(1, 0, n, hd, n, 1, p, n, b->da + h * hd, ldq, beta, b->dv + (int64_t)kv * hd, ldk);
        la_sgemm_tile(0, 1, n, n, hd, 1, b->da + h * hd, ldq, b->f.v + (int64_t)kv * hd, ldk, 0, dp, n);
        for (int64_t t = 0; t < n; t++) {
            float dot = 0;
            for (int64_t s = 0; s <= t; s++)
                dot += p[t * n + s] * dp[t * n + s];
            for (int64_t s = 0; s < n; s++)
                dp[t * n + s] = p[t * n + s] * (dp[t * n + s] - dot);
        }
        la_sgemm_tile(0, 0, n, hd, n, scale, dp, n, b->f.k + (int64_t)kv * hd, ldk, 0, b->dq + h * hd, ldq);
        la_sgemm_tile(1, 0, n, hd, n, scale, dp, n, b->f.q + h * hd, ldq, beta, b->dk + (int64_t)kv * hd, ldk);
    }
}

static int attention(const struct model *m, const struct layer *l, struct bwd *b, int64_t n, struct err *e)
{
    const struct hparams *hp = &m->hp;
    size_t scratch = (size_t)par_threads() * 2 * (size_t)(n * n);
    struct attention_job j = { hp, b, n, mem_alloc(scratch, sizeof(float)) };
    if (!j.scratch)
        return err_nomem(e, "gradient of attention", scratch * sizeof(float));
    par_for((size_t)hp->n_head_kv, attention_item, &j);
    mem_free(j.scratch);
    /* rope is a rotation (times attn_scale): its gradient turns the other way */
    for (int64_t t = 0; t < n; t++)
        b->f.pos[t] = -(int32_t)t;
    op_rope(b->dq, n, hp->n_head, hp->head_dim, b->f.pos, m->inv_freq, m->rope_attn_scale);
    op_rope(b->dk, n, hp->n_head_kv, hp->head_dim, b->f.pos, m->inv_freq, m->rope_attn_scale);
    for (int64_t t = 0; t < n; t++)
        b->f.pos[t] = (int32_t)t;
    if ((l->q_norm && bwd_rmsnorm(b->q0, l->q_norm, b->dq, n * hp->n_head, hp->head_dim, hp->rms_eps, b->dq, false, NULL, e)) ||
        (l->k_norm && bwd_rmsnorm(b->k0, l->k_norm, b->dk, n * hp->n_head_kv, hp->head_dim, hp->rms_eps, b->dk, false, NULL, e)))
        return -1;
    return 0;
}

/* ---- the block --------------------------------------------------------------------- */

struct act_job {
    float *g, *dg, *du; /* gate's output; in: gradient of the product, out: of gate's output; out: of up's */
    const float *u;
    int64_t n;
};

static void act_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct act_job *j = ctx;
    int64_t i0 = (int64_t)item * ACT, n = min_i64(ACT, j->n - i0);
    float e[ACT];
    for (int64_t i = 0; i < n; i++)
        e[i] = -j->g[i0 + i];
    cpu_kernels()->exp(e, n);
    for (int64_t i = 0; i < n; i++) {
        float g = j->g[i0 + i], s = 1 / (1 + e[i]), d = j->dg[i0 + i];
        j->du[i0 + i] = d * g * s;
        j->dg[i0 + i] = d * j->u[i0 + i] * s * (1 + g * (1 - s));
    }
}

static int64_t bwd_floats(const struct hparams *hp)
{
    int64_t q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    return 3 * hp->n_embd + 3 * hp->n_ff + 2 * q + 2 * kv + (hp->qk_norm ? q + kv : 0);
}

int bwd_init(struct bwd *b, const struct hparams *hp, int64_t n_tok, struct err *e)
{
    int64_t q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim, qk = hp->qk_norm ? 1 : 0;
    const struct { float **at; int64_t width; } parts[] = {
        { &b->x2, hp->n_embd }, { &b->gate, hp->n_ff }, { &b->h1, hp->n_embd }, { &b->q0, qk * q }, { &b->k0, qk * kv },
        { &b->dg, hp->n_ff }, { &b->du, hp->n_ff }, { &b->dx, hp->n_embd }, { &b->da, q }, { &b->dq, q }, { &b->dk, kv },
        { &b->dv, kv },
    };
    memset(b, 0, sizeof *b);
    arena_init(&b->arena);
    if (fwd_init(&b->f, hp, n_tok, e))
        return -1;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].width && !(*parts[i].at = arena_alloc(&b->arena, (size_t)n_tok, (size_t)parts[i].width * sizeof(float)))) {
            bwd_release(b);
            return err_nomem(e, "gradient scratch", (size_t)bwd_bytes(hp, n_tok));
        }
    return 0;
}

void bwd_release(struct bwd *b)
{
    fwd_release(&b->f);
    arena_release(&b->arena);
    memset(b, 0, sizeof *b);
}

uint64_t bwd_bytes(const struct hparams *hp, int64_t n_tok)
{
    return fwd_bytes(hp, n_tok) + (uint64_t)(n_tok * bwd_floats(hp)) * sizeof(float) +
           (uint64_t)par_threads() * 2 * (uint64_t)(n_tok * n_tok) * sizeof(float);
}

int bwd_forward(const struct model *m, const struct layer *l, struct bwd *b, const float *h, int64_t n, struct err *e)
{
    const struct hparams *hp = &m->hp;
    struct fwd *f = &b->f;
    fwd_attn_in(m, l, h, n, f->x);
    if (b->q0 && (op_linear(&l->lin[ROLE_Q].w, l->lin[ROLE_Q].b, f->x, n, b->q0, 0, e) ||
                  op_linear(&l->lin[ROLE_K].w, l->lin[ROLE_K].b, f->x, n, b->k0, 0, e)))
        return -1;
    memcpy(b->h1, h, (size_t)(n * hp->n_embd) * sizeof *h);
    if (fwd_attn(m, l, f, f->x, n, f->a, e) || fwd_attn_out(l, f->a, n, b->h1, e))
        return -1;
    fwd_ffn_in(m, l, b->h1, n, b->x2);
    if (fwd_act(l, f, b->x2, n, f->g, e) || op_linear(&l->lin[ROLE_GATE].w, l->lin[ROLE_GATE].b, b->x2, n, b->gate, 0, e))
        return -1;
    return 0;
}

int bwd_block(const struct model *m, const struct layer *l, struct bwd *b, const float *h, int64_t n, float *dh,
              const struct bwd_sink *sink, struct err *e)
{
    const struct hparams *hp = &m->hp;
    const struct linear *lin = l->lin;
    struct act_job act = { b->gate, b->dg, b->du, b->f.u, n * hp->n_ff };
    if (sink->weight(sink->ud, ROLE_DOWN, dh, b->f.g, n, e) || bwd_linear(&lin[ROLE_DOWN].w, dh, n, b->dg, false, e))
        return -1;
    par_for((size_t)((act.n + ACT - 1) / ACT), act_item, &act);
    if (sink->weight(sink->ud, ROLE_GATE, b->dg, b->x2, n, e) || sink->weight(sink->ud, ROLE_UP, b->du, b->x2, n, e) ||
        bwd_linear(&lin[ROLE_GATE].w, b->dg, n, b->dx, false, e) || bwd_linear(&lin[ROLE_UP].w, b->du, n, b->dx, true, e) ||
        bwd_rmsnorm(b->h1, l->ffn_norm, b->dx, n, hp->n_embd, hp->rms_eps, dh, true, sink->ffn_gain, e))
        return -1;
    if (sink->weight(sink->ud, ROLE_O, dh, b->f.a, n, e) || bwd_linear(&lin[ROLE_O].w, dh, n, b->da, false, e) ||
        attention(m, l, b, n, e))
        return -1;
    const float *d[3] = { b->dq, b->dk, b->dv };
    for (int i = 0; i < 3; i++)
        if (sink->weight(sink->ud, (enum role)(ROLE_Q + i), d[i], b->f.x, n, e) ||
            bwd_linear(&lin[ROLE_Q + i].w, d[i], n, b->dx, i > 0, e))
            return -1;
    return bwd_rmsnorm(h, l->attn_norm, b->dx, n, hp->n_embd, hp->rms_eps, dh, true, sink->attn_gain, e);
}
