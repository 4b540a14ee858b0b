/* d2q compare: any number of models side by side, whatever their containers; the first is the reference of divergence. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    d2q_eval_options o;
    d2q_task_options t;
    int speed, csv;
};

const struct opt cmd_compare_opts[] = {
    { "ppl", 0, OPT_STR, offsetof(struct args, o.text), "FILE", NULL, 0, 0, "perplexity on this text, and divergence from the first model", NULL },
    { "protocol", 0, OPT_STR, offsetof(struct args, o.protocol), NULL, "gptq|llama", 0, 0, "as for d2q eval", "gptq" },
    { "ctx", 0, OPT_I64, offsetof(struct args, o.ctx), "N", NULL, 2, 1 << 20, "tokens in a window", "gptq 2048, llama 512" },
    { "chunks", 0, OPT_I64, offsetof(struct args, o.chunks), "N", NULL, 1, 1e9, "windows at most", "all" },
    { "tasks", 0, OPT_STR, offsetof(struct args, t.tasks), "all|NAME,NAME", NULL, 0, 0, "multiple choice; needs --data", NULL },
    { "data", 0, OPT_STR, offsetof(struct args, t.data), "DIR", NULL, 0, 0, "folder of the tasks' files", NULL },
    { "shots", 0, OPT_INT, offsetof(struct args, t.shots), "N", NULL, 0, 5, "examples before each question of mmlu: 0 or 5", "0" },
    { "limit", 0, OPT_I64, offsetof(struct args, t.limit), "N", NULL, 1, 1e9, "items of a task at most", "all" },
    { "speed", 0, OPT_FLAG, offsetof(struct args, speed), NULL, NULL, 0, 0, "tokens/s of a prompt of 128 and of 32 new tokens", NULL },
    { "csv", 0, OPT_FLAG, offsetof(struct args, csv), NULL, NULL, 0, 0, "comma-separated values instead of a table", NULL },
    { 0 },
};

/* What a model's row holds; a column is shown where any row has its key. */
static const struct column {
    const char *key, *title;
    double scale;
    int digits;
} columns[] = {
    { "bytes", "MiB", 1.0 / (1 << 20), 1 },   { "bpw", "bits", 1, 3 },          { "ppl", "ppl", 1, 3 },
    { "kl_mean", "KL", 1, 4 },                { "top1", "top-1 %", 100, 1 },    { "piqa", "piqa", 100, 1 },
    { "hellaswag", "hellasw", 100, 1 },       { "arc_easy", "arc_e", 100, 1 },  { "arc_challenge", "arc_c", 100, 1 },
    { "winogrande", "winogr", 100, 1 },       { "rte", "rte", 100, 1 },         { "openbookqa", "obqa", 100, 1 },
    { "mmlu", "mmlu", 100, 1 },               { "acc_average", "acc %", 100, 1 }, { "acc_norm_average", "norm %", 100, 1 },
    { "prefill", "pp t/s", 1, 1 },            { "decode", "tg t/s", 1, 1 },
};

static bool stopped(const json_t *o)
{
    return json_object_get(o, "interrupted") != NULL;
}

static void take(json_t *row, const json_t *from, const char *key)
{
    json_t *v = json_object_get(from, key);
    if (v)
        json_object_set(row, key, v);
}

static int evaluate(d2q_model *m, struct args *a, json_t *row, d2q_error *e)
{
    char *text = NULL;
    if (a->o.text) {
        if (d2q_eval(m, &a->o, &text, e))
            return -1;
        json_t *r = show_parse(text);
        static const char *const keys[] = { "ppl", "ppl_err", "tokens", "protocol", "kl_mean", "kl_err", "kl_median", "kl_p99", "top1", "interrupted" };
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            take(row, r, keys[i]);
        json_decref(r);
    }
    if (a->t.tasks && !stopped(row)) {
        if (d2q_tasks(m, &a->t, &text, e))
            return -1;
        json_t *r = show_parse(text), *t;
        size_t i;
        json_array_foreach(json_object_get(r, "tasks"), i, t)
            json_object_set(row, show_str(t, "task"), json_object_get(t, "acc"));
        take(row, r, "acc_average");
        take(row, r, "acc_norm_average");
        take(row, r, "interrupted");
        json_decref(r);
    }
    if (a->speed && !stopped(row)) {
        d2q_bench_options o;
        d2q_bench_options_init(&o);
        o.seconds = 0;
        o.prefill = 128;
        o.decode = 32;
        if (d2q_bench(m, &o, &text, e))
            return -1;
        json_t *r = show_parse(text);
        json_object_set_new(row, "prefill", json_real(show_num(json_object_get(r, "prefill"), "per_second")));
        json_object_set_new(row, "decode", json_real(show_num(json_object_get(r, "decode"), "per_second")));
        json_decref(r);
    }
    return 0;
}

/* NULL: *rc is the exit status, an error was shown. */
static json_t *one_model(struct args *a, const char *path, int *rc)
{
    d2q_error e;
    char *text = NULL;
    json_t *row = json_object();
    d2q_model *m = d2q_open(path, &e);
    *rc = !m || d2q_inspect(m, NULL, &text, &e);
    if (!*rc) {
        json_t *r = show_parse(text);
        json_object_set(row, "model", json_object_get(r, "path"));
        take(row, r, "family");
        take(row, r, "parameters");
        take(row, r, "bytes");
        take(row, r, "bpw");
        json_decref(r);
        *rc = evaluate(m, a, row, &e);
    }
    d2q_close(m);
    if (*rc && e.code == D2Q_ERR_CANCELLED) { /* what the row has stays */
        json_object_set_new(row, "interrupted", json_true());
        *rc = 0;
    }
    if (!*rc)
        return row;
    json_decref(row);
    *rc = show_error(&e);
    return NULL;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* A path with a comma or quotes is one value. */
static void print_quoted(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        if (*s == '"')
            putchar('"');
        putchar(*s);
    }
    putchar('"');
}

static int print(const json_t *models, bool csv)
{
    const size_t n = sizeof columns / sizeof *columns;
    bool shown[sizeof columns / sizeof *columns] = { false };
    const json_t *row;
    size_t i;
    int width = 5;
    json_array_foreach(models, i, row) {
        int k = (int)strlen(base_name(show_str(row, "model")));
        width = k > width ? k : width;
        for (size_t c = 0; c < n; c++)
            shown[c] |= json_object_get(row, columns[c].key) != NULL;
    }
    printf(csv ? "model" : "%-*s", width, "model");
    for (size_t c = 0; c < n; c++)
        if (shown[c])
            printf(csv ? ",%s" : " %9s", csv ? columns[c].key : columns[c].title);
    putchar('\n');
    json_array_foreach(models, i, row) {
        if (csv)
            print_quoted(show_str(row, "model"));
        else
            printf("%-*s", width, base_name(show_str(row, "model")));
        for (size_t c = 0; c < n; c++) {
            const json_t *v = json_object_get(row, columns[c].key);
            if (shown[c] && csv)
                v ? printf(",%.9g", json_number_value(v)) : printf(",");
            else if (shown[c])
                v ? printf(" %9.*f", columns[c].digits, columns[c].scale * json_number_value(v)) : printf(" %9s", "");
        }
        putchar('\n');
    }
    return show_flush();
}

int cmd_compare(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    struct progress p;
    double start = clock_now();
    d2q_eval_options_init(&a.o);
    d2q_task_options_init(&a.t);
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (a.t.tasks && !a.t.data)
        return opt_usage(spec->command, "--tasks needs --data DIR, the folder of their files");
    progress_init(&p, a.c.quiet);
    a.o.log = a.t.log = progress_log;
    a.o.log_ud = a.t.log_ud = &p;
    interrupt_catch();
    json_t *models = json_array(), *row = NULL;
    rc = 0;
    for (int i = 0; !rc && i <= a.c.more.n && !stopped(row); i++) {
        const char *path = i ? a.c.more.v[i - 1] : a.c.model;
        a.o.kl = i && a.o.text ? a.c.model : NULL;
        progress_what(&p, base_name(path));
        row = one_model(&a, path, &rc);
        if (row)
            json_array_append_new(models, row);
    }
    progress_clear(&p);
    if (rc && !json_array_size(models)) {
        json_decref(models);
        return rc;
    }
    int failed = rc; /* what was done before that is shown */
    bool partly = stopped(row);
    if (partly)
        fprintf(stderr, "d2q: interrupted: the last row is of what was done until then\n");
    if (a.c.json) {
        json_t *r = json_pack("{so}", "models", models);
        if (partly)
            json_object_set_new(r, "interrupted", json_true());
        show_common(r, start);
        rc = show_json(r);
    } else {
        rc = print(models, a.csv);
        json_decref(models);
    }
    return failed ? failed : rc ? rc : partly ? EXIT_INTERRUPTED : EXIT_DONE;
}
