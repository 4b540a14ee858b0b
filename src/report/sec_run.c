/* sec_run: what was done, sizes, what loads the result. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/page.h"

/* A row of the table of options. */
static void option(struct text *t, const char *key, const json_t *v)
{
    char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    html_pair(t, key, json_is_string(v) ? json_string_value(v) : text);
    free(text); /* from jansson */
}

static void inputs(struct text *t, const json_t *run)
{
    const json_t *list = json_object_get(json_array_get(json_object_get(run, "outputs"), 0), "inputs"), *row;
    size_t i;
    if (!json_array_size(list))
        return;
    text_add(t, "<h3>Made from</h3>\n<div class=\"scroll\"><table><thead><tr><th></th><th>file</th><th>SHA-256</th></tr></thead><tbody>\n");
    json_array_foreach(list, i, row) {
        text_add(t, "<tr>");
        html_tag(t, "th", html_str(row, "what"));
        html_tag(t, "td class=\"x\"", html_str(row, "file"));
        text_add(t, "<td class=\"x\">");
        html_tag(t, "code", html_str(row, "sha256"));
        text_add(t, "</td></tr>\n");
    }
    text_add(t, "</tbody></table></div>\n");
}

int section_run(struct text *t, const json_t *run, struct err *e)
{
    const json_t *options = json_object_get(run, "options"), *backend = json_object_get(run, "backend"), *v;
    const char *key;
    (void)e;
    if (*html_str(run, "command")) {
        text_add(t, "<p>The same command on the same files, with the same version of d2q, gives the same result to the byte, for any "
                    "number of threads.</p>\n");
        html_tag(t, "pre", html_str(run, "command"));
    }
    text_add(t, "\n<div class=\"cards\"><div class=\"card\"><h3>Recipe</h3><table><tbody>\n");
    json_object_foreach((json_t *)(uintptr_t)options, key, v)
        if (!json_is_array(v) || json_array_size(v))
            option(t, key, v);
    text_add(t, "</tbody></table></div>\n<div class=\"card\"><h3>Made with</h3><table><tbody>\n");
    html_pair(t, "d2q", html_str(run, "version"));
    html_pair(t, "model", html_str(run, "model"));
    html_pair(t, "family", html_str(run, "family"));
    html_pair_f(t, "parameters", "%.1f million", html_num(run, "parameters") / 1e6);
    html_pair_f(t, "calibration tokens", "%.0f", html_num(run, "calib_tokens"));
    html_pair(t, "kernels", html_str(backend, "isa"));
    html_pair(t, "OpenBLAS", html_str(backend, "blas"));
    text_add(t, "</tbody></table></div></div>\n");
    inputs(t, run);
    return 0;
}

int section_size(struct text *t, const json_t *run, struct err *e)
{
    const json_t *outputs = json_object_get(run, "outputs"), *o;
    double before = html_num(run, "source_bytes"), quantized = html_num(run, "quantized_bytes"), most = before;
    char value[96], size[32], kept[32];
    size_t i;
    (void)e;
    json_array_foreach(outputs, i, o)
        most = html_num(o, "bytes") > most ? html_num(o, "bytes") : most;
    if (!(most > 0))
        return 0;
    html_bytes(before, size, sizeof size);
    html_bar(t, "before", size, (double[]){ before / most }, 1);
    json_array_foreach(outputs, i, o) {
        double bytes = html_num(o, "bytes"), codes = quantized < bytes ? quantized : bytes;
        char label[512];
        html_bytes(bytes, size, sizeof size);
        snprintf(value, sizeof value, before > 0 ? "%s, %.1f %%" : "%s", size, 100 * bytes / (before > 0 ? before : 1));
        snprintf(label, sizeof label, "%.300s (%.60s)", html_base(html_str(o, "path")), html_str(o, "format"));
        if (!strcmp(html_str(o, "format"), "hf")) /* every weight as a float again */
            html_bar(t, label, value, (double[]){ bytes / most }, 1);
        else
            html_bar(t, label, value, (double[]){ 0, codes / most, (bytes - codes) / most }, 3);
    }
    html_legend(t, (const char *const[]){ "the source", "quantized matrices", "the rest: embeddings, norms, metadata" }, 3);
    html_bytes(quantized, size, sizeof size);
    html_bytes(html_num(run, "kept_bytes"), kept, sizeof kept);
    text_add(t, "<p>The quantized matrices take %.3f bits a weight with their scales and zeros, %s together", html_num(run, "bpw"), size);
    if (json_object_get(run, "kept_bytes"))
        text_add(t, "; what is kept as it was takes %s", kept);
    text_add(t, ".</p>\n");
    return 0;
}

int section_loads(struct text *t, const json_t *run, struct err *e)
{
    const json_t *o, *row;
    size_t i, k;
    (void)e;
    json_array_foreach(json_object_get(run, "outputs"), i, o) {
        text_add(t, "<h3>");
        html_text(t, html_str(o, "path"));
        text_add(t, "</h3>\n<div class=\"scroll\"><table><thead><tr><th>program</th><th>loads it</th><th>how</th>"
                    "<th>known from</th></tr></thead><tbody>\n");
        json_array_foreach(json_object_get(o, "loads"), k, row) {
            bool ok = json_is_true(json_object_get(row, "loads"));
            text_add(t, "<tr>");
            html_tag(t, "th", html_str(row, "runtime"));
            text_add(t, "<td class=\"x\"><span class=\"%s\">%s</span> ", ok ? "yes" : "no", ok ? "yes" : "no");
            html_text(t, html_str(row, "condition"));
            text_add(t, "</td>");
            html_tag(t, "td class=\"x\"", html_str(row, "how"));
            text_add(t, "<td class=\"x\">%s: ", json_is_true(json_object_get(row, "run_here")) ? "run here" : "its source, not run");
            html_text(t, html_str(row, "source"));
            text_add(t, "</td></tr>\n");
        }
        text_add(t, "</tbody></table></div>\n");
    }
    text_add(t, "<p><code>d2q run</code> and <code>d2q eval</code> read every format that d2q writes.</p>\n");
    return 0;
}
