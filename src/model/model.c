/* model: opening a checkpoint as one of the families.
 *
 * Matrices stay views into the mapping; norm gains and biases, a few KB a layer, become float32 in the
 * model's arena. Every shape is checked against the hparams here, so nothing after this
 * looks at shapes again. */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config.h"
#include "model/family.h"

const char *const role_hf_name[ROLE_COUNT] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
};
const char *const role_gguf_name[ROLE_COUNT] = {
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
};

void matrix_name(char *out, size_t cap, int64_t i, const char *suffix)
{
    snprintf(out, cap, "model.layers.%lld.%s%s", (long long)(i / ROLE_COUNT), role_hf_name[i % ROLE_COUNT], suffix);
}

int64_t role_rows(const struct hparams *hp, enum role r)
{
    switch (r) {
    case ROLE_Q: return hp->n_head * hp->head_dim;
    case ROLE_K:
    case ROLE_V: return hp->n_head_kv * hp->head_dim;
    case ROLE_GATE:
    case ROLE_UP: return hp->n_ff;
    default: return hp->n_embd;
    }
}

int64_t role_cols(const struct hparams *hp, enum role r)
{
    return r == ROLE_O ? hp->n_head * hp->head_dim : r == ROLE_DOWN ? hp->n_ff : hp->n_embd;
}

struct loader {
    struct model *m;
    const struct family *f;
    bool gguf;
    struct err *e;
};

/* "model.layers.3.<hf>" or "blk.3.<gguf>", kept in the arena: tensors carry it as their name. */
static const char *layer_name(struct loader *l, int64_t layer, const char *hf, const char *gguf,
                              const char *suffix)
{
    struct arena *a = &l->m->arena;
    char *s = l->gguf ? arena_printf(a, "blk.%lld.%s%s", (long long)layer, gguf, suffix)
                      : arena_printf(a, "model.layers.%lld.%s%s", (long long)layer, hf, suffix);
    if (!s)
        err_nomem(l->e, "tensor names", 64);
    return s;
}

static int load_matrix(struct loader *l, const char *name, int64_t rows, int64_t cols, struct tensor *t)
{
    int found = checkpoint_tensor(l->m->ck, name, t, l->e);
    if (found < 0)
        return -1;
    if (!found)
        return err_set(l->e, ERR_FORMAT, "tensor %s [%lld, %lld] is missing", name, (long long)rows,
                       (long long)cols);
    return tensor_expect(t, rows, cols, l->e);
}

/* A vector as float32 in the arena; 0 and *v = NULL when it is absent and that is allowed. perm: head_dim
 * of a row permutation to undo, or 0. */
static int load_vector(struct loader *l, const char *name, int64_t n, bool optional, int64_t perm,
                       const float **v)
{
    struct tensor t;
    *v = NULL;
    if (!name)
        return -1;
    int found = checkpoint_tensor(l->m->ck, name, &t, l->e);
    if (found <= 0)
        return found < 0 ? -1 : optional ? 0
                         : err_set(l->e, ERR_FORMAT, "tensor %s [%lld] is missing", name, (long long)n);
    if (tensor_expect(&t, n, -1, l->e))
        return -1;
    float *f = arena_alloc(&l->m->arena, (size_t)n, sizeof *f);
    if (!f)
        return err_nomem(l->e, name, (size_t)n * sizeof *f);
    tensor_to_f32(&t, f);
    if (perm) {
        float *p = arena_alloc(&l->m->arena, (size_t)n, sizeof *p);
        if (!p)
            return err_nomem(l->e, name, (size_t)n * sizeof *p);
        struct tensor rows = tensor_f32(name, f, n, 1);
        rows.perm_dim = perm;
        tensor_rows_f32(&rows, 0, n, p);
        f = p;
    }
    *v = f;
    return 0;
}

/* A GPTQ or compressed-tensors folder keeps codes where a float one keeps <prefix>.weight. 1: it was one. */
static int load_integers(struct loader *l, const char *prefix, int64_t rows, int64_t cols, struct tensor *t)
{
    struct qmat *q = arena_zalloc(&l->m->arena, 1, sizeof *q);
    if (!q)
        return err_nomem(l->e, prefix, sizeof *q);
    int found = checkpoint_gptq(l->m->ck, prefix, rows, cols, &l->m->arena, q, l->e);
    if (!found)
        found = checkpoint_ct(l->m->ck, prefix, rows, cols, &l->m->arena, q, l->e);
    if (found <= 0)
        return found;
    *t = (struct tensor){ .name = prefix, .type = DT_QMAT, .n_dims = 2, .dim = { rows, cols, 1, 1 }, .q = q };
    return 1;
}

/* Which biases there must be; a GGUF file has those that it has. */
static bool wants_bias(const struct hparams *hp, enum role r)
{
    return r == ROLE_O ? hp->o_bias : r <= ROLE_V ? hp->qkv_bias : hp->mlp_bias;
}

static int load_linear(struct loader *l, int64_t layer, enum role r, struct linear *lin)
{
    struct hparams *hp = &l->m->hp;
    int64_t rows = role_rows(hp, r), cols = role_cols(hp, r);
    const char *hf = role_hf_name[r], *gguf = role_gguf_name[r];
    int64_t perm = l->gguf && l->f->gguf_perm && (r == ROLE_Q || r == ROLE_K) ? hp->head_dim : 0;
    const char *name = layer_name(l, layer, hf, gguf, "");
    if (!name)
        return -1;
    int quantized = l->gguf ? 0 : load_integers(l, name, rows, cols, &lin->w);
    if (quantized < 0)
        return -1;
    if (!quantized) {
        name = layer_name(l, layer, hf, gguf, ".weight");
        if (!name || load_matrix(l, name, rows, cols, &lin->w))
            return -1;
        lin->w.perm_dim = perm;
    }
    if (!l->gguf && !wants_bias(hp, r))
        return 0; /* as transformers: a bias that config does not announce is not read */
    return load_vector(l, layer_name(l, layer, hf, gguf, ".bias"), rows, l->gguf, perm, &lin->b);
}

static int load_layer(struct loader *l, int64_t i, struct layer *out)
{
    const struct hparams *hp = &l->m->hp;
    if (load_vector(l, layer_name(l, i, "input_layernorm", "attn_norm", ".weight"), hp->n_embd, false, 0,
                    &out->attn_norm) ||
        load_vector(l, layer_name(l, i, "post_attention_layernorm", "ffn_norm", ".weight"), hp->n_embd, false,
                    0, &out->ffn_norm))
        return -1;
    if (hp->qk_norm &&
        (load_vector(l, layer_name(l, i, "self_attn.q_norm", "attn_q_norm", ".weight"), hp->head_dim, false,
                     0, &out->q_norm) ||
         load_vector(l, layer_name(l, i, "self_attn.k_norm", "attn_k_norm", ".weight"), hp->head_dim, false,
                     0, &out->k_norm)))
        return -1;
    for (int r = 0; r < ROLE_COUNT; r++)
        if (load_linear(l, i, (enum role)r, &out->lin[r]))
            return -1;
    return 0;
}

/* What llama.cpp would apply and we do not: refused, not ignored. */
static int refuse_norms(struct loader *l)
{
    const struct checkpoint *ck = l->m->ck;
    for (uint64_t i = 0; l->gguf && i < ck->gguf.n_tensors; i++) {
        const char *n = ck->gguf.tensors[i].name;
        if (!l->m->hp.qk_norm && (strstr(n, "attn_q_norm") || strstr(n, "attn_k_norm")))
            return err_set(l->e, ERR_UNSUPPORTED, "tensor %s is not supported in architecture %s", n,
                           l->f->gguf_arch);
        if (strstr(n, "attn_qkv") || strstr(n, "_exps") || strstr(n, "post_attention_norm"))
            return err_set(l->e, ERR_UNSUPPORTED, "tensor %s is not supported", n);
    }
    return 0;
}

static int look_beyond(struct loader *l)
{
    struct tensor t;
    const char *name = layer_name(l, l->m->hp.n_layer, "input_layernorm", "attn_norm", ".weight");
    int found = name ? checkpoint_tensor(l->m->ck, name, &t, l->e) : -1;
    l->m->more_layers = found > 0;
    return found < 0 ? -1 : 0;
}

static size_t slot_count(const struct model *m)
{
    return (size_t)(m->hp.n_layer * ROLE_COUNT + 1);
}

static int load_tensors(struct loader *l)
{
    struct model *m = l->m;
    struct hparams *hp = &m->hp;
    if (refuse_norms(l) ||
        load_matrix(l, l->gguf ? "token_embd.weight" : "model.embed_tokens.weight", hp->n_vocab, hp->n_embd,
                    &m->tok_embd) ||
        load_vector(l, l->gguf ? "output_norm.weight" : "model.norm.weight", hp->n_embd, false, 0,
                    &m->out_norm))
        return -1;
    m->lm_head = m->tok_embd;
    if (!hp->tied && load_matrix(l, l->gguf ? "output.weight" : "lm_head.weight", hp->n_vocab, hp->n_embd,
                                 &m->lm_head))
        return -1;
    m->layers = arena_zalloc(&m->arena, (size_t)hp->n_layer, sizeof *m->layers);
    m->slots = arena_zalloc(&m->arena, slot_count(m), sizeof *m->slots);
    if (!m->layers || !m->slots)
        return err_nomem(l->e, "layers", (size_t)hp->n_layer * sizeof *m->layers);
    for (int64_t i = 0; i < hp->n_layer; i++) {
        if (load_layer(l, i, &m->layers[i]))
            return -1;
        for (int r = 0; r < ROLE_COUNT; r++) {
            struct linear *lin = &m->layers[i].lin[r];
            lin->slot = &m->slots[i * ROLE_COUNT + r];
            lin->slot->of = lin->w.data;
        }
    }
    if (look_beyond(l))
        return -1;
    m->slots[hp->n_layer * ROLE_COUNT].of = m->lm_head.data;
    if (l->gguf) { /* flags say what is there, whatever the family's rule */
        hp->qkv_bias = hp->o_bias = hp->mlp_bias = false;
        for (int64_t i = 0; i < hp->n_layer; i++)
            for (int r = 0; r < ROLE_COUNT; r++)
                if (m->layers[i].lin[r].b)
                    *(r == ROLE_O ? &hp->o_bias : r <= ROLE_V ? &hp->qkv_bias : &hp->mlp_bias) = true;
    }
    return 0;
}

/* rope_freqs.weight divides the plain frequencies; gguf_config has turned it into the llama3 rule that
 * gives the same, so here it only replaces our recomputation by the file's own rounding. */
static int load_rope(struct loader *l)
{
    struct model *m = l->m;
    int64_t n = m->hp.head_dim / 2;
    float *freq = arena_alloc(&m->arena, (size_t)n, sizeof *freq);
    if (!freq)
        return err_nomem(l->e, "rope frequencies", (size_t)n * sizeof *freq);
    m->inv_freq = freq;
    const float *factor = NULL;
    if (l->gguf && load_vector(l, "rope_freqs.weight", n, true, 0, &factor))
        return -1;
    if (!factor)
        return rope_inv_freq(m->config, &m->hp, freq, &m->rope_attn_scale, l->e);
    json_t *plain = json_copy(m->config);
    if (!plain)
        return err_nomem(l->e, "config", 0);
    json_object_del(plain, "rope_scaling");
    int rc = rope_inv_freq(plain, &m->hp, freq, &m->rope_attn_scale, l->e);
    json_decref(plain);
    for (int64_t i = 0; i < n; i++)
        freq[i] /= factor[i];
    return rc;
}

static int load_tokenizer(struct loader *l)
{
    const struct checkpoint *ck = l->m->ck;
    if (l->gguf ? !gguf_find(&ck->gguf, "tokenizer.ggml.model") : false)
        return 0;
    if (!l->gguf) {
        char *path = arena_printf(&l->m->arena, "%s/tokenizer.json", ck->path);
        if (!path)
            return err_nomem(l->e, "path", 0);
        if (!file_exists(path))
            return 0;
    }
    return tokenizer_load(&l->m->tok, ck, l->e);
}

static int read_config(struct loader *l)
{
    struct model *m = l->m;
    if (l->gguf) {
        if (gguf_config(&m->ck->gguf, &m->config, l->e))
            return -1;
    } else {
        m->config = json_incref(m->ck->config);
    }
    const json_t *quant = config_get(m->config, "quantization_config");
    const char *method = "none";
    if (quant && config_string(quant, "quant_method", &method, l->e))
        return -1;
    if (quant && strcmp(method, "gptq") && strcmp(method, "compressed-tensors"))
        return err_set(l->e, ERR_UNSUPPORTED, "quantization_config.quant_method %s is not supported (expected "
                       "gptq or compressed-tensors)", method);
    l->f = family_by_hf(m->config, l->e);
    if (!l->f || l->f->hparams(m->config, &m->hp, l->e))
        return -1;
    snprintf(m->hp.family, sizeof m->hp.family, "%s", l->f->name);
    return load_rope(l);
}

static int load(struct loader *l, const char *path)
{
    struct model *m = l->m;
    if (checkpoint_open(&m->ck, path, l->e))
        return -1; /* it names the file itself */
    l->gguf = m->ck->container == CONTAINER_GGUF;
    if (read_config(l))
        return err_prefix(l->e, l->gguf ? "%s" : "%s: config.json", m->ck->path);
    if (load_tensors(l))
        return err_prefix(l->e, "%s", m->ck->path);
    return load_tokenizer(l);
}

int model_open(struct model **out, const char *path, struct err *e)
{
    struct model *m = mem_zalloc(1, sizeof *m);
    if (!m)
        return err_nomem(e, "model", sizeof *m);
    arena_init(&m->arena);
    struct loader l = { .m = m, .e = e };
    if (load(&l, path)) {
        model_free(m);
        return -1;
    }
    *out = m;
    return 0;
}

void model_forget_repacked(const struct model *m)
{
    for (size_t i = 0; m->slots && i < slot_count(m); i++)
        packed_slot_release(&m->slots[i]);
}

int model_whole(const struct model *m, struct err *e)
{
    return m->unfinished ? err_set(e, ERR_USAGE, "%s: quantizing this model was cut off: open it again", m->ck->path) : 0;
}

void model_free(struct model *m)
{
    if (!m)
        return;
    model_forget_repacked(m);
    tokenizer_free(m->tok);
    json_decref(m->config);
    checkpoint_free(m->ck);
    arena_release(&m->arena);
    mem_free(m);
}
