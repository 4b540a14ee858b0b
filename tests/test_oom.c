/* test_oom: every allocation of ours fails in turn, in everything the program does: the call says that memory is out, gives back what it
 * took (a leak is the sanitizers' to find), leaves an old output as it was, and the same call then succeeds and gives the same bytes.
 * A sample of the allocations; all of them with D2Q_OOM=all. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/digest.h"
#include "base/file.h"
#include "base/mem.h"
#include "d2quant.h"
#include "scratch.h"

#define MODEL "tests/fixtures/models/llama"
#define TEXT "tests/fixtures/models/text.txt"
#define SECONDS 2.0 /* of each test, unless all is asked for */

static char out[512], work[512], other[512];
static char said[1 << 16]; /* what the last call told that only reads, but for times and memory */

/* One thing the program does: 0, or -1 with *e. */
typedef int (*action)(const char *how, d2q_error *e);

/* Adds to it; takes the text. */
static void say(char *text)
{
    static const char *const varying[] = { "seconds", "prefill_seconds", "decode_seconds", "peak_rss_bytes", "memory", "peak_bytes", "estimated_seconds" };
    json_t *o = json_loads(text, 0, NULL);
    size_t have = strlen(said);
    assert_non_null(o);
    for (size_t i = 0; i < sizeof varying / sizeof *varying; i++)
        json_object_del(o, varying[i]);
    size_t n = json_dumpb(o, said + have, sizeof said - have - 1, 0);
    assert_in_range(n, 3, sizeof said - have - 1);
    said[have + n] = '\0';
    json_decref(o);
    d2q_free(text);
}

static int quantize_with(const char *how, const char *calib, d2q_error *e)
{
    char *json = NULL;
    d2q_quantize_options q;
    d2q_export_options x = { .command = "d2q", .meta = "{\"options\": {\"method\": \"x\"}}" };
    d2q_quantize_options_init(&q);
    q.bits = 2;
    q.group = 32;
    q.nsamples = 2;
    q.seqlen = 24;
    q.calib = calib;
    q.work = work;
    const char *format = how;
    if (!strcmp(how, "boa") || !strcmp(how, "gptaq") || !strcmp(how, "rtn"))
        q.method = how;
    if (!strcmp(how, "paper")) {
        q.recipe = "paper";
        q.rotate = "hadamard";
        q.order = "act";
    }
    q.tune = !strcmp(how, "tune");
    if (!strcmp(how, "gguf") || !strcmp(how, "tune")) {
        q.grid = "q2_k";
        q.kept_f32 = 2;
        format = "gguf";
    } else if (strcmp(how, "ct")) {
        format = "gptq";
    } else {
        q.grid = "sym";
    }
    d2q_model *m = d2q_open(MODEL, e);
    int rc = !m || d2q_quantize(m, &q, &json, e) ? -1 : 0;
    d2q_free(json);
    json = NULL;
    rc = rc || d2q_export(m, format, out, &x, &json, e) ? -1 : 0;
    d2q_free(json);
    d2q_close(m);
    return rc || d2q_work_remove(work, e) ? -1 : 0;
}

static int quantize(const char *how, d2q_error *e)
{
    return quantize_with(how, TEXT, e);
}

static int quantize_self(const char *how, d2q_error *e)
{
    return quantize_with(how, "self", e);
}

static int plan(const char *how, d2q_error *e)
{
    char *json = NULL;
    d2q_quantize_options q;
    d2q_quantize_options_init(&q);
    q.calib = TEXT;
    q.nsamples = 2;
    q.seqlen = 24;
    d2q_model *m = d2q_open(how, e);
    int rc = !m || d2q_plan(m, &q, &json, e) ? -1 : 0;
    if (!rc)
        say(json);
    rc = rc || d2q_choose_types(m, &q, 0, 5.0, &json, e) ? -1 : 0;
    if (!rc)
        say(json);
    d2q_close(m);
    return rc;
}

static int evaluate(const char *how, d2q_error *e)
{
    char *json = NULL;
    d2q_eval_options o;
    d2q_eval_options_init(&o);
    o.text = TEXT;
    o.ctx = 32;
    o.chunks = 2;
    o.kl = !strcmp(how, "kl") ? MODEL ".gguf" : NULL;
    o.save_base = !strcmp(how, "base") ? other : NULL;
    d2q_model *m = d2q_open(MODEL, e);
    int rc = !m || d2q_eval(m, &o, &json, e) ? -1 : 0;
    if (!rc)
        say(json);
    d2q_close(m);
    return rc;
}

static int generate(const char *how, d2q_error *e)
{
    char *json = NULL;
    d2q_generate_options o;
    d2q_generate_options_init(&o);
    o.prompt = "The cat";
    o.max_new = 3;
    o.temp = 0.8;
    d2q_model *m = d2q_open(how, e);
    int rc = !m || d2q_generate(m, &o, &json, e) ? -1 : 0;
    if (!rc)
        say(json);
    d2q_close(m);
    return rc;
}

static int look(const char *how, d2q_error *e)
{
    char *a = NULL, *b = NULL, *c = NULL;
    d2q_model *m = d2q_open(how, e);
    int rc = !m || d2q_inspect(m, how[strlen(how) - 1] == 'f' ? "blk.0.attn_q.weight" : "model.layers.0.self_attn.q_proj.weight", &a, e) || d2q_diff(m, m, &b, e) || d2q_verify(how, NULL, NULL, &c, e) ? -1 : 0;
    if (!rc)
        say(a), say(b), say(c);
    else
        d2q_free(a), d2q_free(b), d2q_free(c);
    d2q_close(m);
    return rc;
}

static double now(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* SHA-256 of the output's weights, "" when there is none. */
static void digest(char hex[65])
{
    struct err e;
    char weights[600];
    snprintf(weights, sizeof weights, "%s%s", out, file_is_dir(out) ? "/model.safetensors" : "");
    *hex = '\0';
    if (file_exists(weights) && file_sha256(weights, hex, &e))
        fail_msg("%s", e.msg);
}

static void sweep(action act, const char *how)
{
    const char *wish = getenv("D2Q_OOM");
    bool all = wish && !strcmp(wish, "all");
    d2q_error e = { 0 };
    char want[65], found[65], told[sizeof said];
    said[0] = '\0';
    mem_fail_after(LONG_MAX);
    if (act(how, &e))
        fail_msg("%s: %s", how, e.message);
    long total = LONG_MAX - mem_fail_left(), tried = 0, step = 1, refused = 0, done = 0;
    digest(want);
    strcpy(told, said);
    double begin = now();
    for (long n = 1; n <= total; n += step, tried++) {
        e = (d2q_error){ 0 };
        said[0] = '\0';
        mem_fail_after(n);
        int rc = act(how, &e);
        bool happened = mem_fail_left() <= 0;
        mem_fail_after(0);
        if (!happened && !rc)
            continue; /* an earlier attempt left work done: fewer allocations are needed */
        if (rc && e.code != D2Q_ERR_MEMORY)
            fail_msg("%s, allocation %ld of %ld: code %d: %s", how, n, total, e.code, e.message);
        if (rc && !strstr(e.message, "out of memory"))
            fail_msg("%s, allocation %ld of %ld: %s", how, n, total, e.message);
        refused += rc != 0;
        done += !rc; /* it could do without, or something else than memory went short */
        digest(found);
        assert_string_equal(found, want); /* the old output, or the new one */
        if (!rc)
            assert_string_equal(said, told);
        double each = (now() - begin) / (double)(tried + 1), left = (double)(total - n) * each;
        step = all || left <= 0 ? 1 : 1 + (long)(left / (SECONDS - (now() - begin) > 0.1 ? SECONDS - (now() - begin) : 0.1));
    }
    said[0] = '\0';
    if (act(how, &e))
        fail_msg("%s: %s", how, e.message);
    assert_string_equal(said, told);
    digest(found);
    assert_string_equal(found, want);
    assert_false(file_exists(work));
    assert_true(refused > 0);
    print_message("# %s: %ld of %ld allocations failed, %ld refused, %ld done all the same\n", how, tried, total, refused, done);
}

static void fresh(const char *dir)
{
    snprintf(out, sizeof out, "%s/out", dir);
    snprintf(work, sizeof work, "%s/work", dir);
    snprintf(other, sizeof other, "%s/base", dir);
}

#define TEST(name, ...)                                                                                                                 \
    static void test_##name(void **state)                                                                                               \
    {                                                                                                                                   \
        (void)state;                                                                                                                    \
        const char *dir = scratch_dir();                                                                                                \
        fresh(dir);                                                                                                                     \
        __VA_ARGS__;                                                                                                                    \
        scratch_remove(dir);                                                                                                            \
    }

TEST(quantize_gguf, sweep(quantize, "gguf"))
TEST(quantize_paper, sweep(quantize, "paper"))
TEST(quantize_boa, sweep(quantize, "boa"))
TEST(quantize_gptaq, sweep(quantize, "gptaq"))
TEST(quantize_tune, sweep(quantize, "tune"))
TEST(quantize_ct, sweep(quantize, "ct"))
TEST(quantize_self, sweep(quantize_self, "rtn"), sweep(quantize_self, "gptq"))
TEST(plan, sweep(plan, MODEL))
TEST(eval, sweep(evaluate, "ppl"), sweep(evaluate, "kl"), sweep(evaluate, "base"))
TEST(run, sweep(generate, MODEL), sweep(generate, MODEL ".gguf"))
TEST(look, sweep(look, MODEL), sweep(look, MODEL ".gguf"))

int main(void)
{
    d2q_set_threads(1); /* the n-th allocation is then always the same */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_gguf), cmocka_unit_test(test_quantize_paper), cmocka_unit_test(test_quantize_boa),
        cmocka_unit_test(test_quantize_gptaq), cmocka_unit_test(test_quantize_tune), cmocka_unit_test(test_quantize_ct),
        cmocka_unit_test(test_quantize_self), cmocka_unit_test(test_plan), cmocka_unit_test(test_eval), cmocka_unit_test(test_run),
        cmocka_unit_test(test_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
