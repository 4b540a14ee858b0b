/* api_quant: quantizing and writing. */
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "backend/backend.h"
#include "base/json.h"
#include "base/par.h"
#include "export/card.h"
#include "export/loads.h"
#include "export/verify.h"
#include "quant/work.h"
#include "run/session.h"
#include "tensor/pack.h"

void d2q_quantize_options_init(d2q_quantize_options *o)
{
    *o = (d2q_quantize_options){
        .method = "d2quant", .recipe = "default", .bits = 2, .group = 128, .grid = "asym", .dsq = D2Q_DEFAULT, .dsq_norms = D2Q_DEFAULT, .dsq_o = D2Q_DEFAULT,
        .dac = D2Q_DEFAULT, .alpha = D2Q_DEFAULT, .beta = D2Q_DEFAULT, .sweeps = D2Q_DEFAULT, .tune = D2Q_DEFAULT, .tune_lr = D2Q_DEFAULT, .damp = D2Q_DEFAULT, .shrink = D2Q_DEFAULT,
        .rotate = "auto", .on_failure = "stop", .calib = "self", .nsamples = 128, .seqlen = 2048,
    };
}

/* Index of name in list (NULL-terminated); -1 with an error naming what there is. */
static int choose(const char *option, const char *name, const char *const *list, struct err *e)
{
    char known[128] = "";
    for (int i = 0; list[i]; i++) {
        if (!strcmp(list[i], name))
            return i;
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", list[i]);
    }
    return err_set(e, ERR_USAGE, "%s: expected one of %s, found '%s'", option, known, name);
}

bool api_only_self(const d2q_quantize_options *in)
{
    return !in->calib || !strcmp(in->calib, "self");
}

/* Sequences that the model writes itself. */
static int64_t self_sequences(const d2q_quantize_options *in)
{
    return api_only_self(in) ? in->nsamples : in->self_samples;
}

/* Does the default recipe rotate this model? Where that takes no bytes: the head is a matrix of its own, and it and the embeddings are
 * written as floats in any case. */
static bool rotates(const d2q_quantize_options *in, const struct model *m, const struct quant_options *o)
{
    return o->method == METHOD_d2quant && strcmp(in->recipe, "paper") && !m->hp.tied && !o->kept_packed;
}

int api_quant_options(const d2q_quantize_options *in, const struct model *m, struct quant_options *o, struct err *e)
{
    static const char *const orders[] = { "none", "act", NULL },
                      *const searches[] = { "minmax", "mse", "hessian", NULL }, *const sinks[] = { "keep", "skip", "clip", NULL },
                      *const rotations[] = { "auto", "off", "hadamard", NULL }, *const failures[] = { "stop", "rtn", "keep", NULL },
                      *const targets[] = { "float", "block", NULL };
    int k;
    if (quant_options_init(o, in->method, in->recipe, e))
        return -1;
    o->bits = in->bits;
    o->group = in->group;
    o->zero_min = in->zero_min;
    o->kept = in->kept_f32 ? DT_F32 : DT_F16;
    o->kept_packed = in->kept_f32 == 2;
    o->grid = grid_by_name(in->grid);
    if (o->grid == GRID_COUNT)
        return err_set(e, ERR_USAGE, "grid: there is none called '%s' (d2q quantize --help lists them)", in->grid);
    if (grid_table[o->grid].bits)
        o->bits = grid_table[o->grid].bits;
    for (int i = 0; i < in->n_keep; i++)
        if (quant_keep_add(o, in->keep[i], e))
            return -1;
    if (in->order && (k = choose("order", in->order, orders, e)) < 0)
        return -1;
    o->order = in->order ? (enum quant_order)k : o->order;
    if (in->search && (k = choose("search", in->search, searches, e)) < 0)
        return -1;
    o->search = in->search ? (enum quant_search)k : o->search;
    if (!method_table[o->method].needs_calib && o->search == SEARCH_HESSIAN)
        o->search = SEARCH_MSE; /* there is no Hessian */
    if (in->sinks && (k = choose("sinks", in->sinks, sinks, e)) < 0)
        return -1;
    o->sinks = in->sinks ? (enum quant_sinks)k : o->sinks;
    if ((k = choose("on-failure", in->on_failure ? in->on_failure : "stop", failures, e)) < 0)
        return -1;
    o->on_failure = (enum quant_failure)k;
    o->spill = in->spill && in->work;
    if ((k = choose("rotate", in->rotate ? in->rotate : "auto", rotations, e)) < 0)
        return -1;
    o->rotate = k == 2 || (k == 0 && rotates(in, m, o));
    if (in->self_samples < 0 || (in->self_samples && api_only_self(in)))
        return err_set(e, ERR_USAGE, "self-samples: expected a number of sequences beside a text's (calib); with text of the model's own alone "
                       "it is nsamples");
    o->dsq = in->dsq == D2Q_DEFAULT ? o->dsq : in->dsq != 0;
    o->dsq_o = in->dsq_o == D2Q_DEFAULT ? o->dsq_o && o->dsq : in->dsq_o != 0;
    o->dsq_norms = in->dsq_norms == D2Q_DEFAULT ? o->dsq_norms && o->dsq : in->dsq_norms != 0;
    if ((k = choose("dac-target", in->dac_target ? in->dac_target : "float", targets, e)) < 0)
        return -1;
    if (in->dac == D2Q_DEFAULT ? o->dac != DAC_OFF : in->dac != 0)
        o->dac = k == 1 ? DAC_BLOCK : DAC_FLOAT;
    else
        o->dac = DAC_OFF;
    o->alpha = in->alpha < 0 ? o->alpha : in->alpha;
    o->beta = in->beta < 0 ? o->beta : in->beta;
    o->sweeps = in->sweeps < 0 ? o->sweeps : in->sweeps;
    o->tune = in->tune < 0 ? o->tune : in->tune;
    o->tune_lr = in->tune_lr < 0 ? o->tune_lr : in->tune_lr;
    o->damp = in->damp < 0 ? o->damp : in->damp;
    o->shrink = in->shrink < 0 ? o->shrink : in->shrink;
    return quant_options_check(o, e) || quant_check_model(m, o, e) ? -1 : 0;
}

static json_t *options_json(const d2q_quantize_options *in, const struct quant_options *o)
{
    static const char *const orders[] = { "none", "act" }, *const searches[] = { "minmax", "mse", "hessian" },
                      *const sinks[] = { "keep", "skip", "clip" };
    json_t *j = json_pack("{sssssisissssss}", "method", in->method, "recipe", in->recipe, "bits", o->bits, "group", o->group,
                          "order", orders[o->order], "search", searches[o->search], "sinks", sinks[o->sinks]);
    json_object_update_new(j, json_pack("{sssfsbsbsbsfsfsisI}", "grid", grid_table[o->grid].name, "damp", o->damp, "dsq", o->dsq, "dsq_norms", o->dsq_norms,
                                        "dac", o->dac != DAC_OFF, "alpha", o->alpha, "beta", o->beta, "sweeps", o->sweeps, "seed",
                                        (json_int_t)in->seed));
    json_object_set_new(j, "dsq_o", json_boolean(o->dsq_o));
    json_object_set_new(j, "shrink", json_real(o->shrink));
    json_object_set_new(j, "dac_target", o->dac != DAC_OFF ? json_string(o->dac == DAC_BLOCK ? "block" : "float") : json_null());
    json_object_set_new(j, "dac_accept", json_boolean(o->dac_accept));
    json_object_set_new(j, "rotate", json_string(o->rotate ? "hadamard" : "off"));
    json_object_set_new(j, "tune", json_integer(o->tune));
    json_object_set_new(j, "tune_lr", json_real(o->tune_lr));
    json_t *keep = json_array();
    for (int i = 0; i < in->n_keep; i++)
        json_array_append_new(keep, json_string(in->keep[i]));
    json_object_set_new(j, "keep", keep);
    if (method_table[o->method].needs_calib)
        json_object_update_new(j, json_pack("{sosIsIsI}", "calib", json_path(in->calib ? in->calib : "self"), "nsamples", (json_int_t)in->nsamples, "seqlen",
                                            (json_int_t)in->seqlen, "self_samples", (json_int_t)in->self_samples));
    return j;
}

/* ---- plan ------------------------------------------------------------------------------ */

/* Calibration tokens there will be and the longest sequence: a file may hold fewer than were asked for. */
static int plan_calib(const struct model *m, const d2q_quantize_options *in, int64_t *tokens, int64_t *longest, struct err *e)
{
    struct calib c;
    *tokens = in->nsamples * in->seqlen;
    *longest = in->seqlen;
    if (api_only_self(in))
        return 0;
    if (calib_from_file(&c, m, in->calib, in->nsamples, in->seqlen, in->seed, e))
        return -1;
    *tokens = calib_tokens(&c);
    *longest = in->self_samples > 0 ? in->seqlen : *tokens / (c.n ? c.n : 1);
    *tokens += in->self_samples * in->seqlen;
    calib_release(&c);
    return 0;
}

/* Floating-point operations a second of op_linear on a matrix of this model, now; 0 when it cannot be told. */
static double speed(const struct model *m)
{
    enum { ROWS = 512 };
    const struct tensor *w = &m->layers[0].lin[ROLE_UP].w;
    int64_t n_out = tensor_rows(w), n_in = tensor_cols(w);
    float *x = mem_zalloc((size_t)(ROWS * n_in), sizeof *x), *y = mem_zalloc((size_t)(ROWS * n_out), sizeof *y);
    double best = 0;
    for (int i = 0; x && y && i < 15; i++) {
        double t0 = log_now();
        if (op_linear(w, NULL, x, ROWS, y, 0, NULL))
            break;
        double rate = 2.0 * ROWS * (double)(n_out * n_in) / (log_now() - t0 + 1e-9);
        best = rate > best ? rate : best;
    }
    mem_free(x);
    mem_free(y);
    return best;
}

/* The type that a GGUF file would hold it in; its bytes are added, or *bytes becomes -1 when there is none. */
static json_t *gguf_type(const struct grid *g, const struct tensor *w, int64_t *bytes)
{
    enum dtype type = grid_stored(g, w->dim[1]);
    if (type == DT_COUNT || *bytes < 0) {
        *bytes = -1;
        return type == DT_COUNT ? json_null() : json_string(dtype_table[type].name);
    }
    *bytes += tensor_bytes(type, w->dim[0], w->dim[1], w->name, NULL);
    return json_string(dtype_table[type].name);
}

/* What writing calibration text takes at its peak: the weights, which all stay, and the batch. */
static uint64_t text_bytes(const struct model *m, const d2q_quantize_options *in, const struct quant_options *o)
{
    int64_t n = method_table[o->method].needs_calib ? self_sequences(in) : 0;
    return n > 0 && in->seqlen > 0 ? m->ck->data_bytes + session_text_bytes(m, n, in->seqlen) : 0;
}

int d2q_plan(d2q_model *dm, const d2q_quantize_options *in, char **json, d2q_error *err)
{
    struct model *m = dm->m;
    struct quant_options o;
    struct quant_plan p;
    struct err e;
    int64_t tokens = 0, longest = 0, packed = 0;
    double t0 = log_now(), params = 0;
    if (api_quant_options(in, m, &o, &e) || api_histogram_check(m, in->histogram, &e) ||
        (method_table[o.method].needs_calib && plan_calib(m, in, &tokens, &longest, &e)))
        return api_fail(err, &e);
    quant_plan(m, &o, tokens, longest, &p);
    uint64_t text = text_bytes(m, in, &o); /* gone before the rest begins */
    text = text > p.peak_bytes ? text - p.peak_bytes : 0;
    p.peak_bytes += dm->rss + text;
    p.peak_bytes = p.peak_bytes > mem_peak_rss() ? p.peak_bytes : mem_peak_rss(); /* choosing types took more */
    json_t *root = json_object(), *list = json_array();
    for (int64_t i = 0; i < m->hp.n_layer; i++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            char name[128], type[32];
            struct grid g;
            const struct tensor *w = &m->layers[i].lin[r].w;
            quant_grid(&o, i, (enum role)r, w->dim[1], &g);
            grid_label(&g, type, sizeof type);
            matrix_name(name, sizeof name, i * ROLE_COUNT + r, ".weight");
            params += (double)tensor_count(w);
            json_array_append_new(list, json_pack("{sssss[II]so}", "name", name, "type", type, "shape", (json_int_t)w->dim[0],
                                                  (json_int_t)w->dim[1], "gguf", gguf_type(&g, w, &packed)));
        }
    static const char *const parts[MEM_COUNT] = { "source", "quantized", "kept", "block", "states", "forward", "stage", "tuning" };
    json_t *memory = json_pack("{sIsI}", "program", (json_int_t)dm->rss, "text", (json_int_t)text);
    for (int i = 0; i < MEM_COUNT; i++)
        json_object_set_new(memory, parts[i], json_integer((json_int_t)p.memory[i]));
    json_object_set_new(root, "memory", memory);
    json_object_set_new(root, "options", options_json(in, &o));
    json_object_update_new(root, json_pack("{sfsIsIsIsIsfso}", "bpw", p.bpw, "bytes", (json_int_t)p.output_bytes,
                                           "quantized_bytes", (json_int_t)p.quantized_bytes, "kept_bytes",
                                           (json_int_t)p.kept_bytes, "peak_bytes", (json_int_t)p.peak_bytes, "flops", p.flops,
                                           "tensors", list));
    if (packed >= 0) /* else GGUF does not carry the grid */
        json_object_update_new(root, json_pack("{sIsf}", "gguf_bytes", (json_int_t)packed + (json_int_t)p.kept_bytes, "gguf_bpw",
                                               8 * (double)packed / params));
    params += (double)tensor_count(&m->tok_embd) * (m->hp.tied && !o.rotate ? 1 : 2);
    json_object_set_new(root, "work_bytes", json_integer((json_int_t)work_bytes(m, &o, tokens)));
    double rate = speed(m);
    json_object_set_new(root, "parameters", json_real(params));
    json_object_set_new(root, "calib_tokens", json_integer((json_int_t)tokens));
    /* measured on SmolLM2: attention, statistics and solver take as long again as the products, and decoding
     * (self-made text) runs at a quarter of their speed */
    double flops = 2 * p.flops + (tokens ? 4 * 2 * params * (double)(self_sequences(in) * in->seqlen) : 0);
    json_object_set_new(root, "estimated_seconds", json_real(rate > 0 ? flops / rate : 0));
    json_object_set_new(root, "source_bytes", json_integer((json_int_t)m->ck->data_bytes));
    api_common(root, t0);
    return api_json(root, json, err);
}

/* ---- quantize ---------------------------------------------------------------------------- */

static json_t *tensor_json(const struct quant_tensor *t)
{
    return json_pack("{sssss[II]sfsfsfsfsIsssf}", "name", t->name, "type", t->type, "shape", (json_int_t)t->n_out,
                     (json_int_t)t->n_in, "bpw", t->bpw, "err", t->err, "err_target", t->err_target, "damp", t->damp, "dead",
                     (json_int_t)t->dead, "fallback", t->fallback, "seconds", t->seconds);
}

static void on_tensor(void *ud, const struct quant_tensor *t)
{
    const struct reporter *r = ud;
    if (!r->fn)
        return;
    json_t *j = tensor_json(t);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (text)
        r->fn(r->ud, D2Q_LOG_TENSOR, text, 0, 0);
    free(text);
    json_decref(j);
}

/* Text of the model's own, alone or before that of the file. */
static int self_calib(struct model *m, const d2q_quantize_options *in, const struct work *work, const struct log *log,
                      struct calib *c, struct err *e)
{
    struct token_list ids = { 0 };
    int64_t n = self_sequences(in);
    int rc = work ? work_tokens_load(work, &ids.ids, &ids.n, e) : 0;
    if (!rc)
        rc = session_generate_text(m, n, in->seqlen, in->seed, 0, log, &ids, e) ||
                     (work && work_tokens_save(work, ids.ids, ids.n, e)) ? -1 : 1;
    if (rc > 0 && (int64_t)ids.n != n * in->seqlen)
        rc = err_set(e, ERR_FORMAT, "%s: the work folder has %zu calibration tokens, expected %lld; use --fresh", in->work, ids.n,
                     (long long)(n * in->seqlen));
    if (rc > 0)
        rc = api_only_self(in) ? calib_from_tokens(c, ids.ids, (int64_t)ids.n, n, in->seqlen, in->seed, e)
                           : calib_prepend(c, ids.ids, n, in->seqlen, e);
    mem_free(ids.ids);
    return rc;
}

/* Opens the work folder, if any (w->dir says), and makes the calibration text. */
static int prepare(struct model *m, const d2q_quantize_options *in, const struct quant_options *o, const struct log *log,
                   struct work *w, struct calib *c, struct err *e)
{
    bool calib = method_table[o->method].needs_calib, self = calib && self_sequences(in) > 0, file = calib && !api_only_self(in);
    if (file && calib_from_file(c, m, in->calib, in->nsamples, in->seqlen, in->seed, e))
        return -1;
    if (in->work) {
        json_t *how = self ? json_pack("{sssIsIsI}", "text", "self", "nsamples", (json_int_t)self_sequences(in), "seqlen",
                                       (json_int_t)in->seqlen, "seed", (json_int_t)in->seed) : NULL;
        json_t *recipe = work_recipe(m, o, file ? c : NULL, how, D2Q_VERSION);
        int rc = work_open(w, in->work, in->fresh, recipe, e);
        json_decref(how);
        json_decref(recipe);
        if (rc)
            return -1;
    }
    if (file && calib_tokens(c) < in->nsamples * in->seqlen)
        log_warn(log, "calibration: %lld sequences, %lld tokens; %lld x %lld were asked for", (long long)c->n,
                 (long long)calib_tokens(c), (long long)in->nsamples, (long long)in->seqlen);
    if (self && quant_check_weights(m, e)) /* before the text is written */
        return -1;
    return self ? self_calib(m, in, in->work ? w : NULL, log, c, e) : 0;
}

static json_t *result_json(const struct model *m, const d2q_quantize_options *in, const struct quant_options *o,
                           const struct quant_result *res)
{
    json_t *root = json_object(), *tensors = json_array(), *blocks = json_array();
    double bytes = 0;
    for (int64_t i = 0; i < res->n_tensors; i++) {
        json_array_append_new(tensors, tensor_json(&res->tensors[i]));
        bytes += res->tensors[i].bpw / 8 * (double)res->tensors[i].n_out * (double)res->tensors[i].n_in;
    }
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        const struct quant_block *b = &res->blocks[i];
        json_t *j = json_pack("{sfsfsfsfsfsfsfs[ff]}", "dac_share", b->dac_share, "dac_gain", b->dac_gain, "dac_shift", b->dac_shift,
                              "dsq_min", b->dsq_min, "dsq_max", b->dsq_max, "dsq_gain", b->dsq_gain[STAGE_DOWN], "out_err", b->out_err,
                              "dsq_norm_gain", b->dsq_gain[STAGE_QKV], b->dsq_gain[STAGE_GATE_UP]);
        json_object_set_new(j, "dsq_o_gain", json_real(b->dsq_gain[STAGE_O]));
        json_t *spread = json_array();
        for (int k = 0; k < QUANT_SPREAD; k++)
            json_array_append_new(spread, json_real(b->dsq_quantile[k]));
        json_object_update_new(j, json_pack("{sfsfso}", "dac_before", b->dac_before, "dac_after", b->dac_after, "dsq_quantiles", spread));
        json_array_append_new(blocks, j);
    }
    json_object_set_new(root, "options", options_json(in, o));
    json_object_update_new(root, json_pack("{sfsfsfsfsfsIsoso}", "bpw", res->bpw, "quantized_bytes", bytes, "seconds_forward",
                                           res->seconds_forward, "seconds_stats", res->seconds_stats, "seconds_solve",
                                           res->seconds_solve, "calib_tokens", (json_int_t)res->calib_tokens, "tensors", tensors,
                                           "blocks", blocks));
    json_object_update_new(root, json_pack("{sfsfsf}", "tune_kl_before", res->tune_before, "tune_kl_after", res->tune_after,
                                           "seconds_tune", res->seconds_tune));
    json_object_set_new(root, "backend", json_pack("{ssss}", "isa", backend_isa(), "blas", backend_blas()));
    static const char *const stages[STAGE_COUNT] = { "q,k,v", "o", "gate,up", "down" };
    json_t *profile = json_array();
    for (int i = 0; i < STAGE_COUNT; i++) {
        const struct quant_profile *p = &res->profile[i];
        json_array_append_new(profile, json_pack("{sssfsfsfsf}", "stage", stages[i], "forward", p->forward, "statistics", p->stats,
                                                 "factor", p->factor, "solve", p->solve));
    }
    json_object_set_new(root, "profile", profile);
    json_object_update_new(root, json_pack("{soss}", "model", json_path(m->ck->path), "family", m->hp.family));
    return root;
}

/* What was asked for and has no say. */
static void tell_of_unused(const d2q_quantize_options *in, const struct quant_options *o, const struct log *log)
{
    if (!method_table[o->method].needs_calib && (in->damp >= 0 || in->sinks || (in->search && !strcmp(in->search, "hessian"))))
        log_warn(log, "method %s has no calibration text: damp and sinks change nothing, and search hessian is mse", in->method);
    if (in->tune_lr >= 0 && !o->tune)
        log_warn(log, "tune-lr changes nothing without tune");
    if (in->dac_target && o->dac == DAC_OFF)
        log_warn(log, "dac-target changes nothing without dac");
}

/* Once, before the work. */
static void tell_of_more_layers(struct model *m, const struct log *log)
{
    if (m->more_layers)
        log_warn(log, "%s: has more layers than the %lld of its configuration; they are left out", m->ck->path, (long long)m->hp.n_layer);
    m->more_layers = false;
}

int d2q_quantize(d2q_model *dm, const d2q_quantize_options *in, char **json, d2q_error *err)
{
    struct quant_options o;
    struct err e;
    struct calib c = { 0 };
    struct quant_result res = { 0 };
    struct reporter rep = { in->log, in->log_ud };
    struct log log = { api_log, &rep };
    double t0 = log_now();
    int rc = api_quant_options(in, dm->m, &o, &e) || api_histogram_check(dm->m, in->histogram, &e);
    struct work work = { .lock = -1 };
    if (!rc) {
        tell_of_more_layers(dm->m, &log);
        tell_of_unused(in, &o, &log);
    }
    rc = rc || prepare(dm->m, in, &o, &log, &work, &c, &e);
    struct tensor *floats = rc ? NULL : api_matrices(dm->m, &e); /* as they are before */
    rc = rc || !floats;
    rc = rc || quantize_resumable(dm->m, &o, method_table[o.method].needs_calib ? &c : NULL, work.dir ? &work : NULL, &log,
                                  on_tensor, &rep, &res, &e);
    json_t *root = rc ? NULL : result_json(dm->m, in, &o, &res);
    if (root)
        rc = api_histogram(floats, dm->m, in->histogram, &res, root, &e);
    mem_free(floats);
    if (root && in->work)
        json_object_set_new(root, "resumed_blocks", json_integer((json_int_t)work.done));
    work_close(&work);
    quant_result_release(&res);
    calib_release(&c);
    if (rc) {
        json_decref(root);
        return api_fail(err, &e);
    }
    api_common(root, t0);
    return api_json(root, json, err);
}

int d2q_work_remove(const char *work, d2q_error *err)
{
    struct err e;
    return work_remove(work, &e) ? api_fail(err, &e) : 0;
}

/* ---- export ------------------------------------------------------------------------------- */

/* Floats that f16 does not hold. */
static bool is_wide(const struct grid *g)
{
    return g->kind == KIND_FLOAT && g->type != DT_F16;
}

/* What the quantizer is going to make of each matrix. */
static int plan_export(const struct model *m, const struct quant_options *o, struct arena *a, struct export_plan *p, struct err *e)
{
    struct grid g;
    int64_t n = m->hp.n_layer * ROLE_COUNT;
    struct export_matrix *lin = arena_alloc(a, (size_t)n, sizeof *lin);
    if (!lin)
        return err_nomem(e, "plan", (size_t)n * sizeof *lin);
    *p = (struct export_plan){ .lin = lin, .mlp_bias = o->dac != DAC_OFF };
    for (int64_t i = 0; i < n; i++) {
        enum role r = (enum role)(i % ROLE_COUNT);
        int64_t n_in = role_cols(&m->hp, r);
        quant_grid(o, i / ROLE_COUNT, r, n_in, &g);
        lin[i] = (struct export_matrix){ g.type, grid_packed(&g, n_in) };
        p->not_f16 = is_wide(&g) ? m->layers[i / ROLE_COUNT].lin[r].w.name : p->not_f16;
    }
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "lm_head" : "model.embed_tokens";
        bool kept = quant_grid_kept(o, name, m->hp.n_embd, &g);
        p->embd_blocks |= kept && g.kind != KIND_FLOAT;
        p->not_f16 = kept && is_wide(&g) ? name : p->not_f16;
    }
    return 0;
}

int d2q_export_check(d2q_model *dm, const char *format, const d2q_quantize_options *q, const d2q_export_options *in,
                     char **json, d2q_error *err)
{
    struct err e;
    struct quant_options qo;
    struct export_options o = { .drop_corrections = in && in->drop_corrections, .as_llama = in && in->as_llama };
    struct export_plan plan;
    struct arena a;
    if (q && api_quant_options(q, dm->m, &qo, &e))
        return api_fail(err, &e);
    arena_init(&a);
    int rc = (q && plan_export(dm->m, &qo, &a, &plan, &e)) || export_check(dm->m, format, &o, q ? &plan : NULL, &e);
    json_t *list = rc || !json ? NULL : loads_list(dm->m, format, &o, q ? &plan : NULL);
    arena_release(&a);
    if (rc)
        return api_fail(err, &e);
    return json ? api_json(json_pack("{ssso}", "format", format, "loads", list), json, err) : 0;
}

/* Of the matrices as the format stores them (hf: as they are); 0: there are none. */
static double bits_per_weight(const struct model *m, const char *format)
{
    double bits = 0, n = 0;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        double k = (double)tensor_count(t);
        enum dtype type = t->type;
        if (type == DT_QMAT && !strcmp(format, "gguf")) {
            struct pack_grid g = pack_grid_of(t->q);
            type = pack_type(&g);
        }
        bits += k * (type >= DT_QMAT ? qmat_bpw(t->q) : dtype_bits(type));
        n += k;
    }
    return n > 0 ? bits / n : 0;
}

static int write_card(void *ud, const char *path, uint64_t bytes, struct err *e)
{
    struct card *c = ud;
    c->bytes = bytes;
    return card_write(c, path, e);
}

int d2q_export_target(d2q_model *dm, const char *format, const char *path, d2q_error *err)
{
    struct err e;
    return export_target(dm->m, format, path, &e) ? api_fail(err, &e) : 0;
}

int d2q_export(d2q_model *dm, const char *format, const char *path, const d2q_export_options *in, char **json, d2q_error *err)
{
    struct err e;
    struct reporter rep = { in ? in->log : NULL, in ? in->log_ud : NULL };
    struct log log = { api_log, &rep };
    struct export_options o = { .drop_corrections = in && in->drop_corrections, .as_llama = in && in->as_llama,
                                .shard_bytes = in ? in->shard_bytes : 0 };
    uint64_t bytes = 0;
    int files = 1;
    o.files = &files;
    if (!exporter_by_name(format, &e))
        return api_fail(err, &e);
    tell_of_more_layers(dm->m, &log);
    json_t *meta = in && in->meta ? json_loads(in->meta, 0, NULL) : NULL, *loads = loads_list(dm->m, format, &o, NULL), *inputs = NULL;
    const char *calib = json_string_value(json_object_get(json_object_get(meta, "options"), "calib"));
    struct card card = { dm->m, format, in ? in->command : NULL, meta, loads, NULL, bits_per_weight(dm->m, format), 0 };
    o.meta = meta;
    o.card = card.command ? write_card : NULL;
    o.card_ud = &card;
    int rc = card.command && !(card.inputs = inputs = card_inputs(dm->m, calib, &e)) ? -1 : 0;
    rc = rc || export_model(dm->m, format, path, &o, &log, &bytes, &e) ? -1 : 0;
    json_decref(meta);
    if (rc) {
        json_decref(loads);
        json_decref(inputs);
        return api_fail(err, &e);
    }
    char opens[4096];
    if (export_opens(path, files, opens, sizeof opens))
        snprintf(opens, sizeof opens, "%s", path);
    return api_json(json_pack("{sssosIsfsoso*}", "format", format, "path", json_path(opens), "bytes", (json_int_t)bytes, "bpw", card.bpw, "loads",
                              loads, "inputs", inputs), json, err);
}

int d2q_verify(const char *path, d2q_log_fn fn, void *ud, char **json, d2q_error *err)
{
    struct err e;
    struct reporter rep = { fn, ud };
    struct log log = { api_log, &rep };
    json_t *report = NULL;
    double t0 = log_now();
    if (verify_model(path, &log, &report, &e))
        return api_fail(err, &e);
    api_common(report, t0);
    return api_json(report, json, err);
}
