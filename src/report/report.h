/* report: one HTML page about runs, from the JSON that they printed; self-contained, and well-formed as XML.
 *
 * Nothing in the JSON is trusted: text is escaped, what is missing is left out. */
#ifndef D2Q_REPORT_REPORT_H
#define D2Q_REPORT_REPORT_H

#include <jansson.h>

#include "base/err.h"
#include "base/text.h"

enum report_kind { REPORT_NONE, REPORT_QUANTIZE, REPORT_EVAL, REPORT_COMPARE };
/* What printed this object; REPORT_NONE: none of ours. */
enum report_kind report_kind(const json_t *o);

/* The page of all runs (an array of objects, none of them REPORT_NONE) into t, zeroed before (text_release). */
int report_page(const json_t *runs, struct text *t, struct err *e);

#endif
