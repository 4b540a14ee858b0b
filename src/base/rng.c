#include "base/rng.h"

void rng_init(struct rng *r, uint64_t seed, uint64_t stream)
{
    r->state = seed;
    r->state = rng_next(r) ^ (stream * 0xd1342543de82ef95u);
    rng_next(r);
}

uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double rng_uniform(struct rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}
