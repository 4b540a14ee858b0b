#include "report/report.h"

#include <stdio.h>
#include <string.h>

#include "report/page.h"

enum report_kind report_kind(const json_t *o)
{
    if (json_is_array(json_object_get(o, "tensors")) && json_is_array(json_object_get(o, "blocks")) &&
        json_is_object(json_object_get(o, "options")))
        return REPORT_QUANTIZE;
    if (json_is_array(json_object_get(o, "models")))
        return REPORT_COMPARE;
    return json_is_string(json_object_get(o, "model")) && (json_is_number(json_object_get(o, "ppl")) || json_is_array(json_object_get(o, "tasks")))
               ? REPORT_EVAL : REPORT_NONE;
}

static const struct section {
    const char *id, *title;
    int (*write)(struct text *t, const json_t *run, struct err *e);
} sections[] = {
#define SECTION(id, title) { #id, title, section_##id },
#include "report/sections.def"
#undef SECTION
};
enum { N_SECTIONS = sizeof sections / sizeof *sections };

static void figure_text(struct text *t, const char *name, const char *value)
{
    text_add(t, "<div><b>%s</b><span>%s</span></div>\n", value, name);
}

/* "SmolLM2, 3.30 bits a weight" and the figures that matter most. */
static void head(struct text *t, const json_t *run)
{
    const json_t *o = json_object_get(run, "options");
    double before = html_num(run, "source_bytes"), after = html_num(run, "bytes");
    char value[32];
    text_add(t, "<h1>");
    html_text(t, html_base(html_str(run, "model")));
    text_add(t, "</h1>\n<p class=\"dim\">quantized by method ");
    html_text(t, html_str(o, "method"));
    text_add(t, ", grid ");
    html_text(t, html_str(o, "grid"));
    if (json_object_get(o, "bits"))
        text_add(t, ", %.0f bits", html_num(o, "bits"));
    if (html_num(o, "group") > 0)
        text_add(t, " in groups of %.0f", html_num(o, "group"));
    text_add(t, "</p>\n<div class=\"figures\">");
    snprintf(value, sizeof value, "%.3f", html_num(run, "bpw"));
    figure_text(t, "bits a weight", value);
    html_bytes(before, value, sizeof value);
    if (before > 0)
        figure_text(t, "before", value);
    html_bytes(after, value, sizeof value);
    if (after > 0)
        figure_text(t, json_array_size(json_object_get(run, "outputs")) > 1 ? "after, all formats together" : "after", value);
    html_seconds(html_num(run, "seconds"), value, sizeof value);
    figure_text(t, "time", value);
    html_bytes(html_num(run, "peak_rss_bytes"), value, sizeof value);
    figure_text(t, "peak memory", value);
    text_add(t, "</div>\n");
}

/* Ids of the first run's sections are those of sections.def, the second's have a 2 behind them, and so on. */
static int one_run(struct text *t, const json_t *runs, const json_t *run, int n, struct err *e)
{
    char suffix[16] = "";
    if (n > 1)
        snprintf(suffix, sizeof suffix, "%d", n);
    head(t, run);
    text_add(t, "<nav><a href=\"#quality\">Quality</a> ");
    for (int i = 0; i < N_SECTIONS; i++)
        text_add(t, "<a href=\"#%s%s\">%s</a> ", sections[i].id, suffix, sections[i].title);
    text_add(t, "</nav>\n");
    if (n == 1 && section_quality(t, runs, e))
        return -1;
    for (int i = 0; i < N_SECTIONS; i++) {
        text_add(t, "<section id=\"%s%s\"><h2>%s</h2>\n", sections[i].id, suffix, sections[i].title);
        if (sections[i].write(t, run, e))
            return -1;
        text_add(t, "</section>\n");
    }
    return 0;
}

int report_page(const json_t *runs, struct text *t, struct err *e)
{
    const json_t *run, *first = NULL;
    size_t i;
    int n = 0;
    json_array_foreach(runs, i, run)
        if (!first && report_kind(run) == REPORT_QUANTIZE)
            first = run;
    text_add(t, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, "
                "initial-scale=1\"/><title>");
    html_text(t, first ? html_base(html_str(first, "model")) : "Measurements");
    text_add(t, "%s</title><style>\n%s</style></head>\n<body><main>\n", first ? ", quantized" : "", report_style);
    if (!first)
        text_add(t, "<h1>Measurements</h1>\n");
    json_array_foreach(runs, i, run)
        if (report_kind(run) == REPORT_QUANTIZE && one_run(t, runs, run, ++n, e))
            return -1;
    if (!n && section_quality(t, runs, e))
        return -1;
    text_add(t, "<footer>Made by d2q report %s. This page holds all it shows; it loads nothing.</footer>\n</main></body></html>\n", D2Q_VERSION);
    return t->failed ? err_nomem(e, "report", t->n) : 0;
}
