/* sec_error: what was lost, by layer and kind of matrix; what DSQ and DAC did; values of one matrix. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "report/page.h"
#include "report/svg.h"

enum { KINDS = 7 };
static const char *const kind_name[KINDS] = { "q", "k", "v", "o", "gate", "up", "down" };

/* Of "model.layers.3.mlp.up_proj.weight"; -1: not one of the seven. */
static int kind_of(const char *name, int64_t *layer)
{
    long long at = -1;
    int kind = -1;
    if (sscanf(name, "model.layers.%lld.", &at) != 1 || at < 0)
        return -1;
    for (int i = 0; i < KINDS; i++) {
        char word[16];
        snprintf(word, sizeof word, ".%s_proj", kind_name[i]);
        if (strstr(name, word))
            kind = i;
    }
    *layer = at;
    return kind;
}

struct kind_sum {
    int64_t n;
    double err, target, worst, bits, weights, seconds;
    int64_t worst_at;
};

/* Sums by kind and, where they fit, errors (KINDS, layers). */
static void sum_kinds(const json_t *tensors, int64_t layers, struct kind_sum *sum, double *errors)
{
    const json_t *row;
    size_t i;
    json_array_foreach(tensors, i, row) {
        int64_t layer = 0;
        int k = kind_of(html_str(row, "name"), &layer);
        if (k < 0)
            continue;
        double err = html_num(row, "err"), n = json_number_value(json_array_get(json_object_get(row, "shape"), 0)) *
                                               json_number_value(json_array_get(json_object_get(row, "shape"), 1));
        struct kind_sum *s = &sum[k];
        s->err += err;
        s->target += html_num(row, "err_target");
        s->bits += n * html_num(row, "bpw");
        s->weights += n;
        s->seconds += html_num(row, "seconds");
        if (!s->n++ || err > s->worst) {
            s->worst = err;
            s->worst_at = layer;
        }
        if (layer < layers)
            errors[k * layers + layer] = err;
    }
}

static void kind_table(struct text *t, const struct kind_sum *sum)
{
    text_add(t, "<div class=\"scroll\"><table><thead><tr><th>kind</th><th class=\"n\">matrices</th><th class=\"n\">bits a weight</th>"
                "<th class=\"n\">mean error</th><th class=\"n\">against the target</th><th class=\"n\">worst</th><th class=\"n\">in block</th>"
                "<th class=\"n\">seconds</th></tr></thead><tbody>\n");
    for (int k = 0; k < KINDS; k++)
        if (sum[k].n)
            text_add(t, "<tr><th>%s</th><td class=\"n\">%lld</td><td class=\"n\">%.3f</td><td class=\"n\">%.4g</td><td class=\"n\">%.4g</td>"
                        "<td class=\"n\">%.4g</td><td class=\"n\">%lld</td><td class=\"n\">%.1f</td></tr>\n",
                     kind_name[k], (long long)sum[k].n, sum[k].weights > 0 ? sum[k].bits / sum[k].weights : 0,
                     sum[k].err / (double)sum[k].n, sum[k].target / (double)sum[k].n, sum[k].worst, (long long)sum[k].worst_at,
                     sum[k].seconds);
    text_add(t, "</tbody></table></div>\n");
}

/* Least and largest positive number under key; false: there is none. */
static bool range_of(const json_t *list, const char *const *key, int n_keys, double *lo, double *hi)
{
    const json_t *row;
    size_t i;
    *lo = INFINITY;
    *hi = 0;
    json_array_foreach(list, i, row)
        for (int k = 0; k < n_keys; k++) {
            double v = html_num(row, key[k]);
            if (v > 0) {
                *lo = v < *lo ? v : *lo;
                *hi = v > *hi ? v : *hi;
            }
        }
    return *hi > 0;
}

static void dot(const struct plot *p, double slot, double v, int colour, const char *what)
{
    text_add(p->t, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>block %.0f, %s: %.4g</title></circle>", colour,
             plot_x(p, slot + 0.5), plot_y(p, v), slot, what, v);
}

static void bar_line(const struct plot *p, double slot, double from, double to, int colour, double width)
{
    double x = plot_x(p, slot + 0.5);
    text_add(p->t, "<line class=\"s%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke-width=\"%.1f\"/>", colour, x, x,
             plot_y(p, from), plot_y(p, to), width);
}

static void block_errors(struct text *t, const json_t *blocks)
{
    struct plot p;
    double lo, hi;
    const json_t *row;
    size_t i;
    if (!range_of(blocks, (const char *const[]){ "out_err" }, 1, &lo, &hi))
        return;
    text_add(t, "<div class=\"card\"><h3>Output of each block</h3>");
    plot_open(&p, t, "Relative error of each block's output", lo, hi, true, (int64_t)json_array_size(blocks));
    json_array_foreach(blocks, i, row)
        if (html_num(row, "out_err") > 0)
            dot(&p, (double)i, html_num(row, "out_err"), 1, "error");
    plot_slots(&p, "block");
    plot_close(&p);
    text_add(t, "<p>|h - h(float)|&#178; / |h(float)|&#178; of the hidden states behind the block on the calibration text, tokens with massive "
                "activations left out: everything lost so far.</p></div>\n");
}

int section_error(struct text *t, const json_t *run, struct err *e)
{
    const json_t *tensors = json_object_get(run, "tensors"), *blocks = json_object_get(run, "blocks");
    int64_t layers = (int64_t)json_array_size(blocks);
    struct kind_sum sum[KINDS] = { { 0 } };
    double *errors = mem_zalloc((size_t)(KINDS * layers + 1), sizeof *errors), most = 0;
    if (!errors)
        return err_nomem(e, "report", (size_t)layers * KINDS * sizeof *errors);
    sum_kinds(tensors, layers, sum, errors);
    text_add(t, "<p>The error of a matrix is tr(E H E&#7488;) / tr(W H W&#7488;): the share of its output's energy, over the inputs that it "
                "really sees, that quantizing it loses (round to nearest: H = I). With propagated error a matrix aims elsewhere than at W, to make "
                "good what was lost before it; &#8220;against the target&#8221; is the error from there.</p>\n<div class=\"cards\"><div class=\"card\"><h3>By block</h3>");
    heat_map(t, "Error of each matrix by block", kind_name, KINDS, layers, errors);
    mem_free(errors);
    text_add(t, "</div>\n<div class=\"card\"><h3>By kind</h3>\n");
    for (int k = 0; k < KINDS; k++)
        most = sum[k].n && sum[k].err / (double)sum[k].n > most ? sum[k].err / (double)sum[k].n : most;
    for (int k = 0; k < KINDS; k++)
        if (sum[k].n) {
            char value[32];
            double mean = sum[k].err / (double)sum[k].n;
            snprintf(value, sizeof value, "%.3g", mean);
            html_bar(t, kind_name[k], value, (double[]){ most > 0 ? mean / most : 0 }, 1);
        }
    text_add(t, "</div>\n");
    block_errors(t, blocks);
    text_add(t, "</div>\n");
    kind_table(t, sum);
    return 0;
}

int section_dsq(struct text *t, const json_t *run, struct err *e)
{
    const json_t *blocks = json_object_get(run, "blocks"), *row;
    double lo, hi, gain = 0;
    struct plot p;
    size_t i, n = 0;
    (void)e;
    if (!range_of(blocks, (const char *const[]){ "dsq_min", "dsq_max" }, 2, &lo, &hi)) {
        text_add(t, "<p class=\"dim\">Off in this run: down_proj has one scale a group.</p>\n");
        return 0;
    }
    json_array_foreach(blocks, i, row)
        if (html_num(row, "dsq_gain") > 0) {
            gain += html_num(row, "dsq_gain");
            n++;
        }
    text_add(t, "<p>Each input channel of down_proj has a second scale, merged into up_proj's, so that it costs nothing. With them down_proj "
                "keeps on average %.1f %% of the error that the solver alone leaves.</p>\n<div class=\"cards\"><div class=\"card\"><h3>Scales of each block</h3>",
             n ? 100 * gain / (double)n : 100);
    plot_open(&p, t, "Distribution of DSQ's scales in each block", lo, hi, true, (int64_t)json_array_size(blocks));
    json_array_foreach(blocks, i, row) {
        const json_t *q = json_object_get(row, "dsq_quantiles");
        double s = (double)i, v[5];
        for (size_t k = 0; k < 5; k++)
            v[k] = json_number_value(json_array_get(q, k));
        if (!(html_num(row, "dsq_min") > 0))
            continue;
        bar_line(&p, s, html_num(row, "dsq_min"), html_num(row, "dsq_max"), 1, 0.8);
        if (!(v[0] > 0 && v[4] > 0))
            continue;
        double w = (plot_x(&p, 1) - plot_x(&p, 0)) * 0.6;
        bar_line(&p, s, v[0], v[4], 1, w * 0.35 < 3 ? w * 0.35 : 3);
        bar_line(&p, s, v[1], v[3], 1, w < 10 ? w : 10);
        text_add(t, "<line class=\"s2\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke-width=\"2\"><title>block %zu: least %.4g, 5 %% %.4g, "
                    "25 %% %.4g, median %.4g, 75 %% %.4g, 95 %% %.4g, largest %.4g</title></line>", plot_x(&p, s + 0.15), plot_x(&p, s + 0.85),
                 plot_y(&p, v[2]), plot_y(&p, v[2]), i, html_num(row, "dsq_min"), v[0], v[1], v[2], v[3], v[4], html_num(row, "dsq_max"));
    }
    plot_slots(&p, "block");
    plot_close(&p);
    text_add(t, "<p>Thin line: least to largest; thick: 5 to 95 %%; box: the middle half; across: the median.</p></div></div>\n");
    return 0;
}

int section_dac(struct text *t, const json_t *run, struct err *e)
{
    static const char *const keys[] = { "dac_before", "dac_after" };
    const json_t *blocks = json_object_get(run, "blocks"), *row;
    const json_t *options = json_object_get(run, "options");
    bool on = json_is_true(json_object_get(options, "dac")), judged = !json_is_false(json_object_get(options, "dac_accept"));
    double lo, hi;
    struct plot p;
    size_t i, used = 0;
    (void)e;
    if (!range_of(blocks, keys, 2, &lo, &hi)) {
        text_add(t, "<p class=\"dim\">%s</p>\n", on ? "Not recorded in this run." : "Off in this run, and the method follows no float path "
                                                                                     "that a shift could be measured from.");
        return 0;
    }
    json_array_foreach(blocks, i, row)
        used += html_num(row, "dac_share") > 0;
    text_add(t, "<p>Quantizing moves the mean of what the norm after attention gives. Shown is the rms of that shift over the channels, as a share "
                "of the norm's own rms, on calibration sequences held out from the fit%s</p>\n", on ? "." : "; DAC is off in this run, so it stays.");
    if (on)
        text_add(t, "<p>DAC was kept in %zu of %zu blocks%s.</p>\n", used, json_array_size(blocks),
                 judged ? ", where it brought the block's output nearer to its target" : " without being judged by them");
    text_add(t, "<div class=\"cards\"><div class=\"card\"><h3>Shift of each block</h3>");
    plot_open(&p, t, "Shift of the mean in each block", 0, hi, false, (int64_t)json_array_size(blocks));
    json_array_foreach(blocks, i, row) {
        double before = html_num(row, keys[0]), after = html_num(row, keys[1]);
        bar_line(&p, (double)i, before, after, 2, 1.5);
        dot(&p, (double)i, before, 1, "before");
        if (html_num(row, "dac_share") > 0)
            dot(&p, (double)i, after, 2, "after");
    }
    plot_slots(&p, "block");
    plot_close(&p);
    if (on)
        html_legend(t, (const char *const[]){ "before", "after, where DAC was kept" }, 2);
    text_add(t, "</div></div>\n");
    return 0;
}

/* ---- values ----------------------------------------------------------------------------- */

static double most_of(const json_t *bins)
{
    double most = 0;
    const json_t *v;
    size_t i;
    json_array_foreach(bins, i, v)
        most = json_number_value(v) > most ? json_number_value(v) : most;
    return most;
}

static void steps(const struct plot *p, const json_t *bins, double total, const char *class)
{
    const json_t *v;
    size_t i;
    text_add(p->t, "<path class=\"%s\" d=\"M%g %g", class, p->left, p->bottom);
    json_array_foreach(bins, i, v)
        text_add(p->t, "V%.1fH%.1f", plot_y(p, 100 * json_number_value(v) / total), plot_x(p, (double)i + 1));
    text_add(p->t, "V%g\"/>", p->bottom);
}

int section_values(struct text *t, const json_t *run, struct err *e)
{
    const json_t *h = json_object_get(run, "histogram"), *a = json_object_get(h, "before"), *b = json_object_get(h, "after");
    const json_t *ba = json_object_get(a, "bins"), *bb = json_object_get(b, "bins");
    double n = html_num(h, "values"), most = most_of(ba) > most_of(bb) ? most_of(ba) : most_of(bb);
    struct plot p;
    (void)e;
    if (!(n > 0) || !(most > 0) || !(html_num(h, "to") > html_num(h, "from"))) {
        text_add(t, "<p class=\"dim\">Not recorded in this run.</p>\n");
        return 0;
    }
    text_add(t, "<p><code>");
    html_text(t, html_str(h, "name"));
    text_add(t, "</code> (another: <code>d2q quantize --histogram NAME</code>). What up_proj holds after includes DSQ's scales; after a rotation the "
                "two are not in one basis.</p>\n<div class=\"cards\"><div class=\"card\"><h3>Histogram</h3>");
    plot_open(&p, t, "Histogram of the matrix before and after", 0, 100 * most / n, false, (int64_t)json_array_size(ba));
    steps(&p, ba, n, "area");
    steps(&p, bb, n, "step");
    plot_range(&p, html_num(h, "from"), html_num(h, "to"), 5, "value");
    plot_close(&p);
    html_legend(t, (const char *const[]){ "before", "after (the line)" }, 2);
    text_add(t, "<p>%% of the values in each of %zu bins; to 4 times the rms before.</p></div>\n<div class=\"card\"><h3>Figures</h3><table>"
                "<thead><tr><th></th><th class=\"n\">before</th><th class=\"n\">after</th></tr></thead><tbody>\n", json_array_size(ba));
    static const char *const rows[][2] = { { "min", "least" }, { "max", "largest" }, { "rms", "rms" }, { "below", "left of the picture" },
                                           { "above", "right of the picture" } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        text_add(t, "<tr><th>%s</th><td class=\"n\">%.5g</td><td class=\"n\">%.5g</td></tr>\n", rows[i][1], html_num(a, rows[i][0]),
                 html_num(b, rows[i][0]));
    text_add(t, "</tbody></table></div></div>\n");
    return 0;
}

int section_tensors(struct text *t, const json_t *run, struct err *e)
{
    const json_t *row, *list = json_object_get(run, "tensors");
    size_t i;
    (void)e;
    text_add(t, "<details><summary>%zu matrices</summary>\n<div class=\"scroll\"><table><thead><tr><th>matrix</th><th>type</th><th class=\"n\">shape</th>"
                "<th class=\"n\">bits</th><th class=\"n\">error</th><th class=\"n\">against the target</th><th class=\"n\">damping</th>"
                "<th class=\"n\">seconds</th></tr></thead><tbody>\n", json_array_size(list));
    json_array_foreach(list, i, row) {
        const json_t *shape = json_object_get(row, "shape");
        text_add(t, "<tr>");
        html_tag(t, "th", html_str(row, "name"));
        html_tag(t, "td", html_str(row, "type"));
        text_add(t, "<td class=\"n\">%.0f &#215; %.0f</td><td class=\"n\">%.3f</td><td class=\"n\">%.4g</td><td class=\"n\">%.4g</td><td class=\"n\">%.3g</td>"
                    "<td class=\"n\">%.2f</td></tr>\n", json_number_value(json_array_get(shape, 0)), json_number_value(json_array_get(shape, 1)),
                 html_num(row, "bpw"), html_num(row, "err"), html_num(row, "err_target"), html_num(row, "damp"), html_num(row, "seconds"));
    }
    text_add(t, "</tbody></table></div></details>\n");
    return 0;
}
