/* llama: Llama 2, 3, 3.1, 3.2, SmolLM2, and whatever else calls itself LlamaForCausalLM. */
#include "model/config.h"
#include "model/family.h"

static int hparams(const json_t *config, struct hparams *hp, struct err *e)
{
    bool attention_bias = false;
    int64_t tp = 1;
    if (config_common(config, 0, hp, e) || config_bool(config, "attention_bias", &attention_bias, e) ||
        config_bool(config, "mlp_bias", &hp->mlp_bias, e) ||
        config_int(config, "pretraining_tp", 0, 1 << 20, &tp, e))
        return -1;
    if (tp > 1) /* sums in another order than one product does */
        return err_set(e, ERR_UNSUPPORTED, "pretraining_tp %lld is not supported (expected 1)", (long long)tp);
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
