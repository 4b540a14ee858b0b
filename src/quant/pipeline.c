/* pipeline: quantize_model, block by block. Invariants:
 *   - at the start of block l, hq and hf are the hidden states of all calibration tokens at its input, through the
 *     quantized and the float blocks before it (with DAC_BLOCK hf begins every block as hq);
 *   - every stage of a block is computed once per path, but down's input on the quantized path: that of o waits in `mid` until o is
 *     quantized; down's, the widest there is, is computed again, from up_proj with DSQ's scales merged as it is stored (and o's where v has
 *     scales of DSQ merged);
 *   - the float path is skipped where the method needs none. */
#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "base/num.h"
#include "quant/tune.h"
#include "quant/work.h"
#include "tensor/half.h"

/* ---- what is not quantized: rounded once, before anything is computed ---- */

static int round_vector(struct model *m, const float **v, int64_t n, struct err *e)
{
    if (!*v)
        return 0;
    float *p = arena_alloc(&m->arena, (size_t)n, sizeof *p);
    if (!p)
        return err_nomem(e, "rounded vector", (size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = half_round((*v)[i]);
    int64_t bad = op_find_bad(p, n);
    if (bad >= 0)
        return err_set(e, ERR_NUMERIC, "a norm or bias has %g, which is beyond the range of fp16, in which this format stores it; write gguf",
                       (double)(*v)[bad]);
    *v = p;
    return 0;
}

#define TABLE_ROWS 1024

static int64_t n_rows(const struct tensor *t, int64_t i)
{
    return min_i64(TABLE_ROWS, tensor_rows(t) - i);
}

/* (TABLE_ROWS, cols), or NULL and e. */
static float *row_buffer(const struct tensor *t, struct err *e)
{
    size_t n = (size_t)(TABLE_ROWS * tensor_cols(t));
    float *w = mem_alloc(n, sizeof *w);
    if (!w)
        err_nomem(e, t->name, n * sizeof *w);
    return w;
}

/* n_rows of t from the i-th, which then leave memory, as does with --work DIR what was made of those before them: a table and its copy
 * are never there whole. */
static void take_rows(const struct model *m, const struct tensor *t, int64_t i, float *w)
{
    tensor_rows_f32(t, i, n_rows(t, i), w);
    checkpoint_forget_rows(m->ck, t, i, n_rows(t, i));
    arena_forget(&m->arena);
}

/* t's values, rounded to nearest on the blocks of g or to its float type. */
static int requantize(struct model *m, struct tensor *t, const struct grid *g, struct err *e)
{
    struct quant_options o = { .search = SEARCH_MSE };
    struct tensor out, part;
    int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    float *w = row_buffer(t, e);
    int rc = !w || grid_alloc(g, &m->arena, t->name, rows, cols, &out, e) ? -1 : 0;
    size_t row_bytes = rc ? 0 : out.size / (size_t)(rows ? rows : 1);
    for (int64_t i = 0; i < rows && !rc; i += TABLE_ROWS) {
        part = out;
        part.dim[0] = n_rows(t, i);
        part.data = (const uint8_t *)out.data + (size_t)i * row_bytes;
        part.size = (size_t)part.dim[0] * row_bytes;
        struct solve_in in = { .name = t->name, .w = w, .n_out = part.dim[0], .n_in = cols, .grid = g };
        take_rows(m, t, i, w);
        rc = g->kind != KIND_FLOAT ? solve(&in, &o, &part, e)
                                   : grid_round_floats(g, w, part.dim[0] * cols, cols, i * cols, t->name,
                                                       (void *)(uintptr_t)part.data, e);
    }
    mem_free(w);
    if (!rc)
        *t = out;
    return rc;
}

static int round_matrix(struct model *m, struct tensor *t, struct err *e)
{
    struct grid g;
    grid_init(&g, GRID_f16, 0, 0, 0, tensor_cols(t));
    return t->type == DT_F16 ? 0 : requantize(m, t, &g, e);
}

/* What the user asked for it; else what `kept` and `kept_packed` say. */
static int round_embedding(struct model *m, const struct quant_options *o, struct tensor *t, const char *name, struct err *e)
{
    struct grid g;
    if (quant_grid_kept(o, name, tensor_cols(t), &g))
        return requantize(m, t, &g, e);
    return o->kept == DT_F16 || (o->kept_packed && t->type == DT_F32) ? round_matrix(m, t, e) : 0;
}

static int round_embeddings(struct model *m, const struct quant_options *o, struct err *e)
{
    bool shared = m->lm_head.data == m->tok_embd.data;
    struct grid g;
    bool by_head = shared && quant_grid_kept(o, "lm_head", m->hp.n_embd, &g);
    if (round_embedding(m, o, &m->tok_embd, by_head ? "lm_head" : "model.embed_tokens", e))
        return -1;
    if (shared)
        m->lm_head = m->tok_embd;
    else if (round_embedding(m, o, &m->lm_head, "lm_head", e))
        return -1;
    return 0;
}

static int round_kept(struct model *m, const struct quant_options *o, struct err *e)
{
    const struct hparams *hp = &m->hp;
    if (round_embeddings(m, o, e) || round_vector(m, &m->out_norm, hp->n_embd, e))
        return -1;
    for (int64_t i = 0; i < hp->n_layer; i++) {
        struct layer *l = &m->layers[i];
        if (round_vector(m, &l->attn_norm, hp->n_embd, e) || round_vector(m, &l->ffn_norm, hp->n_embd, e) ||
            round_vector(m, &l->q_norm, hp->head_dim, e) || round_vector(m, &l->k_norm, hp->head_dim, e))
            return -1;
        for (int r = 0; r < ROLE_COUNT; r++)
            if (round_vector(m, &l->lin[r].b, tensor_rows(&l->lin[r].w), e))
                return -1;
    }
    return 0;
}

/* ---- before the work: is every weight a number? ---------------------------- */

static int bad_value(const char *name, int64_t at, int64_t cols, struct err *e)
{
    return err_set(e, ERR_NUMERIC, "tensor %s: NaN or Inf at row %lld, column %lld", name, (long long)(at / cols), (long long)(at % cols));
}

static int check_matrix(const struct model *m, const struct tensor *t, struct err *e)
{
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), bad = -1;
    float *w = row_buffer(t, e);
    if (!w)
        return -1;
    for (int64_t i = 0; bad < 0 && i < rows; i += TABLE_ROWS) {
        take_rows(m, t, i, w);
        bad = op_find_bad(w, n_rows(t, i) * cols);
        bad += bad < 0 ? 0 : i * cols;
    }
    mem_free(w);
    return bad < 0 ? 0 : bad_value(t->name, bad, cols, e);
}

static int check_vector(const char *what, int64_t layer, const float *v, int64_t n, struct err *e)
{
    int64_t bad = v ? op_find_bad(v, n) : -1;
    return bad < 0 ? 0 : err_set(e, ERR_NUMERIC, "block %lld: NaN or Inf in value %lld of %s", (long long)layer, (long long)bad, what);
}

static int check_tables(const struct model *m, struct err *e)
{
    return check_matrix(m, &m->tok_embd, e) || (!m->hp.tied && check_matrix(m, &m->lm_head, e)) ? -1 : 0;
}

int quant_check_model(const struct model *m, const struct quant_options *o, struct err *e)
{
    static const char *const tables[] = { "model.embed_tokens", "lm_head" };
    struct grid g;
    if (model_whole(m, e) || quant_keep_check(o, m->hp.n_layer, e))
        return -1;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *w = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        if (w->type == DT_QMAT)
            return err_set(e, ERR_USAGE, "%s: already quantized; start from a float model", w->name);
    }
    for (int i = 0; i < 2; i++)
        if (quant_grid_kept(o, tables[i], m->hp.n_embd, &g) && g.type == DT_QMAT)
            return err_set(e, ERR_USAGE, "%s: expected a type of GGUF (q6_k, q8_0, f16 ...), found grid %s", tables[i],
                           grid_table[g.id].name);
    return 0;
}

static int check_weights(const struct model *m, struct err *e)
{
    const struct hparams *hp = &m->hp;
    if (check_tables(m, e) || check_vector("the last norm", hp->n_layer, m->out_norm, hp->n_embd, e))
        return -1;
    for (int64_t i = 0; i < hp->n_layer; i++) {
        const struct layer *l = &m->layers[i];
        if (check_vector("the norm before attention", i, l->attn_norm, hp->n_embd, e) ||
            check_vector("the norm after attention", i, l->ffn_norm, hp->n_embd, e) ||
            check_vector("q_norm", i, l->q_norm, hp->head_dim, e) || check_vector("k_norm", i, l->k_norm, hp->head_dim, e))
            return -1;
        for (int k = 0; k < ROLE_COUNT; k++)
            if (check_matrix(m, &l->lin[k].w, e) || check_vector(role_hf_name[k], i, l->lin[k].b, tensor_rows(&l->lin[k].w), e))
                return -1;
    }
    return 0;
}

int quant_check_weights(const struct model *m, struct err *e)
{
    int rc = check_weights(m, e);
    return rc && m->ck ? err_prefix(e, "%s", m->ck->path) : rc;
}

/* The source's pages of a matrix are not needed again (but by tuning, which reads them again). */
static void forget_source(const struct run *r, const struct tensor *t)
{
    checkpoint_forget_rows(r->m->ck, t, 0, tensor_rows(t));
}

/* ---- one block ------------------------------------------------------------- */

static int block_open(struct block *b, struct run *r, int64_t index, struct err *e)
{
    memset(b, 0, sizeof *b);
    arena_init(&b->arena);
    b->run = r;
    b->index = index;
    b->fq = &r->m->layers[index];
    b->ff = *b->fq;
    b->out = &r->res->blocks[index];
    for (int i = 0; i < ROLE_COUNT; i++) {
        struct tensor *w = &b->ff.lin[i].w;
        int64_t rows = tensor_rows(w), cols = tensor_cols(w);
        if (w->type != DT_F32 || w->perm_dim || r->o->rotate) {
            float *p = arena_alloc(&b->arena, (size_t)(rows * cols), sizeof *p);
            if (!p)
                return err_nomem(e, w->name, (size_t)(rows * cols) * sizeof *p);
            tensor_to_f32(w, p);
            *w = tensor_f32(w->name, p, rows, cols);
        }
        int64_t bad = op_find_bad(w->data, rows * cols);
        if (bad >= 0)
            return bad_value(w->name, bad, cols, e);
    }
    if (r->o->rotate) {
        if (rotator_layer(&r->rot, r->m, index, &b->ff, &b->arena, e))
            return -1;
        for (int i = 0; i < ROLE_COUNT; i++)
            if (b->ff.lin[i].b && !(b->fq->lin[i].b = block_keep_vector(r, b->ff.lin[i].b, tensor_rows(&b->ff.lin[i].w))))
                return err_nomem(e, "rotated bias", (size_t)tensor_rows(&b->ff.lin[i].w) * sizeof(float));
    }
    return 0;
}

static int tick(struct block *b, const char *stage, int tensors_done, int64_t seq, struct err *e)
{
    struct run *r = b->run;
    char step[64];
    snprintf(step, sizeof step, "block %lld/%lld %s", (long long)b->index + 1, (long long)r->m->hp.n_layer, stage);
    double part = r->calib ? (double)seq / (double)r->calib->n : 0;
    return log_progress(r->log, step, (double)(b->index * 4 + tensors_done) + part,
                        (double)(r->m->hp.n_layer * 4), e);
}

struct seq {
    int64_t t0, n;
    float *hq, *hf; /* this sequence's rows */
};

static struct seq seq_at(const struct run *r, int64_t i)
{
    int64_t t0 = r->calib->start[i], d = r->m->hp.n_embd;
    return (struct seq){ t0, r->calib->start[i + 1] - t0, r->hq + t0 * d, r->hf ? r->hf + t0 * d : NULL };
}

/* For a matrix that reads what a norm gives: D serves all that share the input, and DAC besides. */
static int norm_stats(struct block *b, struct stats *st, struct err *e)
{
    const struct run *r = b->run;
    return stats_init(st, r->m->hp.n_embd, r->use_float ? PATH_D : PATH_NONE, NULL, r->o->sinks, e);
}

/* For one that writes to the residual stream. */
static int residual_stats(struct block *b, enum role role, struct stats *st, struct err *e)
{
    const struct quant_options *o = b->run->o;
    const struct tensor *w = &b->ff.lin[role].w;
    struct stats_target to = { w->data, w->dim[0], o->alpha, o->beta };
    enum stats_path path = block_propagates(b->run) ? PATH_T : b->run->use_float && o->method == METHOD_gptaq ? PATH_D : PATH_NONE;
    return stats_init(st, w->dim[1], path, path == PATH_T ? &to : NULL, o->sinks, e);
}

static int stage_qkv(struct block *b, struct err *e)
{
    struct run *r = b->run;
    struct stats st;
    struct boa boa;
    double t0 = log_now();
    if (norm_stats(b, &st, e))
        return -1;
    int rc = 0;
    if (r->o->method == METHOD_boa) {
        rc = boa_init(&boa, &r->m->hp, e);
        b->boa = rc ? NULL : &boa;
    }
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        fwd_attn_in(r->m, &b->ff, s.hq, s.n, r->fq.x);
        if (s.hf)
            fwd_attn_in(r->m, &b->ff, s.hf, s.n, r->ff.x);
        rc = (i < r->n_fit && (stats_add(&st, r->fq.x, s.hf ? r->ff.x : NULL, NULL, NULL, s.n, e) ||
                               (b->boa && boa_add(b->boa, r->m, &b->ff, &r->fq, r->fq.x, s.n, e)))) || tick(b, "q,k,v", 0, i, e);
    }
    r->res->seconds_stats += log_now() - t0;
    rc = rc || block_solve(b, ROLE_Q, 3, &st, e);
    stats_release(&st);
    if (b->boa)
        boa_release(b->boa);
    b->boa = NULL;
    return rc ? -1 : 0;
}

static int stage_o(struct block *b, struct err *e)
{
    struct run *r = b->run;
    const struct hparams *hp = &r->m->hp;
    int64_t d = hp->n_head * hp->head_dim;
    struct stats st;
    if (residual_stats(b, ROLE_O, &st, e))
        return -1;
    int rc = 0;
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        float *a = r->mid + s.t0 * d;
        double t0 = log_now();
        fwd_attn_in(r->m, b->fq, s.hq, s.n, r->fq.x);
        rc = fwd_attn(r->m, b->fq, &r->fq, r->fq.x, s.n, a, e);
        if (!rc && s.hf) {
            fwd_attn_in(r->m, &b->ff, s.hf, s.n, r->ff.x);
            rc = fwd_attn(r->m, &b->ff, &r->ff, r->ff.x, s.n, r->ff.a, e);
        }
        double t1 = log_now();
        rc = rc || (i < r->n_fit && stats_add(&st, a, s.hf ? r->ff.a : NULL, s.hq, s.hf, s.n, e));
        double t2 = log_now();
        if (!rc && s.hf)
            rc = fwd_attn_out(&b->ff, r->ff.a, s.n, s.hf, e);
        rc = rc || tick(b, "o", 1, i, e);
        r->res->seconds_stats += t2 - t1;
        r->res->seconds_forward += log_now() - t2 + t1 - t0;
    }
    rc = rc || block_solve(b, ROLE_O, 1, &st, e);
    stats_release(&st);
    double t0 = log_now();
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        float *a = r->mid + s.t0 * d;
        if (b->v_scaled) {
            fwd_attn_in(r->m, b->fq, s.hq, s.n, r->fq.x);
            rc = fwd_attn(r->m, b->fq, &r->fq, r->fq.x, s.n, a, e);
        }
        rc = rc || fwd_attn_out(b->fq, a, s.n, s.hq, e);
    }
    r->res->seconds_forward += log_now() - t0;
    return rc ? -1 : 0;
}

/* Mean over the sequences so far of x_float - x_quantized, weighted as the statistics are. */
static void mean_deviation(const struct stats *st, double *mean)
{
    for (int64_t j = 0; j < st->d; j++)
        mean[j] = st->weight > 0 ? st->sum_diff[j] / st->weight : 0;
}

/* first, first_weight: what st held before the held-out sequences. mu: the correction, or NULL. */
static void record_shift(struct block *b, const struct stats *st, const double *first, double first_weight, const float *mu)
{
    double weight = st->weight - first_weight, power = 0, before = 0, after = 0;
    for (int64_t j = 0; j < st->d && weight > 0; j++) {
        double v = (st->sum_diff[j] - first[j]) / weight, rest = v - (mu ? mu[j] : 0);
        power += (double)st->h[j * st->d + j] / st->weight;
        before += v * v;
        after += rest * rest;
    }
    b->out->dac_before = power > 0 ? sqrt(before / power) : 0;
    b->out->dac_after = power > 0 ? sqrt(after / power) : 0;
}

static int stage_gate_up(struct block *b, struct err *e)
{
    struct run *r = b->run;
    int64_t d = r->m->hp.n_embd, last = held_out(r->calib);
    struct stats st;
    double t0 = log_now();
    double *mean = arena_zalloc(&b->arena, (size_t)d, sizeof *mean), first_weight = 0;
    double *first = arena_zalloc(&b->arena, (size_t)d, sizeof *first);
    float *mu = arena_alloc(&b->arena, (size_t)d, sizeof *mu);
    if (!mean || !first || !mu)
        return err_nomem(e, "DAC", (size_t)d * sizeof *mean);
    if (norm_stats(b, &st, e))
        return -1;
    int rc = 0, use_mu = 0;
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        if (i == last) {
            mean_deviation(&st, mean);
            memcpy(first, st.sum_diff, (size_t)d * sizeof *first);
            first_weight = st.weight;
        }
        fwd_ffn_in(r->m, b->fq, s.hq, s.n, r->fq.x);
        if (s.hf)
            fwd_ffn_in(r->m, &b->ff, s.hf, s.n, r->ff.x);
        rc = (i < r->n_fit && stats_add(&st, r->fq.x, s.hf ? r->ff.x : NULL, NULL, NULL, s.n, e)) || tick(b, "gate,up", 2, i, e);
    }
    if (last == r->calib->n)
        mean_deviation(&st, mean);
    r->res->seconds_stats += log_now() - t0;
    if (!rc && r->o->dac != DAC_OFF) {
        t0 = log_now();
        use_mu = block_dac(b, mean, mu, e);
        rc = use_mu < 0;
        record_shift(b, &st, first, first_weight, use_mu > 0 ? mu : NULL);
        if (use_mu > 0)
            stats_shift(&st, mu);
        r->res->seconds_forward += log_now() - t0;
    } else if (!rc) {
        record_shift(b, &st, first, first_weight, NULL);
    }
    rc = rc || block_solve(b, ROLE_GATE, 2, &st, e);
    if (!rc && use_mu > 0)
        rc = block_dac_bias(b, mu, e);
    stats_release(&st);
    return rc ? -1 : 0;
}

/* |hq - hf|^2 and |hf|^2 of one sequence, sinks left out; f, norms: scratch (n). */
static void block_error(const struct seq *s, int64_t d, float *f, float *norms, double *num, double *den)
{
    sink_weights(SINKS_SKIP, s->hf, s->n, d, f, norms);
    for (int64_t t = 0; t < s->n; t++)
        for (int64_t j = 0; f[t] > 0 && j < d; j++) {
            double x = s->hf[t * d + j], y = s->hq[t * d + j] - x;
            *num += y * y;
            *den += x * x;
        }
}

static int round_biases(struct block *b, struct err *e)
{
    for (int role = ROLE_GATE; role <= ROLE_UP; role++) {
        struct linear *l = &b->fq->lin[role];
        if (b->run->o->kept == DT_F16 && round_vector(b->run->m, &l->b, tensor_rows(&l->w), e))
            return -1;
    }
    return 0;
}

static int stage_down(struct block *b, struct err *e)
{
    struct run *r = b->run;
    const struct hparams *hp = &r->m->hp;
    struct stats st;
    if (residual_stats(b, ROLE_DOWN, &st, e))
        return -1;
    int rc = 0;
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        double t0 = log_now();
        fwd_ffn_in(r->m, b->fq, s.hq, s.n, r->fq.x);
        rc = fwd_act(b->fq, &r->fq, r->fq.x, s.n, r->fq.g, e);
        if (!rc && s.hf) {
            fwd_ffn_in(r->m, &b->ff, s.hf, s.n, r->ff.x);
            rc = fwd_act(&b->ff, &r->ff, r->ff.x, s.n, r->ff.g, e);
        }
        double t1 = log_now();
        rc = rc || (i < r->n_fit && stats_add(&st, r->fq.g, s.hf ? r->ff.g : NULL, s.hq, s.hf, s.n, e));
        double t2 = log_now();
        if (!rc && s.hf)
            rc = fwd_ffn_out(&b->ff, r->ff.g, s.n, s.hf, e);
        rc = rc || tick(b, "down", 3, i, e);
        r->res->seconds_stats += t2 - t1;
        r->res->seconds_forward += log_now() - t2 + t1 - t0;
    }
    rc = rc || block_solve(b, ROLE_DOWN, 1, &st, e) || round_biases(b, e);
    stats_release(&st);
    double t0 = log_now(), num = 0, den = 0;
    for (int64_t i = 0; !rc && i < r->calib->n; i++) {
        struct seq s = seq_at(r, i);
        fwd_ffn_in(r->m, b->fq, s.hq, s.n, r->fq.x);
        rc = fwd_act(b->fq, &r->fq, r->fq.x, s.n, r->fq.g, e) || fwd_ffn_out(b->fq, r->fq.g, s.n, s.hq, e);
        if (!rc && op_find_bad(s.hq, s.n * hp->n_embd) >= 0)
            rc = err_set(e, ERR_NUMERIC, "block %lld: NaN or Inf in its output on calibration sequence %lld",
                         (long long)b->index, (long long)i);
        if (!rc && s.hf && op_find_bad(s.hf, s.n * hp->n_embd) >= 0)
            rc = err_set(e, ERR_NUMERIC, "block %lld: the model gives NaN or Inf, before any quantization, on calibration sequence %lld",
                         (long long)b->index, (long long)i);
        if (!rc && s.hf)
            block_error(&s, hp->n_embd, r->fq.x, r->fq.x + s.n, &num, &den);
    }
    b->out->out_err = den > 0 && r->o->dac != DAC_BLOCK ? num / den : 0;
    r->res->seconds_forward += log_now() - t0;
    return rc ? -1 : 0;
}

/* One stage, its part of the times added to the profile. */
static int stage(struct block *b, enum quant_stage k, int (*run)(struct block *, struct err *), struct err *e)
{
    struct quant_result *res = b->run->res;
    struct quant_profile *p = &res->profile[k];
    double forward = res->seconds_forward, stats = res->seconds_stats, factor = res->seconds_factor, solved = res->seconds_solve;
    int rc = run(b, e);
    factor = res->seconds_factor - factor;
    p->forward += res->seconds_forward - forward;
    p->stats += res->seconds_stats - stats;
    p->factor += factor;
    p->solve += res->seconds_solve - solved - factor;
    return rc;
}

static int block_run(struct run *r, int64_t index, struct err *e)
{
    struct block b;
    struct layer source = r->m->layers[index];
    int rc = block_open(&b, r, index, e);
    if (!rc && r->o->dac == DAC_BLOCK)
        memcpy(r->hf, r->hq, (size_t)(r->n_tok * r->m->hp.n_embd) * sizeof *r->hf);
    if (!rc && !r->calib)
        rc = tick(&b, "rtn", 0, 0, e) || block_solve(&b, ROLE_Q, ROLE_COUNT, NULL, e);
    else if (!rc)
        rc = stage(&b, STAGE_QKV, stage_qkv, e) || stage(&b, STAGE_O, stage_o, e) ||
             stage(&b, STAGE_GATE_UP, stage_gate_up, e) || stage(&b, STAGE_DOWN, stage_down, e);
    arena_release(&b.arena);
    for (int i = 0; i < ROLE_COUNT; i++)
        forget_source(r, &source.lin[i].w);
    return rc ? -1 : 0;
}

/* ---- the run --------------------------------------------------------------- */

static int run_states(struct run *r, struct err *e)
{
    const struct hparams *hp = &r->m->hp;
    const struct calib *c = r->calib;
    r->n_tok = c->start[c->n];
    for (int64_t i = 0; i < c->n; i++)
        if (c->start[i + 1] - c->start[i] > r->longest)
            r->longest = c->start[i + 1] - c->start[i];
    int64_t d = hp->n_head * hp->head_dim, wide = d > hp->n_ff ? d : hp->n_ff;
    if (r->n_tok < wide)
        log_warn(r->log, "calibration: %lld tokens for statistics of up to %lld inputs: the rest is damping, expect no better than rounding",
                 (long long)r->n_tok, (long long)wide);
    size_t n = (size_t)(r->n_tok * hp->n_embd);
    r->hq = arena_alloc(&r->arena, n, sizeof *r->hq);
    r->hf = r->use_float ? arena_alloc(&r->arena, n, sizeof *r->hf) : NULL;
    r->mid = arena_alloc(&r->arena, (size_t)(r->n_tok * d), sizeof *r->mid);
    if (!r->hq || !r->mid || (r->use_float && !r->hf))
        return err_nomem(e, "hidden states", (size_t)(r->n_tok * (2 * hp->n_embd + d)) * sizeof(float));
    if (fwd_init(&r->fq, hp, r->longest, e) || (r->use_float && fwd_init(&r->ff, hp, r->longest, e)))
        return -1;
    if (fwd_embed(r->m, c->ids, r->n_tok, r->hq, e))
        return -1;
    if (r->hf)
        op_embed(&r->embd, c->ids, r->n_tok, r->hf);
    forget_source(r, &r->embd);
    forget_source(r, &r->float_head);
    arena_forget(&r->m->arena);
    return 0;
}

int quantize_model(struct model *m, const struct quant_options *o, const struct calib *calib,
                   const struct log *log, quant_tensor_fn on_tensor, void *ud,
                   struct quant_result *res, struct err *e)
{
    return quantize_resumable(m, o, calib, NULL, log, on_tensor, ud, res, e);
}

int quantize_resumable(struct model *m, const struct quant_options *o, const struct calib *calib, struct work *work,
                       const struct log *log, quant_tensor_fn on_tensor, void *ud,
                       struct quant_result *res, struct err *e)
{
    const struct hparams *hp = &m->hp;
    struct run r = { .m = m, .o = o, .log = log, .on_tensor = on_tensor, .ud = ud, .res = res };
    double t0 = log_now();
    memset(res, 0, sizeof *res);
    arena_init(&res->arena);
    arena_init(&r.arena);
    if (quant_options_check(o, e))
        return -1;
    if (quant_check_model(m, o, e))
        return -1;
    if (method_table[o->method].needs_calib && (!calib || calib->n < 1))
        return err_set(e, ERR_USAGE, "method %s needs calibration text", method_table[o->method].name);
    if (work && o->spill) {
        arena_spill(&r.arena, work->dir);
        arena_spill(&m->arena, work->dir); /* until the end of this function */
    }
    int rc = quant_check_weights(m, e); /* as they were read: rotation hides the norms' */
    if (!rc) {
        m->unfinished = true;
        if (o->rotate)
            rc = rotator_init(&r.rot, m, o->kept == DT_F16 || o->kept_packed ? DT_F16 : DT_F32, ROTATE_SEED, e) || check_tables(m, e) ? -1 : 0;
    }
    r.embd = m->tok_embd;
    r.float_head = m->lm_head;
    r.float_norm = m->out_norm;
    if (method_table[o->method].needs_calib) {
        r.calib = calib;
        r.use_float = quant_float_path(o);
        /* Tuning is judged by the last eighth, which must not have been fitted to: on text that was, divergence is a third of that on other. */
        r.n_fit = o->tune > 0 ? held_out(calib) : calib->n;
        res->calib_tokens = calib_tokens(calib);
    }
    res->tensors = arena_zalloc(&res->arena, (size_t)(hp->n_layer * ROLE_COUNT), sizeof *res->tensors);
    res->blocks = arena_zalloc(&res->arena, (size_t)hp->n_layer, sizeof *res->blocks);
    if (!rc && (!res->tensors || !res->blocks))
        rc = err_nomem(e, "results", 0);
    if (!rc)
        rc = o->kept == DT_F16 ? round_kept(m, o, e) : round_embeddings(m, o, e);
    if (!rc && r.calib)
        rc = run_states(&r, e);
    if (!rc && work)
        rc = work_restore(work, &r, e);
    for (int64_t i = work ? work->done : 0; !rc && i < hp->n_layer; i++)
        rc = block_run(&r, i, e) || (m->ck && checkpoint_check(m->ck, e)) || (work && work_block_save(work, &r, i, e)) ? -1 : 0;
    if (!rc && r.calib && o->tune > 0)
        rc = tune_scales(&r, e);
    double bits = 0, n = 0;
    for (int64_t i = 0; i < res->n_tensors; i++) {
        double k = (double)res->tensors[i].n_out * (double)res->tensors[i].n_in;
        bits += k * res->tensors[i].bpw;
        n += k;
    }
    m->unfinished = m->unfinished && rc;
    res->bpw = n > 0 ? bits / n : 0;
    res->seconds = log_now() - t0;
    fwd_release(&r.fq);
    if (r.use_float)
        fwd_release(&r.ff);
    rotator_release(&r.rot);
    arena_release(&r.arena);
    arena_spill(&m->arena, NULL);
    return rc;
}

void quant_result_release(struct quant_result *r)
{
    arena_release(&r->arena);
    memset(r, 0, sizeof *r);
}
