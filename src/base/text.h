/* text: a growing string. */
#ifndef D2Q_BASE_TEXT_H
#define D2Q_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *p;     /* NUL-terminated once something was added */
    size_t n, cap;
    bool failed; /* out of memory at some point; what follows is ignored */
};

void text_add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_release(struct text *t);

#endif
