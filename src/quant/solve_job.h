/* solve_job: one matrix in work, and one tile of its rows. Internal to solve.c and sweep.c. */
#ifndef D2Q_QUANT_SOLVE_JOB_H
#define D2Q_QUANT_SOLVE_JOB_H

#include <stdatomic.h>

#include "quant/solve.h"
#include "quant/tile.h"

#define BLOCK 128 /* columns between two lazy updates of the rest */

struct solve_job {
    const struct solve_in *in;
    const struct grid *grid;
    enum quant_search search;
    const struct tile_kernels *k;
    struct tensor *out;
    int64_t n_groups;
    const float *u;    /* factor with col_scale applied, or NULL */
    const float *hs;   /* scaled, damped, permuted H for the sweeps, or NULL */
    const float *hw;   /* (n_in) weights of the scale search in input order, or NULL */
    const int32_t *perm;
    int sweeps;
    bool refit;
    atomic_int failed; /* out of memory in some item */
};

struct tile_state {
    float *t;       /* (n_in, R) what is left to quantize, in processing order */
    uint8_t *codes; /* (n_in, R) */
    struct tile_group *g; /* (n_groups) */
    struct tile_super *super; /* (n_in / grid->super) or NULL */
    float *err;     /* (BLOCK, R) */
    float *u, *hu;  /* (inputs of a group or superblock, R): for sweeps that refit parameters; else NULL */
};

/* t = the tile's weights in processing order perm (NULL: natural), in units of their column scales; rows past the end repeat the last. */
void tile_load(const struct solve_job *job, int64_t row0, const int32_t *perm, float *t);

static inline int64_t group_of(const struct solve_job *job, int64_t j)
{
    return (job->perm ? job->perm[j] : j) / job->grid->group;
}

/* End of the run of columns from j on that share a group and end at `end` at the latest. */
static inline int64_t run_end(const struct solve_job *job, int64_t j, int64_t end)
{
    if (job->perm)
        return j + 1;
    int64_t next = (j / job->grid->group + 1) * job->grid->group;
    return next < end ? next : end;
}

/* Blocks end where groups do, so that a group's parameters see every earlier column's error. */
static inline int64_t block_end(const struct solve_job *job, int64_t j)
{
    int64_t d = job->in->n_in, g = job->grid->group, end;
    if (job->perm || g >= BLOCK)
        end = j + BLOCK;
    else
        end = j + BLOCK / g * g;
    if (!job->perm && g > BLOCK && end > (j / g + 1) * g)
        end = (j / g + 1) * g;
    return end < d ? end : d;
}

/* sweep.c: after the solve, codes and parameters improved in turn; p (n_in, R): scratch. */
void tile_sweep(const struct solve_job *job, int64_t row0, struct tile_state *st, float *p);

#endif
