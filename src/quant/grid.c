#include "quant/grid.h"

#include <stdio.h>
#include <string.h>

#include "base/num.h"

const struct grid_info grid_table[GRID_COUNT] = {
#define GRID(id, kind, dtype, bits, group, super, zmin, zmax, scmin, scmax, mmax, dbits, narrow, help) \
    { #id, kind, dtype, bits, group, super, zmin, zmax, scmin, scmax, mmax, dbits, GRID_##narrow, help },
#include "quant/grids.def"
#undef GRID
};

enum grid_id grid_by_name(const char *name)
{
    int i = 0;
    while (i < GRID_COUNT && strcmp(grid_table[i].name, name))
        i++;
    return (enum grid_id)i;
}

/* zmin, zmax of an integer grid: 255 the top code, -1 the middle, -2 one below it. */
static int zero_point(int z, int bits)
{
    int mid = 1 << (bits - 1), max = (1 << bits) - 1;
    return z == -1 ? mid : z == -2 ? mid - 1 : z > max ? max : z;
}

void grid_init(struct grid *g, enum grid_id id, int bits, int group, int zero_min, int64_t n_in)
{
    const struct grid_info *t = &grid_table[id];
    while (n_in % dtype_table[t->type].block_len || (t->super && n_in % t->super)) {
        id = t->narrow;
        t = &grid_table[id];
    }
    *g = (struct grid){ .id = id, .kind = t->kind, .type = t->type, .bits = t->bits ? t->bits : bits,
                        .group = t->group ? t->group : group > 0 ? group : n_in, .super = t->super,
                        .sc_min = t->sc_min, .sc_max = t->sc_max, .m_max = t->m_max, .d_bits = t->d_bits };
    if (id == GRID_portable && g->bits == 2) { /* q2_k has four bits for k */
        g->sc_max = 15;
        g->d_bits = 7;
    }
    if (id == GRID_portable && g->group >= g->super) { /* one k for all: nothing to snap */
        g->super = 0;
        g->kind = KIND_INT;
    }
    if (g->kind == KIND_FLOAT)
        return;
    g->maxq = (1 << g->bits) - 1;
    g->zmin = zero_point(t->zmin, g->bits);
    g->zmax = zero_point(t->zmax, g->bits);
    if (g->zmin < zero_min && id == GRID_asym)
        g->zmin = zero_min;
}

void grid_label(const struct grid *g, char *buf, size_t n)
{
    if (g->type == DT_QMAT)
        snprintf(buf, n, "int%d g%lld %s", g->bits, (long long)g->group, grid_table[g->id].name);
    else
        snprintf(buf, n, "%s", grid_table[g->id].name);
}

double grid_row_bits(const struct grid *g, int64_t n_in)
{
    const struct dtype_info *d = &dtype_table[g->type];
    if (g->type != DT_QMAT)
        return 8.0 * (double)(n_in / d->block_len * d->block_bytes);
    /* codes, fp16 scales, zeros at code width: as the GPTQ format stores them */
    int64_t words = ceil_div(n_in * g->bits, 32), groups = ceil_div(n_in, g->group);
    return 32.0 * (double)words + (double)(groups * (16 + g->bits));
}

struct pack_grid grid_packed(const struct grid *g, int64_t n_in)
{
    return (struct pack_grid){ g->bits, g->group, g->zmin, g->zmax, g->super > 0, n_in };
}

enum dtype grid_stored(const struct grid *g, int64_t n_in)
{
    const struct pack_grid p = grid_packed(g, n_in);
    return g->type == DT_QMAT ? pack_type(&p) : g->type;
}

int grid_alloc(const struct grid *g, struct arena *a, const char *name, int64_t n_out, int64_t n_in, struct tensor *t,
               struct err *e)
{
    *t = (struct tensor){ .name = name, .type = g->type, .n_dims = 2, .dim = { n_out, n_in, 1, 1 } };
    if (g->type == DT_QMAT) {
        struct qmat *q = arena_alloc(a, 1, sizeof *q);
        t->q = q;
        return q ? qmat_init(q, a, n_out, n_in, g->bits, (int)g->group, g->zmin == g->zmax, e)
                 : err_nomem(e, name, sizeof *q);
    }
    int64_t bytes = tensor_bytes(g->type, n_out, n_in, name, e);
    if (bytes < 0)
        return -1;
    t->size = (size_t)bytes;
    t->data = arena_zalloc(a, t->size ? t->size : 1, 1);
    return t->data ? 0 : err_nomem(e, name, t->size);
}

int grid_round_floats(const struct grid *g, const float *w, int64_t n, int64_t cols, int64_t at, const char *name, void *dst, struct err *e)
{
    if (g->type == DT_F32) {
        memcpy(dst, w, (size_t)n * sizeof *w);
        return 0;
    }
    uint16_t *p = dst;
    for (int64_t k = 0; k < n; k++) {
        p[k] = g->type == DT_F16 ? half_from_f32(w[k]) : bf16_from_f32(w[k]);
        if (g->type == DT_F16 && (p[k] & 0x7c00) == 0x7c00)
            return err_set(e, ERR_NUMERIC, "tensor %s: %g at row %lld, column %lld is beyond the range of fp16, in which it is to be stored",
                           name, (double)w[k], (long long)((at + k) / cols), (long long)((at + k) % cols));
    }
    return 0;
}
