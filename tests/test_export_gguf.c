/* export gguf: against the files that tools/golden.py wrote with the PyPI package gguf (names, order of rows, values,
 * metadata); out and in again for every family and grid; tokenizers; corrections; refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "export/export.h"
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

static void export_ok(const struct model *m, const char *path, const struct export_options *o)
{
    struct err e = { 0 };
    struct stat st;
    uint64_t bytes = 0;
    if (export_model(m, "gguf", path, o, NULL, &bytes, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, bytes);
}

static void export_refuses(const struct model *m, const char *path, const struct export_options *o, const char *want)
{
    struct err e = { 0 };
    struct stat st;
    if (export_model(m, "gguf", path, o, NULL, NULL, &e) == 0)
        fail_msg("accepted, expected \"%s\"", want);
    if (!strstr(e.msg, want))
        fail_msg("expected \"%s\", found \"%s\"", want, e.msg);
    assert_int_equal(stat(path, &st), -1);
}

/* Codes, scales and zeros at random: whether they fit the weights does not matter here. */
static void random_grid(struct model *m, int bits, int group, bool sym)
{
    uint32_t x = 99;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        struct tensor *t = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        struct qmat *q = arena_zalloc(&m->arena, 1, sizeof *q);
        struct err e = { 0 };
        uint8_t codes[512];
        assert_non_null(q);
        assert_in_range(t->dim[1], 1, 512);
        assert_int_equal(qmat_init(q, &m->arena, t->dim[0], t->dim[1], bits, group, sym, &e), 0);
        for (int64_t r = 0; r < q->n_out; r++) {
            for (int64_t j = 0; j < q->n_in; j++)
                codes[j] = (uint8_t)((x = x * 1664525u + 1013904223u) >> 20 & ((1u << bits) - 1));
            qmat_set_codes(q, r, codes);
            for (int64_t g = r * q->n_groups; g < (r + 1) * q->n_groups; g++) {
                q->scale[g] = half_from_f32(0.02f + 1e-4f * (float)(x >> 24));
                q->zero[g] = (uint8_t)(1 << (bits - 1));
            }
        }
        *t = (struct tensor){ .name = t->name, .type = DT_QMAT, .n_dims = 2, .dim = { t->dim[0], t->dim[1], 1, 1 }, .q = q };
    }
}

static void add_dac(struct model *m, int64_t layer)
{
    for (int r = ROLE_GATE; r <= ROLE_UP; r++) {
        float *b = arena_alloc(&m->arena, (size_t)m->hp.n_ff, sizeof *b);
        assert_non_null(b);
        for (int64_t i = 0; i < m->hp.n_ff; i++)
            b[i] = 0.001f * (float)(i + r);
        m->layers[layer].lin[r].b = b;
    }
}

/* Logits of 24 tokens, bit for bit. */
static void assert_same_logits(const struct model *a, const struct model *b)
{
    enum { N = 24 };
    int32_t ids[N];
    struct err e = { 0 };
    size_t n = (size_t)(N * a->hp.n_vocab);
    float *la = malloc(n * sizeof *la), *lb = malloc(n * sizeof *lb);
    assert_true(la && lb);
    for (int i = 0; i < N; i++)
        ids[i] = (i * 37 + 5) % (int)a->hp.n_vocab;
    for (int k = 0; k < 2; k++) {
        struct kv_cache c;
        if (kv_init(&c, k ? &b->hp : &a->hp, N, N, &e) || kv_forward(k ? b : a, &c, ids, N, true, k ? lb : la, &e))
            fail_msg("%s", e.msg);
        kv_release(&c);
    }
    assert_memory_equal(la, lb, n * sizeof *la);
    free(la);
    free(lb);
}

static const struct tensor *find(const struct gguf *g, const char *name)
{
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name))
            return &g->tensors[i];
    return NULL;
}

/* ---- against files of another maker ------------------------------------------------ */

static void assert_same_kv(const struct gguf *want, const struct gguf *got)
{
    for (uint64_t i = 0; i < want->n_kv; i++) {
        const struct gguf_kv *a = &want->kv[i], *b = gguf_find(got, a->key);
        if (!b)
            fail_msg("key %s is missing", a->key);
        if (a->type != b->type || a->elem != b->elem || a->n != b->n || a->end - a->data != b->end - b->data ||
            memcmp(a->data, b->data, (size_t)(a->end - a->data)))
            fail_msg("key %s differs", a->key);
    }
}

static void float_equals_the_converter(void **state)
{
    (void)state;
    static const char *const names[] = { "llama", "llama3", "llama_bias", "qwen2", "qwen3" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
        char golden[128];
        struct gguf want, got;
        struct err e = { 0 };
        snprintf(golden, sizeof golden, MODELS "%s.gguf", names[i]);
        struct model *m = open_model(scratch_path(MODELS, names[i]));
        export_ok(m, out, NULL);
        assert_int_equal(gguf_open(&want, golden, &e), 0);
        assert_int_equal(gguf_open(&got, out, &e), 0);
        assert_int_equal(got.n_tensors, want.n_tensors);
        for (uint64_t k = 0; k < want.n_tensors; k++) {
            const struct tensor *a = &want.tensors[k], *b = find(&got, a->name);
            if (!b)
                fail_msg("%s: tensor %s is missing", names[i], a->name);
            assert_int_equal(a->n_dims, b->n_dims);
            assert_memory_equal(a->dim, b->dim, sizeof a->dim);
            size_t n = (size_t)tensor_count(a);
            float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
            assert_true(x && y);
            tensor_to_f32(a, x);
            tensor_to_f32(b, y);
            bool rope = !strcmp(a->name, "rope_freqs.weight"); /* two roundings of the same formula */
            for (size_t j = 0; j < n; j++)
                if (rope ? fabsf(x[j] - y[j]) > 3e-7f * x[j] : x[j] != y[j])
                    fail_msg("%s: tensor %s differs at %zu: %.9g, expected %.9g", names[i], a->name, j, (double)y[j], (double)x[j]);
            free(x);
            free(y);
            assert_int_equal(b->type, a->n_dims == 1 ? DT_F32 : m->tok_embd.type == DT_F32 ? DT_F16 : m->tok_embd.type);
        }
        if (m->tok_embd.type == DT_F16) /* else general.file_type differs */
            assert_same_kv(&want, &got);
        gguf_release(&got);
        gguf_release(&want);
        model_free(m);
        scratch_remove(dir);
    }
}

/* A GGUF file in: its own metadata come out again, and equal runs give equal bytes. */
static void gguf_in_gguf_out(void **state)
{
    (void)state;
    static const char *const names[] = { "llama", "llama3", "llama_bias", "qwen2", "qwen3" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *dir = scratch_dir();
        char path[128], *a, *b;
        size_t na, nb;
        struct err e = { 0 };
        json_t *meta = json_pack("{s:s, s:f}", "method", "test", "damp", 0.01);
        struct export_options o = { .meta = meta };
        snprintf(path, sizeof path, MODELS "%s.gguf", names[i]);
        struct model *m = open_model(path);
        export_ok(m, scratch_path(dir, "a.gguf"), &o);
        export_ok(m, scratch_path(dir, "b.gguf"), &o);
        struct model *back = open_model(scratch_path(dir, "a.gguf"));
        assert_same_kv(&m->ck->gguf, &back->ck->gguf);
        assert_same_logits(m, back);
        assert_memory_equal(m->inv_freq, back->inv_freq, (size_t)(m->hp.head_dim / 2) * sizeof(float));
        struct gguf_str recipe;
        assert_int_equal(gguf_string(&back->ck->gguf, "d2quant.recipe", &recipe, &e), 1);
        assert_true(recipe.n == 29 && !memcmp(recipe.p, "{\"damp\":0.01,\"method\":\"test\"}", 29));
        export_ok(back, scratch_path(dir, "c.gguf"), &o); /* and of the result again */
        uint64_t side, data = 0;
        for (uint64_t k = 0; k < back->ck->gguf.n_tensors; k++)
            data += back->ck->gguf.tensors[k].size;
        model_free(back);
        assert_int_equal(file_read(scratch_path(dir, "a.gguf"), 1 << 24, &a, &na, &e), 0);
        assert_int_equal(gguf_side_bytes(m, &side, &e), 0);
        assert_in_range(side, na - data, na - data + 5000);
        for (const char *other = "bc"; *other; other++) {
            char name[8] = { *other, '.', 'g', 'g', 'u', 'f', 0 };
            assert_int_equal(file_read(scratch_path(dir, name), 1 << 24, &b, &nb, &e), 0);
            assert_int_equal(na, nb);
            assert_memory_equal(a, b, na);
            mem_free(b);
        }
        mem_free(a);
        json_decref(meta);
        model_free(m);
        scratch_remove(dir);
    }
}

/* ---- grids ----------------------------------------------------------------------------- */

static void quantized_models_compute_the_same(void **state)
{
    (void)state;
    static const struct { const char *model; int bits, group; const char *type; } cases[] = {
        { "llama", 3, 32, "q4_0" }, { "llama3", 4, 96, "q4_0" }, { "qwen2", 4, 32, "q4_0" }, { "qwen3", 3, 32, "q4_0" },
        { "llama.gguf", 4, 32, "q4_0" }, { "qwen3.gguf", 8, 32, "q8_0" }, { "llama", 8, 64, "q8_0" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
        struct model *m = open_model(scratch_path(MODELS, cases[i].model));
        random_grid(m, cases[i].bits, cases[i].group, true);
        export_ok(m, out, NULL);
        struct model *back = open_model(out);
        const struct tensor *t = &back->layers[1].lin[ROLE_Q].w;
        assert_string_equal(dtype_table[t->type].name, cases[i].type);
        assert_int_equal(t->perm_dim, strncmp(cases[i].model, "llama", 5) ? 0 : m->hp.head_dim);
        assert_same_logits(m, back);
        model_free(back);
        model_free(m);
        scratch_remove(dir);
    }
}

static int check_plan(const struct model *m, int bits, int group, int zero, struct err *e)
{
    struct export_matrix lin[64];
    assert_true(m->hp.n_layer * ROLE_COUNT <= 64);
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++)
        lin[i] = (struct export_matrix){ DT_QMAT, { bits, group, zero, zero, false, role_cols(&m->hp, (enum role)(i % ROLE_COUNT)) } };
    struct export_plan plan = { .lin = lin };
    return export_check(m, "gguf", NULL, &plan, e);
}

static void other_grids_are_refused(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
    struct err e = { 0 };
    struct model *m = open_model(MODELS "llama");
    assert_int_equal(check_plan(m, 3, 32, 4, &e), 0);
    assert_int_equal(check_plan(m, 3, 96, 4, &e), 0);
    assert_int_equal(check_plan(m, 3, 48, 4, &e), -1);
    assert_non_null(strstr(e.msg, "3 bits, group 48, zero points 4 to 4, rows of 64: no type of GGUF holds that exactly"));
    assert_int_equal(check_plan(m, 2, 48, 2, &e), -1);
    assert_non_null(strstr(e.msg, "self_attn.q_proj: 2 bits, group 48"));
    random_grid(m, 3, 16, true);
    export_refuses(m, out, NULL, "model.layers.0.self_attn.q_proj.weight: 3 bits, group 16");
    random_grid(m, 3, 32, true);
    struct qmat *q = (struct qmat *)(uintptr_t)m->layers[0].lin[ROLE_K].w.q;
    q->scale[5] = 0x7e00;
    export_refuses(m, out, NULL, "self_attn.k_proj.weight: scale of output 2, group 1 is not finite");
    q->scale[5] = 0x3c00;
    q->zero[5] = 9;
    export_refuses(m, out, NULL, "3 bits, group 32, zero points 4 to 9, rows of 64: no type of GGUF");
    q->zero[5] = 4;
    float *norm = (float *)(uintptr_t)m->layers[0].ffn_norm, was = norm[3];
    norm[3] = nanf("");
    export_refuses(m, out, NULL, MODELS "llama: block 0, ffn_norm: value 3 is not finite");
    norm[3] = was;
    export_ok(m, out, NULL);
    model_free(m);
    scratch_remove(dir);
}

/* Float32 that no half holds stays float32; what does becomes half. */
static void floats_are_not_rounded(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
    struct model *m = open_model(MODELS "llama_bias"), *back; /* stored as F32, values that f16 and bf16 hold */
    struct tensor *t = &m->layers[0].lin[ROLE_V].w;
    size_t n = (size_t)tensor_count(t);
    float *w = arena_alloc(&m->arena, n, sizeof *w);
    assert_non_null(w);
    tensor_to_f32(t, w);
    *t = tensor_f32(t->name, w, t->dim[0], t->dim[1]);
    static const struct { float v; enum dtype want; } cases[] = { { 0.5f, DT_F16 }, { 1e30f, DT_F32 }, { 0x1p100f, DT_BF16 },
                                                                  { 0.1f, DT_F32 }, { 0x1.008p0f, DT_F16 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        w[7] = cases[i].v;
        export_ok(m, out, NULL);
        back = open_model(out);
        assert_int_equal(back->layers[0].lin[ROLE_V].w.type, cases[i].want);
        assert_int_equal(back->layers[0].lin[ROLE_K].w.type, DT_F16);
        model_free(back);
    }
    assert_int_equal(unlink(out), 0);
    w[t->dim[1] + 7] = nanf("");
    export_refuses(m, out, NULL, MODELS "llama_bias: tensor model.layers.0.self_attn.v_proj.weight: row 1 has a value that is not finite");
    model_free(m);
    scratch_remove(dir);
}

/* ---- corrections, families ----------------------------------------------------------------- */

static void corrections(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
    struct model *m = open_model(MODELS "llama"), *back;
    random_grid(m, 3, 32, true);
    add_dac(m, 1);
    export_ok(m, out, NULL);
    back = open_model(out);
    assert_null(back->layers[0].lin[ROLE_GATE].b);
    assert_non_null(find(&back->ck->gguf, "blk.1.ffn_gate.bias"));
    assert_non_null(find(&back->ck->gguf, "blk.1.ffn_up.bias"));
    assert_null(find(&back->ck->gguf, "blk.1.ffn_down.bias"));
    assert_same_logits(m, back);
    model_free(back);
    model_free(m);
    unlink(out);

    m = open_model(MODELS "qwen2");
    struct model *plain = open_model(MODELS "qwen2");
    struct export_options drop = { .drop_corrections = true }, as_llama = { .as_llama = true };
    random_grid(m, 3, 32, true);
    random_grid(plain, 3, 32, true);
    add_dac(m, 0);
    export_refuses(m, out, NULL, "no place in architecture qwen2");
    export_ok(m, out, &drop);
    back = open_model(out);
    assert_same_logits(plain, back);
    assert_string_equal(back->hp.family, "qwen2");
    model_free(back);
    export_ok(m, out, &as_llama);
    back = open_model(out);
    assert_string_equal(back->hp.family, "llama");
    assert_int_equal(back->layers[0].lin[ROLE_Q].w.perm_dim, m->hp.head_dim);
    assert_same_logits(m, back);
    model_free(back);
    model_free(plain);
    model_free(m);
    unlink(out);

    m = open_model(MODELS "qwen3");
    export_refuses(m, out, &as_llama, "norms of q and k");
    model_free(m);
    m = open_model(MODELS "mistral"); /* window 16 of 128 */
    export_ok(m, out, NULL);
    back = open_model(out);
    assert_string_equal(back->hp.family, "llama");
    assert_int_equal(back->hp.n_ctx, 16);
    model_free(back);
    model_free(m);
    scratch_remove(dir);
}

/* ---- tokenizers ----------------------------------------------------------------------------- */

/* As the package tokenizers encodes (tools/golden_tokenizer.py). A GGUF file has no place for lstrip,
 * rstrip and NFC. */
static void assert_expected_ids(const struct tokenizer *t, const char *folder)
{
    char path[192];
    size_t k, i;
    json_t *one, *id;
    snprintf(path, sizeof path, "%s/expected.json", folder);
    json_t *cases = json_load_file(path, 0, NULL);
    assert_true(json_array_size(cases) > 20);
    json_array_foreach(cases, k, one) {
        const json_t *text = json_object_get(one, "text"), *ids = json_object_get(one, "ids");
        struct token_list l = { 0 };
        struct err e;
        if (strstr(json_string_value(text), " <|left|>") || strstr(json_string_value(text), "<|right|> ") ||
            strchr(json_string_value(text), 0xcc)) /* a combining character */
            continue;
        assert_int_equal(tokenizer_encode(t, json_string_value(text), json_string_length(text), true, true, &l, &e), 0);
        if (l.n != json_array_size(ids))
            fail_msg("%s case %zu: %zu tokens, expected %zu", folder, k, l.n, json_array_size(ids));
        json_array_foreach(ids, i, id)
            if (l.ids[i] != json_integer_value(id))
                fail_msg("%s case %zu: token %zu is %d, expected %lld", folder, k, i, l.ids[i], (long long)json_integer_value(id));
        mem_free(l.ids);
    }
    json_decref(cases);
}

static int keep_warnings(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    char *kept = ud;
    (void)done;
    (void)total;
    if (kind == LOG_WARN)
        snprintf(kept + strlen(kept), 2000 - strlen(kept), "%s\n", text);
    return 0;
}

static void tokenizers(void **state)
{
    (void)state;
    static const struct { const char *name, *warned; int added; } styles[] = {
        { "gpt2", "", 4 }, { "llama2", "", 4 }, { "llama3", "", 4 }, { "qwen2", "normalization (NFC)", 4 }, { "smollm", "", 4 },
        { "metaspace_always", "begins with one too", 4 }, { "metaspace_first", "behind special tokens", 4 },
        { "prefix", "with byte-level tokens", 4 }, { "llama2_normed", "wherever they stand", 7 },
    };
    for (size_t k = 0; k < 2 * sizeof styles / sizeof *styles; k++) {
        size_t i = k / 2;
        int more = k % 2 ? 3 : -2; /* rows of the model beyond the tokenizer's ids */
        const char *dir = scratch_dir(), *out = scratch_path(dir, "t.gguf");
        struct checkpoint from = { .container = CONTAINER_HF }, *c;
        struct tokenizer *t, *back;
        struct gguf_writer w;
        struct outfile file;
        struct err e = { 0 };
        char path[128], warnings[2000] = "";
        struct log log = { keep_warnings, warnings };
        snprintf(path, sizeof path, "tests/fixtures/tok/%s", styles[i].name);
        from.path = path;
        assert_int_equal(tokenizer_load(&t, &from, &e), 0);
        gguf_writer_init(&w);
        if (gguf_put_string(&w, "general.architecture", "llama", 5, &e) ||
            tokenizer_write_gguf(t, &from, tokenizer_n_vocab(t) + more, &w, &log, &e) || outfile_open(&file, out, &e) ||
            gguf_writer_begin(&w, &file, &e) || gguf_writer_end(&w, &file, &e) || outfile_commit(&file, &e) ||
            checkpoint_open(&c, out, &e) || tokenizer_load(&back, c, &e))
            fail_msg("%s: %s", styles[i].name, e.msg);
        assert_non_null(strstr(warnings, "take the space beside them"));
        assert_non_null(strstr(warnings, styles[i].warned));
        assert_int_equal(tokenizer_n_vocab(back), tokenizer_n_vocab(t) + more); /* padded to the model's rows, or added tokens left out */
        assert_int_equal(tokenizer_bos(back), tokenizer_bos(t));
        assert_int_equal(tokenizer_adds_bos(back), tokenizer_adds_bos(t));
        if (tokenizer_compare(t, back, &e))
            fail_msg("%s: %s", styles[i].name, e.msg);
        if (more > 0 && i < 5) /* the others' prefix differs, which export warns of */
            assert_expected_ids(back, from.path);
        assert_int_equal(tokenizer_check_gguf(t, &from, tokenizer_n_vocab(t) - styles[i].added, &e), 0);
        assert_int_equal(tokenizer_check_gguf(t, &from, tokenizer_n_vocab(t) - styles[i].added - 1, &e), -1);
        assert_int_equal(tokenizer_write_gguf(t, &from, tokenizer_n_vocab(t) - styles[i].added - 1, &w, NULL, &e), -1);
        gguf_writer_release(&w);
        tokenizer_free(back);
        tokenizer_free(t);
        checkpoint_free(c);
        scratch_remove(dir);
    }
}

/* ---- files in the way, cancelling -------------------------------------------------------------- */

static void files_in_the_way(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
    struct err e = { 0 };
    struct model *m = open_model(MODELS "llama");
    export_ok(m, out, NULL);
    export_ok(m, out, NULL); /* a GGUF file: replaced */
    model_free(m);
    m = open_model(out);
    assert_int_equal(export_model(m, "gguf", out, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "is read from"));
    const char *text = scratch_path(dir, "notes.txt");
    scratch_write(text, "my notes", 8);
    assert_int_equal(export_model(m, "gguf", text, NULL, NULL, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "is no GGUF file; it is not replaced"));
    assert_int_equal(export_model(m, "gguf", dir, NULL, NULL, NULL, &e), -1);
    assert_int_equal(export_model(m, "gguf", scratch_path(dir, "no/such/x.gguf"), NULL, NULL, NULL, &e), -1);
    model_free(m);
    scratch_remove(dir);
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
    const char *dir = scratch_dir(), *out = scratch_path(dir, "out.gguf");
    struct model *m = open_model(MODELS "llama");
    struct err e = { 0 };
    struct stat st;
    random_grid(m, 3, 32, true);
    for (int k = 3; k <= 22; k += 19) { /* while writing 21 tensors, while verifying */
        int left = k;
        struct log log = { cancel, &left };
        assert_int_equal(export_model(m, "gguf", out, NULL, &log, NULL, &e), -1);
        assert_int_equal(e.code, ERR_CANCELLED);
        assert_int_equal(stat(out, &st), -1);
    }
    long n = 1;
    for (; n < 20000; n += n < 300 ? 3 : 37) {
        mem_fail_after(n);
        int rc = export_model(m, "gguf", out, NULL, NULL, NULL, &e);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(e.code, ERR_MEMORY);
        assert_int_equal(stat(out, &st), -1);
    }
    assert_in_range(n, 20, 19999);
    assert_int_equal(unlink(out), 0);
    assert_int_equal(rmdir(dir), 0); /* nothing else was left there */
    free((void *)(uintptr_t)dir);
    model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float_equals_the_converter),
        cmocka_unit_test(gguf_in_gguf_out),
        cmocka_unit_test(quantized_models_compute_the_same),
        cmocka_unit_test(other_grids_are_refused),
        cmocka_unit_test(floats_are_not_rounded),
        cmocka_unit_test(corrections),
        cmocka_unit_test(tokenizers),
        cmocka_unit_test(files_in_the_way),
        cmocka_unit_test(cancels_and_survives_failed_allocations),
    };
    return cmocka_run_group_tests_name("export_gguf", tests, NULL, NULL);
}
