/* checkpoint: one view of a model on disk, whatever its container.
 *
 * A Hugging Face folder (config.json, model.safetensors or model.safetensors.index.json
 * + shards) or a .gguf file. Gives tensors by name and the configuration; knows
 * nothing of families. containers.def has a row per container. */
#ifndef D2Q_IO_CHECKPOINT_H
#define D2Q_IO_CHECKPOINT_H

#include <jansson.h>

#include "io/gguf.h"
#include "io/safetensors.h"

enum container {
#define CONTAINER(id, label, prefix) id,
#include "io/containers.def"
#undef CONTAINER
};

struct checkpoint {
    enum container container;
    char *path;            /* as given, without a trailing slash */
    const char *name;      /* its last part; where that is . or .., the folder's */
    struct arena arena;
    /* HF only */
    json_t *config;            /* config.json, an object */
    json_t *generation_config; /* or NULL */
    json_t *quant_config;      /* config's quantization_config, else quantize_config.json, or NULL */
    struct st_file *shards;
    int n_shards;
    /* GGUF only */
    struct gguf gguf;
    const struct tensor **gguf_sorted; /* gguf.tensors by name */
    /* float tensors and the integer tensors of quantized folders, sorted by name */
    struct st_entry *entries;  /* HF */
    size_t n_entries;
    uint64_t data_bytes;       /* of all tensors on disk */
};

int checkpoint_open(struct checkpoint **out, const char *path, struct err *e);
/* -1: a weight file was written to since it was opened. */
int checkpoint_check(const struct checkpoint *c, struct err *e);
void checkpoint_free(struct checkpoint *c); /* NULL allowed */
/* The pages of n bytes at data, if they lie in a mapping of c, need not stay in memory: they are read again when touched. */
void checkpoint_forget(const struct checkpoint *c, const void *data, size_t n);
/* Those of n rows of t from row0 on; c NULL allowed. */
void checkpoint_forget_rows(const struct checkpoint *c, const struct tensor *t, int64_t row0, int64_t n);
/* SHA-256 of n bytes at data, which leave memory as they are read. */
void checkpoint_sha256(const struct checkpoint *c, const void *data, size_t n, char hex[65]);

/* 1 found: *t is a view; 0 absent; -1 found but not of a type in dtypes.def. */
int checkpoint_tensor(const struct checkpoint *c, const char *name, struct tensor *t, struct err *e);
/* HF only: any tensor, also integers. NULL: absent. */
const struct st_entry *checkpoint_entry(const struct checkpoint *c, const char *name);
/* Reads "<folder>/<name>" whole (NUL-terminated, mem_free; text NULL: only looks whether it may be read); 1 found, 0 absent, -1 error. A
 * GGUF file has none. */
int checkpoint_file(const struct checkpoint *c, const char *name, char **text, size_t *n, struct err *e);

/* GPTQ linear at prefix ("model.layers.0.mlp.up_proj"): qweight, qzeros, scales, g_idx of v1 or v2
 * by c->quant_config. 1: *q filled (arrays in a), 0: no qweight there, -1 error. Zeros of v1 are
 * given as true zeros: (stored + 1) mod 2^bits. */
int checkpoint_gptq(const struct checkpoint *c, const char *prefix, int64_t n_out, int64_t n_in,
                    struct arena *a, struct qmat *q, struct err *e);
/* The same for a linear of a compressed-tensors folder (pack-quantized): weight_packed, weight_scale, weight_zero_point,
 * weight_shape, weight_g_idx. 0: no weight_packed there. */
int checkpoint_ct(const struct checkpoint *c, const char *prefix, int64_t n_out, int64_t n_in,
                  struct arena *a, struct qmat *q, struct err *e);

#endif
