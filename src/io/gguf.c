/* gguf: the reader. Layout of a GGUF file, all little-endian:
 *
 *   "GGUF"  u32 version (2 or 3)  u64 n_tensors  u64 n_kv
 *   n_kv    times: string key, u32 type, value
 *   n_tensors times: string name, u32 n_dims, u64 ne[n_dims] (ne[0] is a row's length), u32 type, u64 offset
 *   padding to general.alignment (32), then the data, offsets counted from there
 *   string: u64 length, bytes.   array: u32 element type, u64 count, values.
 *
 * Invariants after gguf_open: every kv's [data, end) and every tensor's data lie in a mapping, array values
 * have been walked once, names and keys are unique. A tensor of a type that dtypes.def lacks has type DT_COUNT. */
#include "io/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ALIGN 65536u
/* A file of zeros costs nothing (holes), so what its header claims is bounded by more than its length. */
#define MAX_KEYS (1u << 20)
#define MAX_TENSORS (1u << 20)
#define MAX_STRINGS (1u << 26) /* of an array */

size_t gguf_scalar_size(uint32_t type)
{
    static const uint8_t size[GGUF_TYPE_COUNT] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    return type < GGUF_TYPE_COUNT ? size[type] : 0;
}

static const char *const type_name[GGUF_TYPE_COUNT] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
};

static int read_string(struct cursor *c, struct gguf_str *s, struct err *e)
{
    uint64_t n;
    const uint8_t *p;
    if (cursor_u64(c, &n, e))
        return -1;
    if (n > cursor_left(c))
        return err_set(e, ERR_FORMAT, "%s: string of %" PRIu64 " bytes at byte %zu, only %zu left", c->what, n,
                       cursor_pos(c), cursor_left(c));
    if (cursor_take(c, (size_t)n, &p, e))
        return -1;
    s->p = (const char *)p;
    s->n = (size_t)n;
    return 0;
}

/* A name as a C string: without NUL bytes inside. */
static int read_name(struct gguf *g, struct cursor *c, const char *what, char **out, struct err *e)
{
    struct gguf_str s;
    if (read_string(c, &s, e))
        return -1;
    if (s.n == 0 || s.n > 1024 || memchr(s.p, 0, s.n))
        return err_set(e, ERR_FORMAT, "%s: %s at byte %zu: expected 1 to 1024 bytes without NUL, found %zu", c->what,
                       what, cursor_pos(c) - s.n, s.n);
    *out = arena_strndup(&g->arena, s.p, s.n);
    return *out ? 0 : err_nomem(e, what, s.n);
}

static int skip_value(struct cursor *c, struct gguf_kv *kv, uint32_t type, uint64_t n, struct err *e)
{
    const uint8_t *p;
    struct gguf_str s;
    size_t size = gguf_scalar_size(type);
    if (size) {
        if (n > cursor_left(c) / size)
            return err_set(e, ERR_FORMAT, "%s: key %s: %" PRIu64 " values of type %s, only %zu bytes left", c->what,
                           kv->key, n, type_name[type], cursor_left(c));
        return cursor_take(c, (size_t)n * size, &p, e);
    }
    if (type != GGUF_STRING)
        return err_set(e, ERR_FORMAT, "%s: key %s: type %" PRIu32 " cannot be read here", c->what, kv->key, type);
    if (n > MAX_STRINGS || n > cursor_left(c) / 8)
        return err_set(e, ERR_FORMAT, "%s: key %s: %" PRIu64 " strings, expected at most %u and no more than %zu bytes hold",
                       c->what, kv->key, n, MAX_STRINGS, cursor_left(c));
    for (uint64_t i = 0; i < n; i++)
        if (read_string(c, &s, e))
            return err_prefix(e, "key %s, string %" PRIu64, kv->key, i);
    return 0;
}

static int read_kv(struct gguf *g, struct cursor *c, struct gguf_kv *kv, struct err *e)
{
    char *key;
    uint32_t type, elem = 0;
    if (read_name(g, c, "key", &key, e) || cursor_u32(c, &type, e))
        return -1;
    kv->key = key;
    kv->n = 1;
    if (type >= GGUF_TYPE_COUNT)
        return err_set(e, ERR_FORMAT, "%s: key %s: unknown value type %" PRIu32, c->what, key, type);
    if (type == GGUF_ARRAY) {
        if (cursor_u32(c, &elem, e) || cursor_u64(c, &kv->n, e))
            return -1;
        if (elem >= GGUF_TYPE_COUNT || elem == GGUF_ARRAY)
            return err_set(e, ERR_FORMAT, "%s: key %s: array of type %" PRIu32 " is not supported", c->what, key, elem);
    }
    kv->type = (enum gguf_type)type;
    kv->elem = (enum gguf_type)elem;
    kv->data = c->p;
    if (skip_value(c, kv, type == GGUF_ARRAY ? elem : type, kv->n, e))
        return -1;
    kv->end = c->p;
    return 0;
}

/* Shape and offset; data is resolved when the start of the data section is known. */
static int read_tensor(struct gguf *g, struct cursor *c, struct tensor *t, uint64_t *offset, uint32_t *type,
                       struct err *e)
{
    char *name;
    uint32_t n_dims;
    uint64_t ne[4] = { 1, 1, 1, 1 };
    int64_t count = 1; /* as if no dimension were 0: products of some of them must not overflow either */
    if (read_name(g, c, "tensor name", &name, e) || cursor_u32(c, &n_dims, e))
        return -1;
    if (n_dims < 1 || n_dims > 4)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: expected 1 to 4 dimensions, found %" PRIu32, c->what, name, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        if (cursor_u64(c, &ne[i], e))
            return -1;
        if (ne[i] > INT64_MAX || __builtin_mul_overflow(count, ne[i] ? (int64_t)ne[i] : 1, &count))
            return err_set(e, ERR_FORMAT, "%s: tensor %s: its dimensions overflow", c->what, name);
    }
    if (cursor_u32(c, type, e) || cursor_u64(c, offset, e))
        return -1;
    memset(t, 0, sizeof *t);
    t->name = name;
    t->type = dtype_by_ggml_id(*type);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < 4; i++)
        t->dim[i] = i < (int)n_dims ? (int64_t)ne[(int)n_dims - 1 - i] : 1;
    return 0;
}

static int place_tensor(struct tensor *t, uint64_t offset, const struct file_map *m, uint64_t data_off,
                        uint32_t align, struct err *e)
{
    char what[1200];
    snprintf(what, sizeof what, "%s: tensor %s", m->path, t->name);
    if (offset % align)
        return err_set(e, ERR_FORMAT, "%s: offset %" PRIu64 " is no multiple of the alignment %" PRIu32, what, offset, align);
    int64_t bytes = 0;
    if (t->type != DT_COUNT) {
        bytes = tensor_bytes(t->type, tensor_rows(t), tensor_cols(t), what, e);
        if (bytes < 0)
            return -1;
    }
    uint64_t room = data_off <= m->size ? m->size - data_off : 0;
    if (offset > room || (uint64_t)bytes > room - offset)
        return err_set(e, ERR_FORMAT, "%s: %" PRId64 " bytes at offset %" PRIu64 ", but the data section has %" PRIu64,
                       what, bytes, offset, room);
    t->data = m->data + data_off + offset;
    t->size = (size_t)bytes;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = *(const struct tensor *const *)a, *y = *(const struct tensor *const *)b;
    if (x->data != y->data)
        return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    return (x->size > y->size) - (x->size < y->size);
}

/* No byte may be in two tensors. (One of a type we lack has no size here.) */
static int check_overlap(struct gguf *g, const char *path, struct err *e)
{
    const struct tensor **order = arena_alloc(&g->arena, g->n_tensors + 1, sizeof *order);
    if (!order)
        return err_nomem(e, path, g->n_tensors * sizeof *order);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        order[i] = &g->tensors[i];
    qsort(order, g->n_tensors, sizeof *order, by_place);
    for (uint64_t i = 1; i < g->n_tensors; i++)
        if ((const uint8_t *)order[i - 1]->data + order[i - 1]->size > (const uint8_t *)order[i]->data)
            return err_set(e, ERR_FORMAT, "%s: tensors %s and %s overlap", path, order[i - 1]->name, order[i]->name);
    return 0;
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_unique(const char *path, const char *what, const char **names, uint64_t n, struct err *e)
{
    qsort(names, n, sizeof *names, by_string);
    for (uint64_t i = 1; i < n; i++)
        if (!strcmp(names[i], names[i - 1]))
            return err_set(e, ERR_FORMAT, "%s: %s %s appears twice", path, what, names[i]);
    return 0;
}

static int header(struct cursor *c, uint32_t *version, uint64_t *n_tensors, uint64_t *n_kv, struct err *e)
{
    uint32_t magic;
    if (cursor_u32(c, &magic, e) || cursor_u32(c, version, e))
        return -1;
    if (magic != 0x46554747u)
        return err_set(e, ERR_FORMAT, "%s: not a GGUF file: expected magic \"GGUF\", found 0x%08" PRIx32, c->what, magic);
    if ((*version & 0xffffu) == 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: big-endian GGUF is not supported", c->what);
    if (*version != 2 && *version != 3)
        return err_set(e, ERR_UNSUPPORTED, "%s: GGUF version %" PRIu32 " is not supported (expected 2 or 3)", c->what, *version);
    if (cursor_u64(c, n_tensors, e) || cursor_u64(c, n_kv, e))
        return -1;
    /* a key takes 8 + 1 + 4 + 1 bytes at least, a tensor 8 + 1 + 4 + 8 + 4 + 8 */
    if (*n_kv > cursor_left(c) / 14 || *n_tensors > cursor_left(c) / 33 || *n_kv > MAX_KEYS || *n_tensors > MAX_TENSORS)
        return err_set(e, ERR_FORMAT, "%s: header claims %" PRIu64 " keys and %" PRIu64 " tensors, too many for %zu bytes, or "
                       "more than 2^20", c->what, *n_kv, *n_tensors, cursor_left(c));
    return 0;
}

/* The keys of a file: fresh array in *part, checked to be unique; names is scratch for them. */
static int read_keys(struct gguf *g, struct cursor *c, const char **names, struct gguf *part, struct err *e)
{
    for (uint64_t i = 0; i < part->n_kv; i++) {
        if (read_kv(g, c, &part->kv[i], e))
            return -1;
        names[i] = part->kv[i].key;
    }
    return check_unique(c->what, "key", names, part->n_kv, e);
}

static int read_align(const struct gguf *part, const char *path, uint32_t *align, struct err *e)
{
    int64_t v = 32;
    if (gguf_int(part, "general.alignment", &v, e) < 0)
        return err_prefix(e, "%s", path);
    if (v < 8 || v > MAX_ALIGN || (v & (v - 1)))
        return err_set(e, ERR_FORMAT, "%s: general.alignment: expected a power of two from 8 to %u, found %" PRId64, path,
                       MAX_ALIGN, v);
    *align = (uint32_t)v;
    return 0;
}

/* What a file says of being one of several; absent: 0 of 1. */
struct split {
    int64_t no, count, tensors; /* tensors of all parts, -1: not said */
};

static int read_split(const struct gguf *part, const char *path, struct split *s, struct err *e)
{
    *s = (struct split){ 0, 1, -1 };
    if (gguf_int(part, "split.no", &s->no, e) < 0 || gguf_int(part, "split.count", &s->count, e) < 0 ||
        gguf_int(part, "split.tensors.count", &s->tensors, e) < 0)
        return err_prefix(e, "%s", path);
    if (s->count == 0)
        s->count = 1;
    return 0;
}

/* One file into fresh arrays; its tensors are appended to g's, the keys are g's if it is the first. */
static int read_file(struct gguf *g, const struct file_map *m, struct split *split, struct err *e)
{
    struct cursor c;
    struct gguf part = { .kv = NULL };
    uint64_t n_new;
    uint32_t align = 0;
    cursor_init(&c, m->data, m->size, m->path);
    if (header(&c, &part.version, &n_new, &part.n_kv, e))
        return -1;
    part.n_tensors = g->n_tensors + n_new;
    part.kv = arena_alloc(&g->arena, part.n_kv + 1, sizeof *part.kv);
    part.tensors = arena_alloc(&g->arena, part.n_tensors + 1, sizeof *part.tensors);
    part.ggml_type = arena_alloc(&g->arena, part.n_tensors + 1, sizeof *part.ggml_type);
    uint64_t *offset = arena_alloc(&g->arena, n_new + 1, sizeof *offset);
    const char **names = arena_alloc(&g->arena, part.n_kv + 1, sizeof *names);
    if (!part.kv || !part.tensors || !part.ggml_type || !offset || !names)
        return err_nomem(e, m->path, (part.n_kv + part.n_tensors) * sizeof *part.tensors);
    if (read_keys(g, &c, names, &part, e) || read_align(&part, m->path, &align, e) ||
        read_split(&part, m->path, split, e))
        return -1;
    if (g->n_tensors) {
        memcpy(part.tensors, g->tensors, g->n_tensors * sizeof *part.tensors);
        memcpy(part.ggml_type, g->ggml_type, g->n_tensors * sizeof *part.ggml_type);
    }
    struct tensor *fresh = part.tensors + g->n_tensors;
    for (uint64_t i = 0; i < n_new; i++)
        if (read_tensor(g, &c, &fresh[i], &offset[i], &part.ggml_type[g->n_tensors + i], e))
            return -1;
    uint64_t data_off = (cursor_pos(&c) + (uint64_t)align - 1) / align * align;
    for (uint64_t i = 0; i < n_new; i++)
        if (place_tensor(&fresh[i], offset[i], m, data_off, align, e))
            return -1;
    const struct gguf_kv *kv = gguf_find(&part, GGUF_SUMS);
    struct gguf_sums *sums = kv ? arena_alloc(&g->arena, 1, sizeof *sums) : NULL;
    if (kv && !sums)
        return err_nomem(e, m->path, sizeof *sums);
    if (sums) {
        *sums = (struct gguf_sums){ kv, g->sums };
        g->sums = sums;
    }
    g->tensors = part.tensors;
    g->ggml_type = part.ggml_type;
    g->n_tensors = part.n_tensors;
    if (!g->version) {
        g->kv = part.kv;
        g->n_kv = part.n_kv;
        g->version = part.version;
    }
    return 0;
}

/* "<stem>-00001-of-00003.gguf": the name of part i (from 0), NULL if path has not that form. */
static char *part_name(struct gguf *g, const char *path, int64_t i, int64_t n)
{
    size_t len = strlen(path);
    const size_t tail = strlen("-00001-of-00003.gguf");
    char want[64];
    if (len < tail)
        return NULL;
    snprintf(want, sizeof want, "-00001-of-%05" PRId64 ".gguf", n);
    if (strcmp(path + len - tail, want))
        return NULL;
    return arena_printf(&g->arena, "%.*s-%05" PRId64 "-of-%05" PRId64 ".gguf", (int)(len - tail), path, i + 1, n);
}

static int open_part(struct gguf *g, const char *path, int64_t i, int64_t n, struct err *e)
{
    struct split s;
    char *name = part_name(g, path, i, n);
    if (!name)
        return err_set(e, ERR_FORMAT, "%s: first of %" PRId64 " parts: expected a name ending in -00001-of-%05" PRId64 ".gguf",
                       path, n, n);
    if (file_map_open(&g->maps[i], name, e))
        return -1;
    g->n_maps++;
    if (read_file(g, &g->maps[i], &s, e))
        return -1;
    if (s.no != i || s.count != n)
        return err_set(e, ERR_FORMAT, "%s: expected split.no %" PRId64 " and split.count %" PRId64 ", found %" PRId64
                       " and %" PRId64, name, i, n, s.no, s.count);
    return 0;
}

static int open_parts(struct gguf *g, const char *path, struct err *e)
{
    struct split s;
    if (file_map_open(&g->maps[0], path, e))
        return -1;
    g->n_maps = 1;
    if (read_file(g, &g->maps[0], &s, e))
        return -1;
    if (s.count < 1 || s.count > 9999 || s.no != 0)
        return err_set(e, ERR_FORMAT, "%s: split.no %" PRId64 " of split.count %" PRId64 ": expected the first (0) of at most "
                       "9999 parts", path, s.no, s.count);
    struct file_map *maps = mem_grow(g->maps, 1, (size_t)s.count, sizeof *maps);
    if (!maps)
        return err_nomem(e, path, (size_t)s.count * sizeof *maps);
    g->maps = maps;
    for (int64_t i = 1; i < s.count; i++)
        if (open_part(g, path, i, s.count, e))
            return -1;
    if (s.count > 1 && s.tensors >= 0 && (uint64_t)s.tensors != g->n_tensors)
        return err_set(e, ERR_FORMAT, "%s: split.tensors.count says %" PRId64 ", its %" PRId64 " parts hold %" PRIu64, path,
                       s.tensors, s.count, g->n_tensors);
    return 0;
}

int gguf_open(struct gguf *g, const char *path, struct err *e)
{
    memset(g, 0, sizeof *g);
    arena_init(&g->arena);
    g->maps = mem_zalloc(1, sizeof *g->maps);
    if (!g->maps)
        return err_nomem(e, path, sizeof *g->maps);
    int rc = open_parts(g, path, e);
    if (!rc) {
        const char **names = arena_alloc(&g->arena, g->n_tensors + 1, sizeof *names);
        for (uint64_t i = 0; names && i < g->n_tensors; i++)
            names[i] = g->tensors[i].name;
        rc = names ? check_unique(path, "tensor", names, g->n_tensors, e) || check_overlap(g, path, e)
                   : err_nomem(e, path, g->n_tensors * 8);
    }
    if (rc)
        gguf_release(g);
    return rc ? -1 : 0;
}

void gguf_release(struct gguf *g)
{
    for (int i = 0; i < g->n_maps; i++)
        file_map_release(&g->maps[i]);
    mem_free(g->maps);
    arena_release(&g->arena);
    memset(g, 0, sizeof *g);
}

/* ---- values ---------------------------------------------------------------- */

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (!strcmp(g->kv[i].key, key))
            return &g->kv[i];
    return NULL;
}

static uint64_t load_le(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static bool is_int(enum gguf_type t)
{
    return t != GGUF_F32 && t != GGUF_F64 && t != GGUF_STRING && t != GGUF_ARRAY;
}

static int64_t load_int(enum gguf_type t, const uint8_t *p)
{
    uint64_t v = load_le(p, gguf_scalar_size(t));
    switch (t) {
    case GGUF_I8: return (int8_t)v;
    case GGUF_I16: return (int16_t)v;
    case GGUF_I32: return (int32_t)v;
    case GGUF_BOOL: return v != 0;
    default: return (int64_t)v;
    }
}

static double load_float(enum gguf_type t, const uint8_t *p)
{
    float f;
    double d;
    if (t == GGUF_F32) {
        uint32_t u = (uint32_t)load_le(p, 4);
        memcpy(&f, &u, sizeof f);
        return f;
    }
    if (t == GGUF_F64) {
        uint64_t u = load_le(p, 8);
        memcpy(&d, &u, sizeof d);
        return d;
    }
    return (double)load_int(t, p);
}

static int wrong_type(const struct gguf_kv *kv, const char *expected, struct err *e)
{
    return err_set(e, ERR_FORMAT, "key %s: expected %s, found %s%s", kv->key, expected, type_name[kv->type],
                   kv->type == GGUF_ARRAY ? " of another type" : "");
}

int gguf_int(const struct gguf *g, const char *key, int64_t *v, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv)
        return 0;
    if (!is_int(kv->type))
        return wrong_type(kv, "an integer", e);
    *v = load_int(kv->type, kv->data);
    return 1;
}

int gguf_float(const struct gguf *g, const char *key, double *v, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv)
        return 0;
    if (kv->type == GGUF_STRING || kv->type == GGUF_ARRAY)
        return wrong_type(kv, "a number", e);
    *v = load_float(kv->type, kv->data);
    return isfinite(*v) ? 1 : err_set(e, ERR_FORMAT, "key %s: expected a number, found %g", kv->key, *v);
}

int gguf_string(const struct gguf *g, const char *key, struct gguf_str *v, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv)
        return 0;
    if (kv->type != GGUF_STRING)
        return wrong_type(kv, "a string", e);
    v->n = (size_t)load_le(kv->data, 8);
    v->p = (const char *)kv->data + 8;
    return 1;
}

int gguf_iter_init(struct gguf_iter *it, const struct gguf *g, const char *key, enum gguf_type elem, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv)
        return 0;
    if (kv->type != GGUF_ARRAY || !(kv->elem == elem || (elem == GGUF_I32 && is_int(kv->elem))))
        return wrong_type(kv, elem == GGUF_STRING ? "an array of strings" : "an array of numbers", e);
    *it = (struct gguf_iter){ kv, kv->data, 0 };
    return 1;
}

struct gguf_str gguf_iter_str(struct gguf_iter *it)
{
    struct gguf_str s = { (const char *)it->p + 8, (size_t)load_le(it->p, 8) };
    it->p += 8 + s.n;
    it->i++;
    return s;
}

int64_t gguf_iter_int(struct gguf_iter *it)
{
    int64_t v = load_int(it->kv->elem, it->p);
    it->p += gguf_scalar_size(it->kv->elem);
    it->i++;
    return v;
}

double gguf_iter_float(struct gguf_iter *it)
{
    double v = load_float(it->kv->elem, it->p);
    it->p += gguf_scalar_size(it->kv->elem);
    it->i++;
    return v;
}
