/* gguf_meta: the metadata of a GGUF file. <arch>.* is made from the model's shape, always; general.* and tokenizer.* are
 * copied from a GGUF source, made for a Hugging Face folder. Nothing that differs from run to run. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "export/gguf_out.h"
#include "model/config.h"

struct meta {
    const struct gguf_out *g;
    struct gguf_writer *w;
    struct err *e;
};

static int put_text(struct meta *m, const char *key, const char *s)
{
    return gguf_put_string(m->w, key, s, strlen(s), m->e);
}

/* "<arch>.<suffix>" */
static const char *arch_key(const struct meta *m, const char *suffix, char *buf, size_t n)
{
    snprintf(buf, n, "%s.%s", m->g->family->gguf_arch, suffix);
    return buf;
}

static int put_int(struct meta *m, const char *suffix, int64_t v)
{
    char key[96];
    return gguf_put_int(m->w, arch_key(m, suffix, key, sizeof key), GGUF_U32, v, m->e);
}

static int put_float(struct meta *m, const char *suffix, double v)
{
    char key[96];
    return gguf_put_float(m->w, arch_key(m, suffix, key, sizeof key), v, m->e);
}

/* Of most weights. */
static enum dtype main_type(const struct gguf_out *g)
{
    int64_t count[DT_QMAT] = { 0 };
    int best = 0;
    for (size_t i = 0; i < g->n; i++)
        if (g->items[i].t && strncmp(g->items[i].name, "blk.", 4) == 0)
            count[g->items[i].type] += g->items[i].rows * g->items[i].cols;
    for (int i = 1; i < DT_QMAT; i++)
        if (count[i] > count[best])
            best = i;
    return (enum dtype)best;
}

/* ---- general.* ------------------------------------------------------------------------ */

/* Keys of the source that are copied as they are. */
static bool is_copied(const char *key)
{
    static const char *const own[] = { "general.architecture", "general.file_type", "general.quantization_version",
                                       "general.quantized_by", "general.alignment" };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(key, own[i]))
            return false;
    return !strncmp(key, "general.", 8);
}

static int put_name(struct meta *m)
{
    const struct model *model = m->g->m;
    const char *name = json_string_value(json_object_get(model->config, "_name_or_path"));
    json_t *text = json_path(name && *name ? file_name(name) : model->ck->name); /* a path may be any bytes */
    int rc = !text ? err_nomem(m->e, "general.name", 0)
                   : put_text(m, "general.type", "model") || put_text(m, "general.name", json_string_value(text)) ? -1 : 0;
    json_decref(text);
    return rc;
}

static int put_general(struct meta *m)
{
    const struct gguf_out *g = m->g;
    const struct checkpoint *ck = g->m->ck;
    if (put_text(m, "general.architecture", g->family->gguf_arch))
        return -1;
    if (ck->container == CONTAINER_GGUF) {
        for (uint64_t i = 0; i < ck->gguf.n_kv; i++)
            if (is_copied(ck->gguf.kv[i].key) && gguf_put_kv(m->w, &ck->gguf.kv[i], m->e))
                return -1;
    } else if (put_name(m)) {
        return -1;
    }
    int ftype = dtype_table[main_type(g)].ftype;
    if (gguf_put_int(m->w, "general.file_type", GGUF_U32, ftype, m->e) ||
        gguf_put_int(m->w, "general.quantization_version", GGUF_U32, 2, m->e) ||
        put_text(m, "general.quantized_by", "d2quant " D2Q_VERSION))
        return -1;
    char *text = g->o->meta ? json_dumps(g->o->meta, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(10)) : NULL;
    int rc = text ? put_text(m, "d2quant.recipe", text) : 0;
    free(text); /* from jansson */
    return rc;
}

/* ---- <arch>.* ---------------------------------------------------------------------------- */

/* "linear" has keys, "llama3" a tensor. */
static int put_scaling(struct meta *m)
{
    const json_t *rope = config_rope(m->g->m->config);
    const char *type = "default";
    double factor = 1;
    char key[96];
    if (!rope)
        return 0;
    if (config_string(rope, config_get(rope, "rope_type") ? "rope_type" : "type", &type, m->e) ||
        config_double(rope, "factor", &factor, m->e))
        return -1;
    if (strcmp(type, "linear"))
        return 0;
    return put_text(m, arch_key(m, "rope.scaling.type", key, sizeof key), "linear") ||
           put_float(m, "rope.scaling.factor", factor) ? -1 : 0;
}

static int put_arch(struct meta *m)
{
    const struct gguf_out *g = m->g;
    const struct hparams *hp = &g->m->hp;
    return put_int(m, "vocab_size", hp->n_vocab) || put_int(m, "context_length", g->n_ctx) ||
           put_int(m, "embedding_length", hp->n_embd) || put_int(m, "block_count", hp->n_layer) ||
           put_int(m, "feed_forward_length", hp->n_ff) || put_int(m, "attention.head_count", hp->n_head) ||
           put_int(m, "attention.head_count_kv", hp->n_head_kv) || put_int(m, "attention.key_length", hp->head_dim) ||
           put_int(m, "attention.value_length", hp->head_dim) || put_int(m, "rope.dimension_count", hp->head_dim) ||
           put_float(m, "attention.layer_norm_rms_epsilon", (double)hp->rms_eps) ||
           put_float(m, "rope.freq_base", hp->rope_base) || put_scaling(m) ? -1 : 0;
}

int gguf_put_meta(const struct gguf_out *g, struct gguf_writer *w, const struct log *log, struct err *e)
{
    struct meta m = { g, w, e };
    if (put_general(&m) || put_arch(&m))
        return -1;
    if (g->m->tok)
        return tokenizer_write_gguf(g->m->tok, g->m->ck, g->m->hp.n_vocab, w, log, e);
    log_warn(log, "the model has no tokenizer, so none is written: llama.cpp will not load this file");
    return 0;
}

#define PER_TENSOR 200   /* a name twice, shape, offset, checksum, padding; its type in the recipe */
#define RECIPE_BYTES 2048 /* the other options */

int gguf_side_bytes(const struct model *m, uint64_t *bytes, struct err *e)
{
    const struct export_options o = { 0 };
    const struct gguf_out g = { .m = m, .o = &o, .family = family_by_name(m->hp.family), .n_ctx = m->hp.n_ctx };
    struct gguf_writer w;
    uint64_t n = 4; /* embeddings, head, norm, rope's factors */
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        n += 2 + (m->hp.qk_norm ? 2 : 0) + ROLE_COUNT;
        for (int r = 0; r < ROLE_COUNT; r++)
            n += m->layers[i].lin[r].b || r == ROLE_GATE || r == ROLE_UP; /* DAC may give these two biases */
    }
    gguf_writer_init(&w);
    int rc = gguf_put_meta(&g, &w, NULL, e);
    *bytes = gguf_writer_bytes(&w) + n * PER_TENSOR + RECIPE_BYTES;
    gguf_writer_release(&w);
    return rc;
}

/* ---- rope_freqs.weight ------------------------------------------------------------------------ */

/* plain / factor = scaled in float, if some float does that; else the nearest. */
static float factor_for(float plain, float scaled)
{
    float f = plain / scaled;
    for (int step = -2; step <= 2; step++) {
        uint32_t u;
        float near;
        memcpy(&u, &f, sizeof u);
        u = (uint32_t)((int64_t)u + step);
        memcpy(&near, &u, sizeof near);
        if (plain / near == scaled)
            return near;
    }
    return f;
}

int gguf_rope_factors(const struct model *m, float *factor, struct err *e)
{
    const json_t *rope = config_rope(m->config);
    const char *type = "default";
    int64_t n = m->hp.head_dim / 2;
    float scale;
    struct tensor t;
    if (m->ck->container == CONTAINER_GGUF) { /* as the file has it */
        int found = checkpoint_tensor(m->ck, "rope_freqs.weight", &t, e);
        if (found > 0)
            tensor_to_f32(&t, factor);
        return found;
    }
    if (!rope)
        return 0;
    if (config_string(rope, config_get(rope, "rope_type") ? "rope_type" : "type", &type, e))
        return -1;
    if (strcmp(type, "llama3"))
        return 0;
    json_t *none = json_object();
    float *plain = mem_alloc((size_t)n, sizeof *plain);
    int rc = !none || !plain ? err_nomem(e, "rope_freqs.weight", (size_t)n * sizeof *plain)
                             : rope_inv_freq(none, &m->hp, plain, &scale, e);
    for (int64_t i = 0; i < n && !rc; i++)
        factor[i] = factor_for(plain[i], m->inv_freq[i]);
    mem_free(plain);
    json_decref(none);
    return rc ? -1 : 1;
}
