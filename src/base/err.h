/* err: the one way a d2quant function reports failure.
 *
 * A fallible function returns 0 on success and -1 on failure and takes a
 * `struct err *` last. On failure the struct holds one complete sentence that
 * names the file, the tensor, what was expected and what was found; on success
 * it is untouched, so calls chain with ||. The library never prints, exits or
 * aborts on input. */
#ifndef D2Q_BASE_ERR_H
#define D2Q_BASE_ERR_H

#include <stddef.h>

enum err_code {
    ERR_NONE = 0,
    ERR_USAGE,       /* the caller asked for something that makes no sense */
    ERR_IO,          /* the operating system refused */
    ERR_FORMAT,      /* a file is not what it claims to be */
    ERR_UNSUPPORTED, /* valid, but not built (named in the message) */
    ERR_MEMORY,
    ERR_NUMERIC,     /* NaN, Inf, a matrix that cannot be factored */
    ERR_CANCELLED,
};

struct err {
    enum err_code code;
    char msg[1024];
};

/* Fills *e (NULL allowed) and returns -1, so that `return err_set(...)` works. */
int err_set(struct err *e, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Appends ": strerror(errno)"; code ERR_IO. */
int err_errno(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int err_nomem(struct err *e, const char *what, size_t bytes);
/* Puts "prefix: " before a message that is already there; returns -1. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* That they return -1 stands here too: compilers and analyzers then know what cannot be reached after a failure. */
static inline int err_failed(void)
{
    return -1;
}
#define err_set(...) (err_set(__VA_ARGS__), err_failed())
#define err_errno(...) (err_errno(__VA_ARGS__), err_failed())
#define err_nomem(...) (err_nomem(__VA_ARGS__), err_failed())
#define err_prefix(...) (err_prefix(__VA_ARGS__), err_failed())

#endif
