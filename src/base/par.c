/* par: a small pool of threads that sleep when there is nothing to do.
 *
 * OpenMP was here first. Its threads spin between regions, which on a machine with other work took 60 % of the
 * processor time of a run (doc/results.md); these spin for some microseconds, then wait on a condition.
 *
 * One par_for at a time owns the pool; a call made meanwhile, from an item or from another thread, runs serially. A job is
 * published under the lock as a new generation, so a worker that wakes late sees either it or the next. */
#include "base/par.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPINS 2000 /* a few microseconds: less than a sleep and a wake-up cost */

static struct {
    pthread_mutex_t owner; /* held by the par_for that uses the pool */
    pthread_mutex_t lock;  /* guards what follows and the conditions */
    pthread_cond_t work, done;
    int n_workers;         /* threads there are, besides callers */
    int wanted;            /* of them, those the current job is for */
    atomic_uint generation;
    atomic_int busy;       /* workers not yet through with the current job */
    atomic_size_t next;
    size_t n;
    par_fn fn;
    void *ctx;
} pool = {
    .owner = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .done = PTHREAD_COND_INITIALIZER,
};

static atomic_int n_threads;
static _Thread_local bool inside; /* this thread runs an item */

static int cores(void)
{
    cpu_set_t set;
    long n = sched_getaffinity(0, sizeof set, &set) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set); /* set holds 1,024 */
    return n < 1 ? 1 : (int)n;
}

void par_set_threads(int n)
{
    n = n < 1 ? cores() : n;
    atomic_store(&n_threads, n < MAX_THREADS ? n : MAX_THREADS);
}

int par_threads(void)
{
    if (atomic_load(&n_threads) < 1)
        par_set_threads(0);
    return atomic_load(&n_threads);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_items(int worker)
{
    size_t i;
    inside = true;
    while ((i = atomic_fetch_add(&pool.next, 1)) < pool.n)
        pool.fn(pool.ctx, i, worker);
    inside = false;
}

static void *worker_main(void *arg)
{
    int me = (int)(size_t)arg;
    unsigned seen = 0;
    for (;;) {
        for (int k = 0; k < SPINS && atomic_load(&pool.generation) == seen; k++)
            relax();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.generation) == seen)
            pthread_cond_wait(&pool.work, &pool.lock);
        seen = atomic_load(&pool.generation);
        bool mine = me <= pool.wanted;
        pthread_mutex_unlock(&pool.lock);
        if (!mine)
            continue;
        take_items(me);
        if (atomic_fetch_sub(&pool.busy, 1) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* Workers are made as they are first needed and stay; with the owner's lock held. Returns how many there are. */
static int grow(int wanted)
{
    while (pool.n_workers < wanted) {
        pthread_t t;
        pthread_attr_t attr;
        if (pthread_attr_init(&attr))
            break;
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        int rc = pthread_create(&t, &attr, worker_main, (void *)(size_t)(pool.n_workers + 1));
        pthread_attr_destroy(&attr);
        if (rc)
            break; /* fewer threads, same results */
        pool.n_workers++;
    }
    return pool.n_workers < wanted ? pool.n_workers : wanted;
}

static void run_pool(size_t n, par_fn fn, void *ctx, int workers)
{
    pthread_mutex_lock(&pool.lock);
    pool.n = n;
    pool.fn = fn;
    pool.ctx = ctx;
    pool.wanted = workers;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.busy, workers);
    atomic_fetch_add(&pool.generation, 1);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    take_items(0);
    for (int k = 0; k < SPINS && atomic_load(&pool.busy); k++)
        relax();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.busy))
        pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

void par_for(size_t n, par_fn fn, void *ctx)
{
    int threads = par_threads();
    if ((size_t)threads > n)
        threads = (int)n;
    if (threads > 1 && !inside && pthread_mutex_trylock(&pool.owner) == 0) {
        int workers = grow(threads - 1);
        if (workers)
            run_pool(n, fn, ctx, workers);
        else
            threads = 1;
        pthread_mutex_unlock(&pool.owner);
        if (threads > 1)
            return;
    }
    for (size_t i = 0; i < n; i++)
        fn(ctx, i, 0);
}
