/* par: the only place that knows about threads.
 *
 * Work is cut by size into n items, never by thread count, and each item writes
 * its own part of the output: results do not depend on the number of threads. */
#ifndef D2Q_BASE_PAR_H
#define D2Q_BASE_PAR_H

#include <stddef.h>

void par_set_threads(int n); /* n < 1: all cores of this process */
int par_threads(void);

/* Calls fn(ctx, i, worker) once for each i < n, in any order, on up to
 * par_threads() threads; worker < par_threads() picks per-thread scratch.
 * A call from inside an item runs serially, with the caller's worker index 0
 * based on its own call (nested scratch must be private to the item). */
typedef void (*par_fn)(void *ctx, size_t i, int worker);
void par_for(size_t n, par_fn fn, void *ctx);

#endif
