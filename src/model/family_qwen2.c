/* qwen2: Qwen2 and Qwen2.5; always biases on q, k, v and nowhere else. */
#include "model/config.h"
#include "model/family.h"

static int hparams(const json_t *config, struct hparams *hp, struct err *e)
{
    if (config_common(config, 32, hp, e) || config_no_sliding(config, e))
        return -1;
    hp->qkv_bias = true;
    return 0;
}

const struct family family_qwen2 = {
    .name = "qwen2",
    .hf_arch = "Qwen2ForCausalLM",
    .hf_type = "qwen2",
    .gguf_arch = "qwen2",
    .gguf_perm = false,
    .mlp_bias_hf = false,
    .mlp_bias_gguf = false,
    .hparams = hparams,
};
