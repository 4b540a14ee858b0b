/* sec_quality: what d2q eval and d2q compare measured. First all measurements become rows {"model", "ppl" ..., "scores": {task: {...}}}, one a model
 * where they do not disagree; then the tables. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "report/page.h"
#include "report/report.h"

/* Would o say something else of what the row has? */
static bool disagree(const json_t *row, const json_t *o)
{
    const json_t *scores = json_object_get(row, "scores"), *tasks = json_object_get(o, "tasks"), *task;
    size_t i;
    if (json_object_get(o, "ppl") && json_object_get(row, "ppl"))
        return true;
    if (json_array_size(tasks) && json_object_size(scores) && (json_object_get(o, "acc_average") || json_object_get(row, "acc_average")))
        return true; /* an average is that of one run's tasks */
    json_array_foreach(tasks, i, task)
        if (json_object_get(scores, html_str(task, "task")))
            return true;
    return false;
}

/* A row of the model that has none of the keys of o; else a new one. */
static json_t *row_for(json_t *rows, const char *model, const json_t *o)
{
    json_t *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        if (!strcmp(html_str(row, "model"), model) && !disagree(row, o))
            return row;
    }
    row = json_pack("{ssso}", "model", model, "scores", json_object());
    json_array_append_new(rows, row);
    return row;
}

static void copy(json_t *row, const json_t *o, const char *const *keys)
{
    for (; *keys; keys++)
        if (json_object_get(o, *keys))
            json_object_set(row, *keys, json_object_get(o, *keys));
}

static void add_measured(json_t *rows, const json_t *o)
{
    static const char *const keys[] = { "ppl", "ppl_err", "tokens", "window", "windows", "protocol", "text", "kl_mean", "kl_err", "kl_median", "kl_p99",
                                        "kl_max", "top1", "reference", "bytes", "bpw", "prefill", "decode", "acc_average", "acc_norm_average",
                                        "interrupted", NULL };
    json_t *row = row_for(rows, html_str(o, "model"), o), *task;
    size_t i;
    copy(row, o, keys);
    json_array_foreach(json_object_get(o, "tasks"), i, task)
        json_object_set(json_object_get(row, "scores"), html_str(task, "task"), task);
}

/* compare's rows have a task's acc under its name. */
static void add_compared(json_t *rows, const json_t *o)
{
    static const char *const tasks[] = { "piqa", "hellaswag", "arc_easy", "arc_challenge", "winogrande", "rte", "openbookqa", "mmlu" };
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (json_object_get(o, tasks[i]))
            json_array_append_new(list, json_pack("{sssO}", "task", tasks[i], "acc", json_object_get(o, tasks[i])));
    json_t *all = json_copy((json_t *)(uintptr_t)o);
    json_object_set_new(all, "tasks", list);
    add_measured(rows, all);
    json_decref(all);
}

static json_t *gather(const json_t *runs)
{
    json_t *rows = json_array();
    const json_t *o, *m;
    size_t i, k;
    json_array_foreach(runs, i, o) {
        if (report_kind(o) == REPORT_EVAL)
            add_measured(rows, o);
        if (report_kind(o) == REPORT_COMPARE)
            json_array_foreach(json_object_get(o, "models"), k, m)
                add_compared(rows, m);
    }
    return rows;
}

static const struct column {
    const char *key, *err, *title;
    double scale;
    int digits;
} columns[] = {
    { "bytes", NULL, "MiB", 1.0 / (1 << 20), 1 },      { "bpw", NULL, "bits", 1, 3 },
    { "ppl", "ppl_err", "perplexity", 1, 3 },          { "kl_mean", "kl_err", "mean KL", 1, 4 },
    { "kl_median", NULL, "median KL", 1, 4 },          { "kl_p99", NULL, "99 % KL", 1, 3 },
    { "top1", NULL, "same top token, %", 100, 1 },     { "prefill", NULL, "prompt tokens/s", 1, 1 },
    { "decode", NULL, "new tokens/s", 1, 1 },
};
enum { N_COLUMNS = sizeof columns / sizeof *columns };

static bool any(const json_t *rows, const char *key)
{
    const json_t *row;
    size_t i;
    json_array_foreach(rows, i, row)
        if (json_object_get(row, key))
            return true;
    return false;
}

/* "62.10 &#177; 1.20" of what key holds, or an empty cell. */
static void cell(struct text *t, const json_t *o, const char *key, const char *err, double scale, int digits)
{
    text_add(t, "<td class=\"n\">");
    if (json_is_number(json_object_get(o, key)))
        text_add(t, "%.*f", digits, scale * html_num(o, key));
    if (err && json_is_number(json_object_get(o, err)))
        text_add(t, " <span class=\"dim\">&#177; %.*f</span>", digits, scale * html_num(o, err));
    text_add(t, "</td>");
}

static void model_table(struct text *t, const json_t *rows)
{
    bool shown[N_COLUMNS];
    const json_t *row;
    size_t i;
    int n = 0;
    for (int c = 0; c < N_COLUMNS; c++)
        n += shown[c] = any(rows, columns[c].key);
    if (!n)
        return;
    text_add(t, "<div class=\"scroll\"><table><thead><tr><th>model</th>");
    for (int c = 0; c < N_COLUMNS; c++)
        if (shown[c])
            text_add(t, "<th class=\"n\">%s</th>", columns[c].title);
    text_add(t, "</tr></thead><tbody>\n");
    json_array_foreach(rows, i, row) {
        text_add(t, "<tr>");
        html_tag(t, "th", html_base(html_str(row, "model")));
        for (int c = 0; c < N_COLUMNS; c++)
            if (shown[c])
                cell(t, row, columns[c].key, columns[c].err, columns[c].scale, columns[c].digits);
        text_add(t, "</tr>\n");
    }
    text_add(t, "</tbody></table></div>\n");
}

/* How each perplexity was measured. */
static void notes(struct text *t, const json_t *rows)
{
    const json_t *row;
    size_t i;
    text_add(t, "<ul class=\"dim\">\n");
    json_array_foreach(rows, i, row) {
        text_add(t, "<li><code>");
        html_text(t, html_str(row, "model"));
        text_add(t, "</code>");
        if (json_object_get(row, "ppl")) {
            text_add(t, ": protocol ");
            html_text(t, html_str(row, "protocol"));
            if (html_num(row, "window") > 0)
                text_add(t, ", %.0f windows of %.0f tokens", html_num(row, "windows"), html_num(row, "window"));
            text_add(t, ", %.0f tokens scored", html_num(row, "tokens"));
            if (*html_str(row, "text")) {
                text_add(t, ", text ");
                html_text(t, html_base(html_str(row, "text")));
            }
        }
        if (*html_str(row, "reference")) {
            text_add(t, "; divergence from ");
            html_text(t, html_str(row, "reference"));
        }
        text_add(t, "%s</li>\n", json_is_true(json_object_get(row, "interrupted")) ? "; <b>interrupted: a part only</b>" : "");
    }
    text_add(t, "</ul>\n");
}

static void task_row(struct text *t, const json_t *rows, const char *task, const char *key, const char *err)
{
    const json_t *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        if (!json_object_size(json_object_get(row, "scores")))
            continue;
        const json_t *score = task ? json_object_get(json_object_get(row, "scores"), task) : row;
        cell(t, score, key, err, 100, 2);
    }
    text_add(t, "</tr>\n");
}

static void task_table(struct text *t, const json_t *rows)
{
    json_t *names = json_object(), *v;
    const json_t *row;
    const char *task;
    size_t i;
    json_array_foreach(rows, i, row)
        json_object_foreach(json_object_get(row, "scores"), task, v)
            json_object_set_new(names, task, json_boolean(json_is_true(json_object_get(names, task)) || json_object_get(v, "acc_norm")));
    if (json_object_size(names)) {
        text_add(t, "<h3>Tasks</h3>\n<div class=\"scroll\"><table><thead><tr><th>%% right</th><th></th>");
        json_array_foreach(rows, i, row) {
            if (!json_object_size(json_object_get(row, "scores")))
                continue;
            text_add(t, "<th class=\"n\">");
            html_text(t, html_base(html_str(row, "model")));
            text_add(t, "</th>");
        }
        text_add(t, "</tr></thead><tbody>\n");
        json_object_foreach(names, task, v) {
            text_add(t, "<tr>");
            html_tag(t, "th", task);
            text_add(t, "<td>acc</td>");
            task_row(t, rows, task, "acc", "acc_err");
            if (json_is_true(v)) {
                text_add(t, "<tr><th></th><td>acc_norm</td>");
                task_row(t, rows, task, "acc_norm", "acc_norm_err");
            }
        }
        if (any(rows, "acc_average")) {
            text_add(t, "<tr><th>average</th><td>acc</td>");
            task_row(t, rows, NULL, "acc_average", NULL);
            text_add(t, "<tr><th></th><td>acc_norm, or acc</td>");
            task_row(t, rows, NULL, "acc_norm_average", NULL);
        }
        text_add(t, "</tbody></table></div>\n");
    }
    json_decref(names);
}

int section_quality(struct text *t, const json_t *runs, struct err *e)
{
    json_t *rows = gather(runs);
    text_add(t, "<section id=\"quality\"><h2>Quality</h2>\n");
    if (!json_array_size(rows)) {
        text_add(t, "<p class=\"dim\">Nothing was measured in what this page was made from. <code>d2q report RUN.json EVAL.json ...</code> adds what "
                    "<code>d2q eval --json</code> and <code>d2q compare --json</code> print.</p>\n");
    } else {
        model_table(t, rows);
        task_table(t, rows);
        notes(t, rows);
    }
    text_add(t, "</section>\n");
    json_decref(rows);
    return rows ? 0 : err_nomem(e, "report", 64);
}
