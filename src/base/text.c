#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void text_add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int k = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (k < 0 || t->failed)
        return;
    if (t->n + (size_t)k + 1 > t->cap) {
        size_t cap = 2 * (t->n + (size_t)k + 1);
        char *grown = mem_grow(t->p, t->n, cap, 1);
        if (!grown) {
            t->failed = true;
            return;
        }
        t->p = grown;
        t->cap = cap;
    }
    va_start(ap, fmt);
    vsnprintf(t->p + t->n, t->cap - t->n, fmt, ap);
    va_end(ap);
    t->n += (size_t)k;
}

void text_release(struct text *t)
{
    mem_free(t->p);
    memset(t, 0, sizeof *t);
}
