/* tile: the quantizer's inner loops, on TILE_R rows at once.
 *
 * A tile is transposed, t[j*TILE_R + r]: all loops run over r, so they are vector code without
 * horizontal sums, and a row's result does not depend on its neighbours. tile_body.h
 * is compiled once per instruction set; tile_kernels() picks by backend_isa().
 *
 * fit returns what the file can store, code and value are what its reader computes (quant/grid.h). */
#ifndef D2Q_QUANT_TILE_H
#define D2Q_QUANT_TILE_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/quant.h"

#define TILE_R 32

/* Parameters of one group of inputs: value = s (q - z) - b. */
struct tile_group {
    float s[TILE_R], z[TILE_R], b[TILE_R];
    int16_t sc[TILE_R], mn[TILE_R]; /* two-level grids: the integers behind s and b */
};

/* Factors of `super` inputs of a two-level grid, already rounded. */
struct tile_super {
    float d[TILE_R], m[TILE_R];
};

struct tile_kernels {
    /* Two-level grids: d, m for the n = super inputs in w (n, TILE_R); hw (n): weight of each input, NULL: 1. */
    void (*fit_super)(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                      struct tile_super *out);
    /* Parameters for the n inputs of one group; super: of two-level grids. */
    void (*fit)(const struct grid *g, enum quant_search search, const float *w, const float *hw, int64_t n,
                const struct tile_super *super, struct tile_group *out);
    /* GPTQ on columns [j, j+n) of t, all of group p: codes (n, TILE_R), errors (w - value)/u_jj into
     * err (n, TILE_R), and t's columns up to jend updated. u: row j of the factor at u + j*ldu. asym (NULL: none), as u: GPTAQ's
     * term; the columns after j gain w_j P_jk, w_j as it stands in t, where it stays. */
    void (*feedback)(const struct grid *g, float *t, const float *u, const float *asym, int64_t ldu, int64_t j, int64_t n,
                     int64_t jend, const struct tile_group *p, uint8_t *codes, float *err);
    /* Codes only: round to nearest. */
    void (*round)(const struct grid *g, const float *t, int64_t n, const struct tile_group *p, uint8_t *codes);
    /* Coordinate descent on columns [j, j+n): p (d, TILE_R) holds H (w - value); codes and p's columns
     * [jbeg, jend) follow each change; dv (n, TILE_R) is how far each value moved. h: (d, d), rows of ldh. gain (TILE_R): by how
     * much all of it lowered (w - value) H (w - value). */
    void (*descend)(const struct grid *g, float *p, const float *h, int64_t ldh, int64_t j, int64_t n,
                    int64_t jbeg, int64_t jend, const struct tile_group *par, uint8_t *codes, float *dv,
                    float *gain);
};

const struct tile_kernels *tile_kernels(void);
extern const struct tile_kernels tile_kernels_generic, tile_kernels_avx2, tile_kernels_avx512,
    tile_kernels_neon;

#endif
