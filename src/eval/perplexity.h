/* perplexity: how well a model predicts a text, under one of two protocols.
 *
 *   gptq   as papers measure: the text tokenized once, windows of 2048 without overlap, every prediction
 *          scored, ppl = exp(mean of the windows' means)
 *   llama  as llama-perplexity measures: windows of 512, each begun by BOS where the model adds it, the second
 *          half scored, with an error estimate
 *
 * The two are not comparable with each other. */
#ifndef D2Q_EVAL_PERPLEXITY_H
#define D2Q_EVAL_PERPLEXITY_H

#include "base/err.h"
#include "base/log.h"
#include "eval/windows.h"
#include "model/model.h"

struct eval_options {
    enum eval_protocol protocol;
    enum eval_rule rule;
    int64_t ctx;         /* tokens in a window; 0: 2048 (gptq), 512 (llama) */
    int64_t max_windows; /* 0: all of the text */
    const char *save;    /* also store all predictions in this file (kl_base.h); NULL: no */
};

struct eval_result {
    double ppl, nll;       /* nll: mean of -log p in nats */
    double ppl_err;        /* standard error of ppl as llama-perplexity estimates it */
    int64_t tokens;        /* scored */
    int64_t window, n_windows; /* windows that were scored */
    bool interrupted;      /* the caller cancelled after some windows: the figures are of those, and nothing was stored */
    const char *protocol;  /* "gptq", "llama" */
    const char *text_rule; /* "wikitext-rows", "as-is" */
    double seconds;
};

/* Zeros: gptq, its own window, all of the text, rule found by itself. */
void eval_options_init(struct eval_options *o);
/* "gptq" or "llama". */
int eval_protocol_by_name(const char *name, enum eval_protocol *p, struct err *e);
/* Cancelled before the first window is done: ERR_CANCELLED; later: a result, interrupted. */
int eval_perplexity(const struct model *m, const char *text, size_t n_text, const struct eval_options *o,
                    const struct log *log, struct eval_result *r, struct err *e);

#endif
