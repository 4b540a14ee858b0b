/* pack: grouped integers (struct qmat) as GGUF blocks, for the grids that a type holds exactly.
 *
 * Exactly: the type's decoder gives the same float32 values (the sign of a zero aside). The table in pack.c says which
 * type holds which grid and why. A quantizer whose grid is a type's own (two-level scales of the K types) needs
 * nothing from here: its tensor has that type and its data are the blocks. How to add a grid: a row and its block
 * function. */
#ifndef D2Q_TENSOR_PACK_H
#define D2Q_TENSOR_PACK_H

#include "tensor/tensor.h"

/* What decides the type, known before there are codes. */
struct pack_grid {
    int bits;
    int64_t group; /* inputs; >= n_in: one group a row */
    bool sym;
    int64_t n_in;
};

struct pack_grid pack_grid_of(const struct qmat *q);
/* The type that holds the grid, the smallest first; DT_COUNT: none. */
enum dtype pack_type(const struct pack_grid *g);
/* Which grids there are, as options of the command line: for messages. */
extern const char pack_grids[];

/* Can q be packed into type? Looks at all parameters: finite scales, zeros as the grid says, groups in order. */
int pack_check(const struct qmat *q, enum dtype type, const char *name, struct err *e);
/* One row of a q that passed; codes: scratch of n_in bytes. */
void pack_row(const struct qmat *q, int64_t row, enum dtype type, uint8_t *codes, void *out);

#endif
