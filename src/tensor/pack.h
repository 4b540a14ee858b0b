/* pack: grouped integers (struct qmat) as GGUF blocks, for the grids that a type holds exactly.
 *
 * Exactly: the type's decoder gives the same float32 values (the sign of a zero aside). The table in pack.c says which
 * type holds which grid and why. A quantizer whose grid is a type's own (two-level scales of the K types) needs
 * nothing from here but pack_group: its tensor has that type and its data are the blocks. How to add a grid: a row
 * and its fields. */
#ifndef D2Q_TENSOR_PACK_H
#define D2Q_TENSOR_PACK_H

#include "tensor/block.h"
#include "tensor/tensor.h"

/* What decides the type, known before there are codes. */
struct pack_grid {
    int bits;
    int64_t group;      /* inputs; >= n_in: one group a row */
    int zmin, zmax;     /* zero points that occur */
    bool snapped;       /* the scales of 256 inputs are d k, k = 1..15 (2 bits) or 1..31 (3 bits) */
    int64_t n_in;
};

/* By looking at all zeros and scales of q. */
struct pack_grid pack_grid_of(const struct qmat *q);
/* The type that holds the grid, the smallest first; DT_COUNT: none. */
enum dtype pack_type(const struct pack_grid *g);
/* Which grids there are, as options of the command line: for messages. */
extern const char pack_grids[];

/* Can q be packed into type? Groups in order, finite scales. */
int pack_check(const struct qmat *q, enum dtype type, const char *name, struct err *e);
/* One row of a q that passed; codes: scratch of n_in bytes. */
void pack_row(const struct qmat *q, int64_t row, enum dtype type, uint8_t *codes, void *out);

/* Codes c of n inputs of one group, value = scale (c - zero), as the codes of `type` at f->q + at; returns the
 * type's own factor d (fp16 bits) for them, which may be -scale. zero as the type allows. */
uint16_t pack_group(enum dtype type, const uint8_t *c, int n, uint16_t scale, int zero, int bits, struct block_fields *f, int at);

/* d (a float32 that is exact in fp16) such that every scale (n, fp16 bits) is d k, 1 <= k <= kmax; 0: none. */
float pack_snap(const uint16_t *scale, int64_t n, int kmax);

#endif
