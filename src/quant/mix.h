/* mix: which type each matrix gets when a file must not exceed a size (`--target-size`, `--target-bpw`).
 *
 * Rounding W to Q changes y = W x by (Q - W) x; with dy the gradient, at y, of the log probability of a token drawn from the float
 * model's own prediction, half the mean of (dy . (Q - W) x)^2 over tokens is the KL divergence that this costs, to second
 * order (the Fisher information of the outputs). It is measured for every matrix and every type of a
 * ladder, rounded to nearest, on a few calibration sequences; feedback and corrections lower all of them later by factors of a kind.
 * Then types are raised one by one, each time where a byte saves most, until the budget is spent. */
#ifndef D2Q_QUANT_MIX_H
#define D2Q_QUANT_MIX_H

#include "quant/quant.h"

struct mix_target {
    uint64_t bytes;    /* of the matrices, embeddings and head included if `tables` */
    bool tables;       /* embeddings and head take part */
};

#define MIX_SEQUENCES 16
#define MIX_TOKENS 128 /* of a sequence at most */

/* Appends one exact name a matrix to o->keep; those that the user named keep their types. *bytes: what they take together, *loss: the
 * estimate for all. ERR_USAGE when even the smallest types take more. */
int quant_mix(struct model *m, struct quant_options *o, const struct calib *c, const struct mix_target *target,
              const struct log *log, uint64_t *bytes, double *loss, struct err *e);

#endif
