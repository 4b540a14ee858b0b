/* safetensors: reading and writing one .safetensors file.
 *
 * Layout: u64 little-endian header length, a JSON object
 * {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}},
 * then the data, offsets counted from its first byte. Checked on reading: the
 * header fits the file, names are unique, offsets are in range, agree with
 * dtype x shape, and tile the data without overlaps or holes. */
#ifndef D2Q_IO_SAFETENSORS_H
#define D2Q_IO_SAFETENSORS_H

#include "base/err.h"
#include "base/file.h"
#include "base/mem.h"
#include "tensor/tensor.h"

/* What a file may hold besides our dtypes: integer tensors of quantized formats. */
enum st_dtype { ST_F32, ST_F16, ST_BF16, ST_I32, ST_I64, ST_U8, ST_OTHER };

struct st_entry {
    const char *name;
    enum st_dtype dtype;
    const char *dtype_name; /* as the file spells it, "F32"; for messages */
    int n_dims;
    int64_t dim[4];
    const void *data; /* in the mapping, or a copy if it is not aligned there */
    size_t size;
};

struct st_file {
    struct file_map map;
    struct arena arena;
    struct st_entry *entries; /* sorted by name */
    size_t n;
};

int st_open(struct st_file *f, const char *path, struct err *e);
void st_release(struct st_file *f);

/* Writing: declare all, begin, stream data in the declared order, end (as gguf_writer). */
struct st_writer {
    struct arena arena;
    struct st_entry *entries;
    size_t n, cap, cur;
    uint64_t written; /* of the current entry */
};

void st_writer_init(struct st_writer *w);
void st_writer_release(struct st_writer *w);
int st_writer_tensor(struct st_writer *w, const char *name, enum st_dtype dtype, int n_dims,
                     const int64_t *dim, struct err *e);
int st_writer_begin(struct st_writer *w, struct outfile *out, struct err *e); /* metadata {"format":"pt"} */
int st_writer_data(struct st_writer *w, struct outfile *out, const void *data, size_t n, struct err *e);
int st_writer_end(struct st_writer *w, struct err *e);

#endif
