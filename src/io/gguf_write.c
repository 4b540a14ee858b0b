/* gguf_write: the writer. Version 3, little-endian, alignment 32; the layout stands in gguf.c.
 *
 * Keys and tensors appear in the order in which they were put, nothing of the machine or the hour goes in: equal
 * calls give equal bytes. A key or tensor name twice, or data that do not fill a tensor, is an error. */
#include "io/gguf.h"

#include <stdio.h>
#include <string.h>

#include <nettle/sha2.h>

#include "base/digest.h"

#define ALIGN 32u

void gguf_writer_init(struct gguf_writer *w)
{
    memset(w, 0, sizeof *w);
    arena_init(&w->arena);
}

void gguf_writer_release(struct gguf_writer *w)
{
    mem_free(w->kv);
    mem_free(w->keys);
    mem_free(w->tensors);
    mem_free(w->offset);
    arena_release(&w->arena);
    memset(w, 0, sizeof *w);
}

/* ---- metadata --------------------------------------------------------------- */

static int append(struct gguf_writer *w, const void *p, size_t n, struct err *e)
{
    if (n > w->kv_cap - w->kv_len) {
        size_t cap = w->kv_cap ? w->kv_cap : 4096;
        while (cap - w->kv_len < n)
            cap *= 2;
        uint8_t *grown = mem_grow(w->kv, w->kv_len, cap, 1);
        if (!grown)
            return err_nomem(e, "GGUF metadata", cap);
        w->kv = grown;
        w->kv_cap = cap;
    }
    if (n)
        memcpy(w->kv + w->kv_len, p, n);
    w->kv_len += n;
    return 0;
}

static void store_le(uint8_t *p, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static int append_le(struct gguf_writer *w, uint64_t v, size_t n, struct err *e)
{
    uint8_t b[8];
    store_le(b, v, n);
    return append(w, b, n, e);
}

static int append_string(struct gguf_writer *w, const char *s, size_t n, struct err *e)
{
    return append_le(w, n, 8, e) || append(w, s, n, e) ? -1 : 0;
}

static int check_name(const char *what, const char *name, struct err *e)
{
    size_t n = strlen(name);
    return n && n <= 1024 ? 0 : err_set(e, ERR_USAGE, "GGUF %s: expected 1 to 1024 bytes, found %zu", what, n);
}

/* Key and type; the value follows. */
static int begin_kv(struct gguf_writer *w, const char *key, enum gguf_type type, struct err *e)
{
    if (check_name("key", key, e))
        return -1;
    if (!strcmp(key, "general.alignment"))
        return err_set(e, ERR_USAGE, "GGUF key general.alignment is the writer's own");
    for (uint64_t i = 0; i < w->n_kv; i++)
        if (!strcmp(w->keys[i], key))
            return err_set(e, ERR_USAGE, "GGUF key %s is put twice", key);
    if ((w->n_kv & (w->n_kv - 1)) == 0) { /* full at powers of two */
        const char **grown = mem_grow(w->keys, w->n_kv, w->n_kv ? 2 * w->n_kv : 1, sizeof *grown);
        if (!grown)
            return err_nomem(e, key, 2 * w->n_kv * sizeof *grown);
        w->keys = grown;
    }
    const char *copy = arena_strdup(&w->arena, key);
    if (!copy)
        return err_nomem(e, key, strlen(key));
    w->keys[w->n_kv++] = copy;
    return append_string(w, key, strlen(key), e) || append_le(w, type, 4, e) ? -1 : 0;
}

int gguf_put_int(struct gguf_writer *w, const char *key, enum gguf_type type, int64_t v, struct err *e)
{
    size_t n = gguf_scalar_size(type);
    int bits = (int)(8 * n);
    bool sign = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    if (!n || type == GGUF_F32 || type == GGUF_F64)
        return err_set(e, ERR_USAGE, "GGUF key %s: type %d is no integer", key, (int)type);
    bool fits = type == GGUF_BOOL ? v == 0 || v == 1
                : bits == 64      ? sign || v >= 0
                : sign            ? v >= -((int64_t)1 << (bits - 1)) && v < (int64_t)1 << (bits - 1)
                                  : v >= 0 && v < (int64_t)1 << bits;
    if (!fits)
        return err_set(e, ERR_USAGE, "GGUF key %s: %lld does not fit its type", key, (long long)v);
    return begin_kv(w, key, type, e) || append_le(w, (uint64_t)v, n, e) ? -1 : 0;
}

int gguf_put_float(struct gguf_writer *w, const char *key, double v, struct err *e)
{
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return begin_kv(w, key, GGUF_F32, e) || append_le(w, u, 4, e) ? -1 : 0;
}

int gguf_put_string(struct gguf_writer *w, const char *key, const char *s, size_t n, struct err *e)
{
    return begin_kv(w, key, GGUF_STRING, e) || append_string(w, s, n, e) ? -1 : 0;
}

int gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type elem, const void *data, uint64_t n,
                   struct err *e)
{
    size_t size = gguf_scalar_size(elem);
    const struct gguf_str *s = data;
    const uint8_t *p = data;
    if (!size && elem != GGUF_STRING)
        return err_set(e, ERR_USAGE, "GGUF key %s: arrays of type %d are not written", key, (int)elem);
    if (begin_kv(w, key, GGUF_ARRAY, e) || append_le(w, elem, 4, e) || append_le(w, n, 8, e))
        return -1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t v = 0;
        if (elem == GGUF_STRING ? append_string(w, s[i].p, s[i].n, e) : 0)
            return -1;
        if (elem == GGUF_STRING)
            continue;
        switch (size) { /* the values of this machine, whatever its byte order */
        case 1: v = p[i]; break;
        case 2: v = ((const uint16_t *)data)[i]; break;
        case 4: v = ((const uint32_t *)data)[i]; break;
        default: v = ((const uint64_t *)data)[i]; break;
        }
        if (append_le(w, v, size, e))
            return -1;
    }
    return 0;
}

int gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv, struct err *e)
{
    if (begin_kv(w, kv->key, kv->type, e))
        return -1;
    if (kv->type == GGUF_ARRAY && (append_le(w, kv->elem, 4, e) || append_le(w, kv->n, 8, e)))
        return -1;
    return append(w, kv->data, (size_t)(kv->end - kv->data), e);
}

/* ---- tensors ----------------------------------------------------------------- */

static uint64_t align_up(uint64_t v)
{
    return (v + ALIGN - 1) / ALIGN * ALIGN;
}

static int grow_tensors(struct gguf_writer *w, struct err *e)
{
    if (w->n_tensors < w->cap_tensors)
        return 0;
    uint64_t cap = w->cap_tensors ? 2 * w->cap_tensors : 64;
    struct tensor *t = mem_grow(w->tensors, w->n_tensors, cap, sizeof *t);
    if (t)
        w->tensors = t;
    uint64_t *o = t ? mem_grow(w->offset, w->n_tensors, cap, sizeof *o) : NULL;
    if (!o)
        return err_nomem(e, "list of tensors", cap * sizeof *t);
    w->offset = o;
    w->cap_tensors = cap;
    return 0;
}

int gguf_writer_tensor(struct gguf_writer *w, const char *name, enum dtype type, int n_dims, const int64_t *dim,
                       struct err *e)
{
    struct tensor t = { .type = type, .n_dims = n_dims, .dim = { 1, 1, 1, 1 } };
    if (check_name("tensor name", name, e))
        return -1;
    if ((int)type >= DT_QMAT || n_dims < 1 || n_dims > 4)
        return err_set(e, ERR_USAGE, "tensor %s: %d dimensions of type %d cannot be written as GGUF", name, n_dims, (int)type);
    for (uint64_t i = 0; i < w->n_tensors; i++)
        if (!strcmp(w->tensors[i].name, name))
            return err_set(e, ERR_USAGE, "tensor %s is declared twice", name);
    memcpy(t.dim, dim, (size_t)n_dims * sizeof *dim);
    int64_t bytes = tensor_bytes(type, tensor_rows(&t), tensor_cols(&t), name, e);
    if (bytes < 0 || grow_tensors(w, e))
        return -1;
    t.name = arena_strdup(&w->arena, name);
    if (!t.name)
        return err_nomem(e, name, strlen(name));
    t.size = (size_t)bytes;
    w->tensors[w->n_tensors] = t;
    w->offset[w->n_tensors++] = w->data_size;
    w->data_size = align_up(w->data_size + (uint64_t)bytes);
    return 0;
}

#define SUM_LEN 64 /* hex digits of SHA-256 */
#define SUM_TEXT(name) (SUM_LEN + 2 + strlen(name))

int gguf_put_checksums(struct gguf_writer *w, struct err *e)
{
    char blank[SUM_LEN + 3];
    snprintf(blank, sizeof blank, "%0*d  ", SUM_LEN, 0);
    w->sha = arena_alloc(&w->arena, 1, sizeof *w->sha);
    if (!w->sha)
        return err_nomem(e, GGUF_SUMS, sizeof *w->sha);
    sha256_init(w->sha);
    if (begin_kv(w, GGUF_SUMS, GGUF_ARRAY, e) || append_le(w, GGUF_STRING, 4, e) || append_le(w, w->n_tensors, 8, e))
        return -1;
    w->sums = w->kv_len;
    for (uint64_t i = 0; i < w->n_tensors; i++)
        if (append_le(w, SUM_TEXT(w->tensors[i].name), 8, e) || append(w, blank, SUM_LEN + 2, e) ||
            append(w, w->tensors[i].name, strlen(w->tensors[i].name), e))
            return -1;
    return 0;
}

/* The current tensor is complete: its checksum into the metadata in memory. */
static void put_sum(struct gguf_writer *w)
{
    char hex[SUM_LEN + 1];
    size_t at = w->sums;
    for (uint64_t i = 0; i < w->cur; i++)
        at += 8 + SUM_TEXT(w->tensors[i].name);
    digest_hex(w->sha, hex);
    memcpy(w->kv + at + 8, hex, SUM_LEN);
}

uint64_t gguf_writer_bytes(const struct gguf_writer *w)
{
    uint64_t n = 24 + w->kv_len;
    for (uint64_t i = 0; i < w->n_tensors; i++)
        n += 8 + strlen(w->tensors[i].name) + 4 + 8 * (uint64_t)w->tensors[i].n_dims + 4 + 8;
    return align_up(n) + w->data_size;
}

static int out_le(struct outfile *out, uint64_t v, size_t n, struct err *e)
{
    uint8_t b[8];
    store_le(b, v, n);
    return outfile_write(out, b, n, e);
}

static int out_tensor(struct outfile *out, const struct tensor *t, uint64_t offset, struct err *e)
{
    size_t n = strlen(t->name);
    if (out_le(out, n, 8, e) || outfile_write(out, t->name, n, e) || out_le(out, (uint64_t)t->n_dims, 4, e))
        return -1;
    for (int i = t->n_dims - 1; i >= 0; i--) /* the file counts from the row's length */
        if (out_le(out, (uint64_t)t->dim[i], 8, e))
            return -1;
    return out_le(out, (uint64_t)dtype_table[t->type].ggml_id, 4, e) || out_le(out, offset, 8, e) ? -1 : 0;
}

/* Goes on to the next tensor that has bytes. */
static int next_tensor(struct gguf_writer *w, struct outfile *out, struct err *e)
{
    while (w->cur < w->n_tensors && w->written == w->tensors[w->cur].size) {
        if (w->sums)
            put_sum(w);
        w->cur++;
        w->written = 0;
        if (outfile_pad(out, ALIGN, e))
            return -1;
    }
    return 0;
}

int gguf_writer_begin(struct gguf_writer *w, struct outfile *out, struct err *e)
{
    if (outfile_write(out, "GGUF", 4, e) || out_le(out, 3, 4, e) || out_le(out, w->n_tensors, 8, e) ||
        out_le(out, w->n_kv, 8, e) || outfile_write(out, w->kv, w->kv_len, e))
        return -1;
    for (uint64_t i = 0; i < w->n_tensors; i++)
        if (out_tensor(out, &w->tensors[i], w->offset[i], e))
            return -1;
    return outfile_pad(out, ALIGN, e) || next_tensor(w, out, e) ? -1 : 0;
}

int gguf_writer_data(struct gguf_writer *w, struct outfile *out, const void *data, size_t n, struct err *e)
{
    if (n == 0)
        return 0;
    if (w->cur == w->n_tensors || n > w->tensors[w->cur].size - w->written)
        return err_set(e, ERR_USAGE, "%s: %zu bytes too many for tensor %s", out->path, n,
                       w->cur < w->n_tensors ? w->tensors[w->cur].name : "(none left)");
    if (outfile_write(out, data, n, e))
        return -1;
    w->written += n;
    if (w->sums)
        sha256_update(w->sha, n, data);
    return next_tensor(w, out, e);
}

int gguf_writer_end(struct gguf_writer *w, struct outfile *out, struct err *e)
{
    if (w->cur < w->n_tensors)
        return err_set(e, ERR_USAGE, "%s: tensor %s has %llu of %zu bytes", out->path, w->tensors[w->cur].name,
                       (unsigned long long)w->written, w->tensors[w->cur].size);
    return w->sums ? outfile_patch(out, 24 + w->sums, w->kv + w->sums, w->kv_len - w->sums, e) : 0;
}
