/* llama: Llama 2, 3, 3.1, 3.2, SmolLM2, and whatever else calls itself LlamaForCausalLM. */
#include "model/config.h"
#include "model/family.h"

static int hparams(const json_t *config, struct hparams *hp, struct err *e)
{
    bool attention_bias = false;
    if (config_common(config, 0, hp, e) || config_bool(config, "attention_bias", &attention_bias, e) ||
        config_bool(config, "mlp_bias", &hp->mlp_bias, e)) /* pretraining_tp says in which order sums were made, and nobody heeds it */
        return -1;
    hp->qkv_bias = hp->o_bias = attention_bias;
    return 0;
}

const struct family family_llama = {
    .name = "llama",
    .hf_arch = "LlamaForCausalLM",
    .hf_type = "llama",
    .gguf_arch = "llama",
    .gguf_perm = true,
    .mlp_bias_hf = true,
    .mlp_bias_gguf = true,
    .hparams = hparams,
};
