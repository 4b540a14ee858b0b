/* The whole quantizer on tiny models of every family: what it leaves in memory, what a reader of its files gets. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/file.h"
#include "base/par.h"
#include "eval/perplexity.h"
#include "export/export.h"
#include "quant/block.h"
#include "quant/rotate.h"
#include "scratch.h"
#include "tensor/half.h"

#define MODELS "tests/fixtures/models/"

static struct model *open_model(const char *path)
{
    struct model *m = NULL;
    struct err e = { 0 };
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

static void make_calib(struct calib *c, const struct model *m, int64_t n, int64_t len)
{
    int32_t ids[4096];
    struct err e;
    uint64_t x = 9;
    for (int i = 0; i < 4096; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % (uint64_t)m->hp.n_vocab);
    }
    assert_int_equal(calib_from_tokens(c, ids, 4096, n, len, 1, &e), 0);
}

static struct quant_options options(const char *method, const char *recipe, int bits, int group)
{
    struct quant_options o;
    struct err e;
    assert_int_equal(quant_options_init(&o, method, recipe, &e), 0);
    o.bits = bits;
    o.group = group;
    return o;
}

/* Quantizes path; the caller releases both. */
static struct model *quantized(const char *path, const struct quant_options *o, struct quant_result *res)
{
    struct model *m = open_model(path);
    struct calib c;
    struct err e = { 0 };
    make_calib(&c, m, 10, 64);
    if (quantize_model(m, o, &c, NULL, NULL, NULL, res, &e))
        fail_msg("%s: %s", path, e.msg);
    calib_release(&c);
    return m;
}

static void test_every_family_and_method(void **state)
{
    (void)state;
    static const char *const models[] = { "llama", "llama3", "llama_bias", "mistral", "qwen2", "qwen3", "smollm2", "llama.gguf",
                                          "qwen2.gguf" };
    for (size_t k = 0; k < sizeof models / sizeof *models; k++)
        for (int method = 0; method < METHOD_COUNT; method++)
            for (int bits = 2; bits <= 4; bits++) {
                char path[256];
                struct quant_result res;
                struct quant_options o = options(method_table[method].name, "default", bits, 40); /* divides nothing */
                o.grid = bits == 3 ? GRID_sym : GRID_asym;
                o.order = bits == 4 && method_table[method].needs_calib ? ORDER_ACT : ORDER_NONE;
                snprintf(path, sizeof path, MODELS "%s", models[k]);
                struct model *m = quantized(path, &o, &res);
                assert_int_equal(res.n_tensors, m->hp.n_layer * ROLE_COUNT);
                for (int64_t i = 0; i < res.n_tensors; i++) {
                    const struct quant_tensor *t = &res.tensors[i];
                    if (!(t->err > 0 && t->err < 0.6 && t->bpw > bits && t->bpw < bits + 2))
                        fail_msg("%s %s %d bits: %s has error %g, %g bits", models[k], method_table[method].name, bits, t->name,
                                 t->err, t->bpw);
                }
                struct fwd f;
                struct err e;
                float *h = mem_alloc((size_t)(16 * m->hp.n_embd), sizeof *h);
                int32_t ids[16] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };
                assert_int_equal(fwd_init(&f, &m->hp, 16, &e), 0);
                assert_int_equal(fwd_embed(m, ids, 16, h, &e), 0);
                for (int64_t i = 0; i < m->hp.n_layer; i++)
                    assert_int_equal(fwd_block(m, &m->layers[i], &f, h, 16, &e), 0);
                assert_true(op_find_bad(h, 16 * m->hp.n_embd) < 0);
                mem_free(h);
                fwd_release(&f);
                quant_result_release(&res);
                model_free(m);
            }
}

static double mean_error(const struct quant_result *r)
{
    double sum = 0;
    for (int64_t i = 0; i < r->n_tensors; i++)
        sum += log(r->tensors[i].err);
    return exp(sum / (double)r->n_tensors);
}

/* On the same model and calibration: feedback beats rounding, more bits beat fewer. */
static void test_errors_are_ordered(void **state)
{
    (void)state;
    double err[3][3];
    const char *const names[3] = { "rtn", "gptq", "gptq" };
    for (int k = 0; k < 3; k++)
        for (int bits = 2; bits <= 4; bits++) {
            struct quant_result res;
            struct quant_options o = options(names[k], "default", bits, 32);
            o.search = k == 1 ? SEARCH_MINMAX : o.search;
            struct model *m = quantized(MODELS "llama", &o, &res);
            err[k][bits - 2] = mean_error(&res);
            quant_result_release(&res);
            model_free(m);
        }
    for (int bits = 0; bits < 3; bits++)
        assert_true(err[2][bits] < err[1][bits]); /* searched scales below min-max ones */
    for (int k = 0; k < 3; k++)
        assert_true(err[k][0] > 2 * err[k][1] && err[k][1] > 2 * err[k][2]);
}

/* Codes, scales, zeros and biases of two models are the same bytes; no bias is one of zeros (a folder with mlp_bias has
 * one for down_proj too). */
static void assert_same(const struct model *a, const struct model *b)
{
    for (int64_t i = 0; i < a->hp.n_layer; i++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            const struct linear *x = &a->layers[i].lin[r], *y = &b->layers[i].lin[r];
            const struct qmat *p = x->w.q, *q = y->w.q;
            assert_int_equal(x->w.type, DT_QMAT);
            assert_int_equal(y->w.type, DT_QMAT);
            assert_memory_equal(p->codes, q->codes, (size_t)(p->n_out * p->row_words) * 4);
            assert_memory_equal(p->scale, q->scale, (size_t)(p->n_out * p->n_groups) * 2);
            assert_memory_equal(p->zero, q->zero, (size_t)(p->n_out * p->n_groups));
            for (int64_t j = 0; j < p->n_out; j++)
                assert_true((x->b ? x->b[j] : 0) == (y->b ? y->b[j] : 0));
        }
}

static void test_threads(void **state)
{
    (void)state;
    struct quant_options o = options("d2quant", "default", 3, 32);
    o.dac = DAC_FLOAT;
    o.dac_accept = false;
    int counts[3] = { 1, 2, 7 };
    struct model *m[3];
    for (int k = 0; k < 3; k++) {
        struct quant_result res;
        par_set_threads(counts[k]);
        m[k] = quantized(MODELS "llama", &o, &res);
        quant_result_release(&res);
    }
    par_set_threads(0);
    assert_same(m[0], m[1]);
    assert_same(m[0], m[2]);
    for (int k = 0; k < 3; k++)
        model_free(m[k]);
}

static double perplexity(const struct model *m)
{
    struct eval_options o;
    struct eval_result r;
    struct err e = { 0 };
    char *text;
    size_t n;
    eval_options_init(&o);
    o.ctx = 64;
    assert_int_equal(file_read(MODELS "text.txt", 1 << 20, &text, &n, &e), 0);
    if (eval_perplexity(m, text, n, &o, NULL, &r, &e))
        fail_msg("%s", e.msg);
    mem_free(text);
    return r.ppl;
}

/* The folder that was written says what the memory said, to the last digit; a llama carries DAC as mlp_bias. */
static void test_written_is_what_was_in_memory(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    static const struct {
        const char *model, *method, *recipe, *format;
        int bits, group;
    } cases[] = {
        { "llama", "d2quant", "paper", "gptq", 2, 32 },    { "llama", "d2quant", "default", "gptq", 3, 64 },
        { "llama3", "gptq", "default", "gptq", 4, 0 },     { "llama", "d2quant", "paper", "hf", 3, 32 },
        { "llama.gguf", "d2quant", "paper", "gptq", 2, 32 }, { "qwen2", "gptq", "default", "gptq", 3, 32 },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char path[256], out[64];
        struct quant_result res;
        struct err e = { 0 };
        struct quant_options o = options(cases[k].method, cases[k].recipe, cases[k].bits, cases[k].group);
        if (!strcmp(cases[k].format, "hf"))
            o.kept = DT_F32;
        snprintf(path, sizeof path, MODELS "%s", cases[k].model);
        struct model *m = quantized(path, &o, &res);
        if (m->tok == NULL) {
            fail_msg("%s has no tokenizer", cases[k].model);
        }
        snprintf(out, sizeof out, "out%zu", k);
        if (export_model(m, cases[k].format, scratch_path(dir, out), NULL, NULL, NULL, &e))
            fail_msg("%s", e.msg);
        struct model *again = open_model(scratch_path(dir, out));
        double before = perplexity(m), after = perplexity(again);
        if (before != after)
            fail_msg("case %zu: perplexity %.17g in memory, %.17g from the folder", k, before, after);
        if (!strcmp(cases[k].format, "gptq"))
            assert_same(m, again);
        if (!strcmp(cases[k].recipe, "paper"))
            assert_non_null(again->layers[0].lin[ROLE_GATE].b);
        model_free(again);
        model_free(m);
        quant_result_release(&res);
    }
    scratch_remove(dir);
}

/* Block k, on what m makes of the blocks before it, up to the norm after attention, with the attention of w, and its whole output with the float
 * FFN on that norm's output + shift. */
struct half_block {
    float h[64 * 64], x[64 * 64], out[64 * 64];
};

static void half_block(const struct model *m, const struct model *w, const struct model *fl, int64_t k, const int32_t *ids, int64_t n,
                       const double *shift, struct half_block *b)
{
    struct fwd f;
    struct err e = { 0 };
    int64_t d = m->hp.n_embd;
    assert_true(n * d <= 64 * 64);
    assert_int_equal(fwd_init(&f, &m->hp, n, &e), 0);
    assert_int_equal(fwd_embed(m, ids, n, b->h, &e), 0);
    for (int64_t i = 0; i < k; i++)
        assert_int_equal(fwd_block(m, &m->layers[i], &f, b->h, n, &e), 0);
    fwd_attn_in(m, &w->layers[k], b->h, n, f.x);
    assert_int_equal(fwd_attn(w, &w->layers[k], &f, f.x, n, f.a, &e), 0);
    assert_int_equal(fwd_attn_out(&w->layers[k], f.a, n, b->h, &e), 0);
    fwd_ffn_in(m, &m->layers[k], b->h, n, b->x);
    for (int64_t i = 0; i < n * d; i++) {
        b->out[i] = b->h[i];
        f.x[i] = b->x[i] + (shift ? (float)shift[i % d] : 0);
    }
    assert_int_equal(fwd_act(&fl->layers[k], &f, f.x, n, f.g, &e), 0);
    assert_int_equal(fwd_ffn_out(&fl->layers[k], f.g, n, b->out, &e), 0);
    fwd_release(&f);
}

static void rotate_first_block(struct model *m)
{
    struct rotator t;
    struct err e = { 0 };
    for (int r = 0; r < ROLE_COUNT; r++) {
        struct tensor *w = &m->layers[0].lin[r].w;
        float *p = arena_alloc(&m->arena, (size_t)tensor_count(w), sizeof *p);
        tensor_to_f32(w, p);
        *w = tensor_f32(w->name, p, tensor_rows(w), tensor_cols(w));
    }
    assert_int_equal(rotator_init(&t, m, DT_F32, ROTATE_SEED, &e), 0);
    assert_int_equal(rotator_layer(&t, m, 0, &m->layers[0], &m->arena, &e), 0);
    rotator_release(&t);
}

/* DAC of block k, after a reload: the mean of gate (and up) over the calibration tokens is what the quantized
 * matrix makes of the target's mean input: W_q mean(x~) + b = W_q mean(x). fp16 rounds b. The target is the float path's in the first block;
 * in a later one that of the block's own float attention. */
static void dac_restores_the_mean(bool dsq_norms, bool rotate, int64_t k)
{
    struct quant_options o = options("d2quant", "paper", 2, 32);
    struct quant_result res;
    struct calib c;
    struct err e = { 0 };
    const char *dir = scratch_dir();
    o.sinks = SINKS_KEEP;
    o.dsq = false;
    o.dsq_norms = dsq_norms;
    o.rotate = rotate;
    o.dac = k > 0 ? DAC_BLOCK : DAC_FLOAT;
    struct model *fl = open_model(MODELS "llama"), *m = open_model(MODELS "llama");
    make_calib(&c, m, 1, 64); /* one sequence: none is held out, all of it makes the mean */
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), 0);
    assert_true(res.blocks[k].dac_shift > 1e-4);
    assert_true((res.blocks[k].dsq_gain[STAGE_GATE_UP] > 0) == dsq_norms);
    assert_int_equal(export_model(m, "gptq", scratch_path(dir, "dac"), NULL, NULL, NULL, &e), 0);
    model_free(m);
    m = open_model(scratch_path(dir, "dac"));
    assert_non_null(m->layers[k].lin[ROLE_GATE].b);
    if (rotate)
        rotate_first_block(fl);
    int64_t d = m->hp.n_embd, n = 64;
    static struct half_block b[2]; /* both paths start from the rounded embedding */
    half_block(m, m, fl, k, c.ids, n, NULL, &b[0]);
    half_block(m, fl, fl, k, c.ids, n, NULL, &b[1]);
    for (int role = ROLE_GATE; role <= ROLE_UP; role++) {
        const struct linear *l = &m->layers[k].lin[role];
        int64_t n_out = tensor_rows(&l->w);
        float *y = mem_alloc((size_t)(n * n_out), sizeof *y), *mean = mem_zalloc((size_t)d, sizeof *mean);
        float *want = mem_alloc((size_t)n_out, sizeof *want);
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < d; j++)
                mean[j] += b[1].x[t * d + j] / (float)n;
        assert_int_equal(op_linear(&l->w, NULL, mean, 1, want, 0, &e), 0);
        assert_int_equal(op_linear(&l->w, l->b, b[0].x, n, y, 0, &e), 0);
        for (int64_t i = 0; i < n_out; i++) {
            double got = 0;
            for (int64_t t = 0; t < n; t++)
                got += y[t * n_out + i] / (double)n;
            if (fabs(got - want[i]) > 2e-3 * (1 + fabs(want[i])))
                fail_msg("role %d row %lld: mean %g, expected %g", role, (long long)i, got, want[i]);
        }
        mem_free(y);
        mem_free(mean);
        mem_free(want);
    }
    quant_result_release(&res);
    calib_release(&c);
    model_free(m);
    model_free(fl);
    scratch_remove(dir);
}

static void test_dac_restores_the_mean(void **state)
{
    (void)state;
    dac_restores_the_mean(false, false, 0);
    dac_restores_the_mean(false, false, 1);
    dac_restores_the_mean(true, false, 0); /* the gains of the norm are not those that mu was measured behind */
    dac_restores_the_mean(false, true, 0); /* in the basis of the rotation: no norm has a gain, gate's and up's biases carry DAC all the same */
}

/* tr(E H E^T) / tr(W H W^T) of o in the first block, E = W - V diag(s), H that of the outputs of the model's attention on `before`; s (n_in) or NULL. */
static double error_of_o(const struct model *fl, const struct model *m, const struct model *before, const struct calib *c, const float *s)
{
    int64_t d = tensor_cols(&m->layers[0].lin[ROLE_O].w), n_out = tensor_rows(&m->layers[0].lin[ROLE_O].w), len = c->start[1];
    struct arena a;
    struct fwd f;
    struct err e;
    arena_init(&a);
    float *w = arena_alloc(&a, (size_t)(n_out * d), sizeof *w), *v = arena_alloc(&a, (size_t)(n_out * d), sizeof *v);
    float *h = arena_alloc(&a, (size_t)(len * m->hp.n_embd), sizeof *h), *x = arena_alloc(&a, (size_t)(len * d), sizeof *x);
    double num = 0, den = 0;
    tensor_to_f32(&fl->layers[0].lin[ROLE_O].w, w);
    tensor_to_f32(&m->layers[0].lin[ROLE_O].w, v);
    assert_int_equal(fwd_init(&f, &m->hp, len, &e), 0);
    for (int64_t k = 0; k < c->n; k++) {
        assert_int_equal(fwd_embed(before, c->ids + k * len, len, h, &e), 0);
        fwd_attn_in(before, &before->layers[0], h, len, f.x);
        assert_int_equal(fwd_attn(before, &before->layers[0], &f, f.x, len, x, &e), 0);
        for (int64_t t = 0; t < len; t++)
            for (int64_t i = 0; i < n_out; i++) {
                double want = 0, lost = 0;
                for (int64_t j = 0; j < d; j++) {
                    want += (double)w[i * d + j] * x[t * d + j];
                    lost += ((double)w[i * d + j] - (double)v[i * d + j] * (s ? s[j] : 1)) * x[t * d + j];
                }
                num += lost * lost;
                den += want * want;
            }
    }
    fwd_release(&f);
    arena_release(&a);
    return num / den;
}

/* DSQ of o: the codes of q, k and v are those of a run without it, v's rows (and its bias) those times s^c, the same for all heads that read
 * one; what o loses with it is what is said, less than without. */
static void dsq_of_o(const char *path)
{
    struct quant_result res[2];
    struct model *m[2], *fl = open_model(path);
    struct calib c;
    for (int k = 0; k < 2; k++) {
        struct quant_options o = options("d2quant", "default", 2, 32);
        o.alpha = o.beta = o.shrink = 0;
        o.sinks = SINKS_KEEP;
        o.dsq = false;
        o.dsq_o = k;
        m[k] = quantized(path, &o, &res[k]);
    }
    make_calib(&c, fl, 10, 64);
    const struct hparams *hp = &fl->hp;
    int64_t d = hp->n_head * hp->head_dim, heads = hp->n_head / hp->n_head_kv;
    const struct linear *v[2] = { &m[0]->layers[0].lin[ROLE_V], &m[1]->layers[0].lin[ROLE_V] };
    float s[256];
    double moved = 0;
    assert_true(d <= 256 && heads > 1);
    for (int64_t j = 0; j < d; j++) {
        int64_t row = j / hp->head_dim / heads * hp->head_dim + j % hp->head_dim, at = row * v[0]->w.q->n_groups;
        s[j] = half_to_f32(v[1]->w.q->scale[at]) / half_to_f32(v[0]->w.q->scale[at]);
        moved = fmax(moved, fabs(s[j] - 1));
        assert_true(!v[0]->b == !v[1]->b);
        if (v[0]->b)
            assert_true(fabs(v[1]->b[row] - s[j] * v[0]->b[row]) <= 2e-3 * fabs(v[1]->b[row]));
    }
    for (int role = ROLE_Q; role <= ROLE_V; role++) {
        const struct qmat *p = m[0]->layers[0].lin[role].w.q, *q = m[1]->layers[0].lin[role].w.q;
        assert_memory_equal(p->codes, q->codes, (size_t)(p->n_out * p->row_words) * 4);
        assert_int_equal(memcmp(p->scale, q->scale, (size_t)(p->n_out * p->n_groups) * 2) != 0, role == ROLE_V);
    }
    assert_true(moved > 0.02 && res[1].blocks[0].dsq_gain[STAGE_O] < 1 && res[0].blocks[0].dsq_gain[STAGE_O] == 0);
    double plain = error_of_o(fl, m[0], m[0], &c, NULL), dual = error_of_o(fl, m[1], m[0], &c, s);
    const struct quant_tensor *t = &res[1].tensors[ROLE_O];
    if (!(dual < plain && fabs(dual - t->err) < 3e-3 * dual))
        fail_msg("%s: error of o %g, expected %g, below %g without", path, t->err, dual, plain);
    for (int k = 0; k < 2; k++) {
        quant_result_release(&res[k]);
        model_free(m[k]);
    }
    calib_release(&c);
    model_free(fl);
}

/* What the first block gives after its o was scaled is what the finished model makes of the text. */
static void output_with_dsq_of_o(const char *path)
{
    struct quant_options o = options("d2quant", "default", 2, 32);
    struct quant_result res;
    struct calib c;
    struct err e;
    struct fwd f;
    o.dsq_o = true;
    struct model *m = quantized(path, &o, &res), *fl = open_model(path);
    make_calib(&c, m, 10, 64);
    int64_t n = 64 * m->hp.n_embd;
    float *h[2] = { mem_alloc((size_t)n, sizeof(float)), mem_alloc((size_t)n, sizeof(float)) };
    double num = 0, den = 0;
    assert_int_equal(fwd_init(&f, &m->hp, 64, &e), 0);
    for (int64_t k = 0; k < c.n; k++) {
        for (int i = 0; i < 2; i++) {
            const struct model *of = i ? m : fl;
            assert_int_equal(fwd_embed(of, c.ids + k * 64, 64, h[i], &e), 0);
            assert_int_equal(fwd_block(of, &of->layers[0], &f, h[i], 64, &e), 0);
        }
        for (int64_t i = 0; i < n; i++) {
            num += ((double)h[0][i] - h[1][i]) * ((double)h[0][i] - h[1][i]);
            den += (double)h[0][i] * h[0][i];
        }
    }
    assert_true(res.blocks[0].dsq_gain[STAGE_O] > 0 && fabs(res.blocks[0].out_err - num / den) < 1e-4 * num / den);
    fwd_release(&f);
    mem_free(h[0]);
    mem_free(h[1]);
    calib_release(&c);
    quant_result_release(&res);
    model_free(m);
    model_free(fl);
}

static void test_dsq_of_o(void **state)
{
    (void)state;
    dsq_of_o(MODELS "llama");
    dsq_of_o(MODELS "qwen2"); /* v has a bias */
    output_with_dsq_of_o(MODELS "llama");
}

/* The share that DAC keeps of the first block's mean deviation is the one of 0, 1/4, 1/2, 1 that brings the block's held-out output nearest to
 * the float path's, and the gain it reports is that distance's. words: that the text is made of; few share a deviation. Returns the share. */
static double best_share(int bits, int words)
{
    enum { N = 10, LEN = 32, N_SHARES = 4 };
    static const double shares[N_SHARES] = { 0, 0.25, 0.5, 1 };
    static struct half_block q, f;
    struct quant_options o = options("d2quant", "paper", bits, 32);
    struct quant_result res;
    struct calib c;
    struct err e = { 0 };
    double mean[64] = { 0 }, shift[64], cost[N_SHARES] = { 0 };
    int best = 0;
    o.sinks = SINKS_KEEP;
    o.dsq = false;
    o.dac_accept = true;
    struct model *fl = open_model(MODELS "llama"), *m = open_model(MODELS "llama");
    int64_t d = m->hp.n_embd;
    make_calib(&c, m, N, LEN);
    for (int64_t i = 0; i < N * LEN; i++)
        c.ids[i] %= words;
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), 0);
    for (int64_t i = 0; i < held_out(&c); i++) {
        half_block(m, m, fl, 0, c.ids + c.start[i], LEN, NULL, &q);
        half_block(m, fl, fl, 0, c.ids + c.start[i], LEN, NULL, &f);
        for (int64_t k = 0; k < LEN * d; k++)
            mean[k % d] += (f.x[k] - (double)q.x[k]) / (double)(held_out(&c) * LEN);
    }
    for (int k = 0; k < N_SHARES; k++) {
        for (int64_t j = 0; j < d; j++)
            shift[j] = shares[k] * mean[j];
        for (int64_t i = held_out(&c); i < c.n; i++) {
            half_block(m, fl, fl, 0, c.ids + c.start[i], LEN, NULL, &f);
            half_block(m, m, fl, 0, c.ids + c.start[i], LEN, shift, &q);
            for (int64_t j = 0; j < LEN * d; j++)
                cost[k] += (f.out[j] - (double)q.out[j]) * (f.out[j] - (double)q.out[j]);
        }
        best = cost[k] < cost[best] ? k : best;
    }
    double share = res.blocks[0].dac_share, gain = 1 - cost[best] / cost[0];
    if (share != shares[best] || fabs(res.blocks[0].dac_gain - gain) > 1e-3)
        fail_msg("%d bits, %d words: share %g with gain %g, expected %g with %g", bits, words, share, res.blocks[0].dac_gain, shares[best], gain);
    const struct linear *gate = &m->layers[0].lin[ROLE_GATE];
    float mu[64], bias[96];
    for (int64_t j = 0; j < d; j++)
        mu[j] = (float)(share * mean[j]);
    assert_int_equal(op_linear(&gate->w, NULL, mu, 1, bias, 0, &e), 0);
    for (int i = 0; i < 96 && share > 0; i++) /* the bias is of that share; fp16 */
        assert_true(fabs(gate->b[i] - (double)bias[i]) < 1e-3 * (0.1 + fabs(bias[i])));
    quant_result_release(&res);
    calib_release(&c);
    model_free(m);
    model_free(fl);
    return share;
}

static void test_dac_share_is_the_best(void **state)
{
    (void)state;
    assert_true(best_share(2, 320) == 0);
    assert_true(best_share(3, 8) == 0.5);
    assert_true(best_share(2, 2) == 1);
}

/* Kept only where held-out calibration gains: a refused mu leaves no bias. */
static void test_dac_is_accepted_or_refused(void **state)
{
    (void)state;
    struct quant_options o = options("d2quant", "default", 2, 32);
    struct quant_result res;
    o.dac = DAC_FLOAT;
    o.dac_accept = true;
    struct model *m = quantized(MODELS "llama", &o, &res);
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        assert_true(res.blocks[i].dac_gain >= 0);
        assert_int_equal(m->layers[i].lin[ROLE_GATE].b != NULL, res.blocks[i].dac_share > 0);
    }
    model_free(m);
    quant_result_release(&res);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    struct quant_options o = options("gptq", "default", 3, 32);
    struct quant_result res;
    struct calib c;
    struct err e = { 0 };
    struct model *m = open_model(MODELS "llama");
    struct tensor *w = &m->layers[1].lin[ROLE_UP].w;
    float *copy = mem_alloc((size_t)tensor_count(w), sizeof *copy);
    tensor_to_f32(w, copy);
    copy[5 * tensor_cols(w) + 7] = NAN;
    *w = tensor_f32(w->name, copy, w->dim[0], w->dim[1]);
    make_calib(&c, m, 4, 64);
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), -1);
    assert_int_equal(e.code, ERR_NUMERIC);
    if (!strstr(e.msg, "up_proj") || !strstr(e.msg, "row 5") || !strstr(e.msg, "column 7"))
        fail_msg("%s", e.msg);
    quant_result_release(&res);
    calib_release(&c);
    model_free(m);
    mem_free(copy);
    m = open_model(MODELS "llama");
    assert_int_equal(quantize_model(m, &o, NULL, NULL, NULL, NULL, &res, &e), -1);
    assert_non_null(strstr(e.msg, "calibration"));
    quant_result_release(&res);
    make_calib(&c, m, 4, 64);
    int32_t id = c.ids[70];
    c.ids[70] = (int32_t)m->hp.n_vocab; /* a tokenizer larger than the embedding */
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), -1);
    assert_non_null(strstr(e.msg, "at position 70: expected 0 to"));
    quant_result_release(&res);
    c.ids[70] = id;
    model_free(m);
    m = open_model(MODELS "llama");
    float norm[64];
    const float *as_read = m->layers[1].attn_norm;
    assert_true(m->hp.n_embd <= 64);
    memcpy(norm, as_read, (size_t)m->hp.n_embd * sizeof *norm);
    norm[5] = NAN;
    m->layers[1].attn_norm = norm;
    o.rotate = true; /* takes the norms into the matrices */
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), -1);
    assert_non_null(strstr(e.msg, "block 1: NaN or Inf in value 5 of the norm before attention"));
    quant_result_release(&res);
    m->layers[1].attn_norm = as_read; /* refused before anything was changed */
    o.rotate = false;
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), 0);
    quant_result_release(&res);
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), -1);
    assert_non_null(strstr(e.msg, "already quantized"));
    quant_result_release(&res);
    calib_release(&c);
    model_free(m);
}

static void test_options(void **state)
{
    (void)state;
    struct quant_options o;
    struct err e;
    assert_int_equal(quant_options_init(&o, "awq", "default", &e), -1);
    assert_non_null(strstr(e.msg, "awq"));
    assert_int_equal(quant_options_init(&o, "d2quant", "secret", &e), -1);
    o = options("d2quant", "paper", 2, 128);
    assert_true(o.dsq && o.dac == DAC_FLOAT && !o.dac_accept && o.alpha == 0 && o.beta == 0 && o.dsq_init == DSQ_ONES && o.dsq_rounds == 5);
    o.dac = DAC_BLOCK;
    assert_int_equal(quant_options_check(&o, &e), 0);
    o.alpha = 0.5;
    assert_int_equal(quant_options_check(&o, &e), -1);
    assert_non_null(strstr(e.msg, "dac-target block"));
    o = options("d2quant", "default", 5, 128);
    assert_int_equal(quant_options_check(&o, &e), -1);
    o = options("d2quant", "default", 3, 8);
    assert_int_equal(quant_keep_add(&o, "*.down_proj=portable", &e), 0);
    assert_int_equal(quant_options_check(&o, &e), -1); /* as --grid portable would be */
    assert_non_null(strstr(e.msg, "down_proj"));
    o = options("gptq", "default", 2, 128);
    o.dsq = true;
    assert_int_equal(quant_options_check(&o, &e), -1);
    o = options("gptaq", "default", 2, 128);
    assert_int_equal(quant_options_check(&o, &e), 0);
    o.sweeps = 1;
    assert_int_equal(quant_options_check(&o, &e), -1);
    o = options("gptq", "default", 3, 272);
    o.grid = GRID_portable;
    assert_int_equal(quant_options_check(&o, &e), -1);
    o.group = 512;
    assert_int_equal(quant_options_check(&o, &e), 0);
}

static int cancel_at_half(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    (void)ud;
    (void)text;
    return kind == LOG_PROGRESS && done > total / 2;
}

static void test_cancel(void **state)
{
    (void)state;
    struct quant_options o = options("gptq", "default", 3, 32);
    struct quant_result res;
    struct calib c;
    struct err e = { 0 };
    struct log log = { cancel_at_half, NULL };
    struct model *m = open_model(MODELS "llama");
    make_calib(&c, m, 4, 64);
    assert_int_equal(quantize_model(m, &o, &c, &log, NULL, NULL, &res, &e), -1);
    assert_int_equal(e.code, ERR_CANCELLED);
    quant_result_release(&res);
    assert_int_equal(quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e), -1); /* half of it is quantized */
    assert_non_null(strstr(e.msg, "open it again"));
    quant_result_release(&res);
    calib_release(&c);
    model_free(m);
}

/* Plain text, JSONL of documents and of chats, text shorter than asked for, and lines that are neither. */
static void test_calibration_of_two_kinds(void **state)
{
    (void)state;
    int32_t file[10], own[8];
    struct calib c;
    struct err e;
    for (int i = 0; i < 10; i++)
        file[i] = 100 + i;
    for (int i = 0; i < 8; i++)
        own[i] = i;
    assert_int_equal(calib_from_tokens(&c, file, 10, 2, 5, 0, &e), 0);
    assert_int_equal(calib_prepend(&c, own, 2, 4, &e), 0);
    const int64_t start[] = { 0, 4, 8, 13, 18 };
    assert_int_equal(c.n, 4);
    assert_memory_equal(c.start, start, sizeof start);
    assert_memory_equal(c.ids, own, sizeof own);
    assert_memory_equal(c.ids + 8, file, sizeof file);
    calib_release(&c);
}

static void test_calibration_files(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        int64_t n; /* sequences; -1: refused */
    } files[] = {
        { "short.txt", "a few words only", 1 },
        { "docs.jsonl", "{\"text\": \"first document\"}\n\n{\"text\": \"second document, a little longer\"}\n", 1 },
        { "chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"hi there\"}, {\"role\": \"assistant\", "
                        "\"content\": \"good day to you\"}]}\n", 1 },
        { "mark.jsonl", "\xef\xbb\xbf\n {\"text\": \"behind a byte order mark\"}\n", 1 },
        { "brace.txt", "{ not JSON, so plain text that begins with a brace", 1 },
        { "bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": 7}\n", -1 },
        { "cut.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut\n", -1 },
        { "nocontent.jsonl", "{\"messages\": [{\"role\": \"user\"}]}\n", -1 },
        { "one.txt", "", -1 },
    };
    const char *dir = scratch_dir();
    struct model *m = open_model(MODELS "llama");
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        struct calib c;
        struct err e = { 0 };
        const char *path = scratch_path(dir, files[k].name);
        scratch_write(path, files[k].text, strlen(files[k].text));
        int rc = calib_from_file(&c, m, path, 4, 256, 0, &e);
        if (files[k].n < 0) {
            if (rc == 0 || !strstr(e.msg, files[k].name))
                fail_msg("%s: accepted, or not named: %s", files[k].name, e.msg);
            continue;
        }
        if (rc)
            fail_msg("%s: %s", files[k].name, e.msg);
        assert_int_equal(c.n, files[k].n);
        assert_true(calib_tokens(&c) > 3 && calib_tokens(&c) < 256);
        char *text;
        size_t n;
        assert_int_equal(tokenizer_decode(m->tok, c.ids, calib_tokens(&c), false, &text, &n, &e), 0);
        if (strstr(files[k].name, ".jsonl") && strstr(text, "\""))
            fail_msg("%s: calibrated on its syntax: %s", files[k].name, text);
        mem_free(text);
        calib_release(&c);
    }
    model_free(m);
    scratch_remove(dir);
}

/* Tables, of more rows than are rounded at a time: what `kept` says unless their own name was given another type. */
static void test_tables(void **state)
{
    (void)state;
    enum { ROWS = 2500 };
    static const struct {
        enum dtype kept;
        bool kept_packed;
        const char *keep;
        enum dtype want;
        float tolerance;
    } cases[] = { { DT_F16, false, NULL, DT_F16, 1e-3f }, { DT_F32, false, "model.embed_tokens=q8_0", DT_Q8_0, 0.01f },
                  { DT_F32, false, "*.v_proj=q8_0", DT_F32, 0 }, { DT_F32, true, NULL, DT_F16, 1e-3f } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct model *m = open_model(MODELS "llama");
        struct quant_options o = options("rtn", "default", 4, 32);
        struct quant_result res;
        struct err e = { 0 };
        int64_t d = m->hp.n_embd;
        float *w = mem_alloc((size_t)(ROWS * d), sizeof *w), row[64];
        for (int64_t i = 0; i < ROWS * d; i++)
            w[i] = sinf((float)i);
        m->tok_embd = tensor_f32(m->tok_embd.name, w, ROWS, d);
        if (cases[k].keep)
            assert_int_equal(quant_keep_add(&o, cases[k].keep, &e), 0);
        o.kept = cases[k].kept;
        o.kept_packed = cases[k].kept_packed;
        if (quantize_model(m, &o, NULL, NULL, NULL, NULL, &res, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(m->tok_embd.type, cases[k].want);
        for (int64_t i = 0; i < ROWS; i++) {
            tensor_rows_f32(&m->tok_embd, i, 1, row);
            for (int64_t j = 0; j < d; j++)
                if (fabsf(row[j] - w[i * d + j]) > cases[k].tolerance)
                    fail_msg("row %lld: %g, expected %g", (long long)i, row[j], w[i * d + j]);
        }
        quant_result_release(&res);
        model_free(m);
        mem_free(w);
    }
}

int main(void)
{
    struct err e;
    if (backend_init(&e))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_family_and_method),
        cmocka_unit_test(test_errors_are_ordered),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_written_is_what_was_in_memory),
        cmocka_unit_test(test_dsq_of_o), cmocka_unit_test(test_dac_restores_the_mean),
        cmocka_unit_test(test_dac_share_is_the_best),
        cmocka_unit_test(test_dac_is_accepted_or_refused),
        cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_calibration_of_two_kinds), cmocka_unit_test(test_calibration_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
