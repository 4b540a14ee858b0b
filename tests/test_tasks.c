/* Multiple choice: scores with shared contexts and batches against one plain forward pass a choice; metrics; broken files. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/file.h"
#include "eval/choice.h"
#include "eval/task.h"
#include "scratch.h"

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

/* Sum of log p of ids[n_ctx ..]: the whole sequence through fwd_block. */
static double plain(const struct model *m, const int32_t *ids, int64_t n, int64_t n_ctx)
{
    struct fwd f;
    struct err e;
    float *h = mem_alloc((size_t)(n * m->hp.n_embd), sizeof *h), *logits = mem_alloc((size_t)(n * m->hp.n_vocab), sizeof *logits);
    double sum = 0;
    assert_int_equal(fwd_init(&f, &m->hp, n, &e), 0);
    assert_int_equal(fwd_embed(m, ids, n, h, &e), 0);
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        assert_int_equal(fwd_block(m, &m->layers[l], &f, h, n, &e), 0);
    assert_int_equal(fwd_logits(m, h, n, f.x, logits, &e), 0);
    for (int64_t t = n_ctx; t < n; t++) {
        const float *row = logits + (t - 1) * m->hp.n_vocab;
        double z = 0;
        for (int64_t v = 0; v < m->hp.n_vocab; v++)
            z += exp((double)row[v]);
        sum += row[ids[t]] - log(z);
    }
    fwd_release(&f);
    mem_free(h);
    mem_free(logits);
    return sum;
}

#define QUESTIONS 60

/* Lengths from one token up, several batches; every family's attention (a sliding window in mistral). 1e-4 of float rounding. */
static void test_scores(void **state)
{
    (void)state;
    static const char *const models[] = { "llama", "mistral", "qwen2", "qwen3", "smollm2" };
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
        struct model *m = open_model(models[k]);
        struct question q[QUESTIONS];
        static int32_t ctx[QUESTIONS][64], ids[QUESTIONS][64];
        static int64_t start[QUESTIONS][5];
        double logp[QUESTIONS][4];
        struct err e = { 0 };
        uint64_t x = 11 + k;
        for (int i = 0; i < QUESTIONS; i++) {
            for (int t = 0; t < 64; t++) {
                x = x * 6364136223846793005u + 1442695040888963407u;
                ctx[i][t] = (int32_t)((x >> 33) % (uint64_t)m->hp.n_vocab);
                ids[i][t] = (int32_t)((x >> 43) % (uint64_t)m->hp.n_vocab);
            }
            start[i][0] = 0;
            for (int c = 0; c < 4; c++)
                start[i][c + 1] = start[i][c] + 1 + (i * 5 + c * 3) % 9;
            q[i] = (struct question){ 1 + (i * 7) % 60, ctx[i], 1 + i % 4, start[i], ids[i], logp[i] };
        }
        bool interrupted;
        if (choice_score(m, q, QUESTIONS, NULL, "test", &interrupted, &e))
            fail_msg("%s: %s", models[k], e.msg);
        for (int i = 0; i < QUESTIONS; i++)
            for (int64_t c = 0; c < q[i].n; c++) {
                int32_t all[128];
                int64_t n = start[i][c + 1] - start[i][c];
                memcpy(all, ctx[i], (size_t)q[i].n_ctx * sizeof *all);
                memcpy(all + q[i].n_ctx, ids[i] + start[i][c], (size_t)n * sizeof *all);
                double want = plain(m, all, q[i].n_ctx + n, q[i].n_ctx);
                if (!(fabs(want - logp[i][c]) < 1e-4))
                    fail_msg("%s: question %d, choice %lld: %.9g, expected %.9g", models[k], i, (long long)c, logp[i][c], want);
            }
        model_free(m);
    }
}

static void put(const char *path, const char *text)
{
    scratch_write(path, text, strlen(text));
}

/* acc, acc_norm and their errors from the items' own scores; WinoGrande's form; mmlu's descriptions and examples. */
static void test_metrics(void **state)
{
    (void)state;
    struct model *m = open_model("llama");
    const char *dir = scratch_dir();
    char items[256], mmlu[256];
    struct task_result r;
    struct err e = { 0 };
    const char *path = scratch_path(dir, "piqa_validation.jsonl");
    put(path, "{\"id\":\"a\",\"context\":\"One two\",\"choices\":[\" three\",\" a longer ending\"],\"gold\":0}\n\n"
              "{\"id\":\"b\",\"context\":\"Four five\",\"choices\":[\" six\",\" seven eight nine\",\" \\u00e4\\u00f6\"],\"gold\":1}\n"
              "{\"id\":\"c\",\"contexts\":[\"He is\",\"She was\"],\"continuation\":\" here.\",\"gold\":1}\n");
    char file[256];
    snprintf(file, sizeof file, "%s", path);
    snprintf(items, sizeof items, "%s", scratch_path(dir, "items"));
    struct outfile out;
    assert_int_equal(outfile_open(&out, items, &e), 0);
    struct task_options o = { .items = &out };
    if (task_run(m, "piqa", file, &o, NULL, &r, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(outfile_commit(&out, &e), 0);
    assert_int_equal(r.n, 3);
    static const int64_t chars[3][3] = { { 5, 15, 0 }, { 3, 16, 2 }, { 5, 5, 0 } }, n_choices[3] = { 2, 3, 2 }, gold[3] = { 0, 1, 1 };
    FILE *f = fopen(items, "r");
    char line[512];
    int64_t right = 0, norm = 0;
    for (int i = 0; i < 3; i++) {
        double ll[3] = { -1e9, -1e9, -1e9 };
        int at = 0, at_norm = 0;
        assert_non_null(fgets(line, sizeof line, f));
        assert_int_equal(sscanf(strstr(line, "\"ll\":[") + 6, "%lf,%lf,%lf", &ll[0], &ll[1], &ll[2]), n_choices[i]);
        for (int c = 1; c < n_choices[i]; c++) {
            at = ll[c] > ll[at] ? c : at;
            at_norm = ll[c] / (double)chars[i][c] > ll[at_norm] / (double)chars[i][at_norm] ? c : at_norm;
        }
        right += at == gold[i];
        norm += at_norm == gold[i];
    }
    fclose(f);
    assert_true(fabs(r.acc - (double)right / 3) < 1e-12 && fabs(r.acc_norm - (double)norm / 3) < 1e-12);
    assert_true(fabs(r.acc_err - sqrt(r.acc * (1 - r.acc) / 2)) < 1e-12);

    snprintf(mmlu, sizeof mmlu, "%s", scratch_path(dir, "mmlu_test.jsonl"));
    put(mmlu, "{\"id\":\"x_y-0\",\"context\":\"Q\\nAnswer:\",\"choices\":[\" A\",\" B\"],\"gold\":1}\n");
    put(scratch_path(dir, "mmlu_fewshot.jsonl"), "{\"subject\":\"x_y\",\"description\":\"About.\\n\\n\",\"fewshot\":\"E\\nAnswer: A\\n\\n\"}\n");
    o = (struct task_options){ 0 };
    assert_int_equal(task_run(m, "mmlu", mmlu, &o, NULL, &r, &e), 0);
    int64_t none = r.tokens;
    o.shots = 5;
    assert_int_equal(task_run(m, "mmlu", mmlu, &o, NULL, &r, &e), 0);
    assert_true(r.tokens > none);
    assert_int_equal(task_run(m, "piqa", file, &o, NULL, &r, &e), -1); /* no examples there */
    model_free(m);
    scratch_remove(dir);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        { "", "no items" },
        { "\n \n", "no items" },
        { "[1]\n", "line 1: expected a JSON object" },
        { "{\"id\":\"a\"\n", "line 1: not valid JSON" },
        { "{\"id\":\"a\",\"context\":\"b\",\"choices\":[\" c\"],\"gold\":1}\n", "line 1: expected \"id\"" },
        { "{\"id\":\"a\",\"context\":\"b\",\"choices\":[\" c\"],\"gold\":-1}\n", "line 1: expected \"id\"" },
        { "{\"id\":\"a\",\"context\":\"b\",\"choices\":[7],\"gold\":0}\n", "line 1: expected \"id\"" },
        { "{\"id\":\"a\",\"context\":\"b\",\"choices\":[],\"gold\":0}\n", "line 1: expected \"id\"" },
        { "{\"id\":\"a\",\"contexts\":[\"b\",\"c\"],\"gold\":0}\n", "line 1: expected \"id\"" },
        { "{\"id\":\"a\",\"context\":\"b\",\"choices\":[\"\"],\"gold\":0}\n", "adds no token" },
    };
    struct model *m = open_model("llama");
    const char *dir = scratch_dir();
    char path[256];
    struct task_result r;
    struct task_options o = { 0 };
    struct err e;
    snprintf(path, sizeof path, "%s", scratch_path(dir, "t.jsonl"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put(path, rows[i].text);
        if (task_run(m, "t", path, &o, NULL, &r, &e) != -1 || !strstr(e.msg, rows[i].says) || !strstr(e.msg, "t.jsonl"))
            fail_msg("%s: %s", rows[i].text, e.msg);
    }
    assert_int_equal(task_run(m, "mmlu", path, &o, NULL, &r, &e), -1); /* mmlu_fewshot.jsonl is missing */
    model_free(m);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_scores), cmocka_unit_test(test_metrics), cmocka_unit_test(test_bad_files) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
