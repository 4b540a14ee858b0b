/* sample: the next token from a row of logits, and the random numbers for it.
 *
 * splitmix64: small, seedable by any number, the same on every machine. */
#ifndef D2Q_RUN_SAMPLE_H
#define D2Q_RUN_SAMPLE_H

#include <stdint.h>

struct rng {
    uint64_t state;
};

void rng_init(struct rng *r, uint64_t seed, uint64_t stream); /* streams of one seed are independent */
uint64_t rng_next(struct rng *r);
double rng_uniform(struct rng *r); /* [0, 1) */

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
