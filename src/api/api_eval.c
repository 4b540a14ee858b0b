/* api_eval: perplexity, divergence and text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/file.h"
#include "base/json.h"
#include "eval/kl.h"
#include "run/session.h"

#define MAX_TEXT ((size_t)1 << 30)

void d2q_eval_options_init(d2q_eval_options *o)
{
    *o = (d2q_eval_options){ 0 };
}

/* "kl_mean" ... "dp_min": the figures of a spread. */
static void add_spread(json_t *root, const char *prefix, const struct spread *s)
{
    const struct {
        const char *name;
        double v;
    } row[] = { { "mean", s->mean }, { "err", s->err }, { "median", s->median }, { "min", s->min }, { "p001", s->p001 },
                { "p01", s->p01 }, { "p05", s->p05 }, { "p10", s->p10 }, { "p25", s->p25 }, { "p75", s->p75 },
                { "p90", s->p90 }, { "p95", s->p95 }, { "p99", s->p99 }, { "p999", s->p999 }, { "max", s->max } };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_%s", prefix, row[i].name);
        json_object_set_new(root, key, json_real(row[i].v));
    }
}

static void add_kl(json_t *root, const struct kl_result *k, const char *reference, bool stored)
{
    add_spread(root, "kl", &k->kl);
    add_spread(root, "dp", &k->dp);
    json_object_set_new(root, "kl_tokens", json_integer((json_int_t)k->tokens));
    json_object_update_new(root, json_pack("{sfsfsfsfsfsfsf}", "dp_rms", k->dp_rms, "dp_rms_err", k->dp_rms_err, "top1", k->top1,
                                           "top1_err", k->top1_err, "nll_ref", k->nll_ref, "ppl_ref", k->ppl_ref, "ppl_ref_err",
                                           k->ppl_ref_err));
    json_object_update_new(root, json_pack("{sfsfsfsfsfsfsfsoss}", "ln_ppl_ratio", k->ln_ratio, "ln_ppl_ratio_err",
                                           k->ln_ratio_err, "ppl_ratio", k->ratio, "ppl_ratio_err", k->ratio_err, "ppl_diff",
                                           k->diff, "ppl_diff_err", k->diff_err, "ln_ppl_cor", k->cor, "reference", json_path(reference),
                                           "reference_kind", stored ? "log probabilities" : "model"));
}

/* What a call holds open; all NULL or zero at first. */
struct eval_call {
    char *text;
    size_t n;
    struct model *ref;
    struct kl_base base;
    struct eval_result r;
    struct kl_result k;
};

static int run_eval(const d2q_model *dm, const d2q_eval_options *in, struct eval_call *c, struct err *e)
{
    struct reporter rep = { in->log, in->log_ud };
    struct log log = { api_log, &rep };
    struct kl_options o;
    bool stored = in->kl && kl_base_is(in->kl);
    memset(&o, 0, sizeof o);
    eval_options_init(&o.e);
    o.e.ctx = in->ctx;
    o.e.max_windows = in->chunks;
    const char *protocol = in->protocol ? in->protocol : stored || in->save_base ? "llama" : "gptq";
    if (eval_protocol_by_name(protocol, &o.e.protocol, e))
        return -1;
    if (!in->text && !stored)
        return err_set(e, ERR_USAGE, "no text was given to predict");
    if (in->text && file_read(in->text, MAX_TEXT, &c->text, &c->n, e))
        return -1;
    if (!in->kl) {
        o.e.save = in->save_base;
        return eval_perplexity(dm->m, c->text, c->n, &o.e, &log, &c->r, e);
    }
    if (stored ? kl_base_open(&c->base, in->kl, e) : model_open(&c->ref, in->kl, e))
        return -1;
    o.ref = c->ref;
    o.base = stored ? &c->base : NULL;
    o.save = in->save_base;
    return eval_kl(dm->m, c->text, c->n, &o, &log, &c->r, &c->k, e);
}

int d2q_eval(d2q_model *dm, const d2q_eval_options *in, char **json, d2q_error *err)
{
    struct err e;
    struct eval_call c;
    double t0 = log_now();
    memset(&c, 0, sizeof c);
    int rc = run_eval(dm, in, &c, &e);
    bool stored = c.base.map.data;
    mem_free(c.text);
    model_free(c.ref);
    kl_base_release(&c.base);
    if (rc)
        return api_fail(err, &e);
    const struct eval_result *r = &c.r;
    json_t *root = json_pack("{sfsfsfsIsIsIssssso*}", "ppl", r->ppl, "nll", r->nll, "ppl_err", r->ppl_err, "tokens",
                             (json_int_t)r->tokens, "window", (json_int_t)r->window, "windows", (json_int_t)r->n_windows,
                             "protocol", r->protocol, "text_rule", r->text_rule, "text", in->text ? json_path(in->text) : NULL);
    json_object_set_new(root, "model", json_path(dm->m->ck->path));
    if (r->interrupted)
        json_object_set_new(root, "interrupted", json_true());
    if (in->kl)
        add_kl(root, &c.k, in->kl, stored);
    if (in->save_base && !r->interrupted)
        json_object_set_new(root, "saved_base", json_path(in->save_base));
    api_common(root, t0);
    return api_json(root, json, err);
}

void d2q_generate_options_init(d2q_generate_options *o)
{
    *o = (d2q_generate_options){ .prompt = "", .max_new = 64, .top_p = 1 };
}

struct answer {
    const d2q_generate_options *o;
    char *text;
    size_t n, cap;
    bool failed; /* no memory */
};

static int emit(void *ud, int32_t id, const char *bytes, size_t n)
{
    struct answer *a = ud;
    (void)id;
    if (a->n + n + 1 > a->cap) {
        size_t cap = 2 * (a->n + n + 64);
        char *p = mem_grow(a->text, a->n, cap, 1);
        a->failed = !p;
        if (!p)
            return 1;
        a->text = p;
        a->cap = cap;
    }
    memcpy(a->text + a->n, bytes, n);
    a->n += n;
    return a->o->emit ? a->o->emit(a->o->emit_ud, bytes, n) : 0;
}

int d2q_generate(d2q_model *dm, const d2q_generate_options *in, char **json, d2q_error *err)
{
    struct err e;
    struct session_stats st = { 0 };
    struct answer a = { .o = in };
    struct session_options o = { .max_new = in->max_new, .seed = in->seed,
                                 .sample = { .temp = in->temp, .top_k = in->top_k, .top_p = in->top_p } };
    double t0 = log_now();
    int rc = session_run(dm->m, in->prompt, strlen(in->prompt), &o, emit, &a, &st, &e);
    if (rc || (a.failed && err_nomem(&e, "text", a.cap))) {
        mem_free(a.text);
        return api_fail(err, &e);
    }
    json_t *root = json_pack("{sosIsIsfsfsb}", "text", json_bytes(a.text ? a.text : "", a.n), "prompt_tokens",
                             (json_int_t)st.n_prompt, "new_tokens", (json_int_t)st.n_new, "prefill_seconds", st.prefill_seconds,
                             "decode_seconds", st.decode_seconds, "ended", st.ended);
    mem_free(a.text);
    api_common(root, t0);
    return api_json(root, json, err);
}
