/* Tokenizers against what the PyPI package `tokenizers` gives (tools/golden_tokenizer.py), against llama.cpp's vocabularies where
 * they lie, on malformed UTF-8, and on broken files. Ids and text must be equal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/tokenizer.h"
#include "scratch.h"

static const char *const styles[] = { "gpt2", "prefix", "smollm", "llama3", "qwen2", "llama2", "llama2_normed", "metaspace_first", "metaspace_always" };
#define N_STYLES (sizeof styles / sizeof *styles)

/* As much of a checkpoint as a tokenizer needs. */
static int load(const char *path, struct checkpoint *c, struct tokenizer **t, struct err *e)
{
    memset(c, 0, sizeof *c);
    c->path = (char *)(uintptr_t)path;
    c->container = file_is_dir(path) ? CONTAINER_HF : CONTAINER_GGUF;
    if (c->container == CONTAINER_GGUF && gguf_open(&c->gguf, path, e))
        return -1;
    if (tokenizer_load(t, c, e) == 0)
        return 0;
    gguf_release(&c->gguf);
    return -1;
}

static void unload(struct checkpoint *c, struct tokenizer *t)
{
    tokenizer_free(t);
    if (c->container == CONTAINER_GGUF)
        gguf_release(&c->gguf);
}

static struct token_list encode(const struct tokenizer *t, const char *s, size_t n, bool bos, bool specials)
{
    struct token_list l = { 0 };
    struct err e = { 0 };
    if (tokenizer_encode(t, s, n, bos, specials, &l, &e))
        fail_msg("%s", e.msg);
    return l;
}

static void check_case(const char *style, const struct tokenizer *t, size_t k, const json_t *c)
{
    const json_t *text = json_object_get(c, "text"), *ids = json_object_get(c, "ids"), *decoded = json_object_get(c, "decoded");
    struct token_list l = encode(t, json_string_value(text), json_string_length(text), true, true);
    struct err e;
    char *back;
    size_t n;
    for (size_t i = 0; i < l.n || i < json_array_size(ids); i++)
        if (i >= l.n || i >= json_array_size(ids) || l.ids[i] != json_integer_value(json_array_get(ids, i)))
            fail_msg("%s case %zu: token %zu of %zu is %d, expected %lld of %zu", style, k, i, l.n, i < l.n ? l.ids[i] : -1,
                     (long long)json_integer_value(json_array_get(ids, i)), json_array_size(ids));
    assert_int_equal(tokenizer_decode(t, l.ids, l.n, false, &back, &n, &e), 0);
    if (n != json_string_length(decoded) || memcmp(back, json_string_value(decoded), n))
        fail_msg("%s case %zu: decoded '%s', expected '%s'", style, k, back, json_string_value(decoded));
    mem_free(back);
    mem_free(l.ids);
}

static void test_styles(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_STYLES; s++) {
        char path[256], expected[300];
        struct checkpoint c;
        struct tokenizer *t;
        struct err e = { 0 };
        snprintf(path, sizeof path, "tests/fixtures/tok/%s", styles[s]);
        snprintf(expected, sizeof expected, "%s/expected.json", path);
        if (load(path, &c, &t, &e))
            fail_msg("%s", e.msg);
        json_t *cases = json_load_file(expected, 0, NULL), *v;
        size_t k;
        assert_true(json_array_size(cases) > 20);
        json_array_foreach(cases, k, v)
            check_case(styles[s], t, k, v);
        json_decref(cases);
        unload(&c, t);
    }
}

static void test_malformed_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *name, *bytes;
        size_t n;
    } bad[] = {
        { "lone continuation", "a\x80z", 3 },         { "cut two-byte", "a\xc3", 2 },
        { "cut three-byte", "\xe2\x82 x", 4 },         { "overlong", "\xc0\xaf", 2 },
        { "surrogate", "\xed\xa0\x80", 3 },            { "beyond U+10FFFF", "\xf4\x90\x80\x80", 4 },
        { "five bytes", "\xf8\x88\x80\x80\x80", 5 },   { "every high byte", "\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0\xff", 9 },
        { "NUL inside", "a\0b", 3 },                   { "mixed", "ok \xff caf\xc3\xa9 \xfe!", 13 },
    };
    for (size_t s = 0; s < N_STYLES; s++) {
        char path[256];
        struct checkpoint c;
        struct tokenizer *t;
        struct err e = { 0 };
        snprintf(path, sizeof path, "tests/fixtures/tok/%s", styles[s]);
        if (load(path, &c, &t, &e))
            fail_msg("%s", e.msg);
        for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
            struct token_list l = encode(t, bad[k].bytes, bad[k].n, false, true);
            char *back;
            size_t n;
            assert_int_equal(tokenizer_decode(t, l.ids, l.n, true, &back, &n, &e), 0);
            const char *want = bad[k].bytes;
            bool prefixed = !strcmp(styles[s], "prefix"); /* its own space comes back */
            if (n != bad[k].n + prefixed || memcmp(back + prefixed, want, bad[k].n))
                fail_msg("%s: '%s' does not make the round trip: %zu bytes, expected %zu", styles[s], bad[k].name, n, bad[k].n);
            mem_free(back);
            mem_free(l.ids);
        }
        unload(&c, t);
    }
}

static void test_specials(void **state)
{
    (void)state;
    struct checkpoint c;
    struct tokenizer *t;
    struct err e = { 0 };
    if (load("tests/fixtures/tok/llama3", &c, &t, &e))
        fail_msg("%s", e.msg);
    const char *text = "x<|special|>y";
    struct token_list with = encode(t, text, strlen(text), true, true), without = encode(t, text, strlen(text), false, false);
    assert_int_equal(with.n, 4); /* <s> x <|special|> y */
    assert_int_equal(with.ids[0], tokenizer_bos(t));
    assert_true(without.n > 4);
    assert_true(tokenizer_adds_bos(t));
    char buf[4];
    assert_int_equal(tokenizer_piece(t, with.ids[2], false, NULL, 0), 0);
    assert_int_equal(tokenizer_piece(t, with.ids[2], true, buf, sizeof buf), 11); /* its length, cut to the room */
    assert_memory_equal(buf, "<|sp", 4);
    assert_int_equal(tokenizer_piece(t, -1, true, buf, 4) + tokenizer_piece(t, 1 << 30, true, buf, 4), 0);
    mem_free(with.ids);
    mem_free(without.ids);
    unload(&c, t);
}

/* One piece of 400,000 bytes: the merge loop must not be quadratic (it would take minutes). */
static void test_long_piece(void **state)
{
    (void)state;
    struct checkpoint c;
    struct tokenizer *t;
    struct err e = { 0 };
    size_t n = 400000;
    if (load("tests/fixtures/tok/llama2", &c, &t, &e))
        fail_msg("%s", e.msg);
    char *s = mem_alloc(n, 1);
    for (size_t i = 0; i < n; i++)
        s[i] = "the dog is "[i % 11];
    struct token_list l = encode(t, s, n, false, false);
    assert_true(l.n > n / 11 && l.n < n);
    mem_free(l.ids);
    mem_free(s);
    unload(&c, t);
}

/* ---- llama.cpp's vocabularies ------------------------------------------------------------- */

#define MARK "\n__ggml_vocab_test__\n"

static const char *const vocabs[] = { "gpt-2", "llama-bpe", "llama-spm", "qwen2", "starcoder", "refact", "mpt", "phi-3" };

static void vocab_file(const char *dir, const char *name)
{
    char path[1024], in[1100], out[1100], *text, *ids;
    size_t n, m;
    struct checkpoint c;
    struct tokenizer *t;
    struct err e = { 0 };
    snprintf(path, sizeof path, "%s/models/ggml-vocab-%s.gguf", dir, name);
    snprintf(in, sizeof in, "%s.inp", path);
    snprintf(out, sizeof out, "%s.out", path);
    if (load(path, &c, &t, &e) || file_read(in, 1 << 20, &text, &n, &e) || file_read(out, 1 << 20, &ids, &m, &e))
        fail_msg("%s", e.msg);
    char *at = text, *want = ids;
    for (int k = 0; at; k++) {
        char *end = strstr(at, MARK);
        struct token_list l = encode(t, at, end ? (size_t)(end - at) : strlen(at), false, false);
        char *line = strchr(want, '\n');
        for (size_t i = 0; i < l.n; i++)
            if (strtol(want, &want, 10) != l.ids[i])
                fail_msg("%s: text %d, token %zu differs", name, k, i);
        if (line && strspn(want, " ") < (size_t)(line - want))
            fail_msg("%s: text %d: too few tokens", name, k);
        want = line ? line + 1 : want;
        at = end ? end + strlen(MARK) : NULL;
        mem_free(l.ids);
    }
    mem_free(text);
    mem_free(ids);
    unload(&c, t);
}

/* A file of before tokenizer.ggml.pre: cut as llama.cpp cuts it (build/bin/llama-tokenize there). */
static void vocab_without_pre(const char *dir, const char *name)
{
    static const char key[] = "tokenizer.ggml.pre";
    const char *scratch = scratch_dir(), *vocab = scratch_path(scratch, "v.gguf"), *part = scratch_path(scratch, "text");
    char path[1024], command[2048], *file, *text;
    size_t n, m;
    struct checkpoint c;
    struct tokenizer *t;
    struct err e = { 0 };
    snprintf(path, sizeof path, "%s/models/ggml-vocab-%s.gguf", dir, name);
    assert_int_equal(file_read(path, 1 << 26, &file, &n, &e), 0);
    char *at = memmem(file, n, key, sizeof key - 1);
    assert_non_null(at);
    at[sizeof key - 2] = 'x';
    scratch_write(vocab, file, n);
    mem_free(file);
    snprintf(path + strlen(path), sizeof path - strlen(path), ".inp");
    if (load(vocab, &c, &t, &e) || file_read(path, 1 << 20, &text, &m, &e))
        fail_msg("%s", e.msg);
    snprintf(command, sizeof command, "%s/build/bin/llama-tokenize -m %s -f %s --ids --no-bos --no-parse-special 2>%s/err", dir, vocab, part, scratch);
    for (char *p = text, *end; p; p = end ? end + strlen(MARK) : NULL) {
        end = strstr(p, MARK);
        size_t len = end ? (size_t)(end - p) : strlen(p), i = 0;
        scratch_write(part, p, len);
        struct token_list l = encode(t, p, len, false, false);
        FILE *f = popen(command, "r");
        assert_non_null(f);
        int id;
        for (; fscanf(f, "%*[[, ]%d", &id) == 1; i++)
            if (i >= l.n || l.ids[i] != id)
                fail_msg("%s without a pre-tokenizer: token %zu of '%.*s' differs", name, i, (int)len, p);
        assert_int_equal(pclose(f), 0);
        assert_int_equal(i, l.n);
        mem_free(l.ids);
    }
    mem_free(text);
    unload(&c, t);
    scratch_remove(scratch);
}

static void test_llama_cpp_without_pre(void **state)
{
    (void)state;
    const char *dir = getenv("D2Q_LLAMA_CPP");
    char tool[1024];
    snprintf(tool, sizeof tool, "%s/build/bin/llama-tokenize", dir ? dir : "");
    if (!dir || access(tool, X_OK)) {
        print_message("skip: D2Q_LLAMA_CPP does not name a vendor/llama.cpp that has build/bin/llama-tokenize\n");
        skip();
    }
    vocab_without_pre(dir, "gpt-2");
    vocab_without_pre(dir, "llama-bpe");
    vocab_without_pre(dir, "qwen2");
}

static void test_llama_cpp_vocabs(void **state)
{
    (void)state;
    const char *dir = getenv("D2Q_LLAMA_CPP");
    if (!dir) {
        print_message("skip: D2Q_LLAMA_CPP does not name vendor/llama.cpp of llama-cpp-python 0.3.36\n");
        skip();
    }
    for (size_t i = 0; i < sizeof vocabs / sizeof *vocabs; i++)
        vocab_file(dir, vocabs[i]);
}

/* ---- broken files ---------------------------------------------------------------------------- */

#define MODEL(body) "{\"model\":{\"type\":\"BPE\"," body "},\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}"
static const struct {
    const char *name, *json;
} broken[] = {
    { "empty file", "" }, { "not JSON", "hello" }, { "an array", "[]" }, { "no model", "{}" }, { "model is a string", "{\"model\":\"x\"}" },
    { "cut", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0" },
    { "model type", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}" },
    { "no vocab", MODEL("\"merges\":[]") }, { "vocab is an array", MODEL("\"vocab\":[1],\"merges\":[]") },
    { "empty vocab", MODEL("\"vocab\":{},\"merges\":[]") }, { "id is a string", MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]") },
    { "negative id", MODEL("\"vocab\":{\"a\":-1},\"merges\":[]") }, { "huge id", MODEL("\"vocab\":{\"a\":2000000000},\"merges\":[]") },
    { "sparse ids", MODEL("\"vocab\":{\"a\":16000000},\"merges\":[]") }, { "fraction", MODEL("\"vocab\":{\"a\":0.5},\"merges\":[]") },
    { "id twice", MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]") }, { "key twice", MODEL("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]") },
    { "no merges", MODEL("\"vocab\":{\"a\":0}") }, { "merge of one", MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a\"]") },
    { "merge of three", MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]") },
    { "merge is a number", MODEL("\"vocab\":{\"a\":0},\"merges\":[7]") },
    { "unknown part", MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a c\"]") },
    { "unknown result", MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]") },
    { "dropout", MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1") },
    { "word suffix", MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"") },
    { "added is a string", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":\"x\",\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}" },
    { "added without content", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":1}]}" },
    { "added without id", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"x\"}]}" },
    { "normalizer", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}" },
    { "pre-tokenizer", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Whitespace\"}}" },
    { "no pre-tokenizer at all", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}" },
    { "bad regex", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}}" },
    { "split behavior", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Contiguous\"}}" },
    { "post-processor", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"post_processor\":{\"type\":\"BertProcessing\"}}" },
    { "post token unknown", "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}]}}" },
};

static void test_broken_json(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    for (size_t k = 0; k < sizeof broken / sizeof *broken; k++) {
        struct checkpoint c;
        struct tokenizer *t;
        struct err e = { 0 };
        scratch_write(scratch_path(dir, "tokenizer.json"), broken[k].json, strlen(broken[k].json));
        if (load(dir, &c, &t, &e) == 0)
            fail_msg("%s: accepted", broken[k].name);
        if (!strstr(e.msg, "tokenizer.json"))
            fail_msg("%s: message does not name the file: %s", broken[k].name, e.msg);
    }
    scratch_remove(dir);
}

/* tokenizer_config.json: several chat templates; BOS by the flag of Llama's classes, whatever the post-processor says. */
static void test_config(void **state)
{
    static const char json[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1},\"merges\":[]},\"added_tokens\":[{\"id\":1,\"content\":\"<s>\","
                               "\"special\":true}],\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}";
    static const struct {
        const char *config, *template;
        bool bos;
    } rows[] = {
        { "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":\"<s>\",\"add_bos_token\":true}", NULL, true },
        { "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":\"<s>\",\"add_bos_token\":true,\"chat_template\":\"T\"}", "T", false },
        { "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"U\"},{\"name\":\"default\",\"template\":\"D\"}]}", "D", false },
        { "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"U\"}]}", NULL, false },
    };
    (void)state;
    const char *dir = scratch_dir();
    scratch_write(scratch_path(dir, "tokenizer.json"), json, strlen(json));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct checkpoint c;
        struct tokenizer *t;
        struct err e = { 0 };
        scratch_write(scratch_path(dir, "tokenizer_config.json"), rows[i].config, strlen(rows[i].config));
        if (load(dir, &c, &t, &e))
            fail_msg("%s", e.msg);
        const char *template = tokenizer_chat_template(t);
        assert_true(tokenizer_adds_bos(t) == rows[i].bos);
        assert_true(template ? rows[i].template && !strcmp(template, rows[i].template) : !rows[i].template);
        unload(&c, t);
    }
    scratch_remove(dir);
}

/* Every truncation of a real file, and seeded byte changes: an error or a tokenizer, never a crash. */
static void test_damaged_json(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    char *text;
    size_t n;
    struct err e = { 0 };
    uint64_t x = 5;
    assert_int_equal(file_read("tests/fixtures/tok/llama2/tokenizer.json", 1 << 20, &text, &n, &e), 0);
    for (int k = 0; k < 300; k++) {
        struct checkpoint c;
        struct tokenizer *t;
        char *copy = mem_alloc(n, 1);
        memcpy(copy, text, n);
        size_t len = n;
        if (k < 60)
            len = n * (size_t)k / 60;
        for (int i = 0; k >= 60 && i < 3; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            copy[(x >> 20) % n] = (char)(x >> 50);
        }
        scratch_write(scratch_path(dir, "tokenizer.json"), copy, len);
        mem_free(copy);
        if (load(dir, &c, &t, &e) == 0) {
            struct token_list l = encode(t, "Hello <0x41> world \xff", 20, true, true);
            mem_free(l.ids);
            unload(&c, t);
            assert_true(k >= 60);
        }
    }
    mem_free(text);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_styles),
        cmocka_unit_test(test_malformed_utf8),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_long_piece),
        cmocka_unit_test(test_llama_cpp_vocabs),
        cmocka_unit_test(test_llama_cpp_without_pre),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_broken_json),
        cmocka_unit_test(test_damaged_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
