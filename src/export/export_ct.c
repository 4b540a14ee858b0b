/* format ct: grouped integers as compressed-tensors stores them (pack-quantized, formats.md 3a), the rest in fp16.
 *
 * The same codes, scales and zeros as the GPTQ formats, rows instead of columns: a code is the signed value + 2^(bits-1), which
 * for zero point 2^(bits-1) is our code. Matrices of one grid form a config group; when there is only one, its target is every
 * Linear. compressed-tensors itself refuses groups that do not divide the width. */
#include "export/weights.h"

#include <stdio.h>
#include <string.h>

#include "tensor/half.h"

static const struct tensor *linear_at(const struct model *m, int64_t i)
{
    return &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
}

/* ---- tensors ------------------------------------------------------------------------ */

static int pack_zeros(const struct item *it, uint32_t *out, struct err *e)
{
    const struct qmat *q = it->t->q;
    for (int64_t i = 0; i < q->n_out; i++)
        for (int64_t g = 0; g < q->n_groups; g++) {
            uint32_t z = q->zero[tensor_stored_row(it->t, i) * q->n_groups + g];
            int64_t word = i * q->bits >> 5;
            int shift = (int)(i * q->bits & 31);
            if (z >> q->bits)
                return err_set(e, ERR_UNSUPPORTED, "tensor %s: zero of output %lld, group %lld is %u, which %d bits do not hold",
                               it->name, (long long)i, (long long)g, z, q->bits);
            out[word * q->n_groups + g] |= z << shift;
            if (shift + q->bits > 32)
                out[(word + 1) * q->n_groups + g] |= z >> (32 - shift);
        }
    return 0;
}

int ct_pack(const struct item *it, void *out, struct err *e)
{
    const struct qmat *q = it->t->q;
    uint16_t *scale = out;
    switch (it->kind) {
    case ITEM_CT_PACKED:
        for (int64_t i = 0; i < q->n_out; i++)
            memcpy((uint32_t *)out + i * q->row_words, q->codes + tensor_stored_row(it->t, i) * q->row_words, (size_t)q->row_words * 4);
        return 0;
    case ITEM_CT_SCALE:
        for (int64_t i = 0; i < q->n_out; i++, scale += q->n_groups) {
            memcpy(scale, q->scale + tensor_stored_row(it->t, i) * q->n_groups, (size_t)q->n_groups * 2);
            for (int64_t g = 0; g < q->n_groups; g++)
                if ((scale[g] & 0x7c00) == 0x7c00)
                    return err_set(e, ERR_NUMERIC, "tensor %s: scale of output %lld, group %lld is not finite", it->name,
                                   (long long)i, (long long)g);
        }
        return 0;
    case ITEM_CT_ZERO:
        return pack_zeros(it, out, e);
    case ITEM_CT_G_IDX:
        memcpy(out, q->g_idx, (size_t)q->n_in * 4);
        return 0;
    default:
        memcpy(out, (const int64_t[2]){ q->n_out, q->n_in }, 16);
        return 0;
    }
}

/* ---- configuration --------------------------------------------------------------------- */

struct scheme {
    int bits;
    int64_t group; /* 0: one group a row ("channel") */
    bool sym, act_order;
};

static struct scheme scheme_of(const struct qmat *q)
{
    return (struct scheme){ q->bits, q->group >= q->n_in ? 0 : q->group, q->sym, q->g_idx != NULL };
}

static bool scheme_equal(struct scheme a, struct scheme b)
{
    return a.bits == b.bits && a.group == b.group && a.sym == b.sym && a.act_order == b.act_order;
}

static json_t *group_json(struct scheme s)
{
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:b, s:s}", "num_bits", s.bits, "type", "int", "symmetric", (int)s.sym,
                                "strategy", s.group ? "group" : "channel", "dynamic", 0, "observer", "minmax");
    json_object_set_new(weights, "group_size", s.group ? json_integer((json_int_t)s.group) : json_null());
    json_object_set_new(weights, "actorder", s.act_order ? json_string("group") : json_null());
    return json_pack("{s:[], s:o, s:n, s:n, s:s}", "targets", "weights", weights, "input_activations", "output_activations",
                     "format", "pack-quantized");
}

/* The config group of scheme s, made when there is none yet; NULL: out of memory. */
static json_t *find_group(json_t *groups, struct scheme *seen, size_t *n, size_t max, struct scheme s)
{
    char name[32];
    size_t k = 0;
    while (k < *n && !scheme_equal(seen[k], s))
        k++;
    snprintf(name, sizeof name, "group_%zu", k);
    if (k == *n) {
        if (*n == max || json_object_set_new(groups, name, group_json(s)))
            return NULL;
        seen[(*n)++] = s;
    }
    return json_object_get(groups, name);
}

static json_t *quant_config(const struct model *m, const struct export_options *o)
{
    enum { MAX = 64 };
    struct scheme seen[MAX];
    size_t n = 0;
    json_t *groups = json_object(), *ignore = json_pack("[s]", "lm_head");
    bool all = true;
    char pattern[256];
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = linear_at(m, i);
        json_t *list = ignore;
        matrix_pattern(pattern, sizeof pattern, "re:", i);
        if (t->type == DT_QMAT) {
            json_t *g = find_group(groups, seen, &n, MAX, scheme_of(t->q));
            list = json_object_get(g, "targets");
        } else {
            all = false;
        }
        json_array_append_new(list, json_string(pattern));
    }
    if (n == 1 && all) { /* the usual spelling, which every reader knows */
        json_t *targets = json_object_get(json_object_get(groups, "group_0"), "targets");
        json_array_clear(targets);
        json_array_append_new(targets, json_string("Linear"));
    }
    json_t *q = json_pack("{s:s, s:s, s:s, s:o, s:o, s:n, s:n}", "quant_method", "compressed-tensors", "format", "pack-quantized",
                          "quantization_status", "compressed", "config_groups", groups, "ignore", ignore, "kv_cache_scheme",
                          "global_compression_ratio");
    if (q && o->meta)
        json_object_set(q, "d2quant", (json_t *)(uintptr_t)o->meta);
    return q;
}

/* ---- the exporter -------------------------------------------------------------------------- */

static struct pack_grid grid_of(const struct qmat *q)
{
    int mid = 1 << (q->bits - 1);
    return (struct pack_grid){ q->bits, q->group, q->sym ? mid : 0, q->sym ? mid : 2 * mid - 1, false, q->n_in };
}

/* Zero points below 4 bits: the layout has a place for them, but vLLM reads them at 4 and 8 bits only and transformers (5.23 with
 * compressed-tensors 0.20) at none, so such a folder would load nowhere. */
static int check_matrix(const struct tensor *t, enum dtype type, const struct pack_grid *g, struct err *e)
{
    int64_t n_in = t->dim[1], group = g->group;
    if (type == DT_QMAT && g->zmin != g->zmax && g->bits < 4)
        return err_set(e, ERR_UNSUPPORTED, "tensor %s: zero points at %d bits: no reader of compressed-tensors folders takes them "
                       "below 4 bits; use --grid sym or portable", t->name, g->bits);
    if (type != DT_QMAT && dtype_table[type].block_len > 1)
        return err_set(e, ERR_UNSUPPORTED, "tensor %s: %s is a type of GGUF, format ct holds grouped integers (--grid sym, asym, "
                       "signfree or portable)", t->name, dtype_table[type].name);
    if (type == DT_QMAT && ((group < n_in && n_in % group) || n_in < 32))
        return err_set(e, ERR_UNSUPPORTED, "tensor %s: groups of %lld do not divide its %lld inputs, which compressed-tensors "
                       "requires: choose another --group", t->name, (long long)group, (long long)n_in);
    return 0;
}

int ct_carries(const struct model *m, const struct export_options *o, const struct export_plan *p, struct err *e)
{
    int64_t n = 0;
    struct export_biases b;
    if (export_needs_f16("ct", p, e))
        return -1;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = linear_at(m, i);
        enum dtype type = p && p->lin ? p->lin[i].type : t->type;
        struct pack_grid g = { 0 };
        if (type == DT_QMAT)
            g = p && p->lin ? p->lin[i].grid : grid_of(t->q);
        if (check_matrix(t, type, &g, e))
            return -1;
        n += type == DT_QMAT;
    }
    if (!n)
        return err_set(e, ERR_UNSUPPORTED, "format ct: the model has no quantized matrix (format hf writes float)");
    json_t *config = export_config(m, "float16", o, p, &b, e);
    json_decref(config);
    return config ? 0 : -1;
}

int ct_write(const struct model *m, const char *dir, const struct export_options *o, const struct log *log, struct err *e)
{
    struct weights w = { .dtype = weights_float_type(m), .integers = INTEGERS_CT };
    json_t *config = export_config(m, w.dtype == ST_BF16 ? "bfloat16" : "float16", o, NULL, &w.biases, e);
    int rc = config ? 0 : -1;
    if (!rc && json_object_set_new(config, "quantization_config", quant_config(m, o)))
        rc = err_nomem(e, "config.json", 4096);
    rc = rc || json_write(dir, "config.json", config, e) || weights_plan(&w, m, o->shard_bytes, e) ||
         weights_write(&w, dir, log, e) || weights_verify(&w, dir, log, e) ? -1 : 0;
    json_decref(config);
    weights_release(&w);
    return rc;
}
