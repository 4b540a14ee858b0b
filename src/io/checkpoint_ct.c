/* checkpoint: the quantized linears of compressed-tensors folders, format pack-quantized (formats.md 3a).
 *
 *   weight_packed      int32 (n_out, ceil(n_in*bits/32))      a row is the dense LSB-first stream of signed codes + 2^(bits-1)
 *   weight_scale       fp16  (n_out, n_groups)                or bf16, float32 where the values fit fp16
 *   weight_zero_point  int32 (ceil(n_out*bits/32), n_groups)  asymmetric only: a column is that stream over the outputs
 *   weight_shape       int64 (2)                              n_out, n_in
 *   weight_g_idx       int32 (n_in)                           activation order only
 *
 * Rows of codes are those of struct qmat. Bits and group follow from the shapes and must be among those that the configuration
 * names. */
#include <stdio.h>
#include <string.h>

#include "io/checkpoint.h"
#include "tensor/half.h"

static const struct st_entry *entry(const struct checkpoint *c, const char *prefix, const char *suffix)
{
    char name[512];
    int n = snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    return n > 0 && (size_t)n < sizeof name ? checkpoint_entry(c, name) : NULL;
}

static int expect(const struct checkpoint *c, const struct st_entry *en, bool type_ok, const char *type, int n_dims, int64_t d0,
                  int64_t d1, struct err *e)
{
    if (type_ok && en->n_dims == n_dims && en->dim[0] == d0 && en->dim[1] == (n_dims == 2 ? d1 : 1))
        return 0;
    return err_set(e, ERR_FORMAT, "%s: tensor %s: expected %s of %d dimensions [%lld, %lld], found %s of %d [%lld, %lld]", c->path,
                   en->name, type, n_dims, (long long)d0, (long long)(n_dims == 2 ? d1 : 1), en->dtype_name, en->n_dims,
                   (long long)en->dim[0], (long long)en->dim[1]);
}

/* Inputs that share a scale: group_size, or the whole row without one. */
static bool same_group(const json_t *weights, int64_t group, int64_t n_in)
{
    json_int_t size = json_integer_value(json_object_get(weights, "group_size"));
    return (size > 0 ? (int64_t)size : n_in) == group;
}

/* Does a config group have these weights? */
static bool configured(const json_t *groups, int bits, bool sym, int64_t group, int64_t n_in)
{
    const char *key;
    json_t *g;
    json_object_foreach((json_t *)(uintptr_t)groups, key, g) {
        const json_t *w = json_object_get(g, "weights"), *s = json_object_get(w, "symmetric");
        const json_t *type = json_object_get(w, "type");
        if (json_integer_value(json_object_get(w, "num_bits")) == bits && (s ? json_is_true(s) : true) == sym &&
            same_group(w, group, n_in) &&
            (!type || (json_is_string(type) && !strcmp(json_string_value(type), "int"))))
            return true;
    }
    return false;
}

/* Are all transforms part of the weights already? */
static bool fused(const json_t *transforms)
{
    const json_t *group, *one;
    const char *key;
    size_t i;
    if (transforms && !json_is_null(transforms) && !json_is_object(transforms))
        return false;
    json_object_foreach((json_t *)(uintptr_t)json_object_get(transforms, "config_groups"), key, group)
        json_array_foreach(json_object_get(group, "apply"), i, one) {
            const char *at = json_string_value(json_object_get(one, "location"));
            if (!at || strncmp(at, "weight_", 7))
                return false;
        }
    return true;
}

static int check_config(const struct checkpoint *c, const char *prefix, int bits, bool sym, int64_t group, int64_t n_in,
                        struct err *e)
{
    const json_t *q = c->quant_config, *method = json_object_get(q, "quant_method"), *format = json_object_get(q, "format");
    if (!json_is_string(method) || strcmp(json_string_value(method), "compressed-tensors"))
        return err_set(e, ERR_FORMAT, "%s: tensor %s.weight_packed: expected quant_method \"compressed-tensors\" in config.json's "
                       "quantization_config", c->path, prefix);
    if (!json_is_string(format) || strcmp(json_string_value(format), "pack-quantized"))
        return err_set(e, ERR_UNSUPPORTED, "%s: quantization_config: expected format \"pack-quantized\", found \"%s\"", c->path,
                       json_is_string(format) ? json_string_value(format) : "(no string)");
    if (!fused(json_object_get(q, "transform_config")))
        return err_set(e, ERR_UNSUPPORTED, "%s: quantization_config: transform_config asks for transforms of activations at run time, which "
                       "d2q does not make", c->path);
    if (!configured(json_object_get(q, "config_groups"), bits, sym, group, n_in))
        return err_set(e, ERR_FORMAT, "%s: tensor %s.weight_packed holds %d bits, %s, a scale for %lld of %lld inputs, but no "
                       "group of quantization_config has such weights", c->path, prefix, bits, sym ? "symmetric" : "asymmetric",
                       (long long)group, (long long)n_in);
    return 0;
}

/* 0: no width fits */
static int bits_of(int64_t words, int64_t n_in)
{
    static const int known[] = { 2, 3, 4, 8 };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((n_in * known[i] + 31) / 32 == words)
            return known[i];
    return 0;
}

static int load_scales(const struct checkpoint *c, const struct st_entry *en, struct qmat *q, struct err *e)
{
    for (int64_t i = 0; i < q->n_out * q->n_groups; i++) {
        float f = en->dtype == ST_F32 ? ((const float *)en->data)[i]
                  : en->dtype == ST_F16 ? half_to_f32(((const uint16_t *)en->data)[i])
                                        : bf16_to_f32(((const uint16_t *)en->data)[i]);
        q->scale[i] = half_from_f32(f);
        if ((q->scale[i] & 0x7c00) == 0x7c00 || half_to_f32(q->scale[i]) != f)
            return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s: scale %g (output %lld, group %lld) is not finite, or not "
                           "representable in fp16", c->path, en->name, (double)f, (long long)(i / q->n_groups),
                           (long long)(i % q->n_groups));
    }
    return 0;
}

static void load_zeros(const struct st_entry *en, struct qmat *q)
{
    const uint32_t *w = en ? en->data : NULL, mask = (1u << q->bits) - 1;
    for (int64_t i = 0; i < q->n_out; i++)
        for (int64_t g = 0; g < q->n_groups; g++) {
            int64_t word = i * q->bits >> 5;
            int shift = (int)(i * q->bits & 31);
            uint32_t z = w ? w[word * q->n_groups + g] >> shift : 1u << (q->bits - 1);
            if (w && shift + q->bits > 32)
                z |= w[(word + 1) * q->n_groups + g] << (32 - shift);
            q->zero[i * q->n_groups + g] = (uint8_t)(z & mask);
        }
}

static int load_g_idx(const struct checkpoint *c, const struct st_entry *en, struct arena *a, struct qmat *q, struct err *e)
{
    const int32_t *g = en->data;
    for (int64_t j = 0; j < q->n_in; j++)
        if (g[j] < 0 || g[j] >= q->n_groups)
            return err_set(e, ERR_FORMAT, "%s: tensor %s: expected groups 0..%lld, found %d for input %lld", c->path, en->name,
                           (long long)(q->n_groups - 1), g[j], (long long)j);
    q->g_idx = arena_alloc(a, (size_t)q->n_in, sizeof *q->g_idx);
    if (!q->g_idx)
        return err_nomem(e, en->name, en->size);
    memcpy(q->g_idx, g, en->size);
    return 0;
}

int checkpoint_ct(const struct checkpoint *c, const char *prefix, int64_t n_out, int64_t n_in, struct arena *a, struct qmat *q,
                  struct err *e)
{
    const struct st_entry *packed = c->container == CONTAINER_HF ? entry(c, prefix, "weight_packed") : NULL;
    if (!packed)
        return 0;
    const struct st_entry *scale = entry(c, prefix, "weight_scale"), *zero = entry(c, prefix, "weight_zero_point"),
                          *shape = entry(c, prefix, "weight_shape"), *g_idx = entry(c, prefix, "weight_g_idx");
    if (n_out < 1 || n_in < 32 || n_in > INT32_MAX || n_out > INT32_MAX)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: shape %lld x %lld is out of range", c->path, packed->name, (long long)n_out,
                       (long long)n_in);
    if (!scale || !shape)
        return err_set(e, ERR_FORMAT, "%s: tensor %s.%s is missing", c->path, prefix, scale ? "weight_shape" : "weight_scale");
    int bits = packed->n_dims == 2 ? bits_of(packed->dim[1], n_in) : 0;
    if (!bits)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: rows of %lld words hold %lld inputs at none of 2, 3, 4, 8 bits", c->path,
                       packed->name, (long long)packed->dim[1], (long long)n_in);
    int64_t groups = scale->n_dims == 2 && scale->dim[1] > 0 ? scale->dim[1] : 1;
    if (groups > n_in || n_in % groups)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: %lld groups do not divide %lld inputs", c->path, scale->name,
                       (long long)groups, (long long)n_in);
    bool float_scale = scale->dtype == ST_F16 || scale->dtype == ST_BF16 || scale->dtype == ST_F32;
    if (expect(c, packed, packed->dtype == ST_I32, "I32", 2, n_out, (n_in * bits + 31) / 32, e) ||
        expect(c, scale, float_scale, "F16", 2, n_out, groups, e) || expect(c, shape, shape->dtype == ST_I64, "I64", 1, 2, 1, e) ||
        (zero && expect(c, zero, zero->dtype == ST_I32, "I32", 2, (n_out * bits + 31) / 32, groups, e)) ||
        (g_idx && expect(c, g_idx, g_idx->dtype == ST_I32, "I32", 1, n_in, 1, e)) || check_config(c, prefix, bits, !zero, n_in / groups, n_in, e))
        return -1;
    int64_t dims[2];
    memcpy(dims, shape->data, sizeof dims);
    if (dims[0] != n_out || dims[1] != n_in)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected [%lld, %lld], found [%lld, %lld]", c->path, shape->name,
                       (long long)n_out, (long long)n_in, (long long)dims[0], (long long)dims[1]);
    if (qmat_init(q, a, n_out, n_in, bits, (int)(n_in / groups), !zero, e))
        return -1;
    memcpy(q->codes, packed->data, packed->size);
    int tail = (int)(n_in * bits % 32); /* bits past n_in mean nothing, and rows are compared as words */
    for (int64_t i = 0; tail && i < n_out; i++)
        q->codes[(i + 1) * q->row_words - 1] &= (1u << tail) - 1;
    load_zeros(zero, q);
    if (load_scales(c, scale, q, e) || (g_idx && load_g_idx(c, g_idx, a, q, e)))
        return -1;
    return 1;
}
