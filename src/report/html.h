/* html: pieces of the page. Whatever comes from outside passes html_text. */
#ifndef D2Q_REPORT_HTML_H
#define D2Q_REPORT_HTML_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/text.h"

/* s (NULL: nothing), with markup as entities; characters that XML does not allow become U+FFFD. */
void html_text(struct text *t, const char *s);
/* <tag>s</tag> */
void html_tag(struct text *t, const char *tag, const char *s);
/* A table's row of a name and a text, or a formatted value (which must hold no markup). */
void html_pair(struct text *t, const char *name, const char *value);
void html_pair_f(struct text *t, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* A labelled bar: its parts as shares of the full width, coloured c1, c2 ... */
void html_bar(struct text *t, const char *label, const char *value, const double *part, int n);
/* The names of the parts with their colours. */
void html_legend(struct text *t, const char *const *name, int n);

void html_bytes(double bytes, char *out, size_t cap);     /* "67.3 MiB" */
void html_seconds(double seconds, char *out, size_t cap); /* "4.2 s", "1:07", "2:03:04" */

/* Of an object, 0 or "" when absent or of another type. */
double html_num(const json_t *o, const char *key);
const char *html_str(const json_t *o, const char *key);
const char *html_base(const char *path); /* after the last slash, if something is there */

#endif
