#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static void say(const struct log *l, enum log_kind kind, const char *fmt, va_list ap)
{
    if (!l || !l->fn)
        return;
    char text[1024];
    vsnprintf(text, sizeof text, fmt, ap);
    l->fn(l->ud, kind, text, 0, 0);
}

void log_info(const struct log *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(l, LOG_INFO, fmt, ap);
    va_end(ap);
}

void log_warn(const struct log *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(l, LOG_WARN, fmt, ap);
    va_end(ap);
}

int log_progress(const struct log *l, const char *step, double done, double total, struct err *e)
{
    if (!l || !l->fn)
        return 0;
    if (l->fn(l->ud, LOG_PROGRESS, step, done, total))
        return err_set(e, ERR_CANCELLED, "cancelled during %s", step);
    return 0;
}

double log_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
