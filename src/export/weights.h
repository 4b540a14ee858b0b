/* weights: the list of tensors an exporter writes as safetensors, how they are streamed, and how they are
 * compared afterwards. Internal to export. */
#ifndef D2Q_EXPORT_WEIGHTS_H
#define D2Q_EXPORT_WEIGHTS_H

#include "export/export.h"

enum item_kind {
    ITEM_TENSOR, ITEM_VECTOR,
    ITEM_QWEIGHT, ITEM_QZEROS, ITEM_SCALES, ITEM_G_IDX,              /* GPTQ */
    ITEM_CT_PACKED, ITEM_CT_SCALE, ITEM_CT_ZERO, ITEM_CT_SHAPE, ITEM_CT_G_IDX, /* compressed-tensors */
};
enum integers { INTEGERS_NONE, INTEGERS_GPTQ, INTEGERS_CT };

struct item {
    enum item_kind kind;
    const char *name;        /* in the file */
    enum st_dtype dtype;
    int n_dims;
    int64_t dim[2];
    const struct tensor *t;  /* all but ITEM_VECTOR */
    const float *v;          /* ITEM_VECTOR; NULL: zeros */
    int shard;
};

/* Which biases the folder has, for every block; zeros where the model has none. */
struct export_biases {
    bool qkv, o, mlp;
};

struct weights {
    struct arena arena;
    const struct arena *model; /* of the model: what was written of it leaves memory where it can (arena_forget) */
    struct item *items;
    size_t n, cap;
    enum st_dtype dtype; /* of what is not integers: ST_F32, ST_F16 or ST_BF16 (values must fit exactly) */
    enum integers integers; /* how DT_QMAT is stored; none: dequantized */
    bool v1;
    struct export_biases biases;
    int n_shards;
    uint64_t bytes;
};

/* What gptq and ct store floats as: ST_F16, which the quantizer rounds to; ST_BF16 where only that holds every value (of a source in BF16
 * that others quantized). Where neither does it is ST_F16, and writing names the value. */
enum st_dtype weights_float_type(const struct model *m);
/* Fills in the tensors of the model; dtype, integers, v1, biases are set by the caller. */
int weights_plan(struct weights *w, const struct model *m, uint64_t shard_bytes, struct err *e);
void weights_release(struct weights *w);
/* model.safetensors or shards and their index. */
int weights_write(const struct weights *w, const char *dir, const struct log *log, struct err *e);
/* Opens dir as a checkpoint and compares. */
int weights_verify(const struct weights *w, const char *dir, const struct log *log, struct err *e);

/* The integer tensors of a linear as GPTQ or compressed-tensors stores them, into out (cleared); sizes as item's shape.
 * export_gptq.c, export_ct.c */
int gptq_pack(const struct item *it, bool v1, void *out, struct err *e);
int ct_pack(const struct item *it, void *out, struct err *e);

/* A regular expression for matrix i (as matrix_name): "-:^model\.layers\.3\.mlp\.down_proj$" of prefix "-:^". */
void matrix_pattern(char *out, size_t cap, const char *prefix, int64_t i);
/* "<dir>/<name>" with the object, indented. */
int json_write(const char *dir, const char *name, const json_t *o, struct err *e);
/* config.json for weights of dtype ("float32"): the model's own, with biases, tying and family as they are written, and
 * without a quantization_config. ERR_UNSUPPORTED where the family has no place for a bias. plan may be NULL. */
json_t *export_config(const struct model *m, const char *dtype, const struct export_options *o,
                      const struct export_plan *plan, struct export_biases *b, struct err *e);

#endif
