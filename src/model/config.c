/* config: typed getters over config.json, and the keys that all families share.
 *
 * Limits on sizes keep every later product of two of them inside int64_t, and
 * refuse a lying file before anything is allocated for it. */
#include "model/config.h"

#include <math.h>
#include <string.h>

#include "backend/backend.h"

#define MAX_DIM (1 << 24)
#define MAX_VOCAB (1 << 26)
#define MAX_LAYERS (1 << 14)
#define MAX_HEADS (1 << 16)
#define MAX_CTX (1 << 28)

const json_t *config_get(const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    return v && !json_is_null(v) ? v : NULL;
}

static const char *type_name(const json_t *v)
{
    static const char *const name[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a real number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false", [JSON_NULL] = "null",
    };
    return name[json_typeof(v)];
}

int config_int(const json_t *config, const char *key, int64_t lo, int64_t hi, int64_t *v, struct err *e)
{
    const json_t *j = config_get(config, key);
    if (!j)
        return 0;
    if (!json_is_integer(j))
        return err_set(e, ERR_FORMAT, "%s: expected an integer, found %s", key, type_name(j));
    json_int_t i = json_integer_value(j);
    if (i < lo || i > hi)
        return err_set(e, ERR_FORMAT, "%s: expected %lld to %lld, found %lld", key, (long long)lo,
                       (long long)hi, (long long)i);
    *v = i;
    return 0;
}

int config_double(const json_t *config, const char *key, double *v, struct err *e)
{
    const json_t *j = config_get(config, key);
    if (!j)
        return 0;
    if (!json_is_number(j))
        return err_set(e, ERR_FORMAT, "%s: expected a number, found %s", key, type_name(j));
    *v = json_number_value(j);
    return 0;
}

int config_bool(const json_t *config, const char *key, bool *v, struct err *e)
{
    const json_t *j = config_get(config, key);
    if (!j)
        return 0;
    if (!json_is_boolean(j))
        return err_set(e, ERR_FORMAT, "%s: expected true or false, found %s", key, type_name(j));
    *v = json_is_true(j);
    return 0;
}

int config_string(const json_t *config, const char *key, const char **v, struct err *e)
{
    const json_t *j = config_get(config, key);
    if (!j)
        return 0;
    if (!json_is_string(j))
        return err_set(e, ERR_FORMAT, "%s: expected a string, found %s", key, type_name(j));
    *v = json_string_value(j);
    return 0;
}

const json_t *config_rope(const json_t *config)
{
    const json_t *r = config_get(config, "rope_parameters");
    return r ? r : config_get(config, "rope_scaling");
}

/* rope_theta stands in rope_parameters (transformers 5) or at the top (4). */
static int rope_base(const json_t *config, struct hparams *hp, struct err *e)
{
    hp->rope_base = 10000;
    if (config_double(config, "rope_theta", &hp->rope_base, e))
        return -1;
    const json_t *r = config_get(config, "rope_parameters");
    if (json_is_object(r) && config_double(r, "rope_theta", &hp->rope_base, e))
        return -1;
    if (!isfinite(hp->rope_base) || hp->rope_base <= 1)
        return err_set(e, ERR_FORMAT, "rope_theta: expected a number above 1, found %g", hp->rope_base);
    double partial = 1;
    bool interleaved = false;
    if (config_double(config, "partial_rotary_factor", &partial, e) ||
        (json_is_object(r) && config_double(r, "partial_rotary_factor", &partial, e)) ||
        config_bool(config, "rope_interleaved", &interleaved, e))
        return -1;
    if (partial != 1)
        return err_set(e, ERR_UNSUPPORTED, "partial_rotary_factor %g is not supported (expected 1)", partial);
    if (interleaved)
        return err_set(e, ERR_UNSUPPORTED, "rope_interleaved true is not supported (expected false)");
    return 0;
}

static int need(const json_t *config, const char *key, int64_t hi, int64_t *v, struct err *e)
{
    if (!config_get(config, key))
        return err_set(e, ERR_FORMAT, "%s is missing", key);
    return config_int(config, key, 1, hi, v, e);
}

static int heads(const json_t *config, int64_t kv_default, struct hparams *hp, struct err *e)
{
    hp->n_head_kv = hp->n_head;
    if (kv_default && !json_object_get(config, "num_key_value_heads"))
        hp->n_head_kv = kv_default;
    hp->head_dim = 0;
    if (config_int(config, "num_key_value_heads", 1, MAX_HEADS, &hp->n_head_kv, e) ||
        config_int(config, "head_dim", 2, MAX_HEADS, &hp->head_dim, e))
        return -1;
    if (hp->n_head % hp->n_head_kv)
        return err_set(e, ERR_FORMAT, "num_attention_heads: expected a multiple of num_key_value_heads %lld, "
                       "found %lld", (long long)hp->n_head_kv, (long long)hp->n_head);
    if (!hp->head_dim) {
        if (hp->n_embd % hp->n_head)
            return err_set(e, ERR_FORMAT, "hidden_size: expected a multiple of num_attention_heads %lld "
                           "(there is no head_dim), found %lld", (long long)hp->n_head, (long long)hp->n_embd);
        hp->head_dim = hp->n_embd / hp->n_head;
    }
    if (hp->head_dim % 2)
        return err_set(e, ERR_UNSUPPORTED, "head_dim %lld is not supported (expected an even number)",
                       (long long)hp->head_dim);
    if (hp->head_dim > OP_HEAD_MAX)
        return err_set(e, ERR_UNSUPPORTED, "head_dim: expected at most %d, found %lld", OP_HEAD_MAX, (long long)hp->head_dim);
    if (hp->head_dim * hp->n_head > MAX_DIM)
        return err_set(e, ERR_FORMAT, "head_dim: expected at most %d in all heads, found %lld", MAX_DIM,
                       (long long)(hp->head_dim * hp->n_head));
    return 0;
}

int config_common(const json_t *config, int64_t kv_default, struct hparams *hp, struct err *e)
{
    double eps = 1e-6;
    const char *act = "silu";
    hp->n_ctx = 2048;
    hp->tied = false;
    if (need(config, "vocab_size", MAX_VOCAB, &hp->n_vocab, e) ||
        need(config, "hidden_size", MAX_DIM, &hp->n_embd, e) ||
        need(config, "num_hidden_layers", MAX_LAYERS, &hp->n_layer, e) ||
        need(config, "num_attention_heads", MAX_HEADS, &hp->n_head, e) ||
        need(config, "intermediate_size", MAX_DIM, &hp->n_ff, e) ||
        config_int(config, "max_position_embeddings", 1, MAX_CTX, &hp->n_ctx, e) ||
        config_double(config, "rms_norm_eps", &eps, e) ||
        config_bool(config, "tie_word_embeddings", &hp->tied, e) ||
        config_string(config, "hidden_act", &act, e) ||
        heads(config, kv_default, hp, e) || rope_base(config, hp, e))
        return -1;
    if (strcmp(act, "silu"))
        return err_set(e, ERR_UNSUPPORTED, "hidden_act %s is not supported (expected silu)", act);
    if (!(eps >= 0) || eps > 1)
        return err_set(e, ERR_FORMAT, "rms_norm_eps: expected 0 to 1, found %g", eps);
    hp->rms_eps = (float)eps;
    return 0;
}

int config_no_sliding(const json_t *config, struct err *e)
{
    bool sliding = false;
    if (config_bool(config, "use_sliding_window", &sliding, e))
        return -1;
    if (sliding)
        return err_set(e, ERR_UNSUPPORTED, "use_sliding_window true is not supported (expected false)");
    const json_t *types = config_get(config, "layer_types"), *type;
    size_t i;
    json_array_foreach(types, i, type) {
        const char *s = json_string_value(type);
        if (!s || strcmp(s, "full_attention"))
            return err_set(e, ERR_UNSUPPORTED, "layer_types %s of layer %zu is not supported (expected "
                           "full_attention)", s ? s : "(no string)", i);
    }
    return 0;
}
