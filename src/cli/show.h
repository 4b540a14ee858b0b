/* show: sizes, times and results as text. */
#ifndef D2Q_CLI_SHOW_H
#define D2Q_CLI_SHOW_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cli/opt.h"
#include "d2quant.h"

void show_bytes(double bytes, char *out, size_t cap);     /* "67.3 MiB" */
void show_seconds(double seconds, char *out, size_t cap); /* "4.2 s", "1:07", "2:03:04" */

/* "d2q: error: ..." in one line on stderr; the exit status that goes with it. */
int show_error(const d2q_error *e);
/* Library JSON to an object; text is freed. NULL: an error was shown. */
json_t *show_parse(char *text);
/* The common keys, as of now: seconds since start, peak memory. */
void show_common(json_t *o, double start);
/* stdout: one JSON object; o is released. The exit status. */
int show_json(json_t *o);
/* The end of a command: r (of show_parse, released; NULL: EXIT_FAILED) with the common keys, as JSON or by print. The exit status. */
int show_result(json_t *r, double start, int as_json, int (*print)(const json_t *r));
/* 0, or EXIT_FAILED when stdout could not be written. */
int show_flush(void);

/* One line for each runtime: where the output loads and since when, or why not. */
void show_loads(const json_t *list, FILE *f);
/* "d2q COMMAND ..." as it could be typed again (free); NULL: out of memory. */
char *show_command(const char *command, int argc, char **argv);

double show_num(const json_t *o, const char *key);
const char *show_str(const json_t *o, const char *key); /* "" when absent */

#endif
