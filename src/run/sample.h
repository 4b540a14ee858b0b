/* sample: the next token from a row of logits. */
#ifndef D2Q_RUN_SAMPLE_H
#define D2Q_RUN_SAMPLE_H

#include <stdint.h>

#include "base/rng.h"

struct sample_options {
    double temp;   /* 0: the most likely token (the first of equal ones) */
    int64_t top_k; /* keep the k most likely; 0: all */
    double top_p;  /* then keep the fewest that hold this share of the probability; 1: all */
};

struct candidate {
    float logit;
    int32_t id;
};

/* scratch: (n_vocab), not looked at when greedy. */
int32_t sample_token(const float *logits, int64_t n_vocab, const struct sample_options *o, struct rng *r,
                     struct candidate *scratch);
int32_t sample_greedy(const float *logits, int64_t n_vocab);

#endif
