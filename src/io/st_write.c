/* safetensors: writing one file.
 *
 * Tensors stand in the declared order, offsets without holes, the header padded
 * with spaces to a multiple of 8 so that the data begins aligned. Declared widest
 * type first and by name, the bytes equal those of the format's own library. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"

#define HEADER_MAX 100000000u

static const struct {
    const char *name;
    uint64_t width;
} types[] = {
    [ST_F32] = { "F32", 4 }, [ST_F16] = { "F16", 2 }, [ST_BF16] = { "BF16", 2 },
    [ST_I32] = { "I32", 4 }, [ST_I64] = { "I64", 8 }, [ST_U8] = { "U8", 1 },
};

void st_writer_init(struct st_writer *w)
{
    memset(w, 0, sizeof *w);
    arena_init(&w->arena);
}

void st_writer_release(struct st_writer *w)
{
    mem_free(w->entries);
    arena_release(&w->arena);
    memset(w, 0, sizeof *w);
}

int st_writer_tensor(struct st_writer *w, const char *name, enum st_dtype dtype, int n_dims,
                     const int64_t *dim, struct err *e)
{
    if (dtype >= ST_OTHER || n_dims < 0 || n_dims > 4)
        return err_set(e, ERR_USAGE, "tensor %s: cannot write type %d with %d dimensions", name, (int)dtype, n_dims);
    uint64_t size = types[dtype].width;
    for (int i = 0; i < n_dims; i++)
        if (dim[i] < 0 || __builtin_mul_overflow(size, (uint64_t)dim[i], &size) || size > INT64_MAX / 2)
            return err_set(e, ERR_USAGE, "tensor %s: cannot write dimension %d of %lld", name, i, (long long)dim[i]);
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        struct st_entry *grown = mem_grow(w->entries, w->n, cap, sizeof *grown);
        if (!grown)
            return err_nomem(e, "safetensors header", cap * sizeof *grown);
        w->entries = grown;
        w->cap = cap;
    }
    struct st_entry *en = &w->entries[w->n];
    *en = (struct st_entry){ .dtype = dtype, .dtype_name = types[dtype].name, .n_dims = n_dims,
                             .dim = { 1, 1, 1, 1 }, .size = (size_t)size };
    for (int i = 0; i < n_dims; i++)
        en->dim[i] = dim[i];
    en->name = arena_strdup(&w->arena, name);
    if (!en->name)
        return err_nomem(e, name, strlen(name));
    w->n++;
    return 0;
}

/* One header entry; NULL when memory is out or the name is no UTF-8. */
static json_t *entry_json(const struct st_entry *en, uint64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < en->n_dims; i++)
        json_array_append_new(shape, json_integer(en->dim[i]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", en->dtype_name, "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)begin + (json_int_t)en->size);
}

static int header_text(const struct st_writer *w, const char *path, char **text, struct err *e)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    uint64_t pos = 0;
    int rc = root ? 0 : -1;
    for (size_t i = 0; i < w->n && !rc; i++) {
        if (json_object_get(root, w->entries[i].name)) {
            err_set(e, ERR_USAGE, "%s: tensor %s is declared twice", path, w->entries[i].name);
            json_decref(root);
            return -1;
        }
        rc = json_object_set_new(root, w->entries[i].name, entry_json(&w->entries[i], pos));
        pos += w->entries[i].size;
    }
    *text = rc ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return *text ? 0 : err_set(e, ERR_USAGE, "%s: cannot encode the header (out of memory, or a tensor name that is "
                                             "not UTF-8)", path);
}

int st_writer_begin(struct st_writer *w, struct outfile *out, struct err *e)
{
    char *text = NULL;
    if (header_text(w, out->path, &text, e))
        return -1;
    size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    uint8_t le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    int rc = padded > HEADER_MAX ? err_set(e, ERR_UNSUPPORTED, "%s: header of %zu bytes, expected at most %u",
                                           out->path, padded, HEADER_MAX)
                                 : 0;
    if (!rc)
        rc = outfile_write(out, le, 8, e) || outfile_write(out, text, n, e) ||
             outfile_write(out, "       ", padded - n, e) ? -1 : 0;
    free(text); /* from jansson */
    w->cur = 0;
    w->written = 0;
    return rc;
}

/* Past tensors of which nothing is left to write. */
static void advance(struct st_writer *w)
{
    while (w->cur < w->n && w->written == w->entries[w->cur].size) {
        w->cur++;
        w->written = 0;
    }
}

int st_writer_data(struct st_writer *w, struct outfile *out, const void *data, size_t n, struct err *e)
{
    advance(w);
    if (n == 0)
        return 0;
    if (w->cur == w->n)
        return err_set(e, ERR_USAGE, "%s: %zu bytes of data after the last declared tensor", out->path, n);
    const struct st_entry *en = &w->entries[w->cur];
    if (n > en->size - w->written)
        return err_set(e, ERR_USAGE, "%s: tensor %s: %zu bytes of data, expected at most %llu", out->path, en->name,
                       n, (unsigned long long)(en->size - w->written));
    w->written += n;
    return outfile_write(out, data, n, e);
}

int st_writer_end(struct st_writer *w, struct err *e)
{
    advance(w);
    if (w->cur < w->n)
        return err_set(e, ERR_USAGE, "tensor %s: %llu bytes of data were written, expected %zu",
                       w->entries[w->cur].name, (unsigned long long)w->written, w->entries[w->cur].size);
    return 0;
}
