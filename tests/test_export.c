/* export: tiny models of tests/fixtures/models out and in again, bit for bit; the GPTQ layout against files packed
 * by tools/golden_hf.py with the classic packers; what a format cannot hold is refused by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "export/export.h"
#include "export/weights.h"
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

static void export_ok(const struct model *m, const char *format, const char *dir, const struct export_options *o)
{
    struct err e = { 0 };
    uint64_t bytes = 0;
    if (export_model(m, format, dir, o, NULL, &bytes, &e))
        fail_msg("%s: %s", format, e.msg);
    assert_true(bytes > 1000);
}

static void export_refuses(const struct model *m, const char *format, const char *dir, const struct export_options *o,
                           const char *want)
{
    struct err e = { 0 };
    struct stat st;
    if (export_model(m, format, dir, o, NULL, NULL, &e) == 0)
        fail_msg("%s: accepted, expected \"%s\"", format, want);
    if (!strstr(e.msg, want))
        fail_msg("%s: expected \"%s\", found \"%s\"", format, want, e.msg);
    assert_int_equal(stat(dir, &st), -1); /* nothing is left behind */
}

/* Round to nearest on a grid of fp16 scales; zeros at least lo. */
static void quantize(struct model *m, struct tensor *t, int bits, int group, bool sym, int lo)
{
    int64_t rows = t->dim[0], cols = t->dim[1];
    struct qmat *q = arena_zalloc(&m->arena, 1, sizeof *q);
    struct err e = { 0 };
    float *w = malloc((size_t)cols * sizeof *w);
    uint8_t *codes = malloc((size_t)cols);
    int max = (1 << bits) - 1;
    assert_true(q && w && codes);
    assert_int_equal(qmat_init(q, &m->arena, rows, cols, bits, group, sym, &e), 0);
    for (int64_t i = 0; i < rows; i++) {
        tensor_rows_f32(t, i, 1, w);
        for (int64_t g = 0; g < q->n_groups; g++) {
            int64_t end = (g + 1) * group < cols ? (g + 1) * group : cols;
            float top = 0, bottom = 0;
            for (int64_t j = g * group; j < end; j++) {
                top = fmaxf(top, w[j]);
                bottom = fminf(bottom, w[j]);
            }
            float s = sym ? 2 * fmaxf(top, -bottom) / (float)max : (top - bottom) / (float)max;
            uint16_t h = half_from_f32(s > 1e-4f ? s : 1e-4f);
            int z = sym ? 1 << (bits - 1) : (int)roundf(-bottom / half_to_f32(h));
            z = z < lo ? lo : z > max ? max : z;
            q->scale[i * q->n_groups + g] = h;
            q->zero[i * q->n_groups + g] = (uint8_t)z;
            for (int64_t j = g * group; j < end; j++) {
                int c = (int)roundf(w[j] / half_to_f32(h)) + z;
                codes[j] = (uint8_t)(c < 0 ? 0 : c > max ? max : c);
            }
        }
        qmat_set_codes(q, i, codes);
    }
    *t = (struct tensor){ .name = t->name, .type = DT_QMAT, .n_dims = 2, .dim = { rows, cols, 1, 1 }, .q = q };
    free(w);
    free(codes);
}

static void quantize_model_rtn(struct model *m, int bits, int group, bool sym, int lo)
{
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        for (int r = 0; r < ROLE_COUNT; r++)
            quantize(m, &m->layers[l].lin[r].w, bits, group, sym, lo);
}

static void add_dac(struct model *m)
{
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        for (int r = ROLE_GATE; r <= ROLE_UP; r++) {
            float *b = arena_alloc(&m->arena, (size_t)m->hp.n_ff, sizeof *b);
            assert_non_null(b);
            for (int64_t i = 0; i < m->hp.n_ff; i++)
                b[i] = (float)(i - 20) / 64 + (float)r;
            m->layers[l].lin[r].b = b;
        }
}

static void assert_vectors(const float *a, const float *b, int64_t n, const char *what)
{
    for (int64_t i = 0; i < n && (a || b); i++)
        if ((a ? a[i] : 0) != (b ? b[i] : 0))
            fail_msg("%s: element %lld is %g, expected %g", what, (long long)i, (double)(b ? b[i] : 0),
                     (double)(a ? a[i] : 0));
}

static void assert_tensors(const struct tensor *a, const struct tensor *b)
{
    assert_int_equal(a->dim[0], b->dim[0]);
    assert_int_equal(a->dim[1], b->dim[1]);
    size_t n = (size_t)tensor_count(a);
    float *x = malloc(2 * n * sizeof *x);
    assert_non_null(x);
    tensor_to_f32(a, x);
    tensor_to_f32(b, x + n);
    if (memcmp(x, x + n, n * sizeof *x))
        fail_msg("tensor %s differs", b->name);
    free(x);
}

/* Same weights to the bit, whatever stores them. mlp: biases of the MLP are compared too. */
static void assert_models(const struct model *a, const struct model *b, bool mlp)
{
    assert_tensors(&a->tok_embd, &b->tok_embd);
    assert_tensors(&a->lm_head, &b->lm_head);
    assert_vectors(a->out_norm, b->out_norm, a->hp.n_embd, "norm");
    assert_vectors(a->inv_freq, b->inv_freq, a->hp.head_dim / 2, "inv_freq");
    assert_int_equal(a->hp.tied, b->hp.tied);
    assert_true(a->hp.rms_eps == b->hp.rms_eps && a->hp.window == b->hp.window);
    for (int64_t l = 0; l < a->hp.n_layer; l++) {
        const struct layer *x = &a->layers[l], *y = &b->layers[l];
        assert_vectors(x->attn_norm, y->attn_norm, a->hp.n_embd, "input_layernorm");
        assert_vectors(x->ffn_norm, y->ffn_norm, a->hp.n_embd, "post_attention_layernorm");
        assert_vectors(x->q_norm, y->q_norm, a->hp.head_dim, "q_norm");
        assert_vectors(x->k_norm, y->k_norm, a->hp.head_dim, "k_norm");
        for (int r = 0; r < ROLE_COUNT; r++) {
            assert_tensors(&x->lin[r].w, &y->lin[r].w);
            if (mlp || r < ROLE_GATE)
                assert_vectors(x->lin[r].b, y->lin[r].b, x->lin[r].w.dim[0], role_hf_name[r]);
        }
    }
}

static const char *const families[] = { "llama", "llama3", "llama_bias", "smollm2", "mistral", "qwen2", "qwen3" };

static void hf_holds_every_family(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        struct model *m = open_model(scratch_path(MODELS, families[i])), *back;
        export_ok(m, "hf", out, NULL);
        back = open_model(out);
        assert_models(m, back, true);
        assert_int_equal(back->tok_embd.type, DT_F32);
        assert_string_equal(json_string_value(json_object_get(back->config, "dtype")), "float32");
        assert_non_null(back->ck->generation_config);
        model_free(back);
        /* quantized, with a group that divides nothing */
        quantize_model_rtn(m, 3, 40, false, 0);
        export_ok(m, "hf", out, NULL);
        back = open_model(out);
        assert_models(m, back, true);
        model_free(back);
        model_free(m);
        scratch_remove(dir);
    }
}

/* q and k as a GGUF file of the llama family stores them, rows (head, pair, half): the folder has them un-permuted. */
static void rows_are_unpermuted(void **state)
{
    (void)state;
    for (int bits = 0; bits <= 3; bits += 3) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        struct model *m = open_model(MODELS "llama"), *plain = open_model(MODELS "llama"), *back;
        int64_t d = m->hp.head_dim;
        for (int r = ROLE_Q; r <= ROLE_K; r++) {
            struct tensor *t = &m->layers[0].lin[r].w;
            float *w = arena_alloc(&m->arena, (size_t)tensor_count(t), sizeof *w);
            assert_non_null(w);
            for (int64_t row = 0; row < t->dim[0]; row++) { /* where llama.cpp's converter puts it */
                int64_t head = row / d, half = row % d / (d / 2), pair = row % (d / 2);
                tensor_rows_f32(t, row, 1, w + (head * d + 2 * pair + half) * t->dim[1]);
            }
            *t = tensor_f32(t->name, w, t->dim[0], t->dim[1]);
            if (bits)
                quantize(m, t, bits, 32, false, 0); /* as it is stored */
            t->perm_dim = d;
            if (bits)
                quantize(plain, &plain->layers[0].lin[r].w, bits, 32, false, 0);
        }
        export_ok(m, bits ? "gptq" : "hf", out, NULL);
        back = open_model(out);
        assert_models(plain, back, true);
        model_free(back);
        model_free(plain);
        model_free(m);
        scratch_remove(dir);
    }
}

/* The same weights from GGUF (with everything the reader does to them) and from a folder give the same folder. */
static void gguf_becomes_a_folder(void **state)
{
    (void)state;
    static const char *const names[] = { "llama", "llama3", "llama_bias", "qwen2", "qwen3" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        char gguf[128];
        snprintf(gguf, sizeof gguf, MODELS "%s.gguf", names[i]);
        struct model *m = open_model(gguf), *plain = open_model(scratch_path(MODELS, names[i])), *back;
        export_ok(m, "hf", out, NULL);
        back = open_model(out);
        assert_models(plain, back, true);
        assert_string_equal(back->hp.family, plain->hp.family);
        model_free(back);
        model_free(plain);
        model_free(m);
        scratch_remove(dir);
    }
}

static void shards_when_large(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    struct model *m = open_model(MODELS "llama");
    struct export_options o = { .shard_bytes = 60000 };
    export_ok(m, "hf", out, &o);
    struct model *back = open_model(out);
    assert_true(back->ck->n_shards > 3);
    assert_false(file_exists(scratch_path(out, "model.safetensors")));
    assert_models(m, back, true);
    model_free(back);
    model_free(m);
    scratch_remove(dir);
}

static void gptq_round_trips(void **state)
{
    (void)state;
    static const struct { const char *model; int bits, group; bool sym; const char *format; } cases[] = {
        { "llama", 2, 32, false, "gptq" }, { "llama", 3, 40, false, "gptq" },  { "llama3", 4, 96, true, "gptq_v1" },
        { "qwen2", 3, 32, true, "gptq" },  { "qwen3", 2, 16, false, "gptq_v1" }, { "llama", 8, 32, false, "gptq" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        bool v1 = !strcmp(cases[i].format, "gptq_v1");
        struct model *m = open_model(scratch_path(MODELS, cases[i].model)), *back;
        quantize_model_rtn(m, cases[i].bits, cases[i].group, cases[i].sym, v1 ? 1 : 0);
        export_ok(m, cases[i].format, out, NULL);
        back = open_model(out);
        assert_models(m, back, true);
        const struct qmat *q = back->layers[1].lin[ROLE_DOWN].w.q;
        assert_non_null(q);
        assert_int_equal(q->bits, cases[i].bits);
        assert_int_equal(q->sym, cases[i].sym);
        assert_null(q->g_idx);
        const json_t *qc = back->ck->quant_config;
        assert_int_equal(json_integer_value(json_object_get(qc, "bits")), cases[i].bits);
        assert_int_equal(json_integer_value(json_object_get(qc, "group_size")), cases[i].group == 96 ? -1 : cases[i].group);
        assert_string_equal(json_string_value(json_object_get(qc, "checkpoint_format")), v1 ? "gptq" : "gptq_v2");
        assert_true(json_is_false(json_object_get(qc, "desc_act")));
        assert_null(json_object_get(qc, "dynamic"));
        /* and once more, from what was read */
        export_ok(back, cases[i].format, scratch_path(dir, "again"), NULL);
        struct model *again = open_model(scratch_path(dir, "again"));
        assert_models(m, again, true);
        model_free(again);
        model_free(back);
        model_free(m);
        scratch_remove(dir);
    }
}

/* The quantization_config of format as other programs read it, whole, but for what made it. */
static void expect_config(const struct model *m, const char *format, const char *want)
{
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    export_ok(m, format, out, NULL);
    json_t *config = json_load_file(scratch_path(out, "config.json"), 0, NULL), *q = json_object_get(config, "quantization_config");
    json_t *expected = json_loads(want, 0, NULL);
    assert_non_null(expected);
    json_object_del(q, "meta");
    if (!json_equal(q, expected)) {
        char *found = json_dumps(q, JSON_COMPACT);
        fail_msg("%s: found %s", format, found);
    }
    json_decref(config);
    json_decref(expected);
    scratch_remove(dir);
}

#define CT(groups, ignore) "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"quantization_status\":\"compressed\"," \
    "\"config_groups\":{" groups "},\"ignore\":[" ignore "],\"kv_cache_scheme\":null,\"global_compression_ratio\":null}"
#define CT_GROUP(name, targets, bits, sym, strategy, size) "\"" name "\":{\"targets\":[" targets "],\"weights\":{\"num_bits\":" bits \
    ",\"type\":\"int\",\"symmetric\":" sym ",\"strategy\":\"" strategy "\",\"dynamic\":false,\"observer\":\"minmax\",\"group_size\":" size \
    ",\"actorder\":null},\"input_activations\":null,\"output_activations\":null,\"format\":\"pack-quantized\"}"
#define GPTQ(bits, group, sym, format, more) "{\"bits\":" bits ",\"group_size\":" group ",\"desc_act\":false,\"sym\":" sym ",\"lm_head\":false," \
    "\"quant_method\":\"gptq\",\"checkpoint_format\":\"" format "\",\"format\":\"" format "\",\"pack_dtype\":\"int32\"" more "}"

static void configurations(void **state)
{
    static const struct { int bits, group; bool sym; const char *ct, *gptq; } rows[] = {
        { 4, 32, true, CT(CT_GROUP("group_0", "\"Linear\"", "4", "true", "group", "32"), "\"lm_head\""), GPTQ("4", "32", "true", "gptq_v2", "") },
        { 3, 96, true, CT(CT_GROUP("group_0", "\"Linear\"", "3", "true", "channel", "null"), "\"lm_head\""), GPTQ("3", "-1", "true", "gptq_v2", "") },
        { 4, 32, false, CT(CT_GROUP("group_0", "\"Linear\"", "4", "false", "group", "32"), "\"lm_head\""), GPTQ("4", "32", "false", "gptq_v2", "") },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct model *m = open_model(MODELS "llama");
        quantize_model_rtn(m, rows[i].bits, rows[i].group, rows[i].sym, 1);
        expect_config(m, "ct", rows[i].ct);
        expect_config(m, "gptq", rows[i].gptq);
        model_free(m);
    }
    struct model *m = open_model(MODELS "llama"); /* one matrix with other bits, one as it was */
    struct linear *lin = m->layers[1].lin;
    struct tensor keep = lin[ROLE_V].w, q = lin[ROLE_Q].w;
    quantize_model_rtn(m, 4, 32, true, 0);
    lin[ROLE_V].w = keep;
    quantize(m, &q, 3, 32, true, 0);
    lin[ROLE_Q].w = q;
#define L0 "\"model.layers.0.self_attn.q_proj\",\"model.layers.0.self_attn.k_proj\",\"model.layers.0.self_attn.v_proj\",\"model.layers.0.self_attn.o_proj\"," \
    "\"model.layers.0.mlp.gate_proj\",\"model.layers.0.mlp.up_proj\",\"model.layers.0.mlp.down_proj\","
#define L1 "\"model.layers.1.self_attn.o_proj\",\"model.layers.1.mlp.gate_proj\",\"model.layers.1.mlp.up_proj\",\"model.layers.1.mlp.down_proj\""
    expect_config(m, "gptq", GPTQ("4", "32", "true", "gptq_v2",
        ",\"dynamic\":{\"+:^model\\\\.layers\\\\.1\\\\.self_attn\\\\.q_proj$\":{\"bits\":3,\"group_size\":32,\"sym\":true},"
        "\"-:^model\\\\.layers\\\\.1\\\\.self_attn\\\\.v_proj$\":{}},"
        "\"modules_in_block_to_quantize\":[[" L0 "\"model.layers.1.self_attn.q_proj\",\"model.layers.1.self_attn.k_proj\"," L1 "]]"));
    model_free(m);
}

/* The same through compressed-tensors, with a float matrix and a second scheme among them. */
static void ct_round_trips(void **state)
{
    (void)state;
    static const struct { const char *model; int bits, group; bool sym; } cases[] = {
        { "llama", 2, 32, true }, { "llama3", 3, 96, true }, { "qwen3", 2, 16, true }, { "qwen2", 4, 32, false }, { "llama", 8, 32, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        struct model *m = open_model(scratch_path(MODELS, cases[i].model)), *back;
        struct tensor keep = m->layers[1].lin[ROLE_O].w;
        quantize_model_rtn(m, cases[i].bits, cases[i].group, cases[i].sym, 0);
        if (i == 2) {
            m->layers[1].lin[ROLE_O].w = keep;
            quantize(m, &m->layers[0].lin[ROLE_DOWN].w, 4, 32, true, 0);
        }
        export_ok(m, "ct", out, NULL);
        back = open_model(out);
        assert_models(m, back, true);
        const json_t *groups = json_object_get(back->ck->quant_config, "config_groups"), *first = json_object_get(groups, "group_0");
        assert_int_equal(json_object_size(groups), i == 2 ? 2 : 1);
        if (i != 2)
            assert_string_equal(json_string_value(json_array_get(json_object_get(first, "targets"), 0)), "Linear");
        assert_int_equal(json_integer_value(json_object_get(json_object_get(first, "weights"), "num_bits")), cases[i].bits);
        model_free(back);
        model_free(m);
        scratch_remove(dir);
    }
}

/* config.json says another group than the scales do: the reader believes neither. */
static void ct_group_must_agree(const char *out)
{
    struct err e = { 0 };
    struct model *back = NULL;
    const char *path = scratch_path(out, "config.json");
    json_t *config = json_load_file(path, 0, NULL), *q = json_object_get(config, "quantization_config");
    json_t *w = json_object_get(json_object_get(json_object_get(q, "config_groups"), "group_0"), "weights");
    static const int sizes[] = { 32, 16, -1 };
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(json_object_set_new(w, "group_size", json_integer(sizes[i])), 0);
        assert_int_equal(json_dump_file(config, path, 0), 0);
        assert_int_equal(model_open(&back, out, &e), i ? -1 : 0);
        if (i)
            assert_non_null(strstr(e.msg, "a scale for 32 of 64 inputs"));
        else
            model_free(back);
    }
    json_decref(config);
}

static void ct_refuses(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct model *m = open_model(MODELS "llama");
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    quantize_model_rtn(m, 2, 32, true, 0);
    export_ok(m, "ct", out, NULL);
    ct_group_must_agree(out);
    model_free(m);
    scratch_remove(dir);
    m = open_model(MODELS "llama");
    assert_int_equal(export_check(m, "ct", NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "no quantized matrix"));
    quantize_model_rtn(m, 2, 32, false, 0);
    assert_int_equal(export_check(m, "ct", NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "zero points at 2 bits"));
    model_free(m);
    m = open_model(MODELS "llama");
    quantize_model_rtn(m, 2, 40, true, 0);
    assert_int_equal(export_check(m, "ct", NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "groups of 40 do not divide its 64 inputs"));
    model_free(m);
}

/* Float matrices among them, and two grids: "dynamic" says which. */
static void gptq_mixes(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    struct model *m = open_model(MODELS "llama"), *back;
    struct tensor keep = m->layers[1].lin[ROLE_O].w;
    quantize_model_rtn(m, 2, 32, false, 0);
    m->layers[1].lin[ROLE_O].w = keep;
    struct tensor *down = &m->layers[0].lin[ROLE_DOWN].w;
    quantize(m, down, 4, 48, false, 0);
    json_t *meta = json_pack("{s:s, s:f}", "recipe", "test", "damp_percent", 0.01);
    struct export_options o = { .meta = meta };
    export_ok(m, "gptq", out, &o);
    back = open_model(out);
    assert_models(m, back, true);
    assert_int_equal(back->layers[1].lin[ROLE_O].w.type, DT_F16);
    assert_int_equal(back->layers[0].lin[ROLE_DOWN].w.q->bits, 4);
    json_t *dynamic = json_object_get(back->ck->quant_config, "dynamic");
    assert_int_equal(json_object_size(dynamic), 2);
    assert_non_null(json_object_get(dynamic, "-:^model\\.layers\\.1\\.self_attn\\.o_proj$"));
    json_t *four = json_object_get(dynamic, "+:^model\\.layers\\.0\\.mlp\\.down_proj$");
    assert_int_equal(json_integer_value(json_object_get(four, "group_size")), 48);
    assert_string_equal(json_string_value(json_object_get(json_object_get(back->ck->quant_config, "meta"), "recipe")),
                        "test");
    model_free(back);
    model_free(m);
    json_decref(meta);
    scratch_remove(dir);
}

static void corrections_are_carried_or_refused(void **state)
{
    (void)state;
    struct export_matrix planned[64];
    for (int i = 0; i < 64; i++)
        planned[i] = (struct export_matrix){ DT_QMAT, { 2, 32, 0, 3, false, 64 } };
    static const char *const formats[] = { "hf", "gptq" };
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    struct err e = { 0 };
    for (int f = 0; f < 2; f++) {
        struct model *m = open_model(MODELS "llama"), *back;
        struct export_plan plan = { .mlp_bias = true, .lin = planned };
        assert_int_equal(export_check(m, formats[f], NULL, &plan, &e), 0);
        assert_int_equal(export_check(m, "gptq_v1", NULL, &plan, &e), -1);
        assert_non_null(strstr(e.msg, "q_proj.weight: zero points from 0 on"));
        quantize_model_rtn(m, 2, 32, false, 0);
        add_dac(m);
        export_ok(m, formats[f], out, NULL);
        back = open_model(out);
        assert_true(back->hp.mlp_bias);
        assert_non_null(back->layers[1].lin[ROLE_DOWN].b); /* zeros */
        assert_models(m, back, true);
        model_free(back);
        model_free(m);
        scratch_remove(dir);

        dir = scratch_dir(), out = scratch_path(dir, "out");
        m = open_model(MODELS "qwen2");
        assert_int_equal(export_check(m, formats[f], NULL, &plan, &e), -1);
        plan.mlp_bias = false;
        assert_int_equal(export_check(m, formats[f], NULL, &plan, &e), 0);
        quantize_model_rtn(m, 2, 32, false, 0);
        add_dac(m);
        export_refuses(m, formats[f], out, NULL, "family qwen2");
        struct export_options drop = { .drop_corrections = true }, as_llama = { .as_llama = true };
        export_ok(m, formats[f], out, &drop);
        back = open_model(out);
        assert_false(back->hp.mlp_bias);
        assert_models(m, back, false);
        model_free(back);
        export_ok(m, formats[f], out, &as_llama);
        back = open_model(out);
        assert_string_equal(back->hp.family, "llama");
        assert_true(back->hp.mlp_bias && back->hp.qkv_bias && back->hp.o_bias);
        assert_models(m, back, true);
        model_free(back);
        model_free(m);
        scratch_remove(dir);
        dir = scratch_dir(), out = scratch_path(dir, "out");
    }
    struct export_options as_llama = { .as_llama = true };
    struct model *m = open_model(MODELS "qwen3");
    export_refuses(m, "hf", out, &as_llama, "norms of q and k");
    model_free(m);
    m = open_model(MODELS "mistral");
    export_refuses(m, "hf", out, &as_llama, "sliding window");
    add_dac(m);
    export_refuses(m, "hf", out, NULL, "family mistral");
    model_free(m);
    scratch_remove(dir);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    struct model *m = open_model(MODELS "smollm2");
    export_refuses(m, "gptq", out, NULL, "no quantized matrix");
    export_refuses(m, "gtpq", out, NULL, "expected one of gptq, gptq_v1, ct, hf, gguf");
    quantize_model_rtn(m, 2, 32, false, 0);
    export_refuses(m, "gptq", out, NULL, "multiples of 32"); /* 72 wide */
    model_free(m);

    m = open_model(MODELS "llama");
    quantize_model_rtn(m, 2, 32, false, 1);
    struct qmat *q = (struct qmat *)(uintptr_t)m->layers[1].lin[ROLE_V].w.q;
    q->zero[3] = 0;
    export_refuses(m, "gptq_v1", out, NULL, "model.layers.1.self_attn.v_proj.qzeros: zero of output 1, group 1 is 0");
    q->zero[3] = 4;
    export_refuses(m, "gptq", out, NULL, "is 4, but GPTQ v2 holds 0..3");
    q->zero[3] = 1;
    uint16_t scale = q->scale[0];
    q->scale[0] = 0x7c00;
    export_refuses(m, "gptq", out, NULL, "v_proj.scales: scale of output 0, group 0 is not finite");
    export_refuses(m, "hf", out, NULL, "is not finite");
    q->scale[0] = scale;
    float *norm = (float *)(uintptr_t)m->layers[0].ffn_norm;
    norm[5] = 1.0001f;
    export_refuses(m, "gptq", out, NULL, "layers.0.post_attention_layernorm.weight: value 5 of row 0 is 1.00010002");
    norm[5] = nanf("");
    export_refuses(m, "hf", out, NULL, "layers.0.post_attention_layernorm.weight: value 5 of row 0 is not finite");
    model_free(m);
    scratch_remove(dir);
}

static void round_bf16(float *v, int64_t n)
{
    for (int64_t i = 0; v && i < n; i++)
        v[i] = bf16_to_f32(bf16_from_f32(v[i]));
}

static void round_table(struct model *m, struct tensor *t)
{
    int64_t n = t->dim[0] * t->dim[1];
    float *v = arena_alloc(&m->arena, (size_t)n, sizeof *v);
    assert_non_null(v);
    tensor_to_f32(t, v);
    round_bf16(v, n);
    v[7] = -7.48038292e-06f; /* of a real embedding; fp16 has no such number */
    *t = (struct tensor){ .name = t->name, .type = DT_F32, .n_dims = 2, .dim = { t->dim[0], t->dim[1], 1, 1 }, .data = v, .size = (size_t)n * sizeof *v };
}

/* Integers beside floats in BF16, as others write them: the floats stay what they are. */
static void floats_in_bf16(void **state)
{
    static const char *const formats[] = { "gptq", "ct" };
    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
        struct model *m = open_model(MODELS "llama"), *back;
        quantize_model_rtn(m, 4, 32, true, 0);
        round_table(m, &m->tok_embd);
        if (!m->hp.tied)
            round_table(m, &m->lm_head);
        else
            m->lm_head = m->tok_embd;
        round_bf16((float *)(uintptr_t)m->out_norm, m->hp.n_embd);
        for (int64_t l = 0; l < m->hp.n_layer; l++) {
            round_bf16((float *)(uintptr_t)m->layers[l].attn_norm, m->hp.n_embd);
            round_bf16((float *)(uintptr_t)m->layers[l].ffn_norm, m->hp.n_embd);
        }
        export_ok(m, formats[i], out, NULL);
        back = open_model(out);
        assert_int_equal(back->tok_embd.type, DT_BF16);
        float row[64], want[64];
        assert_int_equal(m->hp.n_embd, 64);
        tensor_rows_f32(&back->tok_embd, 0, 1, row);
        tensor_rows_f32(&m->tok_embd, 0, 1, want);
        assert_memory_equal(row, want, sizeof row);
        assert_string_equal(json_string_value(json_object_get(back->config, "torch_dtype")), "bfloat16");
        model_free(back);
        ((float *)(uintptr_t)m->out_norm)[3] = 1.0001f; /* neither holds it */
        export_refuses(m, formats[i], scratch_path(dir, "other"), NULL, "model.embed_tokens.weight: value 7 of row 0 is -7.48038292e-06");
        model_free(m);
        scratch_remove(dir);
    }
}

static void folders_in_the_way(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    char out[512], link[600];
    snprintf(out, sizeof out, "%s/out", dir);
    snprintf(link, sizeof link, "%s/link", dir);
    struct model *m = open_model(MODELS "llama");
    struct err e = { 0 };
    struct stat st;
    assert_int_equal(mkdir(out, 0700), 0);
    export_ok(m, "hf", out, NULL); /* empty: fine */
    export_ok(m, "hf", out, NULL); /* a model: replaced */
    snprintf(link, sizeof link, "%s.tmp-%ld", out, (long)getpid()); /* left by a run that was killed and had this number */
    assert_int_equal(mkdir(link, 0700), 0);
    export_ok(m, "hf", out, NULL);
    assert_false(file_exists(link));
    snprintf(link, sizeof link, "%s/link", dir);
    scratch_write(scratch_path(out, "notes.txt"), "mine", 4);
    assert_int_equal(export_model(m, "hf", out, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "holds notes.txt, which d2q did not write; it is not replaced"));
    assert_int_equal(unlink(scratch_path(out, "notes.txt")), 0);
    scratch_write(scratch_path(out, "README.md"), "mine", 4); /* its card is anybody's to edit */
    export_ok(m, "hf", out, NULL);
    assert_int_equal(symlink("nowhere", link), 0);
    assert_int_equal(export_model(m, "hf", link, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "is a link to nothing"));
    assert_int_equal(unlink(link) || symlink("out", link), 0);
    export_ok(m, "hf", link, NULL); /* what it names is replaced, not the link */
    assert_true(lstat(link, &st) == 0 && S_ISLNK(st.st_mode));
    assert_true(file_exists(scratch_path(out, "model.safetensors")));
    assert_int_equal(unlink(link), 0);
    scratch_write(scratch_path(out, "model-old.safetensors"), "mine", 4);
    assert_int_equal(export_model(m, "hf", out, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "holds model-old.safetensors"));
    assert_int_equal(unlink(scratch_path(out, "model-old.safetensors")), 0);
    assert_int_equal(export_target(m, "gguf", scratch_path(dir, "new/"), &e), -1);
    assert_non_null(strstr(e.msg, "expected the name of a file or folder"));
    assert_int_equal(unlink(scratch_path(out, "checksums.json")), 0); /* anybody's */
    assert_int_equal(export_model(m, "hf", out, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "it is not replaced"));
    assert_true(file_exists(scratch_path(out, "model.safetensors")));
    model_free(m);
    export_ok(m = open_model(MODELS "llama"), "hf", scratch_path(dir, "a"), NULL);
    model_free(m);
    m = open_model(scratch_path(dir, "a"));
    assert_int_equal(symlink("/etc/passwd", scratch_path(dir, "a/merges.txt")), 0);
    assert_int_equal(export_check(m, "hf", NULL, NULL, &e), -1); /* before the work */
    assert_non_null(strstr(e.msg, "outside of its folder"));
    assert_int_equal(unlink(scratch_path(dir, "a/merges.txt")) || export_check(m, "hf", NULL, NULL, &e), 0);
    assert_int_equal(export_model(m, "hf", scratch_path(dir, "a"), NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "is read from"));
    export_ok(m, "gguf", scratch_path(dir, "a/m.gguf"), NULL);
    model_free(m);
    m = open_model(scratch_path(dir, "a/m.gguf")); /* a file in the folder that would be replaced */
    assert_int_equal(export_model(m, "hf", scratch_path(dir, "a"), NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "is read from"));
    model_free(m);
    scratch_remove(dir);
}

/* Our packer makes the bytes that the classic packers made. */
static void packs_like_the_classic_packers(void **state)
{
    (void)state;
    static const int bits[] = { 2, 3, 4, 8 };
    for (int v1 = 0; v1 < 2; v1++)
        for (int i = 0; i < 4; i++) {
            char path[128], name[32];
            struct checkpoint *c = NULL;
            struct arena a;
            struct qmat q;
            struct err e = { 0 };
            snprintf(path, sizeof path, "tests/fixtures/hf/gptq%s_%d", v1 ? "" : "_v2", bits[i]);
            assert_int_equal(checkpoint_open(&c, path, &e), 0);
            for (const char *prefix = v1 ? "a" : "ab"; *prefix; prefix++) {
                arena_init(&a);
                snprintf(name, sizeof name, "%c", *prefix);
                assert_int_equal(checkpoint_gptq(c, name, 32, 64, &a, &q, &e), 1);
                struct tensor t = { .name = name, .type = DT_QMAT, .n_dims = 2, .dim = { 32, 64, 1, 1 }, .q = &q };
                static const char *const suffix[] = { "qweight", "qzeros", "scales", "g_idx" };
                for (int k = 0; k < 4; k++) {
                    snprintf(name, sizeof name, "%c.%s", *prefix, suffix[k]);
                    const struct st_entry *want = checkpoint_entry(c, name);
                    assert_non_null(want);
                    struct item it = { .kind = (enum item_kind)(ITEM_QWEIGHT + k), .name = name, .t = &t,
                                       .dim = { want->dim[0], want->dim[1] } };
                    void *got = calloc(1, want->size);
                    assert_non_null(got);
                    if (gptq_pack(&it, v1, got, &e))
                        fail_msg("%s: %s", path, e.msg);
                    assert_memory_equal(got, want->data, want->size);
                    free(got);
                }
                arena_release(&a);
            }
            checkpoint_free(c);
        }
}

static int cancel(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    (void)text;
    int *left = ud;
    assert_true(done <= total);
    return kind == LOG_PROGRESS && --*left == 0;
}

static void cancels_and_survives_failed_allocations(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out");
    struct model *m = open_model(MODELS "llama");
    struct err e = { 0 };
    struct stat st;
    int left = 20;
    struct log log = { cancel, &left };
    quantize_model_rtn(m, 2, 32, false, 0);
    assert_int_equal(export_model(m, "gptq", out, NULL, &log, NULL, &e), -1);
    assert_int_equal(e.code, ERR_CANCELLED);
    assert_int_equal(stat(out, &st), -1);
    long n = 1;
    for (; n < 5000; n += 7) {
        mem_fail_after(n);
        int rc = export_model(m, "gptq", out, NULL, NULL, NULL, &e);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(e.code, ERR_MEMORY);
        assert_int_equal(stat(out, &st), -1);
    }
    assert_in_range(n, 20, 4999);
    assert_int_equal(rmdir(out), -1); /* whole, and alone in the folder */
    model_free(m);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hf_holds_every_family),
        cmocka_unit_test(rows_are_unpermuted),
        cmocka_unit_test(gguf_becomes_a_folder),
        cmocka_unit_test(shards_when_large),
        cmocka_unit_test(gptq_round_trips),
        cmocka_unit_test(ct_round_trips),
        cmocka_unit_test(configurations),
        cmocka_unit_test(ct_refuses),
        cmocka_unit_test(gptq_mixes),
        cmocka_unit_test(corrections_are_carried_or_refused),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(floats_in_bf16),
        cmocka_unit_test(folders_in_the_way),
        cmocka_unit_test(packs_like_the_classic_packers),
        cmocka_unit_test(cancels_and_survives_failed_allocations),
    };
    return cmocka_run_group_tests_name("export", tests, NULL, NULL);
}
