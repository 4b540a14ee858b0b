/* verify: is a written model whole? Structure, finite values, and the checksums that our exporters leave:
 * GGUF_SUMS in a GGUF file, CHECKSUMS_FILE in a folder. */
#ifndef D2Q_EXPORT_VERIFY_H
#define D2Q_EXPORT_VERIFY_H

#include <jansson.h>

#include "base/log.h"
#include "io/checkpoint.h"

/* {"tensors": {name: SHA-256}, "files": {name: SHA-256}}: of each tensor's bytes, and of every other file of the folder */
#define CHECKSUMS_FILE "checksums.json"

/* Writes CHECKSUMS_FILE into folder dir, from what is in its files. */
int checksums_write(const char *dir, struct err *e);

/* Does folder dir, which has a CHECKSUMS_FILE, hold anything that checksums_write did not find there? 1: its name in out (cap bytes). */
int checksums_foreign(const char *dir, char *out, size_t cap, struct err *e);

/* Reads everything of the model at path. -1: it cannot be opened, or memory or the caller's patience is out. 0: *report (json_decref):
 * {"path", "tensors", "checksums", "files", "bytes", "has_checksums", "failures": [{"tensor", "why"}]};
 * "tensor" is a file's name, or "" for the model as a whole. */
int verify_model(const char *path, const struct log *log, json_t **report, struct err *e);
/* Every tensor of c against the checksums that came with it: 0, or -1 naming the first that differs. None there: 0. */
int verify_checksums(const struct checkpoint *c, struct err *e);
/* x: room for a row of t. */
bool verify_row_finite(const struct tensor *t, int64_t row, float *x);

#endif
