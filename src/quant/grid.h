/* grid: what values a quantized matrix can have, and which grid each matrix of a model gets.
 *
 * Every grid is value(q) = s (q - z) - b with q in 0..maxq; the kinds differ in where s, z, b come from:
 *   KIND_INT         s fp16, z an integer in zmin..zmax, b = 0       int grids, q2_0, tq2_0, q4_0, q5_0, q8_0
 *   KIND_AFFINE      s, b fp16, z = 0                                q4_1, q5_1
 *   KIND_TWO_SCALE   s = d sc, d fp16 for `super` inputs, sc an integer in sc_min..sc_max; b = 0   q3_k, q6_k, portable
 *   KIND_TWO_AFFINE  s = d sc, b = m mn, m fp16, mn in 0..m_max; z = 0                              q2_k, q4_k, q5_k
 *   KIND_FLOAT       not quantized
 * Parameters are rounded to what the file stores before any code is chosen (design.md 2, contract 1). */
#ifndef D2Q_QUANT_GRID_H
#define D2Q_QUANT_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/half.h"
#include "tensor/pack.h"
#include "tensor/tensor.h"

enum grid_kind { KIND_INT, KIND_AFFINE, KIND_TWO_SCALE, KIND_TWO_AFFINE, KIND_FLOAT };

enum grid_id {
#define GRID(id, ...) GRID_##id,
#include "quant/grids.def"
#undef GRID
    GRID_COUNT,
};

struct grid_info {
    const char *name;
    enum grid_kind kind;
    enum dtype type; /* DT_QMAT, or the type whose blocks the quantizer writes */
    int bits, group, super, zmin, zmax, sc_min, sc_max, m_max, d_bits;
    enum grid_id narrow;
    const char *help; /* one line */
};
extern const struct grid_info grid_table[GRID_COUNT];

enum grid_id grid_by_name(const char *name); /* GRID_COUNT: none */

/* One matrix's grid, all numbers settled. */
struct grid {
    enum grid_id id;
    enum grid_kind kind;
    enum dtype type;
    int bits, maxq;     /* maxq = 2^bits - 1 */
    int64_t group;      /* inputs with one s, z, b; the last group of a row of integers may be short */
    int64_t super;      /* inputs with one d (and m), a multiple of group; 0: one level */
    int zmin, zmax;     /* equal: symmetric */
    int sc_min, sc_max, m_max;
    int d_bits;         /* significant bits of d */
};

/* id with the user's bits and group (where the grid has none of its own) for rows of n_in; follows `narrow` when the type
 * does not divide n_in. zero_min: smallest zero point of asym. */
void grid_init(struct grid *g, enum grid_id id, int bits, int group, int zero_min, int64_t n_in);
/* "int3 g64 asym", "q2_k" */
void grid_label(const struct grid *g, char *buf, size_t n);
/* Bits of a row of n_in, metadata counted. */
double grid_row_bits(const struct grid *g, int64_t n_in);
/* Integers (DT_QMAT) of that grid, as pack_type asks for them. */
struct pack_grid grid_packed(const struct grid *g, int64_t n_in);
/* The type that a GGUF file would hold it in; DT_COUNT: none. */
enum dtype grid_stored(const struct grid *g, int64_t n_in);
/* A tensor of that grid, data in a, cleared. KIND_FLOAT: its type, values not yet filled in. */
int grid_alloc(const struct grid *g, struct arena *a, const char *name, int64_t n_out, int64_t n_in, struct tensor *t,
               struct err *e);

/* KIND_FLOAT: n values into dst; at: what is before them in the tensor `name`. ERR_NUMERIC: beyond the range of fp16. */
int grid_round_floats(const struct grid *g, const float *w, int64_t n, int64_t cols, int64_t at, const char *name, void *dst, struct err *e);

/* d of a two-level grid, rounded to `bits` significant bits and to fp16. Fewer than 11: positive, and at least 2^-17, so
 * that its small multiples are exact in fp16 as well. */
static inline float grid_unit_round(float d, int bits)
{
    if (bits >= 11)
        return half_round(d < -65504.0f ? -65504.0f : d > 65504.0f ? 65504.0f : d);
    union { float f; uint32_t u; } v = { d < 7.62939453125e-06f ? 7.62939453125e-06f : d > 1024.0f ? 1024.0f : d };
    uint32_t drop = (1u << (24 - bits)) - 1;
    v.u += (drop >> 1) + ((v.u >> (24 - bits)) & 1u);
    v.u &= ~drop;
    return v.f;
}

#endif
