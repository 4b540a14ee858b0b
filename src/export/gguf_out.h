/* gguf_out: parts of the GGUF exporter, shared by export_gguf.c, gguf_meta.c and gguf_verify.c only. */
#ifndef D2Q_EXPORT_GGUF_OUT_H
#define D2Q_EXPORT_GGUF_OUT_H

#include "export/export.h"
#include "io/gguf.h"
#include "model/family.h"

struct gguf_item {
    const char *name;
    enum dtype type;        /* in the file */
    int64_t rows, cols;     /* cols 0: a vector of `rows` */
    int64_t perm;           /* head_dim of the row permutation in the file, or 0 */
    const struct tensor *t; /* a matrix; */
    const float *v;         /* or a vector */
    int part;               /* file it goes to, from 0 */
};

struct gguf_out {
    const struct model *m;
    const struct export_options *o;
    const struct family *family; /* as whose architecture it is written */
    struct arena arena;
    struct gguf_item *items;
    size_t n, cap;
    uint64_t bytes;
    int n_parts;            /* files: 1, or as many as shard_bytes makes it */
    bool drop_mlp_bias;
    int64_t n_ctx;
};

/* "NAME-00001-of-00003.gguf" from NAME.gguf, as llama.cpp names the parts of a split file; part from 0. 0, or -1: too long. */
int gguf_part_name(const char *path, int part, int n, char *out, size_t cap);
/* general.*, <arch>.*, tokenizer.*. */
int gguf_put_meta(const struct gguf_out *g, struct gguf_writer *w, const struct log *log, struct err *e);
/* The (head_dim/2) factors of rope_freqs.weight; 1: filled in, 0: the model needs none. */
int gguf_rope_factors(const struct model *m, float *factor, struct err *e);
/* Opens path as a model and compares everything that is computed with. */
int gguf_verify(const struct gguf_out *g, const char *path, const struct log *log, struct err *e);

#endif
