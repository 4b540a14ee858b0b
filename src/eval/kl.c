/* kl: see kl.h. Both models run over a window, then their tiles of logits are walked side by side; per token two
 * doubles are kept for the percentiles, sums in the order of the tokens. */
#include "eval/kl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"

#define FEW 10 /* below, no error is estimated (llama-perplexity's rule) */

/* ---- statistics --------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *v, int64_t n, double fraction)
{
    double p = fraction * (double)(n - 1);
    int64_t i = (int64_t)p;
    p -= (double)i;
    return (1 - p) * v[i] + p * v[i + 1 < n ? i + 1 : i];
}

/* Mean and its standard error from a sum and a sum of squares. */
static double mean_err(double sum, double sum2, int64_t n, double *err)
{
    double mean = sum / (double)n, var = sum2 / (double)n - mean * mean;
    *err = var > 0 && n > FEW ? sqrt(var / (double)(n - 1)) : 0;
    return mean;
}

void spread_of(double *v, int64_t n, struct spread *s)
{
    double sum = 0, sum2 = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += v[i];
        sum2 += v[i] * v[i];
    }
    s->mean = mean_err(sum, sum2, n, &s->err);
    qsort(v, (size_t)n, sizeof *v, by_value);
    static const double at[] = { 0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1 };
    double *to[] = { &s->min, &s->p001, &s->p01, &s->p05, &s->p10, &s->p25, &s->median, &s->p75,
                     &s->p90, &s->p95, &s->p99, &s->p999, &s->max };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        *to[i] = percentile(v, n, at[i]);
}

struct sums {
    double nll, nll2, ref, ref2, both, dp2, dp4;
    double nll_all, nll2_all; /* over the tokens that are scored but not compared */
    int64_t same, n, n_all;
};

static void finish(const struct sums *s, double *kl, double *dp, struct eval_result *r, struct kl_result *k)
{
    double n = (double)s->n, err, err_ref;
    spread_of(kl, s->n, &k->kl);
    spread_of(dp, s->n, &k->dp);
    r->nll = mean_err(s->nll, s->nll2, s->n, &err);
    k->nll_ref = mean_err(s->ref, s->ref2, s->n, &err_ref);
    double cov = s->n < FEW ? 0 : (s->both / n - s->nll / n * (s->ref / n)) / (n - 1);
    double var = err * err + err_ref * err_ref - 2 * cov;
    r->ppl = exp(r->nll);
    r->ppl_err = r->ppl * err;
    k->ppl_ref = exp(k->nll_ref);
    k->ppl_ref_err = k->ppl_ref * err_ref;
    k->cor = err > 0 && err_ref > 0 ? cov / (err * err_ref) : 0;
    k->ln_ratio = r->nll - k->nll_ref;
    k->ln_ratio_err = var > 0 ? sqrt(var) : 0;
    k->ratio = exp(k->ln_ratio);
    k->ratio_err = k->ratio * k->ln_ratio_err;
    k->diff = r->ppl - k->ppl_ref;
    double dvar = r->ppl_err * r->ppl_err + k->ppl_ref_err * k->ppl_ref_err - 2 * r->ppl * k->ppl_ref * cov;
    k->diff_err = dvar > 0 ? sqrt(dvar) : 0;
    double mse_err, mse = mean_err(s->dp2, s->dp4, s->n, &mse_err);
    k->dp_rms = sqrt(mse);
    k->dp_rms_err = k->dp_rms > 0 ? 0.5 / k->dp_rms * mse_err : 0;
    k->top1 = (double)s->same / n;
    k->top1_err = s->n > 1 ? sqrt(k->top1 * (1 - k->top1) / (n - 1)) : 0;
}

/* ---- scoring ------------------------------------------------------------------- */

struct pair {
    const struct model *m;
    const struct kl_options *o;
    const struct windows *w;
    struct pass pass, ref;        /* ref.size 0: from the file */
    struct kl_base_writer save;   /* save.rows NULL: not asked for */
    int32_t *ids;                 /* (size) */
    struct kl_row *row;           /* (size) */
    float *base;                  /* (tile, n_vocab): log p out of the file */
    double *logp;                 /* (size): of tokens that are scored but not compared */
    int64_t first;                /* tokens first .. size-1 of a window are compared; those before, from w->first on, only scored */
    double *kl, *dp;              /* (all compared tokens) */
    struct sums s;
    struct arena arena;
};

static int bad(const struct pair *p, const char *path, int64_t i, int64_t t, struct err *e)
{
    return err_set(e, ERR_NUMERIC, "%s: the prediction of token %lld in window %lld of %lld is not finite", path,
                   (long long)t, (long long)i, (long long)p->w->n);
}

/* Rows t-1 .. t-2+n of window i on both sides, for tokens t .. t+n-1. */
static int compare_rows(struct pair *p, int64_t i, int64_t t, int64_t n, struct err *e)
{
    const struct kl_base *b = p->o->base;
    int64_t n_vocab = p->m->hp.n_vocab;
    if (pass_logits(&p->pass, p->m, t - 1, n, e))
        return -1;
    if (b) {
        if (kl_base_rows(b, i, t - p->first, n, p->base, e))
            return -1;
    } else if (pass_logits(&p->ref, p->o->ref, t - 1, n, e) || (p->save.rows && kl_base_add(&p->save, p->ref.logits, n, e))) {
        return -1;
    }
    op_kl(b ? p->base : p->ref.logits, p->pass.logits, n, n_vocab, p->ids + t, b ? KL_BASE_FLOOR : -INFINITY, p->row + t);
    for (int64_t k = t; k < t + n; k++) {
        const struct kl_row *r = &p->row[k];
        if (!isfinite(r->logp_ref))
            return bad(p, b ? b->map.path : p->o->ref->ck->path, i, k, e);
        if (!isfinite(r->logp) || !isfinite(r->kl))
            return bad(p, p->m->ck->path, i, k, e);
    }
    return 0;
}

static void add_row(struct pair *p, const struct kl_row *r)
{
    struct sums *s = &p->s;
    double d = exp(r->logp) - exp(r->logp_ref);
    s->nll -= r->logp;
    s->nll2 += r->logp * r->logp;
    s->ref -= r->logp_ref;
    s->ref2 += r->logp_ref * r->logp_ref;
    s->both += r->logp * r->logp_ref;
    s->dp2 += d * d;
    s->dp4 += d * d * d * d;
    s->same += r->top == r->top_ref;
    p->kl[s->n] = r->kl;
    p->dp[s->n++] = d;
}

static int score_window(struct pair *p, int64_t i, const struct log *log, struct err *e)
{
    const struct windows *w = p->w;
    double part = p->o->ref ? 0.5 : 1;
    const struct pass_log first = { log, "divergence", (double)i, part, (double)w->n };
    const struct pass_log second = { log, "divergence", (double)i + part, part, (double)w->n };
    windows_get(w, i, p->ids);
    if (pass_run(&p->pass, p->m, p->ids, &first, e) || (p->o->ref && pass_run(&p->ref, p->o->ref, p->ids, &second, e)))
        return -1;
    int64_t tile = p->pass.tile;
    if (p->o->ref && p->ref.tile < tile)
        tile = p->ref.tile;
    for (int64_t t = w->first, n; t < p->first; t += n) {
        n = p->first - t < tile ? p->first - t : tile;
        if (pass_logits(&p->pass, p->m, t - 1, n, e))
            return -1;
        op_log_prob(p->pass.logits, n, p->m->hp.n_vocab, p->ids + t, p->logp + t);
        for (int64_t k = t; k < t + n; k++) {
            p->s.nll_all -= p->logp[k];
            p->s.nll2_all += p->logp[k] * p->logp[k];
        }
        p->s.n_all += n;
    }
    if (!isfinite(p->s.nll_all))
        return bad(p, p->m->ck->path, i, w->first, e);
    for (int64_t t = p->first, n; t < w->size; t += n) {
        n = w->size - t < tile ? w->size - t : tile;
        if (compare_rows(p, i, t, n, e))
            return -1;
    }
    for (int64_t t = p->first; t < w->size; t++)
        add_row(p, &p->row[t]);
    return 0;
}

static int pair_init(struct pair *p, struct err *e)
{
    const struct windows *w = p->w;
    p->first = p->o->base ? w->size / 2 + 1 : w->first;
    size_t n = (size_t)(w->n * (w->size - p->first)), vocab = (size_t)p->m->hp.n_vocab;
    if (pass_init(&p->pass, p->m, w->size, e) || (p->o->ref && pass_init(&p->ref, p->o->ref, w->size, e)))
        return -1;
    p->ids = arena_alloc(&p->arena, (size_t)w->size, sizeof *p->ids);
    p->row = arena_alloc(&p->arena, (size_t)w->size, sizeof *p->row);
    p->logp = arena_alloc(&p->arena, (size_t)w->size, sizeof *p->logp);
    p->kl = arena_alloc(&p->arena, n, sizeof *p->kl);
    p->dp = arena_alloc(&p->arena, n, sizeof *p->dp);
    p->base = p->o->base ? arena_alloc(&p->arena, (size_t)p->pass.tile, vocab * sizeof(float)) : NULL;
    if (!p->ids || !p->row || !p->logp || !p->kl || !p->dp || (p->o->base && !p->base))
        return err_nomem(e, "divergence", n * 16);
    if (p->o->save && w->first != w->size / 2 + 1)
        return err_set(e, ERR_USAGE, "%s: a file of log probabilities holds the second half of each window: compare by protocol "
                       "llama, or store them in a run without a reference", p->o->save);
    if (p->o->save)
        return kl_base_create(&p->save, p->o->save, w, p->m->hp.n_vocab, p->ref.tile, e);
    return 0;
}

static int score_all(struct pair *p, const struct log *log, struct eval_result *r, struct err *e)
{
    const struct windows *w = p->w;
    int rc = pair_init(p, e);
    for (; !rc && r->n_windows < w->n; r->n_windows++)
        if (score_window(p, r->n_windows, log, e)) {
            r->interrupted = r->n_windows && e->code == ERR_CANCELLED;
            rc = r->interrupted ? 0 : -1;
            break;
        }
    if (!rc && p->save.rows && !r->interrupted)
        rc = kl_base_commit(&p->save, e);
    kl_base_abort(&p->save);
    if (!rc && !r->interrupted)
        log_progress(log, "divergence", (double)w->n, (double)w->n, NULL); /* too late to cancel */
    return rc ? -1 : 0;
}

/* ---- the same text on both sides ------------------------------------------------ */

static int same_ids(const int32_t *a, const int32_t *b, int64_t n, const char *path, struct err *e)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i])
            return err_set(e, ERR_USAGE, "%s: token %lld of the text is %d there and %d here: the reference has another text "
                           "or tokenizer, so predictions cannot be compared", path, (long long)i, b[i], a[i]);
    return 0;
}

static int check_model(const struct model *m, const char *text, size_t n_text, const struct kl_options *o,
                       const struct windows *w, struct err *e)
{
    const struct model *ref = o->ref;
    struct windows other;
    if (ref->hp.n_vocab != m->hp.n_vocab)
        return err_set(e, ERR_USAGE, "%s: predicts %lld words, but the reference %s %lld: they cannot be compared", m->ck->path,
                       (long long)m->hp.n_vocab, ref->ck->path, (long long)ref->hp.n_vocab);
    if (!ref->tok)
        return 0;
    if (windows_init(&other, ref, text, n_text, o->e.protocol, o->e.rule, o->e.ctx, o->e.max_windows, e))
        return -1;
    int rc = other.n != w->n || other.bos != w->bos
                 ? err_set(e, ERR_USAGE, "%s: its tokenizer cuts the text otherwise than that of %s, so predictions cannot be "
                           "compared", ref->ck->path, m->ck->path)
                 : same_ids(w->ids.ids, other.ids.ids, w->n * w->size, ref->ck->path, e);
    windows_release(&other);
    return rc;
}

/* The file's windows, or as many as are asked for. */
static int take_base(const struct model *m, const struct kl_options *o, struct windows *w, struct err *e)
{
    const struct kl_base *b = o->base;
    size_t n = (size_t)(b->n * b->window);
    memset(w, 0, sizeof *w);
    w->ids.ids = mem_alloc(n, sizeof *w->ids.ids);
    if (!w->ids.ids)
        return err_nomem(e, "tokens", n * sizeof *w->ids.ids);
    memcpy(w->ids.ids, b->tokens, n * sizeof *w->ids.ids);
    w->ids.n = w->ids.cap = n;
    w->size = b->window;
    w->n = o->e.max_windows > 0 && o->e.max_windows < b->n ? o->e.max_windows : b->n;
    w->first = b->window / 2 + 1;
    w->bos = tokenizer_adds_bos(m->tok) ? tokenizer_bos(m->tok) : -1;
    w->protocol = "llama";
    w->text_rule = "stored tokens";
    return 0;
}

static int base_windows(const struct model *m, const char *text, size_t n_text, const struct kl_options *o,
                        struct windows *w, struct err *e)
{
    const struct kl_base *b = o->base;
    struct windows stored;
    if (!text && o->e.protocol != PROTOCOL_LLAMA)
        return err_set(e, ERR_USAGE, "%s: its own tokens are compared by protocol llama; protocol gptq needs the text", b->map.path);
    if (!m->tok)
        return err_set(e, ERR_USAGE, "%s: has no tokenizer, so it is not known whether the predictions in %s follow a start token", m->ck->path,
                       b->map.path);
    if (windows_storable(m, o->e.protocol, b->map.path, e))
        return -1;
    if (o->save)
        return err_set(e, ERR_USAGE, "%s: stored log probabilities are the reference already, so there is nothing to save in %s",
                       b->map.path, o->save);
    if (b->n_vocab != m->hp.n_vocab)
        return err_set(e, ERR_USAGE, "%s: is of a model that predicts %lld words, %s %lld: they cannot be compared", b->map.path,
                       (long long)b->n_vocab, m->ck->path, (long long)m->hp.n_vocab);
    if (o->e.ctx && o->e.ctx != b->window)
        return err_set(e, ERR_USAGE, "%s: holds windows of %lld tokens, %lld are asked for", b->map.path, (long long)b->window,
                       (long long)o->e.ctx);
    if (take_base(m, o, &stored, e))
        return -1;
    if (!text) {
        *w = stored;
        return 0;
    }
    int rc = windows_init(w, m, text, n_text, o->e.protocol, o->e.rule, b->window, stored.n, e);
    if (!rc) {
        rc = w->n < stored.n ? err_set(e, ERR_USAGE, "%s: holds %lld windows, but the text has %lld only: it is of another text",
                                       b->map.path, (long long)b->n, (long long)w->n)
                             : same_ids(w->ids.ids, stored.ids.ids, w->n * w->size, b->map.path, e);
        if (rc)
            windows_release(w);
    }
    windows_release(&stored);
    return rc;
}

int eval_kl(const struct model *m, const char *text, size_t n_text, const struct kl_options *o, const struct log *log,
            struct eval_result *r, struct kl_result *k, struct err *e)
{
    struct windows w;
    double start = log_now();
    memset(r, 0, sizeof *r);
    memset(k, 0, sizeof *k);
    if (model_whole(m, e) || (o->ref && model_whole(o->ref, e)))
        return -1;
    if (o->base ? base_windows(m, text, n_text, o, &w, e)
                : windows_init(&w, m, text, n_text, o->e.protocol, o->e.rule, o->e.ctx, o->e.max_windows, e))
        return -1;
    int rc = o->ref ? check_model(m, text, n_text, o, &w, e) : 0;
    if (!rc) {
        struct pair p = { .m = m, .o = o, .w = &w };
        arena_init(&p.arena);
        rc = score_all(&p, log, r, e);
        if (!rc)
            finish(&p.s, p.kl, p.dp, r, k);
        r->tokens = k->tokens = p.s.n;
        if (!rc && p.s.n_all > 0) { /* protocol gptq beside a file, which holds second halves only */
            double nll_err;
            r->tokens += p.s.n_all;
            r->nll = mean_err(p.s.nll + p.s.nll_all, p.s.nll2 + p.s.nll2_all, r->tokens, &nll_err);
            r->ppl = exp(r->nll);
            r->ppl_err = r->ppl * nll_err;
        }
        pass_release(&p.pass);
        pass_release(&p.ref);
        arena_release(&p.arena);
    }
    r->window = w.size;
    r->protocol = w.protocol;
    r->text_rule = w.text_rule;
    r->seconds = log_now() - start;
    windows_release(&w);
    return rc;
}
