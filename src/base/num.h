/* num: integer arithmetic that every loop over tiles needs. */
#ifndef D2Q_BASE_NUM_H
#define D2Q_BASE_NUM_H

#include <stdint.h>

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* a / b rounded up; a >= 0, b > 0. */
static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
