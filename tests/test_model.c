/* test_model: every family against transformers, and the forward pass against itself.
 *
 * The references are tests/fixtures/models (tools/golden.py: transformers in float32). Tolerance of logits: 1e-3 of
 * their range is the project's promise; on these models less than 1e-6 is reached, so 1e-5 is asserted. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/file.h"
#include "base/par.h"
#include "io/safetensors.h"
#include "model/family.h"
#include "model/model.h"
#include "scratch.h"

#define DIR "tests/fixtures/models/"
#define LOGIT_TOL 1e-5 /* of the range of the logits */
#define KV_TOL 1e-5
#define MAX_IDS 64

static const char *const fixture[][2] = { /* model, folder of its expected logits */
    { "llama", "llama" }, { "llama3", "llama3" }, { "llama_bias", "llama_bias" }, { "smollm2", "smollm2" },
    { "mistral", "mistral" }, { "qwen2", "qwen2" }, { "qwen3", "qwen3" },
    { "llama.gguf", "llama" }, { "llama3.gguf", "llama3" }, { "llama_bias.gguf", "llama_bias" },
    { "qwen2.gguf", "qwen2" }, { "qwen3.gguf", "qwen3" },
};
#define N_FIXTURES (sizeof fixture / sizeof *fixture)

struct golden {
    struct st_file file;
    const int32_t *ids;
    const float *logits; /* (n, n_vocab) */
    int64_t n, n_vocab;
};

static void golden_open(struct golden *g, const char *name)
{
    char path[256];
    struct err e = { .msg = "" };
    snprintf(path, sizeof path, DIR "%s/expected.safetensors", name);
    if (st_open(&g->file, path, &e))
        fail_msg("%s", e.msg);
    g->ids = NULL;
    g->logits = NULL;
    for (size_t i = 0; i < g->file.n; i++) {
        const struct st_entry *t = &g->file.entries[i];
        if (!strcmp(t->name, "ids")) {
            g->ids = t->data;
            g->n = t->dim[1];
        } else {
            g->logits = t->data;
            g->n_vocab = t->dim[1];
        }
    }
    assert_non_null(g->ids);
    assert_non_null(g->logits);
    assert_true(g->n <= MAX_IDS);
}

static struct model *open_fixture(const char *name)
{
    char path[256];
    struct err e = { .msg = "" };
    struct model *m = NULL;
    snprintf(path, sizeof path, DIR "%s", name);
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

/* Logits of all tokens by the stages of forward.c; (n, n_vocab), mem_free. */
static float *forward(const struct model *m, const int32_t *ids, int64_t n)
{
    struct fwd f;
    struct err e = { .msg = "" };
    float *h = mem_alloc((size_t)(n * m->hp.n_embd), sizeof *h);
    float *logits = mem_alloc((size_t)(n * m->hp.n_vocab), sizeof *logits);
    assert_true(h && logits);
    int rc = fwd_init(&f, &m->hp, n, &e) || fwd_embed(m, ids, n, h, &e);
    for (int64_t i = 0; !rc && i < m->hp.n_layer; i++)
        rc = fwd_block(m, &m->layers[i], &f, h, n, &e);
    if (rc || fwd_logits(m, h, n, f.x, logits, &e))
        fail_msg("%s", e.msg);
    fwd_release(&f);
    mem_free(h);
    return logits;
}

static double range(const float *x, int64_t n)
{
    float lo = x[0], hi = x[0];
    for (int64_t i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    return (double)hi - lo;
}

static double max_diff(const float *a, const float *b, int64_t n)
{
    double d = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = fabs((double)a[i] - b[i]);
        if (!(x <= d)) /* NaN counts */
            d = x;
    }
    return d;
}

static void close_to(const char *what, const char *model, const float *ours, const float *theirs, int64_t n,
                     double tol)
{
    double d = max_diff(ours, theirs, n) / range(theirs, n);
    print_message("# %s %s: max difference %.2g of the range\n", model, what, d);
    if (!(d < tol))
        fail_msg("%s %s: max difference %g of the logits' range, tolerance %g", model, what, d, tol);
}

static void test_logits(void **state)
{
    const char *const *row = *state;
    struct golden g;
    golden_open(&g, row[1]);
    struct model *m = open_fixture(row[0]);
    assert_int_equal(m->hp.n_vocab, g.n_vocab);
    float *logits = forward(m, g.ids, g.n);
    close_to("against transformers", row[0], logits, g.logits, g.n * g.n_vocab, LOGIT_TOL);
    mem_free(logits);
    model_free(m);
    st_release(&g.file);
}

/* Chunks of the given sizes through the cache, all logits kept. */
static float *by_cache(const struct model *m, const int32_t *ids, int64_t n, int64_t chunk)
{
    struct kv_cache c;
    struct err e = { .msg = "" };
    float *logits = mem_alloc((size_t)(n * m->hp.n_vocab), sizeof *logits);
    assert_non_null(logits);
    int rc = kv_init(&c, &m->hp, n, chunk, &e);
    for (int64_t i = 0; !rc && i < n; i += chunk)
        rc = kv_forward(m, &c, ids + i, n - i < chunk ? n - i : chunk, true, logits + i * m->hp.n_vocab, &e);
    if (rc)
        fail_msg("%s", e.msg);
    kv_release(&c);
    return logits;
}

static void test_kv(void **state)
{
    const char *const *row = *state;
    static const int64_t chunk[] = { 1, 7, 20, 48 };
    struct golden g;
    golden_open(&g, row[1]);
    struct model *m = open_fixture(row[0]);
    for (size_t i = 0; i < sizeof chunk / sizeof *chunk; i++) {
        char what[64];
        float *logits = by_cache(m, g.ids, g.n, chunk[i]);
        snprintf(what, sizeof what, "cache, chunks of %lld", (long long)chunk[i]);
        close_to(what, row[0], logits, g.logits, g.n * g.n_vocab, KV_TOL);
        mem_free(logits);
    }
    model_free(m);
    st_release(&g.file);
}

/* Three sequences of different lengths, decoded together, against each alone; rolling back included. */
static void test_batched(void **state)
{
    const char *const *row = *state;
    enum { N = 3, STEPS = 8 };
    static const int64_t start[N] = { 0, 5, 20 };
    struct golden g;
    struct err e = { .msg = "" };
    golden_open(&g, row[1]);
    struct model *m = open_fixture(row[0]);
    struct kv_cache cache[N], *c[N];
    float *logits = mem_alloc((size_t)(N * m->hp.n_vocab), sizeof *logits);
    float *alone[N];
    assert_non_null(logits);
    for (int i = 0; i < N; i++) { /* sequence i is the golden ids from start[i] on */
        c[i] = &cache[i];
        alone[i] = forward(m, g.ids + start[i], 10 + i + STEPS);
        if (kv_init(c[i], &m->hp, 40, 20, &e) ||
            kv_forward(m, c[i], g.ids + start[i], 10 + i + 2, false, NULL, &e))
            fail_msg("%s", e.msg);
        c[i]->n -= 2;
    }
    for (int s = 0; s < STEPS; s++) {
        int32_t ids[N];
        for (int i = 0; i < N; i++)
            ids[i] = g.ids[start[i] + 10 + i + s];
        if (kv_step(m, c, N, ids, logits, &e))
            fail_msg("%s", e.msg);
        for (int i = 0; i < N; i++) {
            const float *want = alone[i] + (10 + i + s) * m->hp.n_vocab;
            double d = max_diff(logits + i * m->hp.n_vocab, want, m->hp.n_vocab) / range(want, m->hp.n_vocab);
            if (!(d < KV_TOL))
                fail_msg("%s sequence %d step %d: difference %g", row[0], i, s, d);
        }
    }
    for (int i = 0; i < N; i++) {
        kv_release(c[i]);
        mem_free(alone[i]);
    }
    mem_free(logits);
    model_free(m);
    st_release(&g.file);
}

static void test_threads(void **state)
{
    const char *const *row = *state;
    static const int threads[] = { 2, 7 };
    struct golden g;
    golden_open(&g, row[1]);
    struct model *m = open_fixture(row[0]);
    size_t bytes = (size_t)(g.n * g.n_vocab) * sizeof(float);
    int before = par_threads();
    par_set_threads(1);
    float *full = forward(m, g.ids, g.n), *cached = by_cache(m, g.ids, g.n, 5);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        par_set_threads(threads[i]);
        float *f = forward(m, g.ids, g.n), *c = by_cache(m, g.ids, g.n, 5);
        assert_memory_equal(f, full, bytes);
        assert_memory_equal(c, cached, bytes);
        mem_free(f);
        mem_free(c);
    }
    par_set_threads(before);
    mem_free(full);
    mem_free(cached);
    model_free(m);
    st_release(&g.file);
}

/* ---- config.json of the wrong kind ---------------------------------------- */

/* A folder whose config is a fixture's with keys replaced, and its weights (scratch_remove). */
static const char *broken_make(const char *from, const char *patch)
{
    const char *dir = scratch_dir();
    char cmd[8192], path[128];
    snprintf(cmd, sizeof cmd, "cp " DIR "%s/*.safetensors '%s'", from, dir);
    assert_int_equal(system(cmd), 0);
    snprintf(path, sizeof path, DIR "%s/config.json", from);
    json_error_t je;
    json_t *config = json_load_file(path, 0, &je), *p = json_loads(patch, 0, &je);
    assert_true(config && p);
    json_object_update(config, p);
    assert_int_equal(json_dump_file(config, scratch_path(dir, "config.json"), 0), 0);
    json_decref(config);
    json_decref(p);
    return dir;
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *patch, *expect; /* words the message must have; NULL: it opens */
        enum err_code code;
    } row[] = {
        { "llama", "{\"architectures\": [\"GPT2LMHeadModel\"]}", "architecture GPT2LMHeadModel", ERR_UNSUPPORTED },
        { "llama", "{\"architectures\": null, \"model_type\": \"mixtral\"}", "mixtral", ERR_UNSUPPORTED },
        { "llama", "{\"architectures\": null, \"model_type\": null}", "architectures", ERR_FORMAT },
        { "llama", "{\"hidden_act\": \"gelu\"}", "hidden_act gelu", ERR_UNSUPPORTED },
        { "llama", "{\"pretraining_tp\": 2}", NULL, ERR_NONE }, /* Llama 2 13B: it changes nothing */
        { "llama", "{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4}}",
          "rope_scaling type yarn is not supported (expected none, linear or llama3)", ERR_UNSUPPORTED },
        { "llama3", "{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4}}", "type dynamic", ERR_UNSUPPORTED },
        { "llama3", "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 4}}", "low_freq_factor is missing",
          ERR_FORMAT },
        { "llama3", "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", "factor", ERR_FORMAT },
        { "llama3", "{\"rope_scaling\": [1]}", "expected an object", ERR_FORMAT },
        { "llama", "{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor 0.5", ERR_UNSUPPORTED },
        { "qwen2", "{\"use_sliding_window\": true}", "use_sliding_window", ERR_UNSUPPORTED },
        { "qwen2", "{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}", "sliding_attention of layer 1",
          ERR_UNSUPPORTED },
        { "qwen3", "{\"quantization_config\": {\"quant_method\": \"awq\"}}", "awq", ERR_UNSUPPORTED },
        { "llama", "{\"hidden_size\": \"64\"}", "hidden_size: expected an integer, found a string", ERR_FORMAT },
        { "llama", "{\"hidden_size\": null}", "hidden_size is missing", ERR_FORMAT },
        { "llama", "{\"hidden_size\": -64}", "hidden_size", ERR_FORMAT },
        { "llama", "{\"num_hidden_layers\": 1000000000}", "num_hidden_layers", ERR_FORMAT },
        { "llama", "{\"num_hidden_layers\": 3}", "model.layers.2.input_layernorm.weight", ERR_FORMAT },
        { "llama", "{\"num_attention_heads\": 3}", "num_attention_heads", ERR_FORMAT },
        { "llama", "{\"head_dim\": 15}", "head_dim 15", ERR_UNSUPPORTED },
        { "llama", "{\"intermediate_size\": 97}", "model.layers.0.mlp.gate_proj.weight: expected shape [97, 64]",
          ERR_FORMAT },
        { "llama", "{\"vocab_size\": 321}", "model.embed_tokens.weight: expected shape [321, 64]", ERR_FORMAT },
        { "llama", "{\"attention_bias\": true}", "model.layers.0.self_attn.q_proj.bias", ERR_FORMAT },
        { "llama", "{\"rms_norm_eps\": -1}", "rms_norm_eps", ERR_FORMAT },
        { "llama3", "{\"tie_word_embeddings\": false}", "lm_head.weight", ERR_FORMAT },
        { "qwen3", "{\"architectures\": [\"LlamaForCausalLM\"], \"head_dim\": 8}", "q_proj.weight", ERR_FORMAT },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct err e = { .msg = "" };
        struct model *m = NULL;
        const char *dir = broken_make(row[i].from, row[i].patch);
        int rc = model_open(&m, dir, &e);
        bool as_expected = !row[i].expect ? rc == 0 : rc == -1 && strstr(e.msg, row[i].expect) && strstr(e.msg, dir) && e.code == row[i].code;
        scratch_remove(dir);
        model_free(rc ? NULL : m);
        if (!as_expected)
            fail_msg("%s %s: rc %d, code %d, message \"%s\"", row[i].from, row[i].patch, rc, (int)e.code, e.msg);
    }
}

/* GGUF fixtures with bytes replaced by others of the same length. */
static void test_gguf_refused(void **state)
{
    (void)state;
#define EIGHT "\0\0\0\x41"
    static const struct {
        const char *from, *old, *new;
        size_t n;
        const char *expect;
        enum err_code code;
    } row[] = {
        { "llama.gguf", "architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
          "architecture\x08\0\0\0\x05\0\0\0\0\0\0\0gemma", 29, "general.architecture gemma", ERR_UNSUPPORTED },
        { "llama.gguf", "general.architecture", "general.architectura", 20, "general.architecture is missing", ERR_FORMAT },
        { "llama.gguf", "llama.block_count", "llama.block_cound", 17, "llama.block_count is missing", ERR_FORMAT },
        { "llama.gguf", "llama.block_count", "llama.logit_scale", 17, "llama.logit_scale is not supported",
          ERR_UNSUPPORTED },
        { "llama.gguf", "rms_epsilon", "rms_epsilom", 11, "rms_epsilon is missing", ERR_FORMAT },
        { "llama.gguf", "blk.1.ffn_up.weight", "blk.1.ffn_yp.weight", 19, "blk.1.ffn_up.weight", ERR_FORMAT },
        { "llama_bias.gguf", "\x06\0\0\0\0\0\0\0linear", "\x06\0\0\0\0\0\0\0yarned", 14,
          "rope_scaling type yarned is not supported", ERR_UNSUPPORTED },
        { "llama3.gguf", EIGHT EIGHT EIGHT EIGHT, "\0\0\xe0\x40" EIGHT EIGHT EIGHT, 16, "rope_freqs.weight",
          ERR_UNSUPPORTED },
        { "llama3.gguf", EIGHT EIGHT EIGHT EIGHT, "\0\0\xc0\x7f" EIGHT EIGHT EIGHT, 16, "rope_freqs.weight",
          ERR_UNSUPPORTED },
        { "llama3.gguf", "rope_freqs.weight", "rope_freks.weight", 17, NULL, ERR_NONE }, /* opens: the patch is harmless */
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char *data, from[128];
        size_t size;
        struct err e = { .msg = "", .code = ERR_NONE };
        struct model *m = NULL;
        snprintf(from, sizeof from, DIR "%s", row[i].from);
        assert_int_equal(file_read(from, 1 << 24, &data, &size, &e), 0);
        char *at = memmem(data, size, row[i].old, row[i].n);
        assert_non_null(at);
        memcpy(at, row[i].new, row[i].n);
        const char *dir = scratch_dir(), *path = scratch_path(dir, "m.gguf");
        scratch_write(path, data, size);
        int rc = model_open(&m, path, &e);
        model_free(m);
        mem_free(data);
        bool as_expected = row[i].expect ? rc == -1 && strstr(e.msg, row[i].expect) && strstr(e.msg, dir) : rc == 0;
        scratch_remove(dir);
        if (!as_expected || e.code != row[i].code)
            fail_msg("%s row %zu: rc %d, code %d, message \"%s\"", row[i].from, i, rc, (int)e.code, e.msg);
    }
}

static void test_bad_ids(void **state)
{
    (void)state;
    struct model *m = open_fixture("llama");
    struct kv_cache c;
    struct err e = { .msg = "" };
    float *logits = mem_alloc((size_t)m->hp.n_vocab, sizeof *logits);
    int32_t bad[2] = { (int32_t)m->hp.n_vocab, -1 }, good[5] = { 1, 2, 3, 4, 5 };
    assert_int_equal(kv_init(&c, &m->hp, 6, 4, &e), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(kv_forward(m, &c, bad + i, 1, false, logits, &e), -1);
        assert_non_null(strstr(e.msg, "token id"));
    }
    assert_int_equal(kv_forward(m, &c, good, 5, false, logits, &e), -1); /* more than a batch */
    assert_int_equal(kv_forward(m, &c, good, 4, false, logits, &e), 0);
    assert_int_equal(kv_forward(m, &c, good, 3, false, logits, &e), -1); /* more than fits */
    assert_non_null(strstr(e.msg, "full"));
    kv_release(&c);
    mem_free(logits);
    model_free(m);
}

/* ---- GGUF metadata as config.json ------------------------------------------ */

/* Every key of the folder's config that decides the computation is the same in the one made from GGUF. */
static void test_gguf_config(void **state)
{
    (void)state;
    static const char *const key[] = { "architectures", "model_type", "vocab_size", "hidden_size",
        "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
        "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias",
        "use_sliding_window", "eos_token_id" };
    for (size_t i = 7; i < N_FIXTURES; i++) {
        struct model *g = open_fixture(fixture[i][0]), *h = open_fixture(fixture[i][1]);
        for (size_t k = 0; k < sizeof key / sizeof *key; k++) {
            json_t *want = json_object_get(h->config, key[k]), *got = json_object_get(g->config, key[k]);
            if (want && !json_equal(want, got))
                fail_msg("%s: %s differs", fixture[i][0], key[k]);
        }
        assert_int_equal(g->hp.head_dim, h->hp.head_dim);
        for (int64_t j = 0; j < g->hp.head_dim / 2; j++)
            assert_true(fabsf(g->inv_freq[j] - h->inv_freq[j]) <= 2e-7f * h->inv_freq[j]);
        /* and the config alone, without rope_freqs.weight, says the same */
        float freq[64], scale;
        struct err e = { .msg = "" };
        assert_int_equal(rope_inv_freq(g->config, &g->hp, freq, &scale, &e), 0);
        for (int64_t j = 0; j < g->hp.head_dim / 2; j++)
            assert_true(fabsf(freq[j] - h->inv_freq[j]) <= 2e-7f * h->inv_freq[j]);
        assert_int_equal(g->hp.qkv_bias, h->hp.qkv_bias);
        assert_int_equal(g->hp.o_bias, h->hp.o_bias);
        assert_int_equal(g->hp.mlp_bias, h->hp.mlp_bias);
        model_free(g);
        model_free(h);
    }
}

int main(void)
{
    struct CMUnitTest test[4 * N_FIXTURES + 4];
    static char name[4 * N_FIXTURES][64];
    static const struct {
        const char *name;
        CMUnitTestFunction fn;
    } each[] = { { "logits", test_logits }, { "kv", test_kv }, { "batched", test_batched },
                 { "threads", test_threads } };
    size_t n = 0;
    struct err e;
    if (backend_init(&e))
        return 1;
    for (size_t t = 0; t < sizeof each / sizeof *each; t++)
        for (size_t i = 0; i < N_FIXTURES; i++, n++) {
            snprintf(name[n], sizeof name[n], "%s %s", each[t].name, fixture[i][0]);
            test[n] = (struct CMUnitTest){ name[n], each[t].fn, NULL, NULL, (void *)fixture[i] };
        }
    test[n++] = (struct CMUnitTest)cmocka_unit_test(test_refused);
    test[n++] = (struct CMUnitTest)cmocka_unit_test(test_gguf_refused);
    test[n++] = (struct CMUnitTest)cmocka_unit_test(test_bad_ids);
    test[n++] = (struct CMUnitTest)cmocka_unit_test(test_gguf_config);
    return _cmocka_run_group_tests("model", test, n, NULL, NULL);
}
