/* rng: random numbers. splitmix64: small, seedable by any number, the same on every machine; what a seed means
 * depends on it, so it does not change. */
#ifndef D2Q_BASE_RNG_H
#define D2Q_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t state;
};

void rng_init(struct rng *r, uint64_t seed, uint64_t stream); /* streams of one seed are independent */
uint64_t rng_next(struct rng *r);
double rng_uniform(struct rng *r); /* [0, 1) */

#endif
