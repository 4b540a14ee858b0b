/* json: JSON that we do not trust, by jansson. */
#ifndef D2Q_BASE_JSON_H
#define D2Q_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

#define JSON_DEPTH 64                   /* objects and arrays within each other */
#define JSON_MEMORY ((size_t)1 << 30)   /* bytes that the values of one text may take, by an estimate */

/* A value (json_decref) of n bytes of text; a key that occurs twice is an error. Text that nests deeper than JSON_DEPTH, or
 * whose values would take more than JSON_MEMORY ("[],[],[]..." takes forty times its length), is refused before anything is
 * built of it. Integers beyond 64 bits (transformers writes "model_max_length": 10^30 for "none") become reals. The message says what and where, but no file: put that before it (err_prefix). */
int json_from_text(const char *text, size_t n, json_t **out, struct err *e);

/* A string of any bytes (paths, text that ends inside a character): what is not UTF-8 becomes U+FFFD; NULL when there is no memory. */
json_t *json_bytes(const char *s, size_t n);
json_t *json_path(const char *path);

#endif
