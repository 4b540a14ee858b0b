/* loads: what a written model can be used in, from one table (loads.def), known before the work as well as after it. */
#ifndef D2Q_EXPORT_LOADS_H
#define D2Q_EXPORT_LOADS_H

#include "export/export.h"

/* A list of {"runtime", "loads": true|false, "condition" (why not, or since when; may be ""), "how", "source", "run_here"};
 * plan NULL: the model as it is. NULL: out of memory. */
json_t *loads_list(const struct model *m, const char *format, const struct export_options *o, const struct export_plan *plan);

#endif
