/* family: what distinguishes one model family from another. How to add one:
 *   1. a file family_<name>.c with a `struct family family_<name>`;
 *   2. a row in families.def;
 *   3. a tiny random model in tools/golden.py, whose logits the tests then compare.
 * A family reads its hparams from a Hugging Face config (a GGUF file's metadata is first turned into one,
 * by gguf_config), and refuses by name any option it does not implement. */
#ifndef D2Q_MODEL_FAMILY_H
#define D2Q_MODEL_FAMILY_H

#include <jansson.h>

#include "model/model.h"

struct family {
    const char *name;
    const char *hf_arch;      /* config.json architectures[0], "LlamaForCausalLM" */
    const char *hf_type;      /* config.json model_type, "llama" */
    const char *gguf_arch;    /* general.architecture, "llama" */
    bool gguf_perm;           /* q, k rows of a GGUF file are permuted (rope type NORM) */
    bool mlp_bias_hf;         /* gate/up/down biases exist in transformers (config mlp_bias) */
    bool mlp_bias_gguf;       /* llama.cpp loads gate/up/down biases */
    /* Fills hp and (through model) rope tables from config. */
    int (*hparams)(const json_t *config, struct hparams *hp, struct err *e);
};

const struct family *family_by_hf(const json_t *config, struct err *e);   /* by architectures / model_type */
const struct family *family_by_name(const char *name);                    /* NULL: none */
const struct family *family_by_gguf(const char *arch);                    /* NULL: none; first row that has it */

/* config.json made from GGUF metadata (new reference). */
int gguf_config(const struct gguf *g, json_t **config, struct err *e);
/* (head_dim/2) inverse frequencies with config's rope_scaling/rope_parameters: none, "linear", "llama3"; a GGUF
 * file's rope_freqs.weight is applied by model_open. Other types are refused by name. */
int rope_inv_freq(const json_t *config, const struct hparams *hp, float *inv_freq, float *attn_scale,
                  struct err *e);

/* Llama 3.1's scaling rule: applied to n plain frequencies, and recognized in the n factors of a GGUF file's
 * rope_freqs.weight (1: *p holds the parameters that give them; 0: none of the usual ones do). */
struct rope_llama3 {
    double factor, low, high, ctx; /* low_freq_factor, high_freq_factor, original_max_position_embeddings */
};
#define MAX_FIT_PAIRS 512
void rope_llama3(const struct rope_llama3 *p, int64_t n, float *inv_freq);
int rope_llama3_fit(const float *factors, const struct hparams *hp, struct rope_llama3 *p);

#endif
