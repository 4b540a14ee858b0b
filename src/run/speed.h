/* speed: how fast a model reads and writes text here, as `d2q run` would: tokens of a prompt, then new ones. */
#ifndef D2Q_RUN_SPEED_H
#define D2Q_RUN_SPEED_H

#include "base/err.h"
#include "model/model.h"

struct speed {
    int64_t n_prefill, n_decode, rounds;         /* given; 0 tokens: not measured */
    double prefill_per_second, decode_per_second; /* of the best round */
    int64_t bytes; /* of the weights that a new token reads */
};

/* Each round begins with an empty context and random tokens, after one round of a few that warms up (maps the file, starts
 * threads). Decoding takes the likeliest token each time. */
int speed_measure(const struct model *m, struct speed *s, struct err *e);

#endif
