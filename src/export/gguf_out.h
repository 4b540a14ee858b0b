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
};

struct gguf_out {
    const struct model *m;
    const struct export_options *o;
    const struct family *family; /* as whose architecture it is written */
    struct arena arena;
    struct gguf_item *items;
    size_t n, cap;
    uint64_t bytes;
    bool drop_mlp_bias;
    int64_t n_ctx;
};

/* general.*, <arch>.*, tokenizer.*. */
int gguf_put_meta(const struct gguf_out *g, struct gguf_writer *w, const struct log *log, struct err *e);
/* The (head_dim/2) factors of rope_freqs.weight; 1: filled in, 0: the model needs none. */
int gguf_rope_factors(const struct model *m, float *factor, struct err *e);
/* Opens path as a model and compares everything that is computed with. */
int gguf_verify(const struct gguf_out *g, const char *path, const struct log *log, struct err *e);

#endif
