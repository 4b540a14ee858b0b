/* formats gptq (v2) and gptq_v1: grouped integers in the layout of formats.md 3a, the rest in fp16 (or bf16: weights_float_type).
 *
 * v1 stores zero - 1. A true zero of 0 has no place there: readers disagree on what the wrapped field means,
 * so it is refused. The classic packers need widths that are multiples of 32, so we promise no more.
 * Linears that are not of the common type are listed under "dynamic": "-:name" not quantized,
 * "+:name" other bits, group or symmetry. */
#include "export/weights.h"

#include <stdio.h>
#include <string.h>

/* ---- tensors ---------------------------------------------------------------- */

/* (n_out, row_words) -> (row_words, n_out) */
static void pack_codes(const struct tensor *t, uint32_t *out)
{
    enum { TILE = 32 };
    const struct qmat *q = t->q;
    for (int64_t i0 = 0; i0 < q->n_out; i0 += TILE)
        for (int64_t k0 = 0; k0 < q->row_words; k0 += TILE)
            for (int64_t i = i0; i < i0 + TILE && i < q->n_out; i++) {
                const uint32_t *row = q->codes + tensor_stored_row(t, i) * q->row_words;
                for (int64_t k = k0; k < k0 + TILE && k < q->row_words; k++)
                    out[k * q->n_out + i] = row[k];
            }
}

static int pack_zeros(const struct item *it, bool v1, uint32_t *out, struct err *e)
{
    const struct qmat *q = it->t->q;
    const int lo = v1 ? 1 : 0, hi = (1 << q->bits) - 1;
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t i = 0; i < q->n_out; i++) {
            int z = q->zero[tensor_stored_row(it->t, i) * q->n_groups + g];
            if (z < lo || z > hi)
                return err_set(e, ERR_UNSUPPORTED, "tensor %s: zero of output %lld, group %lld is %d, but GPTQ v%d "
                               "holds %d..%d%s", it->name, (long long)i, (long long)g, z, v1 ? 1 : 2, lo, hi,
                               v1 ? "; use format gptq (v2)" : "");
            uint32_t field = (uint32_t)(z - lo);
            int64_t bit = i * q->bits;
            uint32_t *w = out + g * it->dim[1] + (bit >> 5);
            int shift = (int)(bit & 31);
            w[0] |= field << shift;
            if (shift + q->bits > 32)
                w[1] |= field >> (32 - shift);
        }
    return 0;
}

static int pack_scales(const struct item *it, uint16_t *out, struct err *e)
{
    const struct qmat *q = it->t->q;
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t i = 0; i < q->n_out; i++) {
            uint16_t h = q->scale[tensor_stored_row(it->t, i) * q->n_groups + g];
            if ((h & 0x7c00) == 0x7c00)
                return err_set(e, ERR_NUMERIC, "tensor %s: scale of output %lld, group %lld is not finite", it->name,
                               (long long)i, (long long)g);
            out[g * q->n_out + i] = h;
        }
    return 0;
}

int gptq_pack(const struct item *it, bool v1, void *out, struct err *e)
{
    const struct qmat *q = it->t->q;
    int32_t *g_idx = out;
    switch (it->kind) {
    case ITEM_QWEIGHT:
        pack_codes(it->t, out);
        return 0;
    case ITEM_QZEROS:
        return pack_zeros(it, v1, out, e);
    case ITEM_SCALES:
        return pack_scales(it, out, e);
    default:
        for (int64_t j = 0; j < q->n_in; j++)
            g_idx[j] = q->g_idx ? q->g_idx[j] : (int32_t)(j / q->group);
        return 0;
    }
}

/* ---- configuration ------------------------------------------------------------- */

struct grid {
    int bits;
    int group; /* as quantize_config says it: -1 for all inputs, when that holds for the whole model */
    bool sym;
};

struct survey {
    struct grid common;
    bool desc_act, whole_rows;
    int64_t n_quantized;
};

static struct grid grid_of(const struct qmat *q, bool whole_rows)
{
    return (struct grid){ q->bits, whole_rows ? -1 : q->group, q->sym };
}

static bool grid_equal(struct grid a, struct grid b)
{
    return a.bits == b.bits && a.group == b.group && a.sym == b.sym;
}

static const struct tensor *linear_at(const struct model *m, int64_t i)
{
    return &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
}

/* The most frequent grid, the first one of equals. */
static void survey_model(const struct model *m, struct survey *s)
{
    struct { struct grid g; int64_t n; } seen[64];
    int n_seen = 0;
    int64_t n = m->hp.n_layer * ROLE_COUNT, best = 0;
    memset(s, 0, sizeof *s);
    s->whole_rows = true;
    for (int64_t i = 0; i < n; i++) {
        const struct qmat *q = linear_at(m, i)->q;
        if (linear_at(m, i)->type != DT_QMAT)
            continue;
        s->n_quantized++;
        s->whole_rows = s->whole_rows && q->group >= q->n_in;
        s->desc_act = s->desc_act || q->g_idx;
    }
    for (int64_t i = 0; i < n; i++) {
        if (linear_at(m, i)->type != DT_QMAT)
            continue;
        struct grid g = grid_of(linear_at(m, i)->q, s->whole_rows);
        int k = 0;
        while (k < n_seen && !grid_equal(seen[k].g, g))
            k++;
        if (k == n_seen) {
            if (n_seen == 64)
                continue;
            seen[n_seen].g = g;
            seen[n_seen++].n = 0;
        }
        seen[k].n++;
    }
    for (int k = 0; k < n_seen; k++)
        if (seen[k].n > best) {
            best = seen[k].n;
            s->common = seen[k].g;
        }
}

/* Those that differ from the common grid; NULL when memory is out. */
static json_t *dynamic_json(const struct model *m, const struct survey *s)
{
    json_t *o = json_object();
    char pattern[256];
    for (int64_t i = 0; o && i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = linear_at(m, i);
        json_t *v = NULL;
        if (t->type == DT_QMAT) {
            struct grid g = grid_of(t->q, s->whole_rows);
            if (grid_equal(g, s->common))
                continue;
            v = json_pack("{s:i, s:i, s:b}", "bits", g.bits, "group_size", g.group, "sym", (int)g.sym);
        } else {
            v = json_object();
        }
        matrix_pattern(pattern, sizeof pattern, t->type == DT_QMAT ? "+:^" : "-:^", i);
        if (json_object_set_new(o, pattern, v)) {
            json_decref(o);
            o = NULL;
        }
    }
    return o;
}

/* For readers that do not heed "dynamic" (optimum, by which transformers loads): the names of what is quantized, where not all is. */
static json_t *quantized_json(const struct model *m)
{
    json_t *list = json_array();
    char name[128];
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        matrix_name(name, sizeof name, i, "");
        if (linear_at(m, i)->type == DT_QMAT)
            json_array_append_new(list, json_string(name));
    }
    return json_pack("[o]", list);
}

static json_t *meta_json(const json_t *given)
{
    json_t *meta = given ? json_deep_copy(given) : json_object();
    json_t *who = json_pack("[s]", "d2quant:" D2Q_VERSION);
    if (json_object_set_new(meta, "quantizer", who) || json_object_set_new(meta, "static_groups", json_true())) {
        json_decref(meta);
        return NULL;
    }
    return meta;
}

static json_t *quantize_config(const struct model *m, const struct survey *s, const struct export_options *o)
{
    const char *format = o->gptq_v1 ? "gptq" : "gptq_v2";
    json_t *dynamic = dynamic_json(m, s), *meta = meta_json(o->meta);
    json_t *q = json_pack("{s:i, s:i, s:b, s:b, s:b, s:s, s:s, s:s, s:s}", "bits", s->common.bits, "group_size",
                          s->common.group, "desc_act", (int)s->desc_act, "sym", (int)s->common.sym, "lm_head", 0,
                          "quant_method", "gptq", "checkpoint_format", format, "format", format, "pack_dtype", "int32");
    int rc = !q || !dynamic || !meta;
    if (!rc && json_object_size(dynamic))
        rc = json_object_set(q, "dynamic", dynamic);
    if (!rc && s->n_quantized < m->hp.n_layer * ROLE_COUNT)
        rc = json_object_set_new(q, "modules_in_block_to_quantize", quantized_json(m));
    rc = rc || json_object_set(q, "meta", meta);
    json_decref(dynamic);
    json_decref(meta);
    if (rc) {
        json_decref(q);
        return NULL;
    }
    return q;
}

/* ---- the exporter ---------------------------------------------------------------- */

int gptq_carries(const struct model *m, const struct export_options *o, const struct export_plan *p, struct err *e)
{
    int64_t n_quantized = 0;
    if (export_needs_f16("gptq", p, e))
        return -1;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = linear_at(m, i);
        enum dtype type = p && p->lin ? p->lin[i].type : t->type;
        if (type != DT_QMAT && dtype_table[type].block_len > 1)
            return err_set(e, ERR_UNSUPPORTED, "tensor %s: %s is a type of GGUF, format gptq holds grouped integers (--grid asym, "
                           "sym, signfree or portable)", t->name, dtype_table[type].name);
        if (type != DT_QMAT)
            continue;
        n_quantized++;
        if (t->dim[0] % 32 || t->dim[1] % 32)
            return err_set(e, ERR_UNSUPPORTED, "tensor %s: shape is %lld x %lld, but GPTQ needs multiples of 32",
                           t->name, (long long)t->dim[0], (long long)t->dim[1]);
    }
    if (!n_quantized)
        return err_set(e, ERR_UNSUPPORTED, "format gptq: the model has no quantized matrix (format hf writes float)");
    struct export_biases b;
    json_t *config = export_config(m, "float16", o, p, &b, e);
    json_decref(config);
    return config ? 0 : -1;
}

int gptq_write(const struct model *m, const char *dir, const struct export_options *o, const struct log *log,
               struct err *e)
{
    struct weights w = { .dtype = weights_float_type(m), .integers = INTEGERS_GPTQ, .v1 = o->gptq_v1 };
    struct survey s;
    survey_model(m, &s);
    json_t *config = export_config(m, w.dtype == ST_BF16 ? "bfloat16" : "float16", o, NULL, &w.biases, e);
    json_t *quant = config ? quantize_config(m, &s, o) : NULL;
    int rc = 0;
    if (!config)
        rc = -1;
    else if (!quant || json_object_set(config, "quantization_config", quant))
        rc = err_nomem(e, "quantize_config.json", 4096);
    rc = rc || json_write(dir, "config.json", config, e) || json_write(dir, "quantize_config.json", quant, e) ||
         weights_plan(&w, m, o->shard_bytes, e) || weights_write(&w, dir, log, e) ||
         weights_verify(&w, dir, log, e) ? -1 : 0;
    json_decref(config);
    json_decref(quant);
    weights_release(&w);
    return rc;
}

int gptq_v1_carries(const struct model *m, const struct export_options *o, const struct export_plan *p,
                    struct err *e)
{
    for (int64_t i = 0; p && p->lin && i < m->hp.n_layer * ROLE_COUNT; i++)
        if (p->lin[i].type == DT_QMAT && !p->lin[i].grid.zmin)
            return err_set(e, ERR_USAGE, "tensor %s: zero points from 0 on, which format gptq_v1 cannot store: expected zero_min 1, or format gptq",
                           linear_at(m, i)->name);
    return gptq_carries(m, o, p, e);
}

int gptq_v1_write(const struct model *m, const char *dir, const struct export_options *o, const struct log *log,
                  struct err *e)
{
    struct export_options v1 = *o;
    v1.gptq_v1 = true;
    return gptq_write(m, dir, &v1, log, e);
}
