/* models: targets for the files that weights come in. */
#include <string.h>

#include "fuzz.h"
#include "model/family.h"

void fuzz_failed(const struct err *e)
{
    static int show = -1;
    if (show < 0)
        show = getenv("FUZZ_SHOW") != NULL; /* to see what an input is refused for */
    if (show)
        fprintf(stderr, "refused: %s\n", e->msg);
    FUZZ_CHECK(e->code != ERR_NONE && e->msg[0]);
    FUZZ_CHECK(e->code != ERR_MEMORY);
}

void fuzz_touch(const void *p, size_t n)
{
    static volatile uint8_t sink;
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++)
        sink = (uint8_t)(sink + b[i]);
}

static size_t elem_bytes(enum st_dtype d)
{
    return d == ST_I64 ? 8 : d == ST_F32 || d == ST_I32 ? 4 : d == ST_F16 || d == ST_BF16 ? 2 : 1;
}

static void touch_entries(const struct st_entry *en, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        FUZZ_CHECK(en[i].n_dims >= 0 && en[i].n_dims <= 4);
        FUZZ_CHECK((uintptr_t)en[i].data % elem_bytes(en[i].dtype) == 0);
        FUZZ_CHECK(i == 0 || strcmp(en[i - 1].name, en[i].name) < 0);
        if (en[i].dtype != ST_OTHER) {
            struct tensor t = { .n_dims = en[i].n_dims };
            memcpy(t.dim, en[i].dim, sizeof t.dim);
            FUZZ_CHECK((size_t)tensor_count(&t) * elem_bytes(en[i].dtype) == en[i].size);
        }
        fuzz_touch(en[i].data, en[i].size);
    }
}

void fuzz_safetensors(const uint8_t *data, size_t n)
{
    struct st_file f;
    struct err e = { 0 };
    vfs_put_safetensors("/v.safetensors", data, n);
    if (st_open(&f, "/v.safetensors", &e)) {
        fuzz_failed(&e);
        return;
    }
    touch_entries(f.entries, f.n);
    st_release(&f);
}

#define FLOATS 4096

static void touch_tensor(const struct tensor *t)
{
    static float out[FLOATS];
    if (t->type < DT_QMAT)
        fuzz_touch(t->data, t->size);
    int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    FUZZ_CHECK(rows >= 0 && cols >= 0);
    if (t->type == DT_COUNT || cols > FLOATS)
        return;
    for (int64_t i = 0; i < rows && i < 64; i++)
        tensor_rows_f32(t, i, 1, out);
}

static struct checkpoint *open_dir(const char *path)
{
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    if (!checkpoint_open(&c, path, &e))
        return c;
    fuzz_failed(&e);
    return NULL;
}

static void touch_checkpoint(const struct checkpoint *c)
{
    touch_entries(c->entries, c->n_entries);
    for (size_t i = 0; i < c->n_entries; i++) {
        struct tensor t;
        struct err e = { 0 };
        int found = checkpoint_tensor(c, c->entries[i].name, &t, &e);
        FUZZ_CHECK(found);
        if (found < 0)
            fuzz_failed(&e);
        else
            touch_tensor(&t);
    }
}

void fuzz_index(const uint8_t *data, size_t n)
{
    static const char shard1[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                                 "\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[8,12]}}\0abcdefghijkl";
    static const char shard2[] = "{\"c\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[0,4]}}\0abcd";
    vfs_put(VFS_DIR "/config.json", "{}", 2);
    vfs_put_safetensors(VFS_DIR "/model-00001-of-00003.safetensors", (const uint8_t *)shard1, sizeof shard1 - 1);
    vfs_put_safetensors(VFS_DIR "/model-00002-of-00003.safetensors", (const uint8_t *)shard2, sizeof shard2 - 1);
    vfs_put(VFS_DIR "/model.safetensors.index.json", data, n);
    vfs_put_sections(data, n);
    struct checkpoint *c = open_dir(VFS_DIR);
    if (c)
        touch_checkpoint(c);
    checkpoint_free(c);
}

/* ---- GGUF ------------------------------------------------------------------- */

static void touch_key(const struct gguf *g, const struct gguf_kv *kv)
{
    int64_t i;
    double d;
    struct gguf_str s;
    struct gguf_iter it;
    struct err e = { 0 };
    if (gguf_int(g, kv->key, &i, &e) < 0)
        fuzz_failed(&e);
    if (gguf_float(g, kv->key, &d, &e) < 0)
        fuzz_failed(&e);
    if (gguf_string(g, kv->key, &s, &e) > 0)
        fuzz_touch(s.p, s.n);
    if (kv->type != GGUF_ARRAY || gguf_iter_init(&it, g, kv->key, kv->elem, &e) < 1)
        return;
    for (uint64_t k = 0; k < kv->n; k++)
        if (kv->elem == GGUF_STRING) {
            s = gguf_iter_str(&it);
            fuzz_touch(s.p, s.n);
        } else if (kv->elem == GGUF_F32 || kv->elem == GGUF_F64) {
            gguf_iter_float(&it);
        } else {
            gguf_iter_int(&it);
        }
    FUZZ_CHECK(it.p == kv->end);
}

static void touch_gguf(const struct checkpoint *c)
{
    const struct gguf *g = &c->gguf;
    json_t *config = NULL;
    struct tokenizer *t = NULL;
    struct hparams hp = { .n_vocab = 0 };
    struct err e = { 0 };
    for (uint64_t i = 0; i < g->n_kv; i++)
        touch_key(g, &g->kv[i]);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        touch_tensor(&g->tensors[i]);
    if (gguf_config(g, &config, &e)) {
        fuzz_failed(&e);
    } else {
        const struct family *f = family_by_hf(config, &e);
        if (!f || f->hparams(config, &hp, &e))
            fuzz_failed(&e);
    }
    json_decref(config);
    e = (struct err){ 0 };
    if (tokenizer_load(&t, c, &e))
        fuzz_failed(&e);
    else
        fuzz_encode(t, "The cat, 12 \xc3\xa9t\xc3\xa9s </s>\n\xff", 25);
    tokenizer_free(t);
}

static void open_model(const char *path)
{
    struct model *m = NULL;
    struct err e = { 0 };
    if (model_open(&m, path, &e))
        fuzz_failed(&e);
    model_free(m);
}

void fuzz_gguf(const uint8_t *data, size_t n)
{
    const char *path = n && data[0] == '@' ? VFS_DIR "/m-00001-of-00003.gguf" : "/v.gguf";
    if (n && data[0] == '@')
        vfs_put_sections(data, n);
    else
        vfs_put(path, data, n);
    struct checkpoint *c = open_dir(path);
    if (!c)
        return;
    touch_gguf(c);
    checkpoint_free(c);
    open_model(path);
}

/* ---- configuration and quantized folders ---------------------------------------- */

void fuzz_config(const uint8_t *data, size_t n)
{
    static const char none[] = "{}";
    vfs_put_safetensors(VFS_DIR "/model.safetensors", (const uint8_t *)none, sizeof none - 1);
    vfs_put(VFS_DIR "/config.json", data, n);
    vfs_put_sections(data, n);
    open_model(VFS_DIR);
}

typedef int (*read_fn)(const struct checkpoint *c, const char *prefix, int64_t n_out, int64_t n_in, struct arena *a, struct qmat *q,
                       struct err *e);

/* The linear "l" at a few sizes: those of the seeds among them. */
static void quantized(const uint8_t *data, size_t n, read_fn read)
{
    static const int64_t size[][2] = { { 8, 32 }, { 4, 40 }, { 33, 64 }, { 1, 1 } };
    vfs_put(VFS_DIR "/config.json", "{}", 2);
    vfs_put_sections(data, n);
    struct checkpoint *c = open_dir(VFS_DIR);
    if (!c)
        return;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        struct arena a;
        struct qmat q;
        struct err e = { 0 };
        float row[64];
        arena_init(&a);
        int found = read(c, "l", size[i][0], size[i][1], &a, &q, &e);
        if (found < 0)
            fuzz_failed(&e);
        for (int64_t r = 0; found > 0 && r < q.n_out; r++)
            qmat_row_f32(&q, r, row);
        arena_release(&a);
        if (!found)
            break;
    }
    checkpoint_free(c);
}

void fuzz_gptq(const uint8_t *data, size_t n)
{
    quantized(data, n, checkpoint_gptq);
}

void fuzz_ct(const uint8_t *data, size_t n)
{
    quantized(data, n, checkpoint_ct);
}
