/* api_mix: types for a given size. */
#include <string.h>

#include "api/api.h"
#include "quant/mix.h"
#include "run/session.h"

static int sample(struct model *m, const d2q_quantize_options *in, const struct log *log, struct calib *c, struct err *e)
{
    int64_t n = in->nsamples < MIX_SEQUENCES ? in->nsamples : MIX_SEQUENCES, len = in->seqlen < MIX_TOKENS ? in->seqlen : MIX_TOKENS;
    if (!api_only_self(in))
        return calib_from_file(c, m, in->calib, n, len, in->seed, e);
    struct token_list ids = { 0 };
    int rc = session_generate_text(m, n, len, in->seed, 0, log, &ids, e) ||
             calib_from_tokens(c, ids.ids, (int64_t)ids.n, n, len, in->seed, e) ? -1 : 0;
    mem_free(ids.ids);
    return rc;
}

/* What the matrices may take. */
static int budget(const struct model *m, const struct quant_options *o, uint64_t bytes, double bpw, struct mix_target *t,
                  struct err *e)
{
    struct quant_plan p;
    double weights = 0;
    uint64_t rest;
    quant_plan(m, o, 1, 1, &p);
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++)
        weights += (double)tensor_count(&m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w);
    if (!bytes) {
        *t = (struct mix_target){ .bytes = (uint64_t)(bpw * weights / 8) };
        return 0;
    }
    if (gguf_side_bytes(m, &rest, e))
        return -1;
    rest += p.vector_bytes;
    if (bytes <= rest)
        return err_set(e, ERR_USAGE, "target: norms, biases and vocabulary alone take %llu bytes, the file may take %llu",
                       (unsigned long long)rest, (unsigned long long)bytes);
    *t = (struct mix_target){ .bytes = bytes - rest, .tables = true };
    return 0;
}

int d2q_choose_types(d2q_model *dm, const d2q_quantize_options *in, uint64_t bytes, double bpw, char **json, d2q_error *err)
{
    struct reporter rep = { in->log, in->log_ud };
    struct log log = { api_log, &rep };
    struct quant_options o;
    struct mix_target t;
    struct calib c = { 0 };
    struct err e;
    uint64_t used = 0;
    double t0 = log_now(), loss = 0;
    int rc = api_quant_options(in, dm->m, &o, &e) || budget(dm->m, &o, bytes, bpw, &t, &e) || quant_check_weights(dm->m, &e) ||
             sample(dm->m, in, &log, &c, &e) || quant_mix(dm->m, &o, &c, &t, &log, &used, &loss, &e);
    calib_release(&c);
    if (rc)
        return api_fail(err, &e);
    json_t *root = json_pack("{sIsf}", "bytes", (json_int_t)used, "loss", loss), *keep = json_array();
    for (int i = 0; i < o.n_keep; i++)
        json_array_append_new(keep, json_sprintf("%s=%s", o.keep[i].pattern, grid_table[o.keep[i].grid].name));
    json_object_set_new(root, "keep", keep);
    api_common(root, t0);
    return api_json(root, json, err);
}
