#include "base/par.h"

#include <omp.h>

static int n_threads;

void par_set_threads(int n)
{
    n_threads = n < 1 ? omp_get_num_procs() : n;
}

int par_threads(void)
{
    if (n_threads < 1)
        par_set_threads(0);
    return n_threads;
}

void par_for(size_t n, par_fn fn, void *ctx)
{
    int threads = par_threads();
    if (threads == 1 || n < 2 || omp_in_parallel()) {
        for (size_t i = 0; i < n; i++)
            fn(ctx, i, 0);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t i = 0; i < n; i++)
        fn(ctx, i, omp_get_thread_num());
}
