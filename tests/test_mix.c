/* Types for a budget: what quant_mix says a type costs against the KL divergence it does cost, and that budgets hold. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/api.h"
#include "quant/mix.h"
#include "quant/solve.h"

#define LEN 96

static struct model *open_model(const char *name)
{
    struct model *m = NULL;
    struct err e = { 0 };
    char path[128];
    snprintf(path, sizeof path, "tests/fixtures/models/%s", name);
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

static void make_calib(struct calib *c, const struct model *m)
{
    int32_t ids[MIX_SEQUENCES * LEN];
    struct err e;
    uint64_t x = 3;
    for (int i = 0; i < MIX_SEQUENCES * LEN; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % (uint64_t)m->hp.n_vocab);
    }
    assert_int_equal(calib_from_tokens(c, ids, MIX_SEQUENCES * LEN, MIX_SEQUENCES, LEN, 1, &e), 0);
}

static struct quant_options options(void)
{
    struct quant_options o;
    struct err e;
    assert_int_equal(quant_options_init(&o, "rtn", "default", &e), 0);
    o.grid = GRID_q2_k;
    o.kept_packed = true;
    o.kept = DT_F32;
    return o;
}

/* (tokens, n_vocab) log probabilities of all sequences. */
static float *predictions(const struct model *m, const struct calib *c)
{
    int64_t n = c->start[c->n], v = m->hp.n_vocab, d = m->hp.n_embd;
    float *out = mem_alloc((size_t)(n * v), sizeof *out), *h = mem_alloc((size_t)(n * d), sizeof *h);
    struct fwd f;
    struct err e;
    assert_int_equal(fwd_init(&f, &m->hp, n, &e), 0);
    assert_int_equal(fwd_embed(m, c->ids, n, h, &e), 0);
    for (int64_t s = 0; s < c->n; s++)
        for (int64_t l = 0; l < m->hp.n_layer; l++)
            assert_int_equal(fwd_block(m, &m->layers[l], &f, h + c->start[s] * d, c->start[s + 1] - c->start[s], &e), 0);
    assert_int_equal(fwd_logits(m, h, n, f.x, out, &e), 0);
    for (int64_t t = 0; t < n; t++) {
        double sum = 0;
        for (int64_t i = 0; i < v; i++)
            sum += exp(out[t * v + i]);
        for (int64_t i = 0; i < v; i++)
            out[t * v + i] -= (float)log(sum);
    }
    fwd_release(&f);
    mem_free(h);
    return out;
}

static double divergence(const float *p, const float *q, int64_t n, int64_t v)
{
    double sum = 0;
    for (int64_t i = 0; i < n * v; i++)
        sum += exp(p[i]) * ((double)p[i] - q[i]);
    return sum / (double)n;
}

/* What w becomes on a grid, rounded as quant_mix rounds; in m's memory. */
static struct tensor rounded(struct model *m, const struct tensor *w, const struct grid *g)
{
    struct quant_options rtn = options();
    struct tensor q;
    struct err e = { 0 };
    float *wf = mem_alloc((size_t)tensor_count(w), sizeof *wf);
    tensor_to_f32(w, wf);
    rtn.search = SEARCH_MSE;
    struct solve_in in = { .name = "test", .w = wf, .n_out = w->dim[0], .n_in = w->dim[1], .grid = g };
    if (grid_alloc(g, &m->arena, "test", w->dim[0], w->dim[1], &q, &e) || solve(&in, &rtn, &q, &e))
        fail_msg("%s", e.msg);
    mem_free(wf);
    return q;
}

/* One matrix at a type that fits the room given, everything else kept: estimated and true KL within a factor of 1.7 (one draw of a token
 * each estimates an expectation; the rest is third order). Returns the type. */
static enum grid_id estimate_one(const char *model, int64_t layer, enum role role, enum grid_id room)
{
    struct model *m = open_model(model);
    struct calib c;
    struct err e = { 0 };
    struct quant_options *o = mem_alloc(1, sizeof *o);
    struct tensor *w = &m->layers[layer].lin[role].w;
    struct grid g;
    uint64_t bytes = 0, others = 0;
    double estimate = 0;
    *o = options();
    make_calib(&c, m);
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        char keep[128];
        if (i == layer * ROLE_COUNT + role)
            continue;
        snprintf(keep, sizeof keep, "model.layers.%lld.%s=f32", (long long)(i / ROLE_COUNT), role_hf_name[i % ROLE_COUNT]);
        assert_int_equal(quant_keep_add(o, keep, &e), 0);
        others += 4 * (uint64_t)tensor_count(&m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w);
    }
    grid_init(&g, room, 0, 0, 0, w->dim[1]);
    struct mix_target t = { .bytes = others + (uint64_t)(grid_row_bits(&g, w->dim[1]) / 8 * (double)w->dim[0]) };
    if (quant_mix(m, o, &c, &t, NULL, &bytes, &estimate, &e))
        fail_msg("%s: %s", model, e.msg);
    assert_true(bytes <= t.bytes);
    enum grid_id chosen = o->keep[o->n_keep - 1].grid;
    grid_init(&g, chosen, 0, 0, 0, w->dim[1]);
    float *p = predictions(m, &c);
    *w = rounded(m, w, &g);
    float *r = predictions(m, &c);
    double truth = divergence(p, r, c.start[c.n], m->hp.n_vocab);
    if (!(estimate > truth / 1.7 && estimate < truth * 1.7))
        fail_msg("%s layer %lld %s in %s: estimated %g, measured %g", model, (long long)layer, role_hf_name[role],
                 grid_table[chosen].name, estimate, truth);
    mem_free(p);
    mem_free(r);
    mem_free(o);
    calib_release(&c);
    model_free(m);
    return chosen;
}

/* Types measured on all rows and those that are compared with them on some. */
static void test_estimate(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        int64_t layer;
        enum role role;
    } cases[] = { { "llama", 0, ROLE_DOWN }, { "llama", 1, ROLE_V }, { "qwen2", 0, ROLE_UP }, { "qwen3", 1, ROLE_O },
                  { "mistral", 0, ROLE_GATE } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        enum grid_id small = estimate_one(cases[k].model, cases[k].layer, cases[k].role, GRID_q2_k);
        enum grid_id large = estimate_one(cases[k].model, cases[k].layer, cases[k].role, GRID_q6_k);
        assert_true(small != large);
    }
}

/* Bytes of the seven matrices of all blocks at 2 bits. */
static uint64_t smallest(const struct model *m)
{
    uint64_t small = 0;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        struct grid g;
        const struct tensor *w = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        grid_init(&g, GRID_q2_k, 0, 0, 0, w->dim[1]);
        small += (uint64_t)(grid_row_bits(&g, w->dim[1]) / 8 * (double)w->dim[0]);
    }
    return small;
}

/* More bytes, less loss; budgets kept and nearly used; names the user fixed untouched; too little refused. */
static void test_budget(void **state)
{
    (void)state;
    struct model *m = open_model("llama");
    struct calib c;
    struct err e = { 0 };
    struct quant_options *o = mem_alloc(1, sizeof *o);
    uint64_t bytes = 0, small = smallest(m);
    double loss = 0, before = 1e30;
    make_calib(&c, m);
    for (int step = 0; step < 5; step++) {
        struct mix_target t = { .bytes = small + small * (uint64_t)step / 2 };
        *o = options();
        assert_int_equal(quant_mix(m, o, &c, &t, NULL, &bytes, &loss, &e), 0);
        assert_int_equal(o->n_keep, m->hp.n_layer * ROLE_COUNT);
        assert_true(bytes <= t.bytes && bytes * 100 > t.bytes * 90);
        assert_true(loss < before);
        before = loss;
    }
    struct mix_target t = { .bytes = small + 100, .tables = true };
    *o = options();
    assert_int_equal(quant_mix(m, o, &c, &t, NULL, &bytes, &loss, &e), -1); /* the tables do not fit */
    assert_int_equal(e.code, ERR_USAGE);
    *o = options();
    assert_int_equal(quant_keep_add(o, "*.v_proj=q8_0", &e), 0);
    t = (struct mix_target){ .bytes = small * 3 };
    assert_int_equal(quant_mix(m, o, &c, &t, NULL, &bytes, &loss, &e), 0);
    for (int i = 1; i < o->n_keep; i++)
        assert_null(strstr(o->keep[i].pattern, "v_proj"));
    mem_free(o);
    calib_release(&c);
    model_free(m);
}

/* Equal steps of bytes buy less and less: the best is bought first. */
static void test_best_first(void **state)
{
    (void)state;
    struct model *m = open_model("llama");
    struct calib c;
    struct err e = { 0 };
    struct quant_options *o = mem_alloc(1, sizeof *o);
    uint64_t bytes = 0, small = smallest(m);
    double loss[5];
    make_calib(&c, m);
    for (int step = 0; step < 5; step++) {
        struct mix_target t = { .bytes = small + small * (uint64_t)step / 4 };
        *o = options();
        assert_int_equal(quant_mix(m, o, &c, &t, NULL, &bytes, &loss[step], &e), 0);
    }
    for (int i = 0; i < 3; i++)
        assert_true(loss[i] - loss[i + 1] > loss[i + 1] - loss[i + 2]);
    mem_free(o);
    calib_release(&c);
    model_free(m);
}

/* With room for all, no table stays at its smallest type. */
static void test_tables(void **state)
{
    (void)state;
    struct model *m = open_model("llama");
    struct calib c;
    struct err e = { 0 };
    struct quant_options *o = mem_alloc(1, sizeof *o);
    uint64_t bytes = 0;
    double loss;
    make_calib(&c, m);
    struct mix_target t = { .bytes = 1 << 20, .tables = true };
    *o = options();
    assert_int_equal(quant_mix(m, o, &c, &t, NULL, &bytes, &loss, &e), 0);
    int found = 0;
    for (int i = 0; i < o->n_keep; i++)
        if (strstr(o->keep[i].pattern, "embed") || strstr(o->keep[i].pattern, "lm_head"))
            found += o->keep[i].grid == GRID_q8_0;
    assert_int_equal(found, 2);
    mem_free(o);
    calib_release(&c);
    model_free(m);
}

/* One weight that is no number: named before anything is measured; and nothing is chosen by losses that are none. */
static void test_bad_weight(void **state)
{
    (void)state;
    struct d2q_model dm = { .m = open_model("llama") };
    struct tensor *w = &dm.m->layers[1].lin[ROLE_UP].w;
    float *copy = mem_alloc((size_t)tensor_count(w), sizeof *copy);
    d2q_quantize_options in;
    d2q_error err;
    char *json = NULL;
    tensor_to_f32(w, copy);
    copy[7] = NAN;
    *w = tensor_f32(w->name, copy, w->dim[0], w->dim[1]);
    d2q_quantize_options_init(&in);
    in.grid = "q2_k";
    assert_int_equal(d2q_choose_types(&dm, &in, 0, 4, &json, &err), -1);
    assert_int_equal(err.code, D2Q_ERR_NUMERIC);
    assert_non_null(strstr(err.message, "model.layers.1.mlp.up_proj.weight"));
    struct quant_options *o = mem_alloc(1, sizeof *o);
    struct mix_target t = { .bytes = 1 << 20 };
    struct calib c;
    struct err e = { 0 };
    uint64_t bytes;
    double loss;
    *o = options();
    make_calib(&c, dm.m);
    assert_int_equal(quant_mix(dm.m, o, &c, &t, NULL, &bytes, &loss, &e), -1);
    assert_int_equal(e.code, ERR_NUMERIC);
    calib_release(&c);
    mem_free(o);
    model_free(dm.m);
    mem_free(copy);
}

/* What tuning says of divergence before and after is what it is: held-out sequences of 150 tokens, rotated or not, lr that harms. */
static void test_tuning_tells_the_truth(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        struct model *fl = open_model("llama"), *m = open_model("llama");
        struct quant_options o;
        struct quant_result res;
        struct calib c, held;
        struct err e = { 0 };
        int32_t ids[16 * 150];
        uint64_t x = 3;
        for (int i = 0; i < 16 * 150; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            ids[i] = (int32_t)((x >> 33) % 320);
        }
        assert_int_equal(calib_from_tokens(&c, ids, 16 * 150, 16, 150, 1, &e), 0);
        assert_int_equal(quant_options_init(&o, "gptq", "default", &e), 0);
        o.bits = 4;
        o.group = 32;
        o.kept = DT_F32;
        o.tune = 1;
        o.rotate = k == 1;
        o.tune_lr = k == 2 ? 0.1 : 1e-4;
        if (quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e))
            fail_msg("%s", e.msg);
        held = c;
        int64_t start[3] = { 0, 150, 300 };
        held.n = 2;
        held.start = start;
        held.ids = c.ids + 14 * 150;
        float *p = predictions(fl, &held), *q = predictions(m, &held);
        double truth = divergence(p, q, 300, 320);
        assert_true(res.tune_after <= res.tune_before);
        assert_true(fabs(truth - res.tune_after) < 1e-3 * truth);
        mem_free(p);
        mem_free(q);
        calib_release(&c);
        quant_result_release(&res);
        model_free(m);
        model_free(fl);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_estimate), cmocka_unit_test(test_budget), cmocka_unit_test(test_best_first), cmocka_unit_test(test_tables),
        cmocka_unit_test(test_bad_weight), cmocka_unit_test(test_tuning_tells_the_truth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
