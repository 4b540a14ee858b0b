/* sweep: after GPTQ has gone through the columns once, everything it settled is improved in turn under the whole of H, each
 * by the step that is best while the rest stands still: codes, then the parameters of each group and superblock, rounded as
 * they are stored. With u the change of the values for a unit step, v the values and p = H (w - v), that is u.p / u.H u. */
#include "quant/solve_job.h"

#include <math.h>
#include <string.h>

#include "backend/linalg.h"
#include "tensor/half.h"

/* ---- parameters --------------------------------------------------------------- */

/* What a step moves: of a group its scale, zero point, offset and the integers of two-level grids; of a superblock d and m. */
enum par { PAR_S, PAR_Z, PAR_B, PAR_SC, PAR_MN, PAR_D, PAR_M };

/* u (n, R): change of the values of inputs j0 .. j0+n-1 for a unit step. */
static void unit_change(const struct solve_job *job, const struct tile_state *st, enum par par, int64_t j0, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        const struct tile_group *g = st->g + (j0 + j) / job->grid->group;
        const struct tile_super *s = job->grid->super ? st->super + j0 / job->grid->super : NULL;
        const uint8_t *q = st->codes + (j0 + j) * TILE_R;
        float *u = st->u + j * TILE_R;
        for (int r = 0; r < TILE_R; r++) {
            float c = (float)q[r] - g->z[r];
            u[r] = par == PAR_S ? c : par == PAR_Z ? -g->s[r] : par == PAR_B ? -1 : par == PAR_SC ? s->d[r] * c
                 : par == PAR_MN ? -s->m[r] : par == PAR_D ? (float)g->sc[r] * c : -(float)g->mn[r];
        }
    }
}

static float clamp_round(float x, int lo, int hi)
{
    x = rintf(x);
    return x < (float)lo ? (float)lo : x > (float)hi ? (float)hi : x;
}

/* The parameter nearest to `want` that the file can hold; a scale keeps its sign, or stays. */
static float settle(const struct grid *g, enum par par, float old, float want)
{
    if (par == PAR_Z)
        return clamp_round(want, g->zmin, g->zmax);
    if (par == PAR_SC)
        return clamp_round(want, g->sc_min, g->sc_max);
    if (par == PAR_MN)
        return clamp_round(want, 0, g->m_max);
    if (!(fabsf(want) <= 65504.0f))
        return old;
    float v = par == PAR_D ? grid_unit_round(want, g->d_bits) : half_round(want);
    bool scale = par == PAR_S || par == PAR_D;
    return (scale && (v * old <= 0 || fabsf(v) < 6.103515625e-05f)) || (par == PAR_M && v < 0) ? old : v;
}

static float *parameter(const struct solve_job *job, const struct tile_state *st, enum par par, int64_t j0)
{
    struct tile_group *g = st->g + j0 / job->grid->group;
    struct tile_super *s = job->grid->super ? st->super + j0 / job->grid->super : NULL;
    return par == PAR_S ? g->s : par == PAR_Z ? g->z : par == PAR_B ? g->b : par == PAR_D ? s->d : par == PAR_M ? s->m : NULL;
}

/* Scales and offsets of the groups among inputs j0 .. j0+n-1, from the two levels. */
static void multiply_out(const struct solve_job *job, const struct tile_state *st, int64_t j0, int64_t n)
{
    const struct tile_super *s = st->super + j0 / job->grid->super;
    for (int64_t j = j0; j < j0 + n; j += job->grid->group) {
        struct tile_group *g = st->g + j / job->grid->group;
        for (int r = 0; r < TILE_R; r++) {
            g->s[r] = s->d[r] * (float)g->sc[r];
            g->b[r] = s->m[r] * (float)g->mn[r];
        }
    }
}

/* One parameter of inputs j0 .. j0+n-1, in every row where its step lowers the error. */
static void step(const struct solve_job *job, const struct tile_state *st, float *p, enum par par, int64_t j0, int64_t n)
{
    int64_t d = job->in->n_in;
    float num[TILE_R] = { 0 }, den[TILE_R] = { 0 }, moved[TILE_R], any = 0;
    unit_change(job, st, par, j0, n);
    la_sgemm_tile(0, 0, n, TILE_R, n, 1, job->hs + j0 * d + j0, d, st->u, TILE_R, 0, st->hu, TILE_R);
    for (int64_t j = 0; j < n; j++)
        for (int r = 0; r < TILE_R; r++) {
            num[r] += st->u[j * TILE_R + r] * p[(j0 + j) * TILE_R + r];
            den[r] += st->u[j * TILE_R + r] * st->hu[j * TILE_R + r];
        }
    struct tile_group *g = st->g + j0 / job->grid->group;
    float *at = parameter(job, st, par, j0);
    for (int r = 0; r < TILE_R; r++) {
        float old = at ? at[r] : par == PAR_SC ? (float)g->sc[r] : (float)g->mn[r];
        float v = den[r] > 0 ? settle(job->grid, par, old, old + num[r] / den[r]) : old;
        moved[r] = v - old;
        if (!(moved[r] * (2 * num[r] - moved[r] * den[r]) > 0))
            moved[r] = 0;
        else if (at)
            at[r] = v;
        else if (par == PAR_SC)
            g->sc[r] = (int16_t)v;
        else
            g->mn[r] = (int16_t)v;
        any += moved[r] != 0;
    }
    if (any == 0)
        return;
    for (int64_t j = 0; j < n; j++)
        for (int r = 0; r < TILE_R; r++)
            st->u[j * TILE_R + r] *= moved[r];
    la_sgemm_tile(1, 0, d, TILE_R, n, -1, job->hs + j0 * d, d, st->u, TILE_R, 1, p, TILE_R);
    if (par >= PAR_SC)
        multiply_out(job, st, j0, n);
}

static void tile_parameters(const struct solve_job *job, const struct tile_state *st, float *p)
{
    const struct grid *g = job->grid;
    int64_t d = job->in->n_in, span = g->super ? g->super : g->group;
    for (int64_t j0 = 0; j0 < d; j0 += span) {
        int64_t n = d - j0 < span ? d - j0 : span;
        if (!g->super) {
            step(job, st, p, PAR_S, j0, n);
            if (g->kind == KIND_AFFINE)
                step(job, st, p, PAR_B, j0, n);
            else if (g->zmin < g->zmax)
                step(job, st, p, PAR_Z, j0, n);
            continue;
        }
        step(job, st, p, PAR_D, j0, n);
        if (g->kind == KIND_TWO_AFFINE)
            step(job, st, p, PAR_M, j0, n);
        for (int64_t j = j0; j < j0 + n; j += g->group) {
            step(job, st, p, PAR_SC, j, g->group);
            if (g->kind == KIND_TWO_AFFINE)
                step(job, st, p, PAR_MN, j, g->group);
        }
    }
}

/* ---- codes ------------------------------------------------------------------------ */

static void tile_codes(const struct solve_job *job, struct tile_state *st, float *p)
{
    int64_t d = job->in->n_in;
    for (int64_t j0 = 0; j0 < d;) {
        int64_t jend = block_end(job, j0);
        for (int64_t j = j0; j < jend;) {
            int64_t end = run_end(job, j, jend);
            job->k->descend(job->grid, p, job->hs, d, j, end - j, j0, jend, st->g + group_of(job, j), st->codes + j * TILE_R,
                            st->err + (j - j0) * TILE_R);
            j = end;
        }
        if (jend < d)
            la_sgemm_tile(1, 0, d - jend, TILE_R, jend - j0, -1, job->hs + j0 * d + jend, d, st->err, TILE_R, 1,
                          p + jend * TILE_R, TILE_R);
        if (j0 > 0)
            la_sgemm_tile(1, 0, j0, TILE_R, jend - j0, -1, job->hs + j0 * d, d, st->err, TILE_R, 1, p, TILE_R);
        j0 = jend;
    }
}

void tile_sweep(const struct solve_job *job, int64_t row0, struct tile_state *st, float *p)
{
    int64_t d = job->in->n_in;
    bool refit = st->u && !job->perm; /* activation order scatters a group's inputs */
    tile_load(job, row0, job->perm, st->t);
    for (int64_t j = 0; j < d; j++) {
        const struct tile_group *g = st->g + group_of(job, j);
        for (int r = 0; r < TILE_R; r++)
            st->t[j * TILE_R + r] -= g->s[r] * ((float)st->codes[j * TILE_R + r] - g->z[r]) - g->b[r];
    }
    la_sgemm_tile(0, 0, d, TILE_R, d, 1, job->hs, d, st->t, TILE_R, 0, p, TILE_R);
    for (int sweep = 0; sweep < job->sweeps; sweep++) {
        if (refit)
            tile_parameters(job, st, p);
        tile_codes(job, st, p);
    }
    if (refit)
        tile_parameters(job, st, p);
}
