/* mistral: llama without biases, with a sliding window in its first version. Its GGUF files
 * say architecture "llama". */
#include "model/config.h"
#include "model/family.h"

static int hparams(const json_t *config, struct hparams *hp, struct err *e)
{
    if (config_common(config, 8, hp, e))
        return -1;
    /* transformers' default: 4096 when the key is absent, none when it is null */
    hp->window = json_object_get(config, "sliding_window") ? 0 : 4096;
    return config_int(config, "sliding_window", 1, INT32_MAX, &hp->window, e);
}

const struct family family_mistral = {
    .name = "mistral",
    .hf_arch = "MistralForCausalLM",
    .hf_type = "mistral",
    .gguf_arch = "llama",
    .gguf_perm = true,
    .mlp_bias_hf = false,
    .mlp_bias_gguf = true,
    .hparams = hparams,
};
