/* qwen3: norms on each head of q and k, head_dim of its own (128 unless config says). */
#include "model/config.h"
#include "model/family.h"

static int hparams(const json_t *config, struct hparams *hp, struct err *e)
{
    bool attention_bias = false;
    if (config_common(config, 32, hp, e) || config_no_sliding(config, e) ||
        config_bool(config, "attention_bias", &attention_bias, e))
        return -1;
    if (!config_get(config, "head_dim"))
        hp->head_dim = 128;
    hp->qkv_bias = hp->o_bias = attention_bias;
    hp->qk_norm = true;
    return 0;
}

const struct family family_qwen3 = {
    .name = "qwen3",
    .hf_arch = "Qwen3ForCausalLM",
    .hf_type = "qwen3",
    .gguf_arch = "qwen3",
    .gguf_perm = false,
    .mlp_bias_hf = false,
    .mlp_bias_gguf = false,
    .hparams = hparams,
};
