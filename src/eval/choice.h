/* choice: log probabilities of continuations.
 *
 * A question is a context and some continuations of it. The context is computed once; each continuation attends to it and
 * to itself. Questions are taken by length, longest first, and so many at a time share their matrix products that these
 * have about CHOICE_BATCH rows; attention is one by one. */
#ifndef D2Q_EVAL_CHOICE_H
#define D2Q_EVAL_CHOICE_H

#include "base/err.h"
#include "base/log.h"
#include "model/model.h"

#define CHOICE_BATCH 1024

struct question {
    int64_t n_ctx;         /* tokens of the context, > 0 */
    const int32_t *ctx;
    int64_t n;             /* continuations */
    const int64_t *start;  /* (n + 1): continuation i is ids[start[i]] .. ids[start[i+1]-1], at least one token */
    const int32_t *ids;
    double *logp;          /* (n) out: sum of log p of its tokens */
};

/* Fills logp of all questions. A context too long for the model loses its beginning. *interrupted: cancelled after some batches; the
 * others' logp are NaN. Cancelled before: ERR_CANCELLED. */
int choice_score(const struct model *m, const struct question *q, int64_t n, const struct log *log, const char *step,
                 bool *interrupted, struct err *e);

#endif
