/* rope: inverse frequencies of the rotary embedding, with the scalings that are built.
 *
 *   none    1 / base^(2i/d)
 *   linear  the same / factor
 *   llama3  long wavelengths divided by factor, short ones untouched, between low_freq_factor and
 *           high_freq_factor of the original context a smooth mix of the two (Llama 3.1's rule)
 *
 * In float where transformers has float, so that positions in the thousands agree. */
#include <math.h>
#include <string.h>

#include "model/config.h"
#include "model/family.h"

static void base_freq(const struct hparams *hp, float *inv_freq)
{
    for (int64_t i = 0; i < hp->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)hp->head_dim;
        inv_freq[i] = 1.0f / (float)pow(hp->rope_base, exponent);
    }
}

static int positive(const json_t *rope, const char *key, double *v, struct err *e)
{
    if (!config_get(rope, key))
        return err_set(e, ERR_FORMAT, "rope_scaling: %s is missing", key);
    if (config_double(rope, key, v, e))
        return err_prefix(e, "rope_scaling");
    if (!(*v > 0) || !isfinite(*v))
        return err_set(e, ERR_FORMAT, "rope_scaling: %s: expected a positive number, found %g", key, *v);
    return 0;
}

void rope_llama3(const struct rope_llama3 *p, int64_t n, float *inv_freq)
{
    double low_wave = p->ctx / p->low, high_wave = p->ctx / p->high;
    for (int64_t i = 0; i < n; i++) {
        double wave = 2 * 3.14159265358979323846 / inv_freq[i];
        if (wave > low_wave) {
            inv_freq[i] = (float)(inv_freq[i] / p->factor);
        } else if (wave >= high_wave) {
            double smooth = (p->ctx / wave - p->low) / (p->high - p->low);
            inv_freq[i] = (float)((1 - smooth) * inv_freq[i] / p->factor + smooth * inv_freq[i]);
        }
    }
}

static int llama3(const json_t *rope, const struct hparams *hp, float *inv_freq, struct err *e)
{
    struct rope_llama3 p;
    if (positive(rope, "factor", &p.factor, e) || positive(rope, "low_freq_factor", &p.low, e) ||
        positive(rope, "high_freq_factor", &p.high, e) ||
        positive(rope, "original_max_position_embeddings", &p.ctx, e))
        return -1;
    if (p.high <= p.low)
        return err_set(e, ERR_FORMAT, "rope_scaling: high_freq_factor: expected above low_freq_factor %g, "
                       "found %g", p.low, p.high);
    rope_llama3(&p, hp->head_dim / 2, inv_freq);
    return 0;
}

int rope_inv_freq(const json_t *config, const struct hparams *hp, float *inv_freq, float *attn_scale,
                  struct err *e)
{
    const json_t *rope = config_rope(config);
    const char *type = "default";
    *attn_scale = 1;
    base_freq(hp, inv_freq);
    if (!rope)
        return 0;
    if (!json_is_object(rope))
        return err_set(e, ERR_FORMAT, "rope_scaling: expected an object");
    if (config_string(rope, "type", &type, e) || config_string(rope, "rope_type", &type, e))
        return err_prefix(e, "rope_scaling");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)rope, key, value)
        if (json_is_object(value))
            return err_set(e, ERR_UNSUPPORTED, "rope_parameters of their own for %s are not supported "
                           "(expected one set for all layers)", key);
    if (!strcmp(type, "default") || !strcmp(type, "none"))
        return 0;
    if (!strcmp(type, "llama3"))
        return llama3(rope, hp, inv_freq, e);
    if (strcmp(type, "linear"))
        return err_set(e, ERR_UNSUPPORTED, "rope_scaling type %s is not supported (expected none, linear or "
                       "llama3)", type);
    double factor;
    if (positive(rope, "factor", &factor, e))
        return -1;
    for (int64_t i = 0; i < hp->head_dim / 2; i++)
        inv_freq[i] = (float)(inv_freq[i] / factor);
    return 0;
}

/* The converter writes factors = 1/scale at each pair for the constants below; the last pair, the longest
 * wavelength, has the full factor whenever any pair does. */
int rope_llama3_fit(const float *factors, const struct hparams *hp, struct rope_llama3 *p)
{
    int64_t n = hp->head_dim / 2;
    float plain[MAX_FIT_PAIRS], scaled[MAX_FIT_PAIRS];
    if (n > MAX_FIT_PAIRS)
        return 0;
    base_freq(hp, plain);
    *p = (struct rope_llama3){ .factor = factors[n - 1], .low = 1, .high = 4 };
    if (!(p->factor > 0))
        return 0;
    for (p->ctx = 32; p->ctx <= 1 << 20; p->ctx *= 2) {
        bool same = true;
        memcpy(scaled, plain, (size_t)n * sizeof *scaled);
        rope_llama3(p, n, scaled);
        for (int64_t i = 0; i < n && same; i++)
            same = fabsf(plain[i] / scaled[i] - factors[i]) <= 1e-4f * factors[i];
        if (same)
            return 1;
    }
    return 0;
}
