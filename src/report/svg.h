/* svg: plots of one value or more for each block. */
#ifndef D2Q_REPORT_SVG_H
#define D2Q_REPORT_SVG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/text.h"

struct plot {
    struct text *t;
    double width, height, left, right, top, bottom; /* of the picture; of the axes */
    double lo, hi; /* of the values */
    bool log;
    int64_t n;     /* slots side by side */
};

/* Values from lo to hi (log: both > 0) with grid lines; the range is widened to round numbers. label describes the picture. */
void plot_open(struct plot *p, struct text *t, const char *label, double lo, double hi, bool log, int64_t n);
/* Numbers of some slots below the axis, and what they count. */
void plot_slots(const struct plot *p, const char *what);
/* Numbers at `ticks` even steps from lo to hi below the axis. */
void plot_range(const struct plot *p, double lo, double hi, int ticks, const char *what);
void plot_close(const struct plot *p);

double plot_x(const struct plot *p, double slot); /* its left edge */
double plot_y(const struct plot *p, double value);

/* Rows x columns of coloured cells; value <= 0: an empty one. Logarithmic between the least and the largest.
 * name: of each row; each cell says its name, column and value. */
void heat_map(struct text *t, const char *label, const char *const *name, int rows, int64_t cols, const double *value);

#endif
