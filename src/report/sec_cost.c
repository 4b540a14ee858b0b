/* sec_cost: time and memory. */
#include <stdio.h>

#include "report/page.h"

enum { PARTS = 4 };
static const char *const part_key[PARTS] = { "forward", "statistics", "factor", "solve" };
static const char *const part_name[PARTS] = { "forward passes, and the rest", "statistics", "factoring", "solving" };

static void time_bar(struct text *t, const char *label, const double *part, int n, double most)
{
    char value[32];
    double share[PARTS], sum = 0;
    for (int k = 0; k < n; k++) {
        sum += part[k];
        share[k] = most > 0 ? part[k] / most : 0;
    }
    html_seconds(sum, value, sizeof value);
    html_bar(t, label, value, share, n);
}

static void times(struct text *t, const json_t *run)
{
    const json_t *row, *list = json_object_get(run, "profile");
    double most = html_num(run, "seconds_tune"), stages = 0, all = html_num(run, "seconds");
    double written = html_num(run, "seconds_export"), tuned = html_num(run, "seconds_tune");
    size_t i;
    json_array_foreach(list, i, row) {
        double sum = 0;
        for (int k = 0; k < PARTS; k++)
            sum += html_num(row, part_key[k]);
        stages += sum;
        most = sum > most ? sum : most;
    }
    double rest = all - stages - tuned - written;
    rest = rest > 0 ? rest : 0;
    most = written > most ? written : most;
    most = rest > most ? rest : most;
    json_array_foreach(list, i, row) {
        double part[PARTS];
        for (int k = 0; k < PARTS; k++)
            part[k] = html_num(row, part_key[k]);
        time_bar(t, html_str(row, "stage"), part, PARTS, most);
    }
    if (tuned > 0)
        time_bar(t, "tuning", &tuned, 1, most);
    if (written > 0)
        time_bar(t, "writing and checking the output", &written, 1, most);
    time_bar(t, "the rest: opening, planning, calibration text, blocks' weights in float", &rest, 1, most);
    html_legend(t, part_name, PARTS);
}

static void memory(struct text *t, const json_t *run)
{
    static const char *const rows[][2] = {
        { "source", "the source, mapped" }, { "quantized", "quantized matrices" }, { "kept", "copies of what is kept" },
        { "block", "one block in float" }, { "states", "hidden states of the calibration text" }, { "forward", "forward pass of one sequence" },
        { "stage", "statistics and solver of one stage" }, { "tuning", "tuning" }, { "program", "program, libraries, tokenizer" },
        { "text", "text of the model's own, what it takes beyond these" },
    };
    const json_t *plan = json_object_get(run, "planned_memory");
    double peak = html_num(run, "peak_rss_bytes"), planned = html_num(run, "planned_peak_bytes"), most = peak > planned ? peak : planned;
    char value[32];
    if (!(most > 0))
        return;
    html_bytes(peak, value, sizeof value);
    html_bar(t, "measured peak", value, (double[]){ peak / most }, 1);
    html_bytes(planned, value, sizeof value);
    html_bar(t, "planned peak", value, (double[]){ 0, planned / most }, 2);
    text_add(t, "<table><tbody>\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (html_num(plan, rows[i][0]) > 0) {
            html_bytes(html_num(plan, rows[i][0]), value, sizeof value);
            html_pair(t, rows[i][1], value);
        }
    text_add(t, "</tbody></table>\n");
}

int section_cost(struct text *t, const json_t *run, struct err *e)
{
    char value[32];
    (void)e;
    html_seconds(html_num(run, "seconds"), value, sizeof value);
    text_add(t, "<div class=\"cards\"><div class=\"card\"><h3>Time: %s</h3>\n", value);
    times(t, run);
    if (html_num(run, "resumed_blocks") > 0)
        text_add(t, "<p>%.0f blocks were taken over from an earlier run; their time is not in it.</p>\n", html_num(run, "resumed_blocks"));
    text_add(t, "</div>\n<div class=\"card\"><h3>Memory</h3>\n");
    memory(t, run);
    text_add(t, "</div></div>\n");
    return 0;
}
