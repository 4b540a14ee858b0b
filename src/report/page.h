/* page: what the sections share. */
#ifndef D2Q_REPORT_PAGE_H
#define D2Q_REPORT_PAGE_H

#include <jansson.h>

#include "base/err.h"
#include "base/text.h"
#include "report/html.h"

/* One a row of sections.def: its content, after its heading, about one run of d2q quantize. */
#define SECTION(id, title) int section_##id(struct text *t, const json_t *run, struct err *e);
#include "report/sections.def"
#undef SECTION

/* Perplexity, divergence and tasks of all runs that measured; nothing when none did. */
int section_quality(struct text *t, const json_t *runs, struct err *e);

extern const char report_style[]; /* CSS */

#endif
