/* safetensors: reading one file. Layout and checks: safetensors.h.
 *
 * Strict as the format's own library: a header that is no JSON object, a name
 * that occurs twice, an offset that disagrees with dtype x shape, overlaps, holes
 * and bytes after the last tensor are errors (a hole is where a second file could
 * hide). What it allows and few do, data that is not aligned to its type, is
 * copied once, so that everything above may read a view in place. */
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#define HEADER_MAX 100000000u /* as in the format's own library */

/* Everything the format knows, in bits: the ones we do not compute with are still checked and listed. */
static const struct {
    const char *name;
    enum st_dtype dtype;
    int bits;
} dtypes[] = {
    { "F32", ST_F32, 32 },      { "F16", ST_F16, 16 },          { "BF16", ST_BF16, 16 },
    { "I32", ST_I32, 32 },      { "I64", ST_I64, 64 },          { "U8", ST_U8, 8 },
    { "BOOL", ST_OTHER, 8 },    { "I8", ST_OTHER, 8 },          { "I16", ST_OTHER, 16 },
    { "U16", ST_OTHER, 16 },    { "U32", ST_OTHER, 32 },        { "U64", ST_OTHER, 64 },
    { "F64", ST_OTHER, 64 },    { "C64", ST_OTHER, 64 },        { "F8_E5M2", ST_OTHER, 8 },
    { "F8_E4M3", ST_OTHER, 8 }, { "F8_E8M0", ST_OTHER, 8 },     { "F8_E5M2FNUZ", ST_OTHER, 8 },
    { "F4", ST_OTHER, 4 },      { "F8_E4M3FNUZ", ST_OTHER, 8 }, { "F6_E2M3", ST_OTHER, 6 },
    { "F6_E3M2", ST_OTHER, 6 },
};

struct header {
    const char *path;
    const uint8_t *data; /* first byte after the header */
    uint64_t data_size;
};

/* {"shape": [...]} into en->dim; *count gets the product. */
static int parse_shape(const struct header *h, struct st_entry *en, const json_t *shape, uint64_t *count,
                       struct err *e)
{
    if (!json_is_array(shape))
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected \"shape\" to be an array of integers", h->path,
                       en->name);
    size_t n = json_array_size(shape);
    if (n > 4)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s has %zu dimensions, expected at most 4", h->path,
                       en->name, n);
    uint64_t most = 1; /* as if no dimension were 0: products of some of them must not overflow either */
    *count = 1;
    en->n_dims = (int)n;
    for (size_t i = 0; i < 4; i++)
        en->dim[i] = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set(e, ERR_FORMAT, "%s: tensor %s: expected dimension %zu to be an integer of at least 0",
                           h->path, en->name, i);
        en->dim[i] = json_integer_value(d);
        *count *= (uint64_t)en->dim[i];
        if (__builtin_mul_overflow(most, (uint64_t)(en->dim[i] ? en->dim[i] : 1), &most) || most > INT64_MAX / 64)
            return err_set(e, ERR_FORMAT, "%s: tensor %s: shape is too large (dimension %zu is %lld)", h->path,
                           en->name, i, (long long)en->dim[i]);
    }
    return 0;
}

static int parse_offsets(const struct header *h, const struct st_entry *en, const json_t *offs, uint64_t *begin,
                         uint64_t *end, struct err *e)
{
    const json_t *a = json_array_get(offs, 0), *b = json_array_get(offs, 1);
    if (json_array_size(offs) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 ||
        json_integer_value(b) < json_integer_value(a))
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s: expected \"data_offsets\" to be [begin, end] with 0 <= begin <= end",
                       h->path, en->name);
    *begin = (uint64_t)json_integer_value(a);
    *end = (uint64_t)json_integer_value(b);
    if (*end > h->data_size)
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s: data ends at byte %llu, but the file has only %llu bytes of data "
                       "(truncated?)", h->path, en->name, (unsigned long long)*end,
                       (unsigned long long)h->data_size);
    return 0;
}

/* A view that may be dereferenced as its own type. */
static int align_data(struct st_file *f, struct st_entry *en, size_t width, struct err *e)
{
    if (width < 2 || (uintptr_t)en->data % width == 0)
        return 0;
    void *copy = arena_alloc(&f->arena, en->size, 1);
    if (!copy)
        return err_nomem(e, en->name, en->size);
    memcpy(copy, en->data, en->size);
    en->data = copy;
    return 0;
}

static int parse_entry(struct st_file *f, const struct header *h, const char *name, const json_t *v,
                       struct st_entry *en, struct err *e)
{
    en->name = arena_strdup(&f->arena, name);
    if (!en->name)
        return err_nomem(e, h->path, strlen(name));
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    if (!dtype)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected an object with a \"dtype\" string", h->path, name);
    size_t d = 0;
    while (d < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[d].name, dtype))
        d++;
    if (d == sizeof dtypes / sizeof *dtypes)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s: unknown dtype \"%s\"", h->path, name, dtype);
    en->dtype = dtypes[d].dtype;
    en->dtype_name = dtypes[d].name;

    uint64_t count = 0, begin = 0, end = 0;
    if (parse_shape(h, en, json_object_get(v, "shape"), &count, e) ||
        parse_offsets(h, en, json_object_get(v, "data_offsets"), &begin, &end, e))
        return -1;
    uint64_t bits = count * (uint64_t)dtypes[d].bits; /* count is bounded by parse_shape */
    if (bits % 8 || end - begin != bits / 8)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: %s of its shape needs %llu bytes, data_offsets span %llu",
                       h->path, name, dtype, (unsigned long long)((bits + 7) / 8),
                       (unsigned long long)(end - begin));
    en->data = h->data + begin;
    en->size = (size_t)(end - begin);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_entry *)a)->name, ((const struct st_entry *)b)->name);
}

/* By place; empty tensors before what begins where they stand. */
static int by_place(const void *a, const void *b)
{
    const struct st_entry *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->size > y->size) - (x->size < y->size);
}

/* The data must be tiled: no byte in two tensors, none in no tensor. */
static int check_tiling(struct st_file *f, const struct header *h, struct err *e)
{
    qsort(f->entries, f->n, sizeof *f->entries, by_place);
    const uint8_t *at = h->data;
    for (size_t i = 0; i < f->n; i++) {
        const struct st_entry *en = &f->entries[i];
        const uint8_t *p = en->data;
        if (p < at)
            return err_set(e, ERR_FORMAT, "%s: tensors %s and %s overlap at data byte %zu", h->path,
                           f->entries[i - 1].name, en->name, (size_t)(p - h->data));
        if (p > at)
            return err_set(e, ERR_FORMAT, "%s: %zu bytes before tensor %s belong to no tensor (data byte %zu)",
                           h->path, (size_t)(p - at), en->name, (size_t)(at - h->data));
        at = p + en->size;
    }
    if (at != h->data + h->data_size)
        return err_set(e, ERR_FORMAT, "%s: %llu bytes after the last tensor, expected none", h->path,
                       (unsigned long long)(h->data_size - (uint64_t)(at - h->data)));
    return 0;
}

static int check_metadata(const struct header *h, const json_t *meta, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        return err_set(e, ERR_FORMAT, "%s: expected \"__metadata__\" to be an object", h->path);
    json_object_foreach((json_t *)(uintptr_t)meta, key, v)
        if (!json_is_string(v))
            return err_set(e, ERR_FORMAT, "%s: __metadata__: expected \"%s\" to be a string", h->path, key);
    return 0;
}

static int parse_header(struct st_file *f, const struct header *h, json_t *root, struct err *e)
{
    const char *key;
    json_t *v;
    f->entries = arena_zalloc(&f->arena, json_object_size(root), sizeof *f->entries);
    if (!f->entries)
        return err_nomem(e, h->path, json_object_size(root) * sizeof *f->entries);
    json_object_foreach(root, key, v) {
        if (!strcmp(key, "__metadata__")) {
            if (check_metadata(h, v, e))
                return -1;
        } else {
            if (parse_entry(f, h, key, v, &f->entries[f->n], e))
                return -1;
            f->n++;
        }
    }
    if (check_tiling(f, h, e))
        return -1;
    for (size_t i = 0; i < f->n; i++) {
        enum st_dtype d = f->entries[i].dtype;
        size_t width = d == ST_I64 ? 8 : d == ST_F32 || d == ST_I32 ? 4 : d == ST_F16 || d == ST_BF16 ? 2 : 1;
        if (align_data(f, &f->entries[i], width, e))
            return -1;
    }
    qsort(f->entries, f->n, sizeof *f->entries, by_name);
    return 0;
}

int st_open(struct st_file *f, const char *path, struct err *e)
{
    memset(f, 0, sizeof *f);
    arena_init(&f->arena);
    if (file_map_open(&f->map, path, e))
        return -1;
    struct cursor c;
    uint64_t len = 0;
    const uint8_t *text = NULL;
    json_t *root = NULL;
    int rc = -1;
    cursor_init(&c, f->map.data, f->map.size, path);
    if (cursor_u64(&c, &len, e))
        goto out;
    if (len > HEADER_MAX || len > cursor_left(&c)) {
        err_set(e, ERR_FORMAT, "%s: header length is %llu, expected at most %llu (no safetensors file, or truncated)",
                path, (unsigned long long)len,
                (unsigned long long)(cursor_left(&c) < HEADER_MAX ? cursor_left(&c) : HEADER_MAX));
        goto out;
    }
    if (cursor_take(&c, (size_t)len, &text, e))
        goto out;
    if (len == 0 || text[0] != '{') {
        err_set(e, ERR_FORMAT, "%s: header does not begin with '{'", path);
        goto out;
    }
    if (json_from_text((const char *)text, (size_t)len, &root, e)) {
        err_prefix(e, "%s: header", path);
        goto out;
    }
    struct header h = { path, text + len, cursor_left(&c) };
    rc = parse_header(f, &h, root, e);
out:
    json_decref(root);
    if (rc)
        st_release(f);
    return rc;
}

void st_release(struct st_file *f)
{
    file_map_release(&f->map);
    arena_release(&f->arena);
    memset(f, 0, sizeof *f);
}
