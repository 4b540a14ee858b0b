/* rotate: QuaRot's fusable part (arXiv 2404.00456), a change of basis that leaves a float model's function as it is and
 * spreads its outliers before rounding.
 *
 *   residual stream  x -> x Q: rows of the embedding and, their norm's gain fused, of q,k,v, gate,up and the head times Q;
 *                    columns of o and down times Q^T; gains become 1. RMS is the same in either basis.
 *   v and o          every head by one orthogonal matrix of head_dim; o's input follows.
 *
 * Q = diag(signs) (A x H): H the Hadamard matrix of the largest power of two that leaves a factor K with a Hadamard matrix of
 * its own (Paley's two constructions over a prime field: 12, 20, 28, 36 ...) or, if there is none, the odd factor,
 * with A a random orthogonal matrix. A tied head becomes one of its own: its rows carry the last norm's gain. */
#ifndef D2Q_QUANT_ROTATE_H
#define D2Q_QUANT_ROTATE_H

#include "model/model.h"

struct rotation { /* of rows of n values */
    int64_t n, k; /* A is (k, k); n / k is a power of two */
    double *a;
    double *sign; /* (n) */
};

int rotation_init(struct rotation *r, int64_t n, uint64_t seed, struct arena *arena, struct err *e);
/* x (n) = x Q; scratch (n). */
void rotation_apply(const struct rotation *r, double *x, double *scratch);

struct rotator {
    struct rotation res, head;
    const float **gain; /* (n_layer * 2): of each block's two norms before they became 1 */
    struct arena arena;
};

#define ROTATE_SEED 1 /* that quantize_model rotates by: one model, one basis */

/* Rotates embeddings and head of m (stored as `type`, F16 or F32) and makes all norm gains 1; the blocks follow one by one. */
int rotator_init(struct rotator *t, struct model *m, enum dtype type, uint64_t seed, struct err *e);
void rotator_release(struct rotator *t);
/* The matrices of block `index`: l's tensors must be writable F32. Biases are copied to arena. */
int rotator_layer(const struct rotator *t, const struct model *m, int64_t index, struct layer *l, struct arena *arena,
                  struct err *e);

#endif
