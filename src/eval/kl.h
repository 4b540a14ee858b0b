/* kl: how far a model's predictions are from a reference's, token by token.
 *
 * The reference is another model, run over the same windows, or a stored file of its log probabilities
 * (kl_base.h). Statistics are defined as in llama-perplexity --kl-divergence: for each scored token KL = sum p_ref *
 * (log p_ref - log p) over the vocabulary, dp = p - p_ref of the token that came, same top = both rank the same token
 * first; percentiles are interpolated between order statistics. Errors are standard errors of means. Against a
 * model nothing is rounded; a file holds log p in 16 bits of a range of 16, which alone makes about 1e-4 nats of KL. */
#ifndef D2Q_EVAL_KL_H
#define D2Q_EVAL_KL_H

#include "eval/kl_base.h"
#include "eval/perplexity.h"

struct spread { /* of one figure over all scored tokens */
    double mean, err, median, min, max;
    double p001, p01, p05, p10, p25, p75, p90, p95, p99, p999;
};

struct kl_result {
    struct spread kl, dp;       /* nats; difference of probabilities, -1 to 1 */
    double dp_rms, dp_rms_err;
    double top1, top1_err;      /* share of tokens with the same top */
    double nll_ref, ppl_ref, ppl_ref_err;
    double ln_ratio, ln_ratio_err; /* ln ppl - ln ppl_ref */
    double ratio, ratio_err, diff, diff_err; /* ppl / ppl_ref, ppl - ppl_ref */
    double cor;                 /* of ln p and ln p_ref */
    int64_t tokens;             /* compared: those scored, but against a file the second half of each window only */
};

/* Interrupted as eval_perplexity. One of ref and base is given. text may be NULL with base: its own tokens are taken; else they must be those of the
 * text. With save (a path) the reference model's predictions are stored. r: as eval_perplexity gives it for m. */
struct kl_options {
    struct eval_options e;
    const struct model *ref;
    const struct kl_base *base;
    const char *save;
};

int eval_kl(const struct model *m, const char *text, size_t n_text, const struct kl_options *o, const struct log *log,
            struct eval_result *r, struct kl_result *k, struct err *e);

/* Order statistics and mean of v (n), which is sorted. */
void spread_of(double *v, int64_t n, struct spread *s);

#endif
