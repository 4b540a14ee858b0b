/* mem: checked allocation and arenas.
 *
 * All of our own allocations pass here, so that a test can make each fail in
 * turn (mem_fail_after). Sizes are products checked for overflow. An arena is
 * one lifetime (a model, a block, scratch): many allocations, freed at once. */
#ifndef D2Q_BASE_MEM_H
#define D2Q_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* n*size bytes, 64-byte aligned, NULL when it overflows or memory is out.
 * Freed with mem_free. mem_zalloc clears it. */
void *mem_alloc(size_t n, size_t size);
void *mem_zalloc(size_t n, size_t size);
void mem_free(void *p);
/* Grows or shrinks a block from mem_alloc holding old_n items. NULL leaves p as it was. */
void *mem_grow(void *p, size_t old_n, size_t new_n, size_t size);
char *mem_strdup(const char *s);
/* For tests: the n-th allocation from now fails (0: never). */
void mem_fail_after(long n);
long mem_fail_left(void); /* what is left of that count */
/* Peak resident set size of this process in bytes (VmHWM). */
uint64_t mem_peak_rss(void);

struct arena {
    struct arena_chunk *head; /* newest chunk first */
    size_t used;              /* bytes handed out, for estimates */
    const char *spill;        /* folder, or NULL */
};

void arena_init(struct arena *a);
void arena_release(struct arena *a); /* frees all of it; a may be used again */
void *arena_alloc(struct arena *a, size_t n, size_t size);  /* 64-byte aligned, not cleared */
void *arena_zalloc(struct arena *a, size_t n, size_t size);
/* From now on what is larger than 64 KiB lies in files of no name in dir (NULL: in memory again; borrowed), mapped: arena_forget gives back the memory
 * of all such pages, which come back from the file when touched. A disk that has no room: in memory after all. */
void arena_spill(struct arena *a, const char *dir);
void arena_forget(const struct arena *a);
char *arena_strdup(struct arena *a, const char *s);
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
