/* log: how the library tells its caller what it is doing. It never prints.
 * A NULL struct log, or a NULL fn, is silence. */
#ifndef D2Q_BASE_LOG_H
#define D2Q_BASE_LOG_H

#include "base/err.h"

enum log_kind {
    LOG_PROGRESS, /* text names the step; done of total, in its own unit */
    LOG_INFO,     /* one line for the user */
    LOG_WARN,
};

/* Returns non-zero to cancel the work (only looked at for LOG_PROGRESS). */
typedef int (*log_fn)(void *ud, enum log_kind kind, const char *text, double done, double total);

struct log {
    log_fn fn;
    void *ud;
};

void log_info(const struct log *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void log_warn(const struct log *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* -1 with ERR_CANCELLED when the caller asked to stop. */
int log_progress(const struct log *l, const char *step, double done, double total, struct err *e);

/* Seconds of a monotonic clock. */
double log_now(void);

#endif
