/* test_report: the HTML page: well-formed whatever the JSON holds, every section there, its numbers those of the JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "base/mem.h"
#include "d2quant.h"
#include "report/report.h"
#include "scratch.h"

#define LLAMA "tests/fixtures/models/llama"
#define TEXT "tests/fixtures/models/text.txt"

static const char *dir;
static char *run_json; /* of a d2quant run on a tiny model */

/* ---- a checker of XML's rules ---------------------------------------------------------- */

static const char name_chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_:";

/* The length of a character reference at p that XML knows by itself, or 0. */
static size_t reference(const char *p)
{
    static const char *const known[] = { "&amp;", "&lt;", "&gt;", "&quot;", "&#39;" };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(p, known[i], strlen(known[i])))
            return strlen(known[i]);
    size_t n = p[1] == '#' ? strspn(p + 2, "0123456789") : 0;
    return n && p[2 + n] == ';' ? n + 3 : 0;
}

/* What breaks at p, or NULL: an attribute list up to > or />. */
static const char *attributes(const char **at, int *empty)
{
    const char *p = *at;
    for (*empty = 0;;) {
        p += strspn(p, " \n");
        if (*p == '>' || (p[0] == '/' && p[1] == '>')) {
            *empty = *p == '/';
            *at = p + 1 + *empty;
            return NULL;
        }
        size_t n = strspn(p, name_chars);
        if (!n || p[n] != '=' || p[n + 1] != '"')
            return "an attribute";
        for (p += n + 2; *p != '"'; p++)
            if (*p == '<' || !*p || (*p == '&' && !reference(p)))
                return "an attribute's value";
        p++;
    }
}

/* Fails the test where text is not a well-formed document of one element. */
static void expect_well_formed(const char *text)
{
    const char *open[64], *p = text, *why = NULL;
    size_t len[64];
    int depth = 0, roots = 0, empty = 0;
    if (!strncmp(p, "<!DOCTYPE html>", 15))
        p += 15;
    while (*p && !why) {
        unsigned char c = (unsigned char)*p;
        if (c == '&') {
            why = reference(p) ? NULL : "a bare &";
            p += reference(p);
        } else if (c == '>' || (c < ' ' && c != '\n') || (!depth && c != '<' && c != '\n')) {
            why = "a character that may not stand here";
        } else if (c != '<') {
            p++;
        } else if (p[1] == '/') {
            size_t n = strspn(p + 2, name_chars);
            if (!depth || n != len[depth - 1] || memcmp(p + 2, open[depth - 1], n) || p[2 + n] != '>')
                why = "an end tag without its start";
            depth--;
            p += 3 + n;
        } else {
            const char *name = p + 1;
            size_t n = strspn(name, name_chars);
            p = name + n;
            why = n ? attributes(&p, &empty) : "a <";
            roots += !depth;
            if (!empty && depth < 64) {
                open[depth] = name;
                len[depth++] = n;
            }
        }
    }
    if (why || depth || roots != 1)
        fail_msg("%s (depth %d, %d roots) at byte %d: %.60s", why ? why : "not one whole element", depth, roots, (int)(p - text), p);
    json_t *utf8 = json_string(text);
    if (!utf8)
        fail_msg("the page is not UTF-8");
    json_decref(utf8);
    static const char *const loads[] = { "<script", "http:", "https:", "src=", "url(", "@import", "<link", "<iframe" };
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++)
        if (strstr(text, loads[i]))
            fail_msg("the page holds %s", loads[i]);
}

static void test_checker(void **state)
{
    (void)state;
    expect_well_formed("<!DOCTYPE html>\n<a b=\"&amp;1\"><c/>x &#39; y<d></d></a>\n");
}

/* ---- pages ------------------------------------------------------------------------------- */

/* The page of these JSON texts (mem_free). */
static char *page(const char *const *json, int n)
{
    d2q_report_run runs[4];
    d2q_error e;
    char *text;
    size_t size;
    for (int i = 0; i < n; i++)
        runs[i] = (d2q_report_run){ "run.json", json[i] };
    const char *path = scratch_path(dir, "page.html");
    if (d2q_report(runs, n, path, &e))
        fail_msg("%s", e.message);
    assert_int_equal(file_read(path, 1 << 26, &text, &size, NULL), 0);
    assert_int_equal(strlen(text), size);
    expect_well_formed(text);
    return text;
}

static void expect_text(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("expected \"%s\" in the page", part);
}

/* v with so many significant digits, as the whole of an element's text. */
static void expect_number(const char *text, int digits, double v)
{
    char want[64];
    snprintf(want, sizeof want, ">%.*g<", digits, v);
    expect_text(text, want);
}

static const char *const sections[] = {
#define SECTION(id, title) #id,
#include "report/sections.def"
#undef SECTION
    "quality",
};

static const char eval_json[] =
    "{\"model\":\"/x/llama-3b\",\"ppl\":12.345678,\"ppl_err\":0.25,\"tokens\":2044,\"window\":512,\"windows\":4,\"protocol\":\"gptq\",\"text\":\"/d/wiki.txt\","
    "\"kl_mean\":0.98765,\"kl_err\":0.01,\"top1\":0.7654,\"reference\":\"/x/float\"}\n"
    "{\"model\":\"/x/llama-3b\",\"tasks\":[{\"task\":\"piqa\",\"n\":100,\"acc\":0.6251,\"acc_err\":0.04,\"acc_norm\":0.6372,\"acc_norm_err\":0.04}]}";
static const char compare_json[] = "{\"models\":[{\"model\":\"/x/other\",\"bytes\":104857600,\"bpw\":3.3125,\"ppl\":45.678,\"rte\":0.5432,\"acc_average\":0.5432}]}";

static void test_sections_and_numbers(void **state)
{
    const char *const runs[] = { run_json, eval_json, compare_json };
    char *text = page(runs, 3), id[32];
    json_t *run = json_loads(run_json, 0, NULL);
    const json_t *row;
    size_t i;
    (void)state;
    for (i = 0; i < sizeof sections / sizeof *sections; i++) {
        snprintf(id, sizeof id, "id=\"%s\"", sections[i]);
        expect_text(text, id);
    }
    snprintf(id, sizeof id, "<b>%.3f</b>", json_number_value(json_object_get(run, "bpw")));
    expect_text(text, id);
    assert_int_equal(json_array_size(json_object_get(run, "tensors")), 14);
    json_array_foreach(json_object_get(run, "tensors"), i, row) {
        expect_text(text, json_string_value(json_object_get(row, "name")));
        expect_number(text, 4, json_number_value(json_object_get(row, "err")));
        expect_number(text, 4, json_number_value(json_object_get(row, "err_target")));
    }
    json_array_foreach(json_object_get(run, "blocks"), i, row) {
        snprintf(id, sizeof id, "before: %.4g<", json_number_value(json_object_get(row, "dac_before")));
        expect_text(text, id);
        snprintf(id, sizeof id, "least %.4g,", json_number_value(json_object_get(row, "dsq_min")));
        expect_text(text, id);
        snprintf(id, sizeof id, "largest %.4g<", json_number_value(json_object_get(row, "dsq_max")));
        expect_text(text, id);
    }
    expect_number(text, 5, json_number_value(json_object_get(json_object_get(json_object_get(run, "histogram"), "before"), "rms")));
    static const char *const measured[] = { ">12.346", "0.9877", "76.5", ">62.51", ">63.72", ">45.678", ">54.32", "llama-3b", "wiki.txt", ">100.0" };
    for (i = 0; i < sizeof measured / sizeof *measured; i++)
        expect_text(text, measured[i]);
    assert_null(strstr(text, "Nothing was measured"));
    json_decref(run);
    mem_free(text);
}

/* Runs of one model that say different things stay apart: a task twice, averages of different tasks. */
static void test_rows_stay_apart(void **state)
{
    static const char *const runs[] = {
        "{\"model\":\"/x/m\",\"tasks\":[{\"task\":\"mmlu\",\"n\":9,\"shots\":0,\"acc\":0.5111,\"acc_err\":0.1}]}",
        "{\"model\":\"/x/m\",\"tasks\":[{\"task\":\"mmlu\",\"n\":9,\"shots\":5,\"acc\":0.2333,\"acc_err\":0.1}]}",
        "{\"model\":\"/x/m\",\"acc_average\":0.1717,\"tasks\":[{\"task\":\"piqa\",\"n\":9,\"acc\":0.1,\"acc_err\":0.1},"
        "{\"task\":\"rte\",\"n\":9,\"acc\":0.2434,\"acc_err\":0.1}]}",
        "{\"model\":\"/x/m\",\"acc_average\":0.6161,\"tasks\":[{\"task\":\"arc_easy\",\"n\":9,\"acc\":0.6,\"acc_err\":0.1},"
        "{\"task\":\"openbookqa\",\"n\":9,\"acc\":0.6322,\"acc_err\":0.1}]}",
    };
    static const char *const expected[] = { ">51.11", ">23.33", ">17.17", ">61.61", ">24.34", ">63.22" };
    (void)state;
    char *text = page(runs, 4);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        expect_text(text, expected[i]);
    mem_free(text);
}

/* What the run recorded for the page: sums that must hold. */
static void test_recorded(void **state)
{
    json_t *run = json_loads(run_json, 0, NULL);
    const json_t *h = json_object_get(run, "histogram"), *row;
    static const char *const sides[] = { "before", "after" };
    size_t i, k;
    (void)state;
    for (i = 0; i < 2; i++) {
        const json_t *s = json_object_get(h, sides[i]), *bin;
        json_int_t n = json_integer_value(json_object_get(s, "below")) + json_integer_value(json_object_get(s, "above"));
        json_array_foreach(json_object_get(s, "bins"), k, bin)
            n += json_integer_value(bin);
        assert_true(n == json_integer_value(json_object_get(h, "values")) && n > 0);
        assert_true(json_number_value(json_object_get(s, "rms")) > 0);
    }
    double worst = 0;
    const char *name = "";
    json_array_foreach(json_object_get(run, "tensors"), i, row)
        if (json_number_value(json_object_get(row, "err")) > worst) {
            worst = json_number_value(json_object_get(row, "err"));
            name = json_string_value(json_object_get(row, "name"));
        }
    assert_string_equal(json_string_value(json_object_get(h, "name")), name);
    json_array_foreach(json_object_get(run, "blocks"), i, row) {
        const json_t *q = json_object_get(row, "dsq_quantiles"), *v;
        double last = json_number_value(json_object_get(row, "dsq_min"));
        assert_true(last > 0 && json_array_size(q) == 5);
        json_array_foreach(q, k, v) {
            assert_true(json_number_value(v) >= last);
            last = json_number_value(v);
        }
        assert_true(json_number_value(json_object_get(row, "dsq_max")) >= last);
        double before = json_number_value(json_object_get(row, "dac_before")), after = json_number_value(json_object_get(row, "dac_after"));
        assert_true(before > 0 && before < 10 && after > 0);
        assert_true(json_number_value(json_object_get(row, "dac_share")) > 0 ? after != before : after == before);
    }
    json_decref(run);
}

/* ---- hostile JSON ---------------------------------------------------------------------------- */

static const char hostile[] = "</title></style><script>alert(1)</script>&\"'<!--]]>\x01\x7f\xef\xbf\xbf%s%n\xe2\x80\xae";

static void poison_strings(json_t *o)
{
    const char *key;
    json_t *v;
    size_t i;
    if (json_is_string(o))
        json_string_set(o, hostile);
    json_object_foreach(o, key, v)
        poison_strings(v);
    json_array_foreach(o, i, v)
        poison_strings(v);
}

static void test_hostile_names(void **state)
{
    json_t *run = json_loads(run_json, 0, NULL), *eval = json_loads(eval_json, JSON_DISABLE_EOF_CHECK, NULL);
    (void)state;
    json_object_set_new(json_object_get(run, "options"), hostile, json_string("x")); /* as a key too */
    poison_strings(run);
    poison_strings(eval);
    char *texts[] = { json_dumps(run, 0), json_dumps(eval, 0) };
    char *text = page((const char *const *)texts, 2); /* checks for <script too */
    expect_text(text, "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;&lt;!--]]&gt;\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd%s%n");
    mem_free(text);
    free(texts[0]);
    free(texts[1]);
    json_decref(run);
    json_decref(eval);
}

/* Every value in turn becomes something else: the page is made all the same, or the object is refused as none of ours. */
static int replace_nth(json_t *o, int *n, const json_t *with)
{
    const char *key;
    json_t *v;
    size_t i;
    json_object_foreach(o, key, v) {
        if (!(*n)--)
            return !json_object_set_new(o, key, json_deep_copy(with));
        if (replace_nth(v, n, with))
            return 1;
    }
    json_array_foreach(o, i, v) {
        if (!(*n)--)
            return !json_array_set_new(o, i, json_deep_copy(with));
        if (replace_nth(v, n, with))
            return 1;
    }
    return 0;
}

static void test_wrong_types(void **state)
{
    json_t *const with[] = { json_null(), json_string("x"), json_real(-1e308), json_real(1e308), json_integer(0), json_array(), json_object() };
    enum { TYPES = sizeof with / sizeof *with };
    int made = 0, refused = 0, there = 1;
    (void)state;
    for (int nth = 0; there; nth++)
        for (int type = 0; type < TYPES; type++) {
            json_t *run = json_loads(run_json, 0, NULL);
            int n = nth;
            there = replace_nth(run, &n, with[type]);
            if (there && report_kind(run) == REPORT_QUANTIZE) {
                struct text t = { 0 };
                struct err e;
                json_t *list = json_pack("[O]", run);
                assert_int_equal(report_page(list, &t, &e), 0);
                expect_well_formed(t.p);
                json_decref(list);
                text_release(&t);
                made++;
            } else if (there) {
                refused++;
            }
            json_decref(run);
        }
    assert_true(made > 400 * TYPES && refused == 3 * (TYPES - 1)); /* "options", "tensors", "blocks": all but their own type */
    for (size_t i = 0; i < sizeof with / sizeof *with; i++)
        json_decref(with[i]);
}

static void test_little(void **state)
{
    static const char *const runs[] = { "{\"options\":{},\"tensors\":[],\"blocks\":[]} {\"options\":{},\"tensors\":[],\"blocks\":[{}]}" };
    (void)state;
    char *text = page(runs, 1);
    expect_text(text, "id=\"run2\"");
    expect_text(text, "Nothing was measured");
    mem_free(text);
}

static void test_refused(void **state)
{
    static const char *const rows[][2] = {
        { "", "found nothing" },
        { "{\"a\":", "bad.json: byte 5: expected a JSON object" },
        { "{}", "bad.json: byte 0: expected what d2q quantize, eval or compare print" },
        { "[1]", "found another object" },
        { "{\"models\":[]} {\"plan\":1}", "byte 14: expected what" },
    };
    d2q_error e;
    (void)state;
    const char *path = scratch_path(dir, "none.html");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        d2q_report_run run = { "bad.json", rows[i][0] };
        assert_int_equal(d2q_report(&run, 1, path, &e), -1);
        if (!strstr(e.message, rows[i][1]))
            fail_msg("expected \"%s\" in: %s", rows[i][1], e.message);
        assert_false(file_exists(path));
    }
    d2q_report_run run = { "good.json", compare_json };
    assert_int_equal(d2q_report(&run, 1, "/proc/nowhere/x.html", &e), -1);
    assert_non_null(strstr(e.message, "/proc/nowhere/x.html"));
}

static void test_memory(void **state)
{
    json_t *runs = json_pack("[o]", json_loads(run_json, 0, NULL));
    int rc = -1;
    (void)state;
    for (long n = 1; rc && n < 10000; n++) {
        struct text t = { 0 };
        struct err e = { 0 };
        mem_fail_after(n);
        rc = report_page(runs, &t, &e);
        mem_fail_after(0);
        if (rc)
            assert_int_equal(e.code, ERR_MEMORY);
        text_release(&t);
    }
    assert_int_equal(rc, 0);
    json_decref(runs);
}

static int setup(void **state)
{
    (void)state;
    d2q_error e;
    d2q_quantize_options q;
    dir = scratch_dir();
    d2q_model *m = d2q_open(LLAMA, &e);
    d2q_quantize_options_init(&q);
    q.bits = 3;
    q.group = 32;
    q.dac = 1;
    q.calib = TEXT;
    q.nsamples = 8;
    q.seqlen = 48;
    int rc = !m || d2q_quantize(m, &q, &run_json, &e);
    if (rc)
        print_message("%s\n", e.message);
    d2q_close(m);
    return rc;
}

static int teardown(void **state)
{
    (void)state;
    d2q_free(run_json);
    scratch_remove(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checker),       cmocka_unit_test(test_sections_and_numbers), cmocka_unit_test(test_recorded),
        cmocka_unit_test(test_rows_stay_apart),
        cmocka_unit_test(test_hostile_names), cmocka_unit_test(test_wrong_types),          cmocka_unit_test(test_little),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("report", tests, setup, teardown);
}
