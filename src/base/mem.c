#include "base/mem.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGN 64
#ifdef D2Q_EXACT_ENDS /* make fuzz: padding is poisoned and each allocation in an arena its own, so that its end is seen */
#include <sanitizer/asan_interface.h>
#define CHUNK 0u
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define CHUNK (256u * 1024u)
#endif

static atomic_long fail_countdown;

void mem_fail_after(long n)
{
    atomic_store(&fail_countdown, n);
}

long mem_fail_left(void)
{
    return atomic_load(&fail_countdown);
}

static int must_fail(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) <= 0)
        return 0;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

/* Rounded up to the alignment; 0 on overflow. Never 0 for a valid request. */
static size_t padded(size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2)
        return 0;
    if (bytes == 0)
        bytes = 1;
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void *mem_alloc(size_t n, size_t size)
{
    size_t bytes = padded(n, size);
    if (!bytes || must_fail())
        return NULL;
    char *p = aligned_alloc(ALIGN, bytes);
    if (p)
        ASAN_POISON_MEMORY_REGION(p + n * size, bytes - n * size);
    return p;
}

void *mem_zalloc(size_t n, size_t size)
{
    void *p = mem_alloc(n, size);
    if (p)
        memset(p, 0, n * size);
    return p;
}

void mem_free(void *p)
{
    free(p);
}

void *mem_grow(void *p, size_t old_n, size_t new_n, size_t size)
{
    void *q = mem_alloc(new_n, size);
    if (!q)
        return NULL;
    if (p)
        memcpy(q, p, (old_n < new_n ? old_n : new_n) * size);
    free(p);
    return q;
}

char *mem_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = mem_alloc(n, 1);
    if (p)
        memcpy(p, s, n);
    return p;
}

uint64_t mem_peak_rss(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    if (!f)
        return 0;
    char line[256];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return (uint64_t)kib * 1024;
}

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size; /* of data */
    size_t mapped;     /* bytes of a mapping, this head included; 0: from mem_alloc */
    _Alignas(ALIGN) unsigned char data[];
};

void arena_init(struct arena *a)
{
    a->head = NULL;
    a->used = 0;
    a->spill = NULL;
}

void arena_spill(struct arena *a, const char *dir)
{
    a->spill = dir;
}

void arena_forget(const struct arena *a)
{
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        if (c->mapped)
            madvise(c, c->mapped, MADV_DONTNEED);
    }
}

/* A file without a name in dir, its space taken: a write through a mapping must not find the disk full. -1: no such thing to be had. */
static int unnamed_file(const char *dir, size_t size)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) { /* not every file system can */
        char path[4200];
        if ((size_t)snprintf(path, sizeof path, "%s/spill-XXXXXX", dir) >= sizeof path || (fd = mkostemp(path, O_CLOEXEC)) < 0)
            return -1;
        unlink(path);
    }
    if (!posix_fallocate(fd, 0, (off_t)size))
        return fd;
    close(fd);
    return -1;
}

static struct arena_chunk *spilled_chunk(const char *dir, size_t room)
{
    size_t size = sizeof(struct arena_chunk) + room;
    int fd = must_fail() ? -1 : unnamed_file(dir, size);
    if (fd < 0)
        return NULL;
    struct arena_chunk *c = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (c == MAP_FAILED)
        return NULL;
    c->mapped = size;
    return c;
}

static struct arena_chunk *fresh_chunk(const struct arena *a, size_t room)
{
    struct arena_chunk *c = a->spill && room != CHUNK ? spilled_chunk(a->spill, room) : NULL; /* small ones share chunks of memory */
    if (c || !(c = mem_alloc(1, sizeof *c + room)))
        return c;
    c->mapped = 0;
    return c;
}

void arena_release(struct arena *a)
{
    struct arena_chunk *c = a->head;
    while (c) {
        struct arena_chunk *next = c->next;
        if (c->mapped)
            munmap(c, c->mapped);
        else
            mem_free(c);
        c = next;
    }
    arena_init(a);
}

/* *zero: these bytes are 0, and to write them again would only bring them into memory. */
static void *take(struct arena *a, size_t n, size_t size, bool *zero)
{
    size_t bytes = padded(n, size);
    if (!bytes)
        return NULL;
    struct arena_chunk *c = a->head;
    *zero = false;
    if (!c || c->size - c->used < bytes) {
        size_t room = bytes > CHUNK / 4 ? bytes : CHUNK;
        struct arena_chunk *fresh = fresh_chunk(a, room);
        if (!fresh)
            return NULL;
        fresh->size = room;
        fresh->used = 0;
        *zero = fresh->mapped > 0;
        if (c && bytes > CHUNK / 4) { /* keep filling the small chunk */
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            a->head = fresh;
        }
        c = fresh;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    a->used += bytes;
    ASAN_POISON_MEMORY_REGION((char *)p + n * size, bytes - n * size);
    return p;
}

void *arena_alloc(struct arena *a, size_t n, size_t size)
{
    bool zero;
    return take(a, n, size, &zero);
}

void *arena_zalloc(struct arena *a, size_t n, size_t size)
{
    bool zero;
    void *p = take(a, n, size, &zero);
    if (p && !zero)
        memset(p, 0, n * size);
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1, 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return arena_strndup(a, s, strlen(s));
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return NULL;
    char *p = arena_alloc(a, (size_t)n + 1, 1);
    if (!p)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}
