/* tile: the quantizer's inner loops, on TILE_R rows at once.
 *
 * A tile is transposed, t[j*TILE_R + r]: all loops run over r, so they are vector code without
 * horizontal sums, and a row's result does not depend on its neighbours. tile_body.h
 * is compiled once per instruction set; tile_kernels() picks by backend_isa().
 *
 * The grid is value(q) = s * (q - z), q in 0..maxq, s already rounded to fp16, z an
 * integer: fit returns what the file can store, code and value are what its reader computes. */
#ifndef D2Q_QUANT_TILE_H
#define D2Q_QUANT_TILE_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/quant.h"

#define TILE_R 32

struct grid {
    int maxq;  /* 2^bits - 1 */
    int zmin;  /* smallest zero point of an asymmetric grid */
    bool sym;  /* z = 2^(bits-1) */
    enum quant_search search;
};

struct tile_kernels {
    /* s, z (TILE_R) for the n inputs of one group in w (n, TILE_R); hw (n): weight of each input, NULL: 1. */
    void (*fit)(const struct grid *g, const float *w, const float *hw, int64_t n, float *s, float *z);
    /* GPTQ on columns [j, j+n) of t, all of one group with s, z: codes (n, TILE_R), errors (w - value)/u_jj into
     * err (n, TILE_R), and t's columns up to jend updated. u: row j of the factor at u + j*ldu. */
    void (*feedback)(const struct grid *g, float *t, const float *u, int64_t ldu, int64_t j, int64_t n,
                     int64_t jend, const float *s, const float *z, uint8_t *codes, float *err);
    /* Codes only: round to nearest. */
    void (*round)(const struct grid *g, const float *t, int64_t n, const float *s, const float *z,
                  uint8_t *codes);
    /* Coordinate descent on columns [j, j+n): p (d, TILE_R) holds H (w - value); codes and p's columns
     * [jbeg, jend) follow each change; dv (n, TILE_R) is how far each value moved. h: (d, d), rows of ldh. */
    void (*descend)(const struct grid *g, float *p, const float *h, int64_t ldh, int64_t j, int64_t n,
                    int64_t jbeg, int64_t jend, const float *s, uint8_t *codes, float *dv);
};

const struct tile_kernels *tile_kernels(void);
extern const struct tile_kernels tile_kernels_generic, tile_kernels_avx2, tile_kernels_avx512,
    tile_kernels_neon;

#endif
