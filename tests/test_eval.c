/* test_eval: perplexity of tiny models under both protocols against transformers (tools/golden.py wrote the
 * expected values from the protocols' description), and the cutting of text. Tolerance of nll: 2e-6 relative,
 * float32 logits against float32 logits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/file.h"
#include "base/par.h"
#include "eval/perplexity.h"

#define DIR "tests/fixtures/models/"
#define NLL_TOL 2e-6

static struct model *open_model(const char *name)
{
    char path[256];
    struct err e = { .msg = "" };
    struct model *m = NULL;
    snprintf(path, sizeof path, DIR "%s", name);
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

static char *read_text(size_t *n)
{
    char *text;
    struct err e = { .msg = "" };
    if (file_read(DIR "text.txt", 1 << 20, &text, n, &e))
        fail_msg("%s", e.msg);
    return text;
}

static void check_ppl(const struct model *m, const char *name, const char *text, size_t n, const json_t *want)
{
    struct eval_options o;
    struct eval_result r;
    struct err e = { .msg = "" };
    const char *protocol = json_string_value(json_object_get(want, "protocol"));
    bool rows = json_is_true(json_object_get(want, "rows"));
    double nll = json_real_value(json_object_get(want, "nll"));
    eval_options_init(&o);
    assert_int_equal(eval_protocol_by_name(protocol, &o.protocol, &e), 0);
    o.ctx = json_integer_value(json_object_get(want, "ctx"));
    if (!rows && o.protocol == PROTOCOL_GPTQ)
        o.rule = RULE_AS_IS;
    if (eval_perplexity(m, text, n, &o, NULL, &r, &e))
        fail_msg("%s", e.msg);
    print_message("# %s %s ctx %lld: nll %.8f, transformers %.8f\n", name, protocol, (long long)o.ctx, r.nll, nll);
    assert_int_equal(r.n_windows, json_integer_value(json_object_get(want, "windows")));
    assert_int_equal(r.tokens, json_integer_value(json_object_get(want, "tokens")));
    assert_int_equal(r.window, o.ctx);
    assert_string_equal(r.protocol, protocol);
    assert_string_equal(r.text_rule, rows ? "wikitext-rows" : "as-is");
    assert_true(fabs(r.nll - nll) <= NLL_TOL * nll);
    assert_true(fabs(log(r.ppl) - r.nll) < 1e-12);
    assert_true(r.ppl_err > 0 && r.ppl_err < r.ppl);
}

static void test_ppl(void **state)
{
    const char *const *row = (const char *const *)*state;
    char path[256];
    size_t n, i;
    json_error_t je;
    json_t *want, *one;
    snprintf(path, sizeof path, DIR "%s/eval.json", row[1]);
    want = json_load_file(path, 0, &je);
    assert_non_null(want);
    char *text = read_text(&n);
    struct model *m = open_model(row[0]);
    json_array_foreach(json_object_get(want, "ppl"), i, one)
        check_ppl(m, row[0], text, n, one);
    assert_int_equal(i, 3);
    model_free(m);
    mem_free(text);
    json_decref(want);
}

static int cancel_at_3(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    (void)text;
    int *calls = ud;
    assert_int_equal(kind, LOG_PROGRESS);
    assert_true(done <= total);
    return ++*calls == 3;
}

static void test_limits(void **state)
{
    (void)state;
    struct eval_options o;
    struct eval_result r, all;
    struct err e = { .msg = "" };
    size_t n;
    int calls = 0;
    struct log cancel = { cancel_at_3, &calls };
    char *text = read_text(&n);
    struct model *m = open_model("llama"), *no_tok = open_model("qwen3");
    eval_options_init(&o);
    /* the default window is longer than this text */
    assert_int_equal(eval_perplexity(m, text, n, &o, NULL, &r, &e), -1);
    assert_non_null(strstr(e.msg, "469 tokens, fewer than one window of 2048"));
    assert_int_equal(eval_perplexity(m, "", 0, &o, NULL, &r, &e), -1);
    o.ctx = 1;
    assert_int_equal(eval_perplexity(m, text, n, &o, NULL, &r, &e), -1);
    o.ctx = 32;
    assert_int_equal(eval_perplexity(no_tok, text, n, &o, NULL, &r, &e), -1);
    assert_non_null(strstr(e.msg, "tokenizer"));
    assert_int_equal(eval_perplexity(m, text, n, &o, &cancel, &r, &e), 0); /* in the second window: it asks before each of two blocks */
    assert_true(r.interrupted && r.n_windows == 1 && r.tokens == 31);
    o.max_windows = 3;
    assert_int_equal(eval_perplexity(m, text, n, &o, NULL, &r, &e), 0);
    assert_int_equal(r.n_windows, 3);
    assert_int_equal(r.tokens, 3 * 31);
    /* the same to the last bit with other thread counts */
    int before = par_threads();
    par_set_threads(7);
    assert_int_equal(eval_perplexity(m, text, n, &o, NULL, &all, &e), 0);
    par_set_threads(before);
    assert_true(all.nll == r.nll && all.ppl_err == r.ppl_err);
    model_free(m);
    model_free(no_tok);
    mem_free(text);
}

static void test_rows(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
        bool wikitext;
    } row[] = {
        { " \n = A = \n \n b c \n", "\n\n = A = \n\n\n\n\n b c \n", true },
        { " \n", "", true },
        { " a \n\n b \n", " a \n\n\n\n\n\n b \n", false },
        { " \na\n\nb", "\n\na\n\n\n\n\n\nb", false },
        { "one\ntwo", "one\n\n\ntwo", false },
        { "", "", false },
        { " ", " ", false },
        { "  \nx", "  \n\n\nx", false },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char *out;
        size_t n;
        struct err e;
        assert_int_equal(windows_is_wikitext(row[i].in, strlen(row[i].in)), row[i].wikitext);
        assert_int_equal(windows_join_rows(row[i].in, strlen(row[i].in), &out, &n, &e), 0);
        assert_string_equal(out, row[i].out);
        assert_int_equal(n, strlen(row[i].out));
        mem_free(out);
    }
}

/* The real file, where it is: rows as the data's README counts them (its sha256 was checked by hand). */
static void test_wikitext(void **state)
{
    (void)state;
    const char *dir = getenv("D2Q_DATA");
    char path[512], *text, *out;
    size_t n, m;
    struct err e = { .msg = "" };
    snprintf(path, sizeof path, "%s/wikitext2_raw_test.txt", dir ? dir : "../shared/data");
    if (!file_exists(path)) {
        print_message("# no %s (D2Q_DATA)\n", path);
        skip();
    }
    assert_int_equal(file_read(path, 1 << 24, &text, &n, &e), 0);
    assert_true(windows_is_wikitext(text, n));
    assert_int_equal(windows_join_rows(text, n, &out, &m, &e), 0);
    assert_int_equal(m, 1296370);
    mem_free(text);
    mem_free(out);
}

static void test_bos(void **state)
{
    (void)state;
    int32_t ids[6] = { 5, 6, 7, 8, 9, 10 }, got[3];
    struct windows w = { .ids = { ids, 6, 6 }, .size = 3, .n = 2, .first = 2, .bos = 1 };
    static const int32_t with_bos[3] = { 1, 9, 10 }, without[3] = { 8, 9, 10 };
    windows_get(&w, 1, got);
    assert_memory_equal(got, with_bos, sizeof got);
    w.bos = -1;
    windows_get(&w, 1, got);
    assert_memory_equal(got, without, sizeof got);
}

int main(void)
{
    static const char *const model[][2] = { { "llama", "llama" }, { "llama3", "llama3" }, { "qwen2", "qwen2" },
        { "llama.gguf", "llama" }, { "llama3.gguf", "llama3" }, { "qwen2.gguf", "qwen2" } };
    const struct CMUnitTest test[] = {
        { "ppl llama", test_ppl, NULL, NULL, (void *)model[0] },
        { "ppl llama3", test_ppl, NULL, NULL, (void *)model[1] },
        { "ppl qwen2", test_ppl, NULL, NULL, (void *)model[2] },
        { "ppl llama.gguf", test_ppl, NULL, NULL, (void *)model[3] },
        { "ppl llama3.gguf", test_ppl, NULL, NULL, (void *)model[4] },
        { "ppl qwen2.gguf", test_ppl, NULL, NULL, (void *)model[5] },
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_wikitext),
        cmocka_unit_test(test_bos),
    };
    struct err e;
    if (backend_init(&e))
        return 1;
    return cmocka_run_group_tests_name("eval", test, NULL, NULL);
}
