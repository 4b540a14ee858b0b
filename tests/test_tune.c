/* Gradients against finite differences in double, and tuning as a whole on a tiny model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "model/backward.h"
#include "quant/quant.h"

#define MODELS "tests/fixtures/models/"
enum { N = 24 }; /* tokens, more than mistral's window of 16 */

static uint64_t rng = 1;

static float uniform(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(rng >> 11) / 9007199254740992.0) - 0.5f;
}

static struct model *open_model(const char *path)
{
    struct model *m;
    struct err e;
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

/* The block's matrices and norms as float32 of our own. */
static void own_floats(struct model *m, struct layer *l)
{
    for (int r = 0; r < ROLE_COUNT; r++) {
        struct tensor *w = &l->lin[r].w;
        int64_t rows = tensor_rows(w), cols = tensor_cols(w);
        float *p = arena_alloc(&m->arena, (size_t)(rows * cols), sizeof *p);
        tensor_to_f32(w, p);
        *w = tensor_f32(w->name, p, rows, cols);
    }
    const float **gain[2] = { &l->attn_norm, &l->ffn_norm };
    for (int i = 0; i < 2; i++) {
        float *p = arena_alloc(&m->arena, (size_t)m->hp.n_embd, sizeof *p);
        memcpy(p, *gain[i], (size_t)m->hp.n_embd * sizeof *p);
        *gain[i] = p;
    }
}

/* sum of c * (the block's output) */
static double loss(const struct model *m, const struct layer *l, const float *h, const float *c)
{
    struct fwd f;
    struct err e;
    int64_t n = N * m->hp.n_embd;
    float *x = mem_alloc((size_t)n, sizeof *x);
    double sum = 0;
    memcpy(x, h, (size_t)n * sizeof *x);
    assert_int_equal(fwd_init(&f, &m->hp, N, &e), 0);
    assert_int_equal(fwd_block(m, l, &f, x, N, &e), 0);
    for (int64_t i = 0; i < n; i++)
        sum += (double)c[i] * x[i];
    fwd_release(&f);
    mem_free(x);
    return sum;
}

struct collected {
    const struct layer *l;
    float *dw[ROLE_COUNT];
};

static int collect(void *ud, enum role role, const float *dy, const float *x, int64_t n, struct err *e)
{
    struct collected *c = ud;
    int64_t rows = tensor_rows(&c->l->lin[role].w), cols = tensor_cols(&c->l->lin[role].w);
    (void)e;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            for (int64_t t = 0; t < n; t++)
                c->dw[role][i * cols + j] += dy[t * rows + i] * x[t * cols + j];
    return 0;
}

/* Central differences of a float32 forward pass: 2 % of the largest derivative of its kind. */
static void check(const char *what, double got, double want, double scale)
{
    if (!(fabs(got - want) <= 0.02 * scale + 1e-4))
        fail_msg("%s: gradient %g, difference quotient %g", what, got, want);
}

static void gradients_of(const char *path)
{
    struct model *m = open_model(path);
    struct layer *l = &m->layers[1];
    struct err e;
    struct bwd b;
    int64_t d = m->hp.n_embd, n = N * d;
    own_floats(m, l);
    struct arena a;
    arena_init(&a);
    float *h = arena_alloc(&a, (size_t)n, sizeof *h), *c = arena_alloc(&a, (size_t)n, sizeof *c), *dh = arena_alloc(&a, (size_t)n, sizeof *dh);
    float *ga = arena_zalloc(&a, (size_t)d, sizeof *ga), *gf = arena_zalloc(&a, (size_t)d, sizeof *gf);
    for (int64_t i = 0; i < n; i++) {
        h[i] = 2 * uniform();
        dh[i] = c[i] = uniform();
    }
    struct collected col = { .l = l };
    for (int r = 0; r < ROLE_COUNT; r++)
        col.dw[r] = arena_zalloc(&a, (size_t)tensor_count(&l->lin[r].w), sizeof(float));
    struct bwd_sink sink = { &col, collect, ga, gf };
    assert_int_equal(bwd_init(&b, &m->hp, N, &e), 0);
    assert_int_equal(bwd_forward(m, l, &b, h, N, &e), 0);
    assert_int_equal(bwd_block(m, l, &b, h, N, dh, &sink, &e), 0);
    struct { const char *name; float *at; const float *grad; int64_t count; } vars[ROLE_COUNT + 3];
    for (int r = 0; r < ROLE_COUNT; r++)
        vars[r].name = role_hf_name[r], vars[r].at = (float *)(uintptr_t)l->lin[r].w.data, vars[r].grad = col.dw[r],
        vars[r].count = tensor_count(&l->lin[r].w);
    vars[ROLE_COUNT].name = "input", vars[ROLE_COUNT].at = h, vars[ROLE_COUNT].grad = dh, vars[ROLE_COUNT].count = n;
    vars[ROLE_COUNT + 1].name = "attn_norm", vars[ROLE_COUNT + 1].at = (float *)(uintptr_t)l->attn_norm;
    vars[ROLE_COUNT + 1].grad = ga, vars[ROLE_COUNT + 1].count = d;
    vars[ROLE_COUNT + 2].name = "ffn_norm", vars[ROLE_COUNT + 2].at = (float *)(uintptr_t)l->ffn_norm;
    vars[ROLE_COUNT + 2].grad = gf, vars[ROLE_COUNT + 2].count = d;
    for (size_t k = 0; k < sizeof vars / sizeof *vars; k++) {
        double scale = 0;
        for (int64_t i = 0; i < vars[k].count; i++)
            scale = fmax(scale, fabs(vars[k].grad[i]));
        assert_true(scale > 0);
        for (int trial = 0; trial < 12; trial++) {
            int64_t i = (int64_t)((uniform() + 0.5f) * 0.999f * (float)vars[k].count);
            float was = vars[k].at[i], step = 4e-3f;
            vars[k].at[i] = was + step;
            double up = loss(m, l, h, c);
            vars[k].at[i] = was - step;
            double down = loss(m, l, h, c);
            vars[k].at[i] = was;
            check(vars[k].name, vars[k].grad[i], (up - down) / (2 * step), scale);
        }
    }
    bwd_release(&b);
    arena_release(&a);
    model_free(m);
}

static void gradients_are_difference_quotients(void **state)
{
    (void)state;
    static const char *const models[] = { "llama", "llama_bias", "mistral", "qwen2", "qwen3" };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char path[128];
        snprintf(path, sizeof path, MODELS "%s", models[i]);
        gradients_of(path);
    }
}

static void make_calib(struct calib *c, const struct model *m, int64_t n, int64_t len)
{
    struct err e;
    int32_t *ids = mem_alloc((size_t)(n * len), sizeof *ids);
    for (int64_t i = 0; i < n * len; i++)
        ids[i] = (int32_t)((uniform() + 0.5f) * 0.999f * (float)m->hp.n_vocab);
    assert_int_equal(calib_from_tokens(c, ids, n * len, n, len, 0, &e), 0);
    mem_free(ids);
}

/* Held-out divergence falls, by grids of both kinds; codes and integers stay what they were. */
static void tuning_lowers_divergence(void **state)
{
    (void)state;
    static const struct { enum grid_id grid; int bits, group; double lr, gain; } cases[] = {
        { GRID_asym, 2, 16, 3e-3, 0.97 }, { GRID_q4_1, 4, 32, 3e-4, 0.99 }, { GRID_sym, 3, 32, 1e-3, 0.97 } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct model *plain = open_model(MODELS "llama"), *tuned = open_model(MODELS "llama");
        struct quant_options o;
        struct quant_result res;
        struct calib c, fitted;
        struct err e;
        rng = 11;
        make_calib(&c, plain, 24, 32);
        fitted = c;
        fitted.n -= c.n / 8; /* what judges the passes takes no part in the statistics */
        assert_int_equal(quant_options_init(&o, "gptq", "default", &e), 0);
        o.grid = cases[k].grid;
        o.bits = cases[k].bits;
        o.group = cases[k].group;
        assert_int_equal(quantize_model(plain, &o, &fitted, NULL, NULL, NULL, &res, &e), 0);
        assert_true(res.tune_before == 0);
        quant_result_release(&res);
        o.tune = 4;
        o.tune_lr = cases[k].lr;
        if (quantize_model(tuned, &o, &c, NULL, NULL, NULL, &res, &e))
            fail_msg("%s", e.msg);
        if (!(res.tune_after < cases[k].gain * res.tune_before))
            fail_msg("%s: divergence %g became %g", grid_table[o.grid].name, res.tune_before, res.tune_after);
        quant_result_release(&res);
        int64_t moved = 0;
        for (int64_t l = 0; l < plain->hp.n_layer; l++)
            for (int r = 0; r < ROLE_COUNT; r++) {
                const struct tensor *a = &plain->layers[l].lin[r].w, *b = &tuned->layers[l].lin[r].w;
                for (size_t i = 0; a->type == DT_Q4_1 && i < a->size; i++) /* blocks: scale, minimum, 16 bytes of codes */
                    if (i % 20 >= 4)
                        assert_int_equal(((const uint8_t *)a->data)[i], ((const uint8_t *)b->data)[i]);
                    else
                        moved += ((const uint8_t *)a->data)[i] != ((const uint8_t *)b->data)[i];
                if (a->type != DT_QMAT)
                    continue;
                assert_memory_equal(a->q->codes, b->q->codes, (size_t)(a->q->n_out * a->q->row_words) * 4);
                assert_memory_equal(a->q->zero, b->q->zero, (size_t)(a->q->n_out * a->q->n_groups));
                for (int64_t i = 0; i < a->q->n_out * a->q->n_groups; i++)
                    moved += a->q->scale[i] != b->q->scale[i];
            }
        assert_true(moved > 100);
        calib_release(&c);
        model_free(plain);
        model_free(tuned);
    }
}

int main(void)
{
    struct err e;
    if (backend_init(&e))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_difference_quotients),
        cmocka_unit_test(tuning_lowers_divergence),
    };
    return cmocka_run_group_tests_name("tune", tests, NULL, NULL);
}
