#include "run/sample.h"

#include <math.h>
#include <stdlib.h>

int32_t sample_greedy(const float *logits, int64_t n_vocab)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* Most likely first; equal ones by id, so that the order is total. */
static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

int32_t sample_token(const float *logits, int64_t n_vocab, const struct sample_options *o, struct rng *r,
                     struct candidate *c)
{
    if (!(o->temp > 0) || o->top_k == 1)
        return sample_greedy(logits, n_vocab);
    int64_t n = n_vocab, i;
    float max = logits[sample_greedy(logits, n_vocab)];
    for (i = 0; i < n; i++)
        c[i] = (struct candidate){ logits[i], (int32_t)i };
    if (o->top_p < 1 || (o->top_k > 0 && o->top_k < n))
        qsort(c, (size_t)n, sizeof *c, by_logit);
    if (o->top_k > 0 && o->top_k < n)
        n = o->top_k;
    double sum = 0;
    for (i = 0; i < n; i++) {
        c[i].logit = (float)exp((double)(c[i].logit - max) / o->temp); /* a weight from here on */
        sum += c[i].logit;
    }
    if (o->top_p < 1) {
        double kept = 0;
        for (i = 0; i < n && (i == 0 || kept < o->top_p * sum); i++)
            kept += c[i].logit;
        n = i;
        sum = kept;
    }
    double at = rng_uniform(r) * sum, seen = 0;
    for (i = 0; i < n - 1; i++) {
        seen += c[i].logit;
        if (at < seen)
            break;
    }
    return c[i].id;
}
