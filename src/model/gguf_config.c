/* gguf_config: the config.json that a GGUF file's metadata amounts to.
 *
 * So that families read one kind of configuration only, and a model read from GGUF can be
 * written as a Hugging Face folder that transformers loads. What the metadata leaves open is told by
 * the tensors: biases by their presence, tying by the absence of output.weight, Llama 3.1's rope
 * scaling by the values of rope_freqs.weight. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/config.h"
#include "model/family.h"

struct reader {
    const struct gguf *g;
    char arch[32];
    json_t *config;
    struct err *e;
};

static const struct tensor *find_tensor(const struct gguf *g, const char *name)
{
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name))
            return &g->tensors[i];
    return NULL;
}

static int set(struct reader *r, const char *key, json_t *value)
{
    return json_object_set_new(r->config, key, value) ? err_nomem(r->e, "config", 0) : 0;
}

static const char *arch_key(const struct reader *r, const char *suffix, char *buf, size_t n)
{
    snprintf(buf, n, "%s.%s", r->arch, suffix);
    return buf;
}

/* {arch}.suffix as an integer; missing is an error when !optional, else 0 is returned with *v as it was. */
static int get_int(struct reader *r, const char *suffix, bool optional, int64_t *v)
{
    char key[96];
    int found = gguf_int(r->g, arch_key(r, suffix, key, sizeof key), v, r->e);
    if (found == 0 && !optional)
        return err_set(r->e, ERR_FORMAT, "metadata key %s is missing", key);
    return found;
}

static int put_int(struct reader *r, const char *suffix, const char *key)
{
    int64_t v;
    return get_int(r, suffix, false, &v) < 0 ? -1 : set(r, key, json_integer(v));
}

/* The shortest decimal that reads back as the same float: 1e-05, not 9.999999747378752e-06. */
static json_t *float_json(double v)
{
    char text[40];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtof(text, NULL) == (float)v)
            break;
    }
    return json_real(strtod(text, NULL));
}

static int put_token_id(struct reader *r, const char *key, const char *config_key)
{
    int64_t id;
    int found = gguf_int(r->g, key, &id, r->e);
    return found < 0 ? -1 : set(r, config_key, found ? json_integer(id) : json_null());
}

/* {arch}.attention.head_count_kv and the like may be arrays with a value for each layer. */
static int refuse_array(struct reader *r, const char *suffix)
{
    char key[96];
    const struct gguf_kv *kv = gguf_find(r->g, arch_key(r, suffix, key, sizeof key));
    if (kv && kv->type == GGUF_ARRAY)
        return err_set(r->e, ERR_UNSUPPORTED, "%s with a value for each layer is not supported (expected one "
                       "number)", key);
    return 0;
}

static int put_heads(struct reader *r)
{
    int64_t n_embd, n_head, n_kv, key_len, value_len, rope_dim;
    if (refuse_array(r, "attention.head_count") || refuse_array(r, "attention.head_count_kv") ||
        refuse_array(r, "feed_forward_length") ||
        get_int(r, "embedding_length", false, &n_embd) < 0 ||
        get_int(r, "attention.head_count", false, &n_head) < 0)
        return -1;
    if (n_head < 1 || n_embd < 1)
        return err_set(r->e, ERR_FORMAT, "%s.attention.head_count and embedding_length: expected positive numbers, "
                       "found %lld and %lld", r->arch, (long long)n_head, (long long)n_embd);
    n_kv = n_head;
    key_len = n_embd / n_head;
    if (get_int(r, "attention.head_count_kv", true, &n_kv) < 0 ||
        get_int(r, "attention.key_length", true, &key_len) < 0)
        return -1;
    value_len = rope_dim = key_len;
    if (get_int(r, "attention.value_length", true, &value_len) < 0 ||
        get_int(r, "rope.dimension_count", true, &rope_dim) < 0)
        return -1;
    if (value_len != key_len || rope_dim != key_len)
        return err_set(r->e, ERR_UNSUPPORTED, "%s.attention.value_length %lld and rope.dimension_count %lld are "
                       "not supported (expected the key length, %lld)", r->arch, (long long)value_len,
                       (long long)rope_dim, (long long)key_len);
    return set(r, "num_attention_heads", json_integer(n_head)) ||
           set(r, "num_key_value_heads", json_integer(n_kv)) || set(r, "head_dim", json_integer(key_len))
               ? -1 : 0;
}

static int put_vocab(struct reader *r)
{
    int64_t n = 0;
    struct gguf_iter it;
    int found = gguf_iter_init(&it, r->g, "tokenizer.ggml.tokens", GGUF_STRING, r->e);
    if (found < 0)
        return -1;
    const struct tensor *embd = find_tensor(r->g, "token_embd.weight");
    if (found)
        n = (int64_t)it.kv->n;
    else if ((found = get_int(r, "vocab_size", true, &n)) < 0)
        return -1;
    else if (!found && embd)
        n = embd->dim[0];
    return set(r, "vocab_size", json_integer(n));
}

/* rope_freqs.weight in words of config.json, or refused: a folder written from this model must not lie. */
static int put_rope_freqs(struct reader *r, const struct tensor *t)
{
    struct hparams hp = { .n_vocab = 0 };
    struct rope_llama3 p;
    float factor[MAX_FIT_PAIRS];
    if (config_common(r->config, 0, &hp, r->e) || tensor_expect(t, hp.head_dim / 2, -1, r->e))
        return -1;
    if (hp.head_dim / 2 > MAX_FIT_PAIRS)
        return err_set(r->e, ERR_UNSUPPORTED, "rope_freqs.weight of %lld pairs is not supported (expected at most "
                       "%d)", (long long)(hp.head_dim / 2), MAX_FIT_PAIRS);
    tensor_to_f32(t, factor);
    bool ones = true;
    for (int64_t i = 0; i < hp.head_dim / 2; i++)
        ones = ones && factor[i] == 1;
    if (ones)
        return 0;
    if (!rope_llama3_fit(factor, &hp, &p))
        return err_set(r->e, ERR_UNSUPPORTED, "rope_freqs.weight does not follow the llama3 rule with "
                       "low_freq_factor 1 and high_freq_factor 4; other factors are not supported");
    json_t *rope = json_pack("{s:s, s:o, s:f, s:f, s:I}", "rope_type", "llama3", "factor",
                             float_json(p.factor), "low_freq_factor", p.low, "high_freq_factor", p.high,
                             "original_max_position_embeddings", (json_int_t)p.ctx);
    return rope ? set(r, "rope_scaling", rope) : err_nomem(r->e, "config", 0);
}

static int put_rope(struct reader *r)
{
    char key[96];
    double base = 10000, factor = 1;
    struct gguf_str type = { "none", 4 };
    if (gguf_float(r->g, arch_key(r, "rope.freq_base", key, sizeof key), &base, r->e) < 0 ||
        set(r, "rope_theta", float_json(base)) ||
        gguf_string(r->g, arch_key(r, "rope.scaling.type", key, sizeof key), &type, r->e) < 0 ||
        gguf_float(r->g, arch_key(r, "rope.scaling.factor", key, sizeof key), &factor, r->e) < 0)
        return -1;
    /* files of before 2024 have scale_linear alone */
    if (!gguf_find(r->g, key) &&
        gguf_float(r->g, arch_key(r, "rope.scale_linear", key, sizeof key), &factor, r->e) == 1)
        type = (struct gguf_str){ "linear", 6 };
    const struct tensor *freqs = find_tensor(r->g, "rope_freqs.weight");
    bool none = type.n == 4 && !memcmp(type.p, "none", 4);
    if (freqs && !none)
        return err_set(r->e, ERR_UNSUPPORTED, "rope_freqs.weight together with rope.scaling.type %.*s is not "
                       "supported", (int)(type.n < 32 ? type.n : 32), type.p);
    if (freqs)
        return put_rope_freqs(r, freqs);
    if (none)
        return 0;
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)(type.n < 31 ? type.n : 31), type.p);
    json_t *rope = json_pack("{s:s, s:o}", "rope_type", name, "factor", float_json(factor));
    return rope ? set(r, "rope_scaling", rope)
                : err_set(r->e, ERR_FORMAT, "%s.rope.scaling.type is not UTF-8", r->arch);
}

/* Switches that transformers knows, by the tensors that are there. */
static int put_flags(struct reader *r, const struct family *f)
{
    const struct gguf *g = r->g;
    bool qkv = find_tensor(g, "blk.0.attn_q.bias"), o = find_tensor(g, "blk.0.attn_output.bias");
    bool mlp = find_tensor(g, "blk.0.ffn_gate.bias") || find_tensor(g, "blk.0.ffn_up.bias") ||
               find_tensor(g, "blk.0.ffn_down.bias");
    if (set(r, "tie_word_embeddings", json_boolean(!find_tensor(g, "output.weight"))) ||
        set(r, "attention_dropout", json_real(0)) || set(r, "initializer_range", json_real(0.02)) ||
        set(r, "use_cache", json_true()) || set(r, "torch_dtype", json_string("float32")))
        return -1;
    if (!strcmp(f->name, "qwen2"))
        return set(r, "use_sliding_window", json_false());
    if (set(r, "attention_bias", json_boolean(qkv || o)))
        return -1;
    if (f->mlp_bias_hf)
        return set(r, "mlp_bias", json_boolean(mlp));
    return !strcmp(f->name, "mistral") ? 0 : set(r, "use_sliding_window", json_false());
}

/* Keys that change the computation and that no family here has. */
static int refuse(struct reader *r)
{
    static const char *const key[] = { "expert_count", "attention.logit_softcapping", "logit_scale",
                                       "residual_scale", "embedding_scale", "attention.scale",
                                       "attention.sliding_window", "attention.clamp_kqv",
                                       "use_parallel_residual", "attention.max_alibi_bias" };
    for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
        char name[96];
        double v = 0;
        const struct gguf_kv *kv = gguf_find(r->g, arch_key(r, key[i], name, sizeof name));
        if (!kv || (kv->type == GGUF_ARRAY && !kv->n))
            continue;
        if (kv->type != GGUF_ARRAY && gguf_float(r->g, name, &v, NULL) < 0) {
            int64_t b = 0; /* a bool */
            if (gguf_int(r->g, name, &b, r->e) < 0)
                return -1;
            v = (double)b;
        }
        if (kv->type == GGUF_ARRAY || v != 0)
            return err_set(r->e, ERR_UNSUPPORTED, "metadata key %s is not supported (expected none, or 0)", name);
    }
    return 0;
}

static int fill(struct reader *r)
{
    struct gguf_str arch;
    char key[96];
    double eps;
    int found = gguf_string(r->g, "general.architecture", &arch, r->e);
    if (found <= 0)
        return found ? -1 : err_set(r->e, ERR_FORMAT, "metadata key general.architecture is missing");
    snprintf(r->arch, sizeof r->arch, "%.*s", (int)(arch.n < 31 ? arch.n : 31), arch.p);
    const struct family *f = family_by_gguf(r->arch);
    if (!f)
        return err_set(r->e, ERR_UNSUPPORTED, "general.architecture %s is not supported (expected llama, qwen2 or "
                       "qwen3)", r->arch);
    found = gguf_float(r->g, arch_key(r, "attention.layer_norm_rms_epsilon", key, sizeof key), &eps, r->e);
    if (found <= 0)
        return found ? -1 : err_set(r->e, ERR_FORMAT, "metadata key %s is missing", key);
    if (refuse(r) || set(r, "architectures", json_pack("[s]", f->hf_arch)) ||
        set(r, "model_type", json_string(f->hf_type)) || set(r, "hidden_act", json_string("silu")) ||
        put_vocab(r) || put_int(r, "embedding_length", "hidden_size") ||
        put_int(r, "block_count", "num_hidden_layers") || put_heads(r) ||
        put_int(r, "feed_forward_length", "intermediate_size") ||
        put_int(r, "context_length", "max_position_embeddings") ||
        set(r, "rms_norm_eps", float_json(eps)) || put_flags(r, f) || put_rope(r) ||
        put_token_id(r, "tokenizer.ggml.bos_token_id", "bos_token_id") ||
        put_token_id(r, "tokenizer.ggml.eos_token_id", "eos_token_id") ||
        put_token_id(r, "tokenizer.ggml.padding_token_id", "pad_token_id"))
        return -1;
    return 0;
}

int gguf_config(const struct gguf *g, json_t **config, struct err *e)
{
    struct reader r = { .g = g, .config = json_object(), .e = e };
    if (!r.config)
        return err_nomem(e, "config", 0);
    if (fill(&r)) {
        json_decref(r.config);
        return -1;
    }
    *config = r.config;
    return 0;
}
