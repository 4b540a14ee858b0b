/* fuzz: the readers of files that we do not trust, each as a function of some bytes.
 *
 * A target makes files of its input (vfs.c: in memory, so that a run costs no system call and ends of files are ends of
 * allocations), reads them as the program would, and looks at all it got. What must not happen: a sanitizer's report, a FUZZ_CHECK
 * that fails, a run of seconds, memory out of proportion. A reader that fails must say why.
 * Adding a target: a row in targets.def, a function, seeds in seeds.py. */
#ifndef D2Q_FUZZ_FUZZ_H
#define D2Q_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "io/checkpoint.h"
#include "model/tokenizer.h"

#define TARGET(name, dict) void fuzz_##name(const uint8_t *data, size_t n);
#include "targets.def"
#undef TARGET

#define FUZZ_CHECK(cond)                                                                 \
    do {                                                                                 \
        if (!(cond)) {                                                                   \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #cond);           \
            abort();                                                                     \
        }                                                                                \
    } while (0)

/* What a failure must leave: a message, and another one than that memory is out (inputs are small). */
void fuzz_failed(const struct err *e);
/* Reads all of it, so that a view that leaves its file is seen. */
void fuzz_touch(const void *p, size_t n);
/* Text through a tokenizer and back. */
void fuzz_encode(const struct tokenizer *t, const char *s, size_t n);

/* ---- files in memory -------------------------------------------------------- */

#define VFS_DIR "/v"

void vfs_clear(void);
/* path: what readers will be given; data must stay until vfs_clear. An older file of that path is replaced. */
void vfs_put(const char *path, const void *data, size_t n);
/* The same for a safetensors file: a header's text, a NUL, the data; the length word is made. Input that begins with a byte
 * 0xff is the file itself, after that byte. */
void vfs_put_safetensors(const char *path, const uint8_t *data, size_t n);
/* Input as several files in VFS_DIR: "@@" and a letter (vfs.c: names) begin each. */
void vfs_put_sections(const uint8_t *data, size_t n);
/* The content of the last section of that letter: false, there is none. */
bool vfs_section(char letter, const uint8_t **data, size_t *n);

#endif
