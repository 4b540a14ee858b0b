/* gguf: reading and writing GGUF v2/v3 files. Layout: formats.md 3b, and the
 * first comment of gguf.c. Everything is a view into the mapping; every length is
 * checked before it is used. Split files ("-00001-of-00003.gguf") open as one. */
#ifndef D2Q_IO_GGUF_H
#define D2Q_IO_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/file.h"
#include "base/mem.h"
#include "tensor/tensor.h"

enum gguf_type { /* the file's own numbers */
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_TYPE_COUNT,
};

struct gguf_str { /* not NUL-terminated */
    const char *p;
    size_t n;
};

struct gguf_kv {
    const char *key; /* NUL-terminated copy in the arena */
    enum gguf_type type;
    enum gguf_type elem;  /* GGUF_ARRAY: type of the elements (no nested arrays) */
    uint64_t n;           /* elements of an array, else 1 */
    const uint8_t *data;  /* first value, in the mapping, already bounds-checked */
    const uint8_t *end;
};

struct gguf {
    struct arena arena;
    struct file_map *maps; /* one per split file */
    int n_maps;
    uint32_t version;
    struct gguf_kv *kv;
    uint64_t n_kv;
    struct tensor *tensors; /* in file order; names as in the file; DT_COUNT: of a type we lack */
    uint32_t *ggml_type;    /* (n_tensors) the file's own type numbers */
    uint64_t n_tensors;
    struct gguf_sums { /* GGUF_SUMS of the files that have it */
        const struct gguf_kv *kv;
        struct gguf_sums *next;
    } *sums;
};

#define GGUF_SUMS "d2quant.sha256"

size_t gguf_scalar_size(uint32_t type); /* bytes; 0: no scalar */

int gguf_open(struct gguf *g, const char *path, struct err *e);
void gguf_release(struct gguf *g);

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key); /* NULL: absent */
/* Getters: 1 found, 0 absent (*v untouched), -1 present but of the wrong type (error names key, expected, found).
 * gguf_int accepts every integer type and bool, gguf_float every number. */
int gguf_int(const struct gguf *g, const char *key, int64_t *v, struct err *e);
int gguf_float(const struct gguf *g, const char *key, double *v, struct err *e);
int gguf_string(const struct gguf *g, const char *key, struct gguf_str *v, struct err *e);

/* Walks an array: gguf_iter_init, then one of the next functions n times. */
struct gguf_iter {
    const struct gguf_kv *kv;
    const uint8_t *p;
    uint64_t i;
};
/* 1 found and its elements are of type elem (or any integer type if elem is GGUF_I32), 0 absent, -1 wrong type. */
int gguf_iter_init(struct gguf_iter *it, const struct gguf *g, const char *key, enum gguf_type elem, struct err *e);
struct gguf_str gguf_iter_str(struct gguf_iter *it);
int64_t gguf_iter_int(struct gguf_iter *it);
double gguf_iter_float(struct gguf_iter *it);

/* ---- writing ----------------------------------------------------------- */

/* Header and metadata are collected in memory, tensors are declared, then their
 * data streamed in the declared order:
 *   gguf_writer_init; gguf_put_*...; gguf_writer_tensor...; gguf_writer_begin(out);
 *   for each tensor: gguf_writer_data (whole tensor, any number of pieces); gguf_writer_end. */
struct gguf_writer {
    struct arena arena;
    uint8_t *kv;   /* encoded key-value section */
    size_t kv_len, kv_cap;
    const char **keys;
    uint64_t n_kv;
    struct tensor *tensors; /* name, type, shape, size only */
    uint64_t *offset;       /* in the data section */
    uint64_t n_tensors, cap_tensors;
    uint64_t data_size;     /* of the data section, padding counted */
    uint64_t cur, written;  /* the tensor whose data come next, and how many came */
    size_t sums;            /* where in kv the checksums lie; 0: none asked for */
    struct sha256_ctx *sha; /* of the current tensor */
};

void gguf_writer_init(struct gguf_writer *w);
void gguf_writer_release(struct gguf_writer *w);
int gguf_put_int(struct gguf_writer *w, const char *key, enum gguf_type type, int64_t v, struct err *e);
int gguf_put_float(struct gguf_writer *w, const char *key, double v, struct err *e); /* F32 */
int gguf_put_string(struct gguf_writer *w, const char *key, const char *s, size_t n, struct err *e);
int gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type elem, const void *data,
                   uint64_t n, struct err *e); /* GGUF_STRING: data is struct gguf_str[n] */
/* Copies an entry of another file as it is. */
int gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv, struct err *e);
/* dim in Hugging Face order: the row's length comes last. */
int gguf_writer_tensor(struct gguf_writer *w, const char *name, enum dtype type, int n_dims,
                       const int64_t *dim, struct err *e);
/* After the last tensor was declared: the file gets GGUF_SUMS, "SHA256  NAME" of each tensor, filled in at the end. */
int gguf_put_checksums(struct gguf_writer *w, struct err *e);
uint64_t gguf_writer_bytes(const struct gguf_writer *w); /* of the whole file, as declared so far */
int gguf_writer_begin(struct gguf_writer *w, struct outfile *out, struct err *e);
int gguf_writer_data(struct gguf_writer *w, struct outfile *out, const void *data, size_t n, struct err *e);
int gguf_writer_end(struct gguf_writer *w, struct outfile *out, struct err *e);

#endif
