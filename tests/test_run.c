/* test_run: generation against transformers' generate (greedy, tools/golden.py), sampling against the
 * probabilities it must follow, and self-made calibration text. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/par.h"
#include "model/tokenizer_impl.h"
#include "run/session.h"

#define DIR "tests/fixtures/models/"

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

enum { PROMPT = 700 }; /* longer than a batch of the prefill */

struct heard {
    int32_t ids[128];
    char text[4096];
    size_t n, len, stop_after, batches, stop_in_prompt;
};

static int hear(void *ud, int32_t id, const char *bytes, size_t n)
{
    struct heard *h = ud;
    if (id < 0) {
        assert_int_equal(n, 0);
        return ++h->batches == h->stop_in_prompt;
    }
    assert_true(h->n < 128 && h->len + n < sizeof h->text);
    h->ids[h->n++] = id;
    memcpy(h->text + h->len, bytes, n);
    h->len += n;
    h->text[h->len] = 0;
    return h->stop_after && h->n == h->stop_after;
}

static void test_greedy(void **state)
{
    const char *const *row = (const char *const *)*state;
    char path[256];
    size_t i, j;
    json_t *one, *want_id;
    json_error_t je;
    snprintf(path, sizeof path, DIR "%s/eval.json", row[1]);
    json_t *want = json_load_file(path, 0, &je);
    assert_non_null(want);
    struct model *m = open_model(row[0]);
    json_array_foreach(json_object_get(want, "greedy"), i, one) {
        const char *prompt = json_string_value(json_object_get(one, "prompt"));
        json_t *ids = json_object_get(one, "ids");
        struct session_options o = { .max_new = 40 };
        struct session_stats st;
        struct heard h = { .n = 0 };
        struct err e = { .msg = "" };
        if (session_run(m, prompt, strlen(prompt), &o, hear, &h, &st, &e))
            fail_msg("%s", e.msg);
        json_array_foreach(ids, j, want_id) {
            if (j == h.n && st.ended && j + 1 == json_array_size(ids) && tokenizer_is_eog(m->tok, (int32_t)json_integer_value(want_id)))
                break; /* transformers' list has the end token, ours does not */
            if (j >= h.n || h.ids[j] != json_integer_value(want_id))
                fail_msg("%s \"%s\": token %zu differs", row[0], prompt, j);
        }
        assert_int_equal(h.n, st.n_new);
        assert_true(h.n == json_array_size(ids) || st.ended);
        char *text;
        size_t len;
        assert_int_equal(tokenizer_decode(m->tok, h.ids, h.n, false, &text, &len, &e), 0);
        /* the streamed bytes are those of the whole, but for what is no UTF-8 */
        bool valid = memchr(h.text, 0xef, h.len) == NULL && strstr(text, "\xef\xbf\xbd") == NULL;
        if (valid && (len != h.len || memcmp(text, h.text, len)))
            fail_msg("%s \"%s\": streamed text differs from the decoded", row[0], prompt);
        mem_free(text);
    }
    assert_int_equal(i, 4);
    model_free(m);
    json_decref(want);
}

/* A session that is fed and continued in pieces says the same as one run; a callback can stop it. */
static void test_session(void **state)
{
    (void)state;
    struct model *m = open_model("llama");
    struct session s;
    struct session_stats st;
    struct session_options o = { .max_new = 30, .ignore_eog = true };
    struct err e = { .msg = "" };
    struct heard whole = { .n = 0 }, parts = { .n = 0 };
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (i * 37 + 11) % 300;
    assert_int_equal(session_init(&s, m, PROMPT + 31, &e), 0);
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &whole, &st, &e), 0);
    assert_int_equal(whole.n, 30);
    assert_int_equal(st.n_prompt, PROMPT);
    assert_int_equal(whole.batches, 2);
    s.kv.n = 0;
    o.max_new = 10;
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &parts, &st, &e), 0);
    parts.stop_after = 15;
    assert_int_equal(session_generate(&s, NULL, 0, &o, hear, &parts, &st, &e), 0);
    assert_int_equal(parts.n, 15);
    assert_int_equal(st.n_new, 5);
    parts.stop_after = 0; /* and goes on behind the token at which it was stopped */
    assert_int_equal(session_generate(&s, NULL, 0, &o, hear, &parts, &st, &e), 0);
    assert_int_equal(parts.n, 25);
    assert_memory_equal(whole.ids, parts.ids, 25 * sizeof *parts.ids);
    s.kv.n = 0; /* a token that ends the text, at its first place */
    parts = (struct heard){ .n = 0 };
    size_t first = 0;
    while (whole.ids[first] != whole.ids[7])
        first++;
    m->tok->eog[whole.ids[7]] = 1;
    o.ignore_eog = false;
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &parts, &st, &e), 0);
    assert_true(st.ended && parts.n == first && st.n_new == (int64_t)first);
    o.ignore_eog = true;
    s.kv.n = 0;
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &parts, &st, &e), 0);
    assert_true(!st.ended && st.n_new == 10);
    s.kv.n = 0; /* nothing to begin with */
    assert_int_equal(session_generate(&s, NULL, 0, &o, hear, &parts, &st, &e), -1);
    s.kv.n = 0; /* full: the prompt fits, two more tokens do */
    s.kv.cap = PROMPT + 1;
    parts.n = parts.stop_after = 0;
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &parts, &st, &e), 0);
    assert_int_equal(st.n_new, 2);
    s.kv.n = 0; /* stopped within the prompt */
    parts = (struct heard){ .stop_in_prompt = 2 };
    assert_int_equal(session_generate(&s, prompt, PROMPT, &o, hear, &parts, &st, &e), 0);
    assert_true(st.n_prompt > 0 && st.n_prompt < PROMPT && st.n_prompt == s.kv.n);
    assert_int_equal(st.n_new + (int64_t)parts.n, 0);
    ((float *)(uintptr_t)m->out_norm)[3] = nanf("");
    s.kv.n = 0;
    assert_int_equal(session_generate(&s, prompt, 4, &o, hear, &parts, &st, &e), -1);
    assert_non_null(strstr(e.msg, "the model's output is not finite at position 4"));
    session_release(&s);
    model_free(m);
}

/* Frequencies of 20,000 draws within 5 standard deviations of the probabilities, zeros exactly. */
static void check_draws(const float *logits, int n, const struct sample_options *o, const double *p)
{
    enum { DRAWS = 20000 };
    struct rng r;
    struct candidate scratch[16];
    int count[16] = { 0 };
    rng_init(&r, 42, 0);
    for (int i = 0; i < DRAWS; i++)
        count[sample_token(logits, n, o, &r, scratch)]++;
    for (int i = 0; i < n; i++) {
        double sd = sqrt(p[i] * (1 - p[i]) / DRAWS);
        if (!(fabs((double)count[i] / DRAWS - p[i]) <= 5 * sd))
            fail_msg("token %d drawn %d of %d times, expected share %g", i, count[i], DRAWS, p[i]);
    }
}

static void test_sampling(void **state)
{
    (void)state;
    /* p = 0.1 0.4 0.05 0.3 0.15 */
    const float logits[5] = { logf(0.1f), logf(0.4f), logf(0.05f), logf(0.3f), logf(0.15f) };
    const double plain[5] = { 0.1, 0.4, 0.05, 0.3, 0.15 };
    const double k2[5] = { 0, 4.0 / 7, 0, 3.0 / 7, 0 };
    const double p8[5] = { 0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85 };
    double sq[5], sum = 0;
    for (int i = 0; i < 5; i++)
        sum += plain[i] * plain[i];
    for (int i = 0; i < 5; i++)
        sq[i] = plain[i] * plain[i] / sum;
    check_draws(logits, 5, &(struct sample_options){ 1, 0, 1 }, plain);
    check_draws(logits, 5, &(struct sample_options){ 0.5, 0, 1 }, sq);
    check_draws(logits, 5, &(struct sample_options){ 1, 2, 1 }, k2);
    check_draws(logits, 5, &(struct sample_options){ 1, 0, 0.8 }, p8);
    check_draws(logits, 5, &(struct sample_options){ 1, 9, 0.8 }, p8);
    check_draws(logits, 5, &(struct sample_options){ 0, 0, 1 }, (double[5]){ 0, 1, 0, 0, 0 });
    check_draws(logits, 5, &(struct sample_options){ 1, 0, 1e-9 }, (double[5]){ 0, 1, 0, 0, 0 });
}

static void test_self_text(void **state)
{
    (void)state;
    enum { SEQ = 5, LEN = 40 };
    struct model *m = open_model("llama");
    struct err e = { .msg = "" };
    struct token_list a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    uint64_t two = 2 * kv_bytes(&m->hp, LEN);
    int before = par_threads();
    assert_int_equal(session_generate_text(m, SEQ, LEN, 1, 0, NULL, &a, &e), 0);
    assert_int_equal(a.n, SEQ * LEN);
    for (size_t i = 0; i < a.n; i++)
        assert_true(a.ids[i] >= 0 && a.ids[i] < m->hp.n_vocab);
    par_set_threads(7); /* threads change nothing */
    assert_int_equal(session_generate_text(m, SEQ, LEN, 1, 0, NULL, &b, &e), 0);
    par_set_threads(before);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    /* nor do (but for rounding) batches: sequence 3 has its own random stream */
    assert_int_equal(session_generate_text(m, SEQ, LEN, 1, two, NULL, &c, &e), 0);
    assert_int_equal(c.n, a.n);
    assert_memory_equal(a.ids + 3 * LEN, c.ids + 3 * LEN, 10 * sizeof *a.ids);
    assert_int_equal(session_generate_text(m, SEQ, LEN, 2, 0, NULL, &d, &e), 0);
    assert_true(memcmp(a.ids, d.ids, a.n * sizeof *a.ids) != 0);
    assert_true(memcmp(a.ids, a.ids + LEN, LEN * sizeof *a.ids) != 0);
    mem_free(a.ids);
    mem_free(b.ids);
    mem_free(c.ids);
    mem_free(d.ids);
    model_free(m);
}

int main(void)
{
    static const char *const model[][2] = { { "llama", "llama" }, { "llama3", "llama3" }, { "qwen2", "qwen2" },
        { "llama3.gguf", "llama3" }, { "qwen2.gguf", "qwen2" } };
    const struct CMUnitTest test[] = {
        { "greedy llama", test_greedy, NULL, NULL, (void *)model[0] },
        { "greedy llama3", test_greedy, NULL, NULL, (void *)model[1] },
        { "greedy qwen2", test_greedy, NULL, NULL, (void *)model[2] },
        { "greedy llama3.gguf", test_greedy, NULL, NULL, (void *)model[3] },
        { "greedy qwen2.gguf", test_greedy, NULL, NULL, (void *)model[4] },
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_self_text),
    };
    struct err e;
    if (backend_init(&e))
        return 1;
    return cmocka_run_group_tests_name("run", test, NULL, NULL);
}
