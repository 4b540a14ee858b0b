#include "quant/tune.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/linalg.h"
#include "base/num.h"
#include "base/par.h"
#include "model/backward.h"
#include "tensor/block.h"
#include "tensor/half.h"
#include "tensor/pack.h"

#define BETA1 0.9
#define BETA2 0.95
#define HEAD_TOKENS 64         /* rows of logits at a time */
#define CHUNK_FLOATS (1 << 20) /* of dW at a time */
#define CHUNK_ROWS 8           /* of dW, one item of work */

/* A set of factors f = base * exp(theta) and Adam's state. */
struct factors {
    int64_t n;
    float *base, *theta, *grad, *m1, *m2;
    float *best; /* theta of the best pass so far */
};

/* One matrix. Factors are ordered by row; a row has `per_row`: scales of groups (or of `span` groups that share a unit), or d
 * (then m) of each block. */
struct tuned {
    struct tensor *t;
    struct grid g;
    struct factors f;
    int64_t per_row, span;
    bool has_m;
};

struct tune {
    struct run *r;
    struct tuned *lin;       /* (n_layer * ROLE_COUNT), f.n 0: not quantized */
    struct factors *gain;    /* (2 n_layer + 1): attn_norm, ffn_norm of each layer; the last is out_norm */
    float **gain_at;         /* the model's own copies */
    int64_t *gain_n;
    struct bwd b;
    float *h, *dh;           /* (n_layer + 1, longest, n_embd) inputs of all blocks and the output; (longest, n_embd) */
    float *logits, *target;  /* (HEAD_TOKENS, n_vocab) */
    struct model teacher;    /* out_norm and head of the float model */
    int64_t step, steps;
    int64_t layer;           /* of the backward pass */
    struct arena arena;
};

/* ---- factors ------------------------------------------------------------------- */

static int factors_init(struct factors *f, struct arena *a, int64_t n, struct err *e)
{
    f->n = n;
    float **at[] = { &f->base, &f->theta, &f->grad, &f->m1, &f->m2, &f->best };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (!(*at[i] = arena_zalloc(a, (size_t)n, sizeof(float))))
            return err_nomem(e, "tuning", (size_t)n * sizeof(float));
    return 0;
}

static void adam(struct factors *f, double lr, int64_t step)
{
    double c1 = 1 / (1 - pow(BETA1, (double)step)), c2 = 1 / (1 - pow(BETA2, (double)step));
    for (int64_t i = 0; i < f->n; i++) {
        float g = f->grad[i];
        f->m1[i] = (float)(BETA1 * f->m1[i] + (1 - BETA1) * g);
        f->m2[i] = (float)(BETA2 * f->m2[i] + (1 - BETA2) * g * g);
        f->theta[i] -= (float)(lr * c1 * f->m1[i] / (sqrt(c2 * f->m2[i]) + 1e-12));
        f->grad[i] = 0;
    }
}

static uint8_t *row_blocks(const struct tuned *u, int64_t row)
{
    return (uint8_t *)(uintptr_t)u->t->data + (size_t)row * (u->t->size / (size_t)u->t->dim[0]);
}

/* Reads the stored factors into base (store false), or writes base * exp(theta), rounded, where they came from. */
static void move_row(const struct tuned *u, int64_t row, bool store)
{
    float *base = u->f.base + row * u->per_row;
    const float *theta = u->f.theta + row * u->per_row;
    if (u->t->type == DT_QMAT) {
        const struct qmat *q = u->t->q;
        uint16_t *s = q->scale + row * q->n_groups;
        for (int64_t i = 0; i < u->per_row; i++) {
            float old = u->span > 1 ? pack_snap(s + i * u->span, u->span, u->g.sc_max) : half_to_f32(s[i]);
            if (!store) {
                base[i] = old;
                continue;
            }
            float v = base[i] * expf(theta[i]), top = u->span > 1 ? 65504.0f / (float)u->g.sc_max : 65504.0f;
            v = v > top ? top : v;
            v = u->span > 1 ? grid_unit_round(v, u->g.d_bits) : half_round(v);
            for (int64_t k = 0; k < u->span; k++)
                s[i * u->span + k] = half_from_f32(u->span > 1 ? rintf(half_to_f32(s[i * u->span + k]) / old) * v : v);
        }
        return;
    }
    int64_t blocks = u->t->dim[1] / dtype_table[u->t->type].block_len;
    for (int64_t i = 0; i < blocks; i++)
        for (int k = 0; k < (u->has_m ? 2 : 1); k++) {
            uint8_t *at = block_factor(u->t->type, row_blocks(u, row) + i * dtype_table[u->t->type].block_bytes, k);
            float *b = &base[k * blocks + i], v;
            if (!store) {
                *b = half_to_f32(load_u16(at));
                continue;
            }
            v = *b * expf(theta[k * blocks + i]);
            uint16_t half = half_from_f32(v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v);
            at[0] = (uint8_t)half;
            at[1] = (uint8_t)(half >> 8);
        }
}

struct rows_job {
    const struct tuned *u;
    bool store;
};

static void move_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    move_row(j->u, (int64_t)i, j->store);
}

static void move_all(const struct tuned *u, bool store)
{
    struct rows_job j = { u, store };
    par_for((size_t)u->t->dim[0], move_item, &j);
}

static int tuned_init(struct tune *t, struct tuned *u, int64_t layer, enum role role, struct err *e)
{
    struct tensor *w = &t->r->m->layers[layer].lin[role].w;
    memset(u, 0, sizeof *u);
    u->t = w;
    u->span = 1;
    if (w->type != DT_QMAT && dtype_table[w->type].block_len == 1)
        return 0; /* kept in float: stays */
    quant_grid(t->r->o, layer, role, w->dim[1], &u->g);
    if (w->type == DT_QMAT) {
        u->span = u->g.super ? u->g.super / u->g.group : 1;
        u->per_row = w->q->n_groups / u->span;
    } else {
        u->has_m = block_factor(w->type, row_blocks(u, 0), 1) != NULL;
        u->per_row = w->dim[1] / dtype_table[w->type].block_len * (u->has_m ? 2 : 1);
    }
    if (factors_init(&u->f, &t->arena, w->dim[0] * u->per_row, e))
        return -1;
    move_all(u, false);
    return 0;
}

/* ---- gradients of factors ------------------------------------------------------------ */

struct grad_job {
    const struct tuned *u;
    const float *dw; /* (n, n_in): rows row0 .. */
    int64_t row0, n;
    atomic_int failed;
};

/* d loss / d log f = sum over the weights that f scales of dW * (their part that is proportional to f) */
static void grad_row(const struct tuned *u, int64_t row, const float *dw, float *w, uint8_t *copy)
{
    int64_t d = u->t->dim[1], len;
    float *g = u->f.grad + row * u->per_row;
    tensor_rows_f32(u->t, row, 1, w);
    if (u->t->type == DT_QMAT) {
        len = u->t->q->group * u->span;
        for (int64_t i = 0; i < u->per_row; i++) {
            float sum = 0;
            for (int64_t j = i * len; j < d && j < (i + 1) * len; j++)
                sum += dw[j] * w[j];
            g[i] += sum;
        }
        return;
    }
    const struct dtype_info *info = &dtype_table[u->t->type];
    int64_t blocks = d / info->block_len;
    float *wd = w;
    if (u->has_m) { /* the same row with m = 0 */
        wd = w + d;
        memcpy(copy, row_blocks(u, row), (size_t)(blocks * info->block_bytes));
        for (int64_t i = 0; i < blocks; i++)
            memset(block_factor(u->t->type, copy + i * info->block_bytes, 1), 0, 2);
        info->to_f32(copy, wd, d);
    }
    for (int64_t i = 0; i < blocks; i++) {
        float sum = 0, sum_m = 0;
        for (int64_t j = i * info->block_len; j < (i + 1) * info->block_len; j++) {
            sum += dw[j] * wd[j];
            sum_m += dw[j] * (w[j] - wd[j]);
        }
        g[i] += sum;
        if (u->has_m)
            g[blocks + i] += sum_m;
    }
}

static void grad_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    struct grad_job *j = ctx;
    int64_t d = j->u->t->dim[1], r1 = ((int64_t)item + 1) * CHUNK_ROWS;
    float *w = mem_alloc((size_t)(2 * d), sizeof *w);
    uint8_t *copy = mem_alloc((size_t)(2 * d), 1);
    if (!w || !copy)
        atomic_store(&j->failed, 1);
    for (int64_t r = (int64_t)item * CHUNK_ROWS; w && copy && r < r1 && r < j->n; r++)
        grad_row(j->u, j->row0 + r, j->dw + r * d, w, copy);
    mem_free(w);
    mem_free(copy);
}

static int on_weight(void *ud, enum role role, const float *dy, const float *x, int64_t n, struct err *e)
{
    struct tune *t = ud;
    const struct tuned *u = &t->lin[t->layer * ROLE_COUNT + role];
    if (!u->f.n)
        return 0;
    int64_t n_out = u->t->dim[0], d = u->t->dim[1], chunk = CHUNK_FLOATS / d + 1;
    chunk = chunk < n_out ? chunk : n_out;
    float *dw = mem_alloc((size_t)(chunk * d), sizeof *dw);
    if (!dw)
        return err_nomem(e, "gradient", (size_t)(chunk * d) * sizeof *dw);
    int rc = 0;
    for (int64_t r = 0; r < n_out && !rc; r += chunk) {
        int64_t k = n_out - r < chunk ? n_out - r : chunk;
        struct grad_job j = { u, dw, r, k, 0 };
        la_sgemm(1, 0, k, d, n, 1, dy + r, n_out, x, d, 0, dw, d);
        par_for((size_t)ceil_div(k, CHUNK_ROWS), grad_item, &j);
        if (atomic_load(&j.failed))
            rc = err_nomem(e, "gradient", (size_t)d * 12);
    }
    mem_free(dw);
    return rc;
}

/* ---- the loss -------------------------------------------------------------------------- */

struct kl_job {
    float *student, *target; /* logits; student becomes p_student - p_target, times `scale` */
    int64_t n_vocab;
    float scale;
    double *kl; /* one a row */
};

static void kl_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct kl_job *j = ctx;
    const struct cpu_kernels *k = cpu_kernels();
    float *s = j->student + (int64_t)i * j->n_vocab, *t = j->target + (int64_t)i * j->n_vocab, ms, mt;
    double zs = log(k->sum_exp(s, j->n_vocab, &ms)), zt = log(k->sum_exp(t, j->n_vocab, &mt)), kl = 0, shift = ms + zs - mt - zt;
    enum { PART = 1024 };
    float ps[PART], pt[PART];
    for (int64_t v0 = 0; v0 < j->n_vocab; v0 += PART) {
        int64_t n = j->n_vocab - v0 < PART ? j->n_vocab - v0 : PART;
        for (int64_t v = 0; v < n; v++) {
            ps[v] = s[v0 + v] - (float)(ms + zs);
            pt[v] = t[v0 + v] - (float)(mt + zt);
        }
        k->exp(ps, n);
        k->exp(pt, n);
        float part = 0;
        for (int64_t v = 0; v < n; v++) {
            part += pt[v] * (t[v0 + v] - s[v0 + v] + (float)shift);
            s[v0 + v] = (ps[v] - pt[v]) * j->scale;
        }
        kl += part;
    }
    j->kl[i] = kl;
}

/* KL of one sequence whose hidden states after the last block are h; dh (n, n_embd) or NULL: gradient of the mean KL. */
static int head_loss(struct tune *t, const float *h, const float *hf, int64_t n, float *dh, double *sum, struct err *e)
{
    struct model *m = t->r->m;
    int64_t d = m->hp.n_embd;
    double kl[HEAD_TOKENS];
    struct factors *out_gain = &t->gain[2 * m->hp.n_layer];
    for (int64_t t0 = 0; t0 < n; t0 += HEAD_TOKENS) {
        int64_t k = n - t0 < HEAD_TOKENS ? n - t0 : HEAD_TOKENS;
        /* cppcheck-suppress legacyUninitvar ; filled by the job */
        struct kl_job j = { t->logits, t->target, m->hp.n_vocab, 1.0f / (float)n, kl };
        if (fwd_logits(&t->teacher, hf + t0 * d, k, t->b.dx, t->target, e) || fwd_logits(m, h + t0 * d, k, t->b.dx, t->logits, e))
            return -1;
        par_for((size_t)k, kl_item, &j);
        for (int64_t i = 0; i < k; i++)
            *sum += kl[i];
        if (!dh)
            continue;
        if (bwd_linear(&m->lm_head, t->logits, k, t->b.dx, false, e) ||
            bwd_rmsnorm(h + t0 * d, m->out_norm, t->b.dx, k, d, m->hp.rms_eps, dh + t0 * d, false, out_gain->grad, e))
            return -1;
    }
    return 0;
}

/* Forward, and with `learn` backward: gradients are added to. *sum += KL over its tokens. */
static int sequence(struct tune *t, int64_t index, bool learn, double *sum, struct err *e)
{
    struct run *r = t->r;
    struct model *m = r->m;
    int64_t d = m->hp.n_embd, t0 = r->calib->start[index], n = r->calib->start[index + 1] - t0, L = m->hp.n_layer;
    int64_t stride = r->longest * d;
    if (fwd_embed(m, r->calib->ids + t0, n, t->h, e))
        return -1;
    for (int64_t l = 0; l < L; l++) {
        float *next = t->h + (l + 1) * stride;
        memcpy(next, t->h + l * stride, (size_t)(n * d) * sizeof *next);
        if (fwd_block(m, &m->layers[l], &t->b.f, next, n, e))
            return -1;
    }
    if (head_loss(t, t->h + L * stride, r->hf + t0 * d, n, learn ? t->dh : NULL, sum, e))
        return -1;
    for (int64_t l = L - 1; learn && l >= 0; l--) {
        struct bwd_sink sink = { t, on_weight, t->gain[2 * l].grad, t->gain[2 * l + 1].grad };
        t->layer = l;
        if (bwd_forward(m, &m->layers[l], &t->b, t->h + l * stride, n, e) ||
            bwd_block(m, &m->layers[l], &t->b, t->h + l * stride, n, t->dh, &sink, e))
            return -1;
    }
    return 0;
}

/* ---- steps --------------------------------------------------------------------------------- */

static void store_gain(const struct tune *t, int64_t i)
{
    const struct factors *f = &t->gain[i];
    for (int64_t k = 0; k < f->n; k++) {
        float v = f->base[k] * expf(f->theta[k]);
        t->gain_at[i][k] = t->r->o->kept == DT_F16 ? half_round(v) : v;
    }
}

static void store_all(struct tune *t)
{
    const struct hparams *hp = &t->r->m->hp;
    for (int64_t i = 0; i < hp->n_layer * ROLE_COUNT; i++)
        if (t->lin[i].f.n)
            move_all(&t->lin[i], true);
    for (int64_t i = 0; i < 2 * hp->n_layer + 1; i++)
        store_gain(t, i);
}

/* A gain's gradient comes as d loss / d gain: times the gain it is that of its logarithm. */
static void update(struct tune *t)
{
    const struct hparams *hp = &t->r->m->hp;
    t->step++;
    double at = (double)t->step / (double)t->steps, lr = t->r->o->tune_lr * 0.5 * (1 + cos(3.14159265358979 * (at - 1.0 / (double)t->steps)));
    for (int64_t i = 0; i < 2 * hp->n_layer + 1; i++) {
        for (int64_t k = 0; k < t->gain[i].n; k++)
            t->gain[i].grad[k] *= t->gain_at[i][k];
        adam(&t->gain[i], lr, t->step);
    }
    for (int64_t i = 0; i < hp->n_layer * ROLE_COUNT; i++)
        adam(&t->lin[i].f, lr, t->step);
    store_all(t);
}

static void swap_best(struct tune *t, bool save)
{
    const struct hparams *hp = &t->r->m->hp;
    int64_t n_lin = hp->n_layer * ROLE_COUNT;
    for (int64_t i = 0; i < n_lin + 2 * hp->n_layer + 1; i++) {
        struct factors *f = i < n_lin ? &t->lin[i].f : &t->gain[i - n_lin];
        memcpy(save ? f->best : f->theta, save ? f->theta : f->best, (size_t)f->n * sizeof(float));
    }
}

/* Mean KL over the held-out sequences; with only one sequence, over that. */
static int held_out_kl(struct tune *t, double *kl, struct err *e)
{
    const struct calib *c = t->r->calib;
    double sum = 0;
    int64_t first = held_out(c) < c->n ? held_out(c) : 0;
    for (int64_t i = first; i < c->n; i++)
        if (sequence(t, i, false, &sum, e))
            return -1;
    *kl = sum / (double)(c->start[c->n] - c->start[first]);
    return 0;
}

static int passes(struct tune *t, struct err *e)
{
    struct run *r = t->r;
    struct quant_result *res = r->res;
    int64_t train = held_out(r->calib);
    double best, kl, sum;
    if (held_out_kl(t, &best, e))
        return -1;
    res->tune_before = best;
    t->steps = train * r->o->tune;
    for (int pass = 0; pass < r->o->tune; pass++) {
        sum = 0;
        for (int64_t i = 0; i < train; i++) {
            char step[48];
            snprintf(step, sizeof step, "tuning, pass %d of %d", pass + 1, r->o->tune);
            if (sequence(t, i, true, &sum, e) || log_progress(r->log, step, (double)(t->step + 1), (double)t->steps, e))
                return -1;
            update(t);
        }
        if (held_out_kl(t, &kl, e))
            return -1;
        log_info(r->log, "tuning, pass %d: KL divergence %.4f while learning, %.4f held out (before: %.4f)", pass + 1,
                 sum / (double)r->calib->start[train], kl, res->tune_before);
        if (kl < best) {
            best = kl;
            swap_best(t, true);
        }
    }
    res->tune_after = best;
    swap_best(t, false);
    store_all(t);
    return 0;
}

/* ---- setting up ------------------------------------------------------------------------------- */

static int own_gain(struct tune *t, int64_t i, const float **at, int64_t n, struct err *e)
{
    float *own = arena_alloc(&t->r->m->arena, (size_t)n, sizeof *own);
    if (!own || factors_init(&t->gain[i], &t->arena, n, e))
        return own ? -1 : err_nomem(e, "tuning", (size_t)n * sizeof *own);
    memcpy(own, *at, (size_t)n * sizeof *own);
    memcpy(t->gain[i].base, own, (size_t)n * sizeof *own);
    *at = t->gain_at[i] = own;
    return 0;
}

static int setup(struct tune *t, struct err *e)
{
    struct run *r = t->r;
    struct model *m = r->m;
    int64_t L = m->hp.n_layer, d = m->hp.n_embd;
    struct arena *a = &t->arena;
    t->lin = arena_zalloc(a, (size_t)(L * ROLE_COUNT), sizeof *t->lin);
    t->gain = arena_zalloc(a, (size_t)(2 * L + 1), sizeof *t->gain);
    t->gain_at = arena_zalloc(a, (size_t)(2 * L + 1), sizeof *t->gain_at);
    t->h = arena_alloc(a, (size_t)((L + 1) * r->longest), (size_t)d * sizeof(float));
    t->dh = arena_alloc(a, (size_t)r->longest, (size_t)d * sizeof(float));
    t->logits = arena_alloc(a, HEAD_TOKENS, (size_t)m->hp.n_vocab * sizeof(float));
    t->target = arena_alloc(a, HEAD_TOKENS, (size_t)m->hp.n_vocab * sizeof(float));
    if (!t->lin || !t->gain || !t->gain_at || !t->h || !t->dh || !t->logits || !t->target)
        return err_nomem(e, "tuning", (size_t)((L + 2) * r->longest * d) * sizeof(float));
    for (int64_t i = 0; i < L * ROLE_COUNT; i++)
        if (tuned_init(t, &t->lin[i], i / ROLE_COUNT, (enum role)(i % ROLE_COUNT), e))
            return -1;
    for (int64_t l = 0; l < L; l++)
        if (own_gain(t, 2 * l, &m->layers[l].attn_norm, d, e) || own_gain(t, 2 * l + 1, &m->layers[l].ffn_norm, d, e))
            return -1;
    t->teacher = *m;
    t->teacher.out_norm = r->float_norm;
    t->teacher.lm_head = r->float_head;
    return own_gain(t, 2 * L, &m->out_norm, d, e) || bwd_init(&t->b, &m->hp, r->longest > HEAD_TOKENS ? r->longest : HEAD_TOKENS, e);
}

uint64_t tune_bytes(const struct model *m, const struct quant_options *o, int64_t longest)
{
    const struct hparams *hp = &m->hp;
    uint64_t factors = 0, floats = (uint64_t)((hp->n_layer + 2) * longest * hp->n_embd) + 2 * HEAD_TOKENS * (uint64_t)hp->n_vocab;
    for (int64_t i = 0; i < hp->n_layer * ROLE_COUNT; i++) {
        enum role role = (enum role)(i % ROLE_COUNT);
        struct grid g;
        quant_grid(o, i / ROLE_COUNT, role, role_cols(hp, role), &g);
        int64_t len = g.super ? g.super : g.group;
        factors += (uint64_t)(role_rows(hp, role) * ceil_div(role_cols(hp, role), len) * (g.kind == KIND_TWO_AFFINE || g.kind == KIND_AFFINE ? 2 : 1));
    }
    return (floats + 6 * factors) * sizeof(float) + bwd_bytes(hp, longest);
}

int tune_scales(struct run *r, struct err *e)
{
    struct tune t = { .r = r };
    double t0 = log_now();
    arena_init(&t.arena);
    int rc = setup(&t, e) || passes(&t, e) ? -1 : 0;
    bwd_release(&t.b);
    arena_release(&t.arena);
    r->res->seconds_tune = log_now() - t0;
    return rc;
}
