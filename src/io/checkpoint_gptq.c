/* checkpoint: the quantized linears of GPTQ folders (AutoGPTQ, GPTQModel, ours), formats.md 3a.
 *
 *   qweight int32 (ceil(n_in*bits/32), n_out)      a column is the dense LSB-first bit stream of an output's codes
 *   qzeros  int32 (n_groups, ceil(n_out*bits/32))  a row is that stream over the outputs; v1 stores zero - 1
 *   scales  fp16  (n_groups, n_out)
 *   g_idx   int32 (n_in)                           group of each input; absent or j/group: no reordering
 *
 * struct qmat holds rows of the same streams, so the codes need only their words transposed: nothing is
 * decoded, and what we wrote we read back bit for bit. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "io/checkpoint.h"
#include "tensor/half.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are used as they lie in the file");

struct gptq_params {
    int bits;
    int64_t group; /* -1: all inputs */
    bool sym, desc_act, v1;
};

/* Where messages point. */
struct site {
    const struct checkpoint *c;
    const char *prefix;
};

/* ---- configuration -------------------------------------------------------- */

static int get_int(const struct site *s, const json_t *o, const char *key, int64_t *v, struct err *e)
{
    const json_t *x = json_object_get(o, key);
    if (!x)
        return 0;
    if (!json_is_integer(x))
        return err_set(e, ERR_FORMAT, "%s: quantization_config: expected \"%s\" to be an integer", s->c->path, key);
    *v = json_integer_value(x);
    return 1;
}

static int get_bool(const struct site *s, const json_t *o, const char *key, bool *v, struct err *e)
{
    const json_t *x = json_object_get(o, key);
    if (!x || json_is_null(x))
        return 0;
    if (!json_is_boolean(x))
        return err_set(e, ERR_FORMAT, "%s: quantization_config: expected \"%s\" to be true or false", s->c->path, key);
    *v = json_is_true(x);
    return 1;
}

/* The keys that may differ from one linear to the next. */
static int read_params(const struct site *s, const json_t *o, struct gptq_params *p, struct err *e)
{
    int64_t bits = p->bits;
    if (get_int(s, o, "bits", &bits, e) < 0 || get_int(s, o, "group_size", &p->group, e) < 0 ||
        get_bool(s, o, "sym", &p->sym, e) < 0 || get_bool(s, o, "desc_act", &p->desc_act, e) < 0)
        return -1;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        return err_set(e, ERR_UNSUPPORTED, "%s: quantization_config: expected bits 2, 3, 4 or 8, found %lld",
                       s->c->path, (long long)bits);
    if (p->group != -1 && (p->group < 1 || p->group > INT32_MAX))
        return err_set(e, ERR_FORMAT, "%s: quantization_config: expected group_size -1 or above 0, found %lld",
                       s->c->path, (long long)p->group);
    p->bits = (int)bits;
    return 0;
}

/* Does the pattern match from the beginning of the module's name (Python's re.match)? 1, 0, -1 error. */
static int dynamic_match(const struct site *s, const char *pattern, struct err *e)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &code, &at,
                                   NULL);
    pcre2_match_data *md = re ? pcre2_match_data_create(1, NULL) : NULL;
    pcre2_match_context *mc = md ? pcre2_match_context_create(NULL) : NULL;
    int rc = PCRE2_ERROR_NOMATCH;
    if (mc) {
        pcre2_set_match_limit(mc, 100000); /* a hostile pattern must not take for ever */
        rc = pcre2_match(re, (PCRE2_SPTR)s->prefix, PCRE2_ZERO_TERMINATED, 0, 0, md, mc);
    }
    pcre2_match_context_free(mc);
    pcre2_match_data_free(md);
    pcre2_code_free(re);
    if (!re)
        return err_set(e, ERR_FORMAT, "%s: quantization_config: dynamic: pattern \"%s\" is not valid (character %zu)",
                       s->c->path, pattern, (size_t)at);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return err_set(e, ERR_FORMAT, "%s: quantization_config: dynamic: pattern \"%s\" takes too long", s->c->path,
                       pattern);
    return rc >= 0;
}

/* GPTQModel's per-module settings: {"+:regex": {"bits": 4, ...}, "-:regex": {}}, first match wins. "-:" means
 * not quantized: the qweight that was found says otherwise, so it is left to stand. */
static int apply_dynamic(const struct site *s, json_t *dynamic, struct gptq_params *p, struct err *e)
{
    const char *key;
    json_t *v;
    if (!dynamic || json_is_null(dynamic))
        return 0;
    if (!json_is_object(dynamic))
        return err_set(e, ERR_FORMAT, "%s: quantization_config: expected \"dynamic\" to be an object", s->c->path);
    json_object_foreach(dynamic, key, v) {
        if (!strncmp(key, "-:", 2))
            continue;
        int hit = dynamic_match(s, strncmp(key, "+:", 2) ? key : key + 2, e);
        if (hit < 0)
            return -1;
        if (hit)
            return read_params(s, v, p, e);
    }
    return 0;
}

static int read_config(const struct site *s, struct gptq_params *p, struct err *e)
{
    const json_t *q = s->c->quant_config;
    const char *path = s->c->path;
    if (!q)
        return err_set(e, ERR_FORMAT, "%s: tensor %s.qweight: config.json has no quantization_config", path,
                       s->prefix);
    const json_t *method = json_object_get(q, "quant_method"), *format = json_object_get(q, "checkpoint_format");
    if (method && (!json_is_string(method) || strcmp(json_string_value(method), "gptq")))
        return err_set(e, ERR_UNSUPPORTED, "%s: quantization_config: expected quant_method \"gptq\", found \"%s\"",
                       path, json_is_string(method) ? json_string_value(method) : "(no string)");
    if (!format)
        format = json_object_get(q, "format");
    const char *f = !format || json_is_null(format) ? "gptq" : json_string_value(format);
    if (!f || (strcmp(f, "gptq") && strcmp(f, "gptq_v2")))
        return err_set(e, ERR_UNSUPPORTED, "%s: quantization_config: expected checkpoint_format \"gptq\" or "
                       "\"gptq_v2\", found \"%s\"", path, f ? f : "(no string)");
    const char *required[] = { "bits", "group_size" };
    for (size_t i = 0; i < 2; i++)
        if (!json_object_get(q, required[i]))
            return err_set(e, ERR_FORMAT, "%s: quantization_config: expected \"%s\", found none", path, required[i]);
    *p = (struct gptq_params){ .v1 = !strcmp(f, "gptq"), .sym = true };
    return read_params(s, q, p, e) || apply_dynamic(s, json_object_get(q, "dynamic"), p, e) ? -1 : 0;
}

/* ---- tensors --------------------------------------------------------------- */

/* Tensor prefix.suffix; n_dims 1 or 2. NULL with an error when it is absent or of another shape;
 * with *found false and no error when it is absent and may be. */
static const struct st_entry *part(const struct site *s, const char *suffix, int n_dims, int64_t d0, int64_t d1,
                                   bool *found, struct err *e)
{
    char name[512];
    int n = snprintf(name, sizeof name, "%s.%s", s->prefix, suffix);
    const struct st_entry *en = n > 0 && (size_t)n < sizeof name ? checkpoint_entry(s->c, name) : NULL;
    if (found)
        *found = en != NULL;
    if (!en && found)
        return NULL;
    if (!en) {
        err_set(e, ERR_FORMAT, "%s: tensor %s.%s is missing", s->c->path, s->prefix, suffix);
        return NULL;
    }
    bool scales = !strcmp(suffix, "scales");
    bool type_ok = scales ? en->dtype == ST_F16 || en->dtype == ST_BF16 || en->dtype == ST_F32 : en->dtype == ST_I32;
    if (type_ok && en->n_dims == n_dims && en->dim[0] == d0 && en->dim[1] == (n_dims == 2 ? d1 : 1))
        return en;
    err_set(e, ERR_FORMAT, "%s: tensor %s: expected %s of %d dimensions [%lld, %lld], found %s of %d [%lld, %lld]",
            s->c->path, en->name, scales ? "F16" : "I32", n_dims, (long long)d0, (long long)(n_dims == 2 ? d1 : 1),
            en->dtype_name, en->n_dims, (long long)en->dim[0], (long long)en->dim[1]);
    return NULL;
}

/* qweight (row_words, n_out) -> codes (n_out, row_words), in tiles that stay in the cache. Bits past n_in are
 * cleared: they mean nothing, and packed rows are compared as words. */
static void load_codes(struct qmat *q, const uint32_t *w)
{
    enum { TILE = 32 };
    for (int64_t i0 = 0; i0 < q->n_out; i0 += TILE)
        for (int64_t k0 = 0; k0 < q->row_words; k0 += TILE)
            for (int64_t i = i0; i < i0 + TILE && i < q->n_out; i++)
                for (int64_t k = k0; k < k0 + TILE && k < q->row_words; k++)
                    q->codes[i * q->row_words + k] = w[k * q->n_out + i];
    int tail = (int)(q->n_in * q->bits % 32);
    for (int64_t i = 0; tail && i < q->n_out; i++)
        q->codes[(i + 1) * q->row_words - 1] &= (1u << tail) - 1;
}

static void load_zeros(struct qmat *q, const uint32_t *w, bool v1, bool sym)
{
    const uint32_t mask = (1u << q->bits) - 1;
    const int64_t row = (q->n_out * q->bits + 31) / 32;
    q->sym = sym;
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t i = 0; i < q->n_out; i++) {
            uint32_t z = (code_at(w + g * row, i, q->bits) + (v1 ? 1 : 0)) & mask;
            q->zero[i * q->n_groups + g] = (uint8_t)z;
            q->sym = q->sym && z == 1u << (q->bits - 1);
        }
}

static int load_scales(const struct site *s, struct qmat *q, const struct st_entry *en, struct err *e)
{
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t i = 0; i < q->n_out; i++) {
            int64_t k = g * q->n_out + i;
            uint16_t h;
            if (en->dtype == ST_F16) {
                h = ((const uint16_t *)en->data)[k];
            } else {
                float f = en->dtype == ST_F32 ? ((const float *)en->data)[k]
                                              : bf16_to_f32(((const uint16_t *)en->data)[k]);
                h = half_from_f32(f);
                if (half_to_f32(h) != f)
                    return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s: scale %g (group %lld, output %lld) is not "
                                   "representable in fp16", s->c->path, en->name, (double)f, (long long)g,
                                   (long long)i);
            }
            if ((h & 0x7c00) == 0x7c00)
                return err_set(e, ERR_NUMERIC, "%s: tensor %s: scale of group %lld, output %lld is not finite",
                               s->c->path, en->name, (long long)g, (long long)i);
            q->scale[i * q->n_groups + g] = h;
        }
    return 0;
}

static int load_g_idx(const struct site *s, struct qmat *q, const struct st_entry *en, struct arena *a, struct err *e)
{
    const int32_t *g = en->data;
    bool trivial = true;
    for (int64_t j = 0; j < q->n_in; j++) {
        if (g[j] < 0 || g[j] >= q->n_groups)
            return err_set(e, ERR_FORMAT, "%s: tensor %s: expected groups 0..%lld, found %d for input %lld",
                           s->c->path, en->name, (long long)(q->n_groups - 1), g[j], (long long)j);
        trivial = trivial && g[j] == j / q->group;
    }
    if (trivial)
        return 0;
    q->g_idx = arena_alloc(a, (size_t)q->n_in, sizeof *q->g_idx);
    if (!q->g_idx)
        return err_nomem(e, en->name, en->size);
    memcpy(q->g_idx, g, en->size);
    return 0;
}

int checkpoint_gptq(const struct checkpoint *c, const char *prefix, int64_t n_out, int64_t n_in,
                    struct arena *a, struct qmat *q, struct err *e)
{
    const struct site s = { c, prefix };
    struct gptq_params p;
    bool found = false;
    char name[512];
    int n = snprintf(name, sizeof name, "%s.qweight", prefix);
    if (c->container != CONTAINER_HF || n < 0 || (size_t)n >= sizeof name || !checkpoint_entry(c, name))
        return 0;
    if (n_out < 1 || n_in < 1 || n_in > INT32_MAX || n_out > INT32_MAX)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: shape %lld x %lld is too large", c->path, name,
                       (long long)n_out, (long long)n_in);
    if (read_config(&s, &p, e))
        return -1;
    int group = (int)(p.group == -1 ? n_in : p.group);
    int64_t n_groups = (n_in + group - 1) / group;
    const struct st_entry *qweight = part(&s, "qweight", 2, (n_in * p.bits + 31) / 32, n_out, NULL, e);
    const struct st_entry *qzeros = qweight ? part(&s, "qzeros", 2, n_groups, (n_out * p.bits + 31) / 32, NULL, e)
                                            : NULL;
    const struct st_entry *scales = qzeros ? part(&s, "scales", 2, n_groups, n_out, NULL, e) : NULL;
    const struct st_entry *g_idx = scales ? part(&s, "g_idx", 1, n_in, 1, &found, e) : NULL;
    if (!scales || (found && !g_idx))
        return -1;
    if (!found && p.desc_act)
        return err_set(e, ERR_FORMAT, "%s: tensor %s.g_idx is missing, which desc_act needs", c->path, prefix);
    if (qmat_init(q, a, n_out, n_in, p.bits, group, p.sym, e))
        return -1;
    load_codes(q, qweight->data);
    load_zeros(q, qzeros->data, p.v1, p.sym);
    if (load_scales(&s, q, scales, e) || (g_idx && load_g_idx(&s, q, g_idx, a, e)))
        return -1;
    return 1;
}
