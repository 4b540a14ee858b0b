/* perplexity: see perplexity.h. Sums are kept in double, window by window in order. */
#include "eval/perplexity.h"

#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "eval/kl_base.h"

void eval_options_init(struct eval_options *o)
{
    memset(o, 0, sizeof *o);
}

int eval_protocol_by_name(const char *name, enum eval_protocol *p, struct err *e)
{
    if (!strcmp(name, "gptq"))
        *p = PROTOCOL_GPTQ;
    else if (!strcmp(name, "llama"))
        *p = PROTOCOL_LLAMA;
    else
        return err_set(e, ERR_USAGE, "protocol %s is not known (expected gptq or llama)", name);
    return 0;
}

struct scorer {
    const struct model *m;
    const struct windows *w;
    struct pass pass;
    struct kl_base_writer save; /* rows NULL: not asked for */
    int32_t *ids;     /* (size) */
    double *logp;     /* (size): log p of token t at t, for the scored ones */
};

/* Fills s->logp[first .. size-1] for window i. */
static int score_window(struct scorer *s, int64_t i, const struct log *log, struct err *e)
{
    const struct windows *w = s->w;
    const struct pass_log pl = { log, "perplexity", (double)i, 1, (double)w->n };
    windows_get(w, i, s->ids);
    if (pass_run(&s->pass, s->m, s->ids, &pl, e))
        return -1;
    /* the row before a token predicts it */
    int64_t half = w->size / 2 + 1; /* what a file of log probabilities begins with */
    for (int64_t t = w->first, n, end; t < w->size; t += n) {
        end = s->save.rows && t < half ? half : w->size;
        n = end - t < s->pass.tile ? end - t : s->pass.tile;
        if (pass_logits(&s->pass, s->m, t - 1, n, e) || (s->save.rows && t >= half && kl_base_add(&s->save, s->pass.logits, n, e)))
            return -1;
        op_log_prob(s->pass.logits, n, s->m->hp.n_vocab, s->ids + t, s->logp + t);
    }
    for (int64_t t = w->first; t < w->size; t++)
        if (!isfinite(s->logp[t]))
            return err_set(e, ERR_NUMERIC, "%s: log probability of token %lld in window %lld is %g: the model's "
                           "output is not finite", s->m->ck->path, (long long)t, (long long)i, s->logp[t]);
    return 0;
}

static int score_all(struct scorer *s, const struct log *log, struct eval_result *r, struct err *e)
{
    const struct windows *w = s->w;
    double means = 0, sum2 = 0;
    int64_t per_window = w->size - w->first, n = 0;
    for (; n < w->n; n++) {
        double sum = 0;
        if (score_window(s, n, log, e)) {
            if (!n || e->code != ERR_CANCELLED)
                return -1;
            r->interrupted = true;
            break;
        }
        for (int64_t t = w->first; t < w->size; t++) {
            sum -= s->logp[t];
            sum2 += s->logp[t] * s->logp[t];
        }
        means += sum / (double)per_window;
    }
    r->n_windows = n;
    r->tokens = n * per_window;
    r->nll = means / (double)n;
    r->ppl = exp(r->nll);
    double var = sum2 / (double)r->tokens - r->nll * r->nll;
    if (var > 0 && r->tokens > 1)
        r->ppl_err = r->ppl * sqrt(var / (double)(r->tokens - 1));
    if (!r->interrupted)
        log_progress(log, "perplexity", (double)n, (double)n, NULL); /* too late to cancel */
    return 0;
}

int eval_perplexity(const struct model *m, const char *text, size_t n_text, const struct eval_options *o,
                    const struct log *log, struct eval_result *r, struct err *e)
{
    struct windows w;
    double start = log_now();
    memset(r, 0, sizeof *r);
    if (model_whole(m, e) || (o->save && windows_storable(m, o->protocol, o->save, e)))
        return -1;
    if (windows_init(&w, m, text, n_text, o->protocol, o->rule, o->ctx, o->max_windows, e))
        return -1;
    struct scorer s = { .m = m, .w = &w };
    s.ids = mem_alloc((size_t)w.size, sizeof *s.ids);
    s.logp = mem_alloc((size_t)w.size, sizeof *s.logp);
    int rc = s.ids && s.logp ? 0 : err_nomem(e, "a window", (size_t)w.size * 12);
    if (!rc)
        rc = pass_init(&s.pass, m, w.size, e);
    if (!rc && o->save)
        rc = kl_base_create(&s.save, o->save, &w, m->hp.n_vocab, s.pass.tile, e);
    if (!rc)
        rc = score_all(&s, log, r, e);
    if (!rc && o->save && !r->interrupted)
        rc = kl_base_commit(&s.save, e);
    kl_base_abort(&s.save);
    pass_release(&s.pass);
    r->window = w.size;
    r->protocol = w.protocol;
    r->text_rule = w.text_rule;
    r->seconds = log_now() - start;
    mem_free(s.ids);
    mem_free(s.logp);
    windows_release(&w);
    return rc;
}
