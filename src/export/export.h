/* export: a model in memory becomes a folder or file that other programs load.
 *
 * Contract: nothing is lost on the way. A format either holds the model exactly, or refuses it naming the
 * reason; what was written is read back by our own reader and compared bit for bit before the folder gets its
 * final name. How to add a format: a row in exporters.def and a file export_<name>.c with its three functions. */
#ifndef D2Q_EXPORT_EXPORT_H
#define D2Q_EXPORT_EXPORT_H

#include <jansson.h>

#include "base/log.h"
#include "model/model.h"
#include "tensor/pack.h"

struct export_options {
    bool gptq_v1;          /* format gptq: v1, which stores zero - 1 (the format gptq_v1 sets it) */
    bool drop_corrections; /* leave out biases of gate and up that the family has no place for, with a warning */
    bool as_llama;         /* call a Mistral or Qwen2 model Llama, whose graph it has and whose config has biases */
    const json_t *meta;    /* object or NULL: how the weights were made, for quantize_config.json */
    /* Writes the model card to path, knowing the output's size, before the output gets its name; or NULL. */
    int (*card)(void *ud, const char *path, uint64_t bytes, struct err *e);
    void *card_ud;
    uint64_t shard_bytes;  /* weights of one file; 0: 5 GB for folders, all for gguf */
    int *files;            /* NULL, or where to put how many files one was split into (1: it was not) */
};

/* What a model that is not quantized yet is going to be. */
struct export_matrix {
    enum dtype type;       /* DT_QMAT: grouped integers on `grid` */
    struct pack_grid grid;
};

struct export_plan {
    const struct export_matrix *lin; /* (n_layer * ROLE_COUNT), or NULL: the seven matrices stay as they are */
    bool mlp_bias;                   /* gate and up get biases (DAC) */
    bool embd_blocks;                /* embeddings or head become blocks of a GGUF type */
    const char *not_f16;             /* a matrix or table that stays float, but not in f16; NULL: there is none */
};

struct exporter {
    const char *name;
    const char *help;  /* one line */
    bool file;         /* one file, not a folder */
    /* Can the format hold this model exactly? ERR_UNSUPPORTED with the reason. */
    int (*carries)(const struct model *m, const struct export_options *o, const struct export_plan *p,
                   struct err *e);
    /* Everything but the tokenizer and generation_config.json, into folder path, or all of it as file path; verified. */
    int (*write)(const struct model *m, const char *path, const struct export_options *o, const struct log *log,
                 struct err *e);
};

#define EXPORTER(name, file, help)                                                                                        \
    int name##_carries(const struct model *m, const struct export_options *o, const struct export_plan *p,          \
                       struct err *e);                                                                              \
    int name##_write(const struct model *m, const char *path, const struct export_options *o, const struct log *log, \
                     struct err *e);
#include "export/exporters.def"
#undef EXPORTER

extern const struct exporter exporter_table[];
extern const int exporter_count;

const struct exporter *exporter_by_name(const char *name, struct err *e); /* NULL: none, error names those there are */

/* plan NULL: the model as it is. Cheap: for asking before hours of work. */
int export_check(const struct model *m, const char *format, const struct export_options *o,
                 const struct export_plan *plan, struct err *e);
/* May path be written, or replaced? For asking before hours of work. */
int export_target(const struct model *m, const char *format, const char *path, struct err *e);
/* Writes folder out_dir, replacing a model that is there (but only one that d2q wrote, and never what
 * the model is read from). *bytes (NULL allowed): size of all its files. o NULL: defaults. */
int export_model(const struct model *m, const char *format, const char *out_dir, const struct export_options *o,
                 const struct log *log, uint64_t *bytes, struct err *e);
/* What a GGUF file of m takes besides its tensors: metadata and vocabulary, and at most that much for tensors' names, checksums and
 * padding and for how it was made. */
int gguf_side_bytes(const struct model *m, uint64_t *bytes, struct err *e);
/* What to open of `files` afterwards: path, or the first part of a split file. 0, or -1: path is too long. */
int export_opens(const char *path, int files, char *out, size_t cap);
/* Writing f16 alone: ERR_UNSUPPORTED where the plan has other types of table or float. */
int export_needs_f16(const char *format, const struct export_plan *p, struct err *e);

#endif
