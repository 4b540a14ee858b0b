#include "report/svg.h"

#include <math.h>
#include <stdio.h>

#include "report/html.h"

#define WIDTH 440.0 /* so that its text can be read at a phone's width */

static void open_svg(struct text *t, const char *label, double width, double height)
{
    text_add(t, "<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"", width, height);
    html_text(t, label);
    text_add(t, "\">");
}

/* 1, 2 or 5 times a power of ten, at least x. */
static double round_step(double x)
{
    double p = pow(10, floor(log10(x)));
    return x <= p ? p : x <= 2 * p ? 2 * p : x <= 5 * p ? 5 * p : 10 * p;
}

static void grid_line(const struct plot *p, double v)
{
    double y = plot_y(p, v);
    text_add(p->t, "<line class=\"grid\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"r\" x=\"%g\" y=\"%.1f\">%g</text>",
             p->left, p->right, y, y, p->left - 5, y + 4, v);
}

void plot_open(struct plot *p, struct text *t, const char *label, double lo, double hi, bool log, int64_t n)
{
    *p = (struct plot){ .t = t, .width = WIDTH, .height = 220, .left = 52, .right = WIDTH - 14, .top = 10, .bottom = 184, .log = log,
                        .n = n > 0 ? n : 1 };
    double step = 1;
    if (log) { /* within a decade or two also at 2 and 5 */
        lo = lo < 1e-300 ? 1e-300 : lo; /* no decade that is 0 */
        hi = hi < lo ? lo : hi;
        p->lo = pow(10, floor(log10(lo) + 1e-9));
        p->hi = pow(10, ceil(log10(hi) - 1e-9));
        for (double m = 5; m > 1; m -= 3) {
            p->lo = p->lo * m <= lo ? p->lo * m : p->lo;
            p->hi = p->hi / 10 * m >= hi ? p->hi / 10 * m : p->hi;
        }
        if (!(p->hi > p->lo))
            p->hi = 10 * p->lo;
    } else {
        step = round_step((hi > lo ? hi - lo : fabs(hi) > 0 ? fabs(hi) : 1) / 4);
        p->lo = floor(lo / step + 1e-9) * step;
        p->hi = ceil(hi / step - 1e-9) * step;
        if (!(p->hi > p->lo))
            p->hi = p->lo + step;
    }
    open_svg(t, label, p->width, p->height);
    if (!log)
        for (int i = 0; i <= 10 && p->lo + i * step <= p->hi + step / 2; i++)
            grid_line(p, fabs(p->lo + i * step) < step / 2 ? 0 : p->lo + i * step);
    bool few = log10(p->hi / p->lo) < 2.5;
    for (double decade = pow(10, floor(log10(p->lo) + 1e-9)); log && isfinite(decade) && decade <= p->hi * 1.001; decade *= 10)
        for (int k = 0; k < (few ? 3 : 1); k++) {
            double v = decade * (double[]){ 1, 2, 5 }[k];
            if (v >= p->lo * 0.999 && v <= p->hi * 1.001)
                grid_line(p, v);
        }
}

double plot_x(const struct plot *p, double slot)
{
    return p->left + (p->right - p->left) * slot / (double)p->n;
}

double plot_y(const struct plot *p, double v)
{
    double at = p->log ? log(v / p->lo) / log(p->hi / p->lo) : (v - p->lo) / (p->hi - p->lo);
    at = at > 0 ? at < 1 ? at : 1 : 0;
    return p->bottom - (p->bottom - p->top) * at;
}

static void x_label(const struct plot *p, double x, double v)
{
    text_add(p->t, "<text class=\"m\" x=\"%.1f\" y=\"%g\">%g</text>", x, p->bottom + 15, v);
}

static void x_title(const struct plot *p, const char *what)
{
    text_add(p->t, "<text class=\"m\" x=\"%g\" y=\"%g\">", (p->left + p->right) / 2, p->height - 4);
    html_text(p->t, what);
    text_add(p->t, "</text>");
}

void plot_slots(const struct plot *p, const char *what)
{
    int64_t every = (int64_t)round_step((double)p->n / 10);
    for (int64_t i = 0; i < p->n; i += every > 0 ? every : 1)
        x_label(p, plot_x(p, (double)i + 0.5), (double)i);
    x_title(p, what);
}

void plot_range(const struct plot *p, double lo, double hi, int ticks, const char *what)
{
    double unit = pow(10, floor(log10(hi - lo)) - 2);
    for (int i = 0; i < ticks; i++) {
        double v = lo + (hi - lo) * i / (ticks - 1);
        v = round(v / unit) * unit;
        x_label(p, p->left + (p->right - p->left) * (v - lo) / (hi - lo), fabs(v) < unit / 2 ? 0 : v);
    }
    x_title(p, what);
}

void plot_close(const struct plot *p)
{
    text_add(p->t, "</svg>\n");
}

void heat_map(struct text *t, const char *label, const char *const *name, int rows, int64_t cols, const double *value)
{
    const double left = 52, cell = 22, w = (WIDTH - left - 14) / (double)(cols > 0 ? cols : 1), top = 2;
    double lo = INFINITY, hi = 0;
    for (int64_t i = 0; i < rows * cols; i++)
        if (value[i] > 0) {
            lo = value[i] < lo ? value[i] : lo;
            hi = value[i] > hi ? value[i] : hi;
        }
    open_svg(t, label, WIDTH, top + cell * rows + 66);
    for (int r = 0; r < rows; r++) {
        double y = top + cell * r;
        text_add(t, "<text class=\"r\" x=\"%g\" y=\"%g\">", left - 5, y + 15);
        html_text(t, name[r]);
        text_add(t, "</text>");
        for (int64_t c = 0; c < cols; c++) {
            double v = value[r * cols + c];
            if (!(v > 0))
                continue;
            text_add(t, "<rect class=\"heat\" x=\"%.2f\" y=\"%g\" width=\"%.2f\" height=\"%g\" fill-opacity=\"%.3f\"><title>", left + w * (double)c,
                     y, w > 4 ? w - 1 : w, cell - 1, hi > lo ? 0.06 + 0.94 * log(v / lo) / log(hi / lo) : 0.5);
            html_text(t, name[r]);
            text_add(t, ", block %lld: %.4g</title></rect>", (long long)c, v);
        }
    }
    struct plot p = { .t = t, .left = left, .right = WIDTH - 14, .bottom = top + cell * rows, .height = top + cell * rows + 34,
                      .n = cols > 0 ? cols : 1 };
    plot_slots(&p, "block");
    for (int i = 0; i < 20 && hi > 0; i++) /* the scale */
        text_add(t, "<rect class=\"heat\" x=\"%g\" y=\"%g\" width=\"8\" height=\"10\" fill-opacity=\"%.3f\"/>", WIDTH / 2 - 80 + 8 * i,
                 p.height + 10, 0.06 + 0.94 * i / 19);
    if (hi > 0)
        text_add(t, "<text class=\"r\" x=\"%g\" y=\"%g\">%.2g</text><text x=\"%g\" y=\"%g\">%.2g</text>", WIDTH / 2 - 86,
                 p.height + 19, lo, WIDTH / 2 + 86, p.height + 19, hi);
    text_add(t, "</svg>\n");
}
