/* weights: planning, streaming and verifying the tensors of a folder.
 *
 * A matrix goes through a buffer of a few MB, never whole in float32. Values are refused when they are
 * not finite, or when the file's type cannot hold them exactly: rounding belongs where it is
 * decided and measured, not here. */
#include "export/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/par.h"
#include "tensor/half.h"

#define CHUNK_FLOATS (1 << 20)
#define SHARD_BYTES 5000000000u

/* ---- planning ------------------------------------------------------------ */

static size_t width_of(enum st_dtype type)
{
    return type == ST_F16 || type == ST_BF16 ? 2 : type == ST_I64 ? 8 : 4;
}

static uint64_t item_bytes(const struct item *it)
{
    return width_of(it->dtype) * (uint64_t)it->dim[0] * (uint64_t)it->dim[1];
}

static int add(struct weights *w, enum item_kind kind, enum st_dtype dtype, int n_dims, int64_t d0, int64_t d1,
               const struct tensor *t, const float *v, char *name, struct err *e)
{
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 256;
        struct item *grown = mem_grow(w->items, w->n, cap, sizeof *grown);
        if (!grown)
            return err_nomem(e, "list of tensors", cap * sizeof *grown);
        w->items = grown;
        w->cap = cap;
    }
    if (!name)
        return err_nomem(e, "list of tensors", 256);
    w->items[w->n++] = (struct item){ .kind = kind, .name = name, .dtype = dtype, .n_dims = n_dims,
                                      .dim = { d0, n_dims == 2 ? d1 : 1 }, .t = t, .v = v };
    return 0;
}

static int add_vector(struct weights *w, const float *v, int64_t n, char *name, struct err *e)
{
    return add(w, ITEM_VECTOR, w->dtype, 1, n, 1, NULL, v, name, e);
}

static int add_matrix(struct weights *w, const struct tensor *t, char *name, struct err *e)
{
    return add(w, ITEM_TENSOR, w->dtype, 2, t->dim[0], t->dim[1], t, NULL, name, e);
}

static int add_gptq(struct weights *w, const struct tensor *t, const char *prefix, struct err *e)
{
    const struct qmat *q = t->q;
    struct arena *a = &w->arena;
    return add(w, ITEM_QWEIGHT, ST_I32, 2, q->row_words, q->n_out, t, NULL, arena_printf(a, "%s.qweight", prefix), e) ||
           add(w, ITEM_QZEROS, ST_I32, 2, q->n_groups, (q->n_out * q->bits + 31) / 32, t, NULL,
               arena_printf(a, "%s.qzeros", prefix), e) ||
           add(w, ITEM_SCALES, ST_F16, 2, q->n_groups, q->n_out, t, NULL, arena_printf(a, "%s.scales", prefix), e) ||
           add(w, ITEM_G_IDX, ST_I32, 1, q->n_in, 1, t, NULL, arena_printf(a, "%s.g_idx", prefix), e) ? -1 : 0;
}

static int add_ct(struct weights *w, const struct tensor *t, const char *prefix, struct err *e)
{
    const struct qmat *q = t->q;
    struct arena *a = &w->arena;
    return add(w, ITEM_CT_PACKED, ST_I32, 2, q->n_out, q->row_words, t, NULL, arena_printf(a, "%s.weight_packed", prefix), e) ||
           add(w, ITEM_CT_SCALE, ST_F16, 2, q->n_out, q->n_groups, t, NULL, arena_printf(a, "%s.weight_scale", prefix), e) ||
           (!q->sym && add(w, ITEM_CT_ZERO, ST_I32, 2, (q->n_out * q->bits + 31) / 32, q->n_groups, t, NULL,
                           arena_printf(a, "%s.weight_zero_point", prefix), e)) ||
           (q->g_idx && add(w, ITEM_CT_G_IDX, ST_I32, 1, q->n_in, 1, t, NULL, arena_printf(a, "%s.weight_g_idx", prefix), e)) ||
           add(w, ITEM_CT_SHAPE, ST_I64, 1, 2, 1, t, NULL, arena_printf(a, "%s.weight_shape", prefix), e) ? -1 : 0;
}

static int add_layer(struct weights *w, const struct model *m, int64_t l, struct err *e)
{
    const struct layer *layer = &m->layers[l];
    const struct hparams *hp = &m->hp;
    struct arena *a = &w->arena;
    char base[64];
    snprintf(base, sizeof base, "model.layers.%lld", (long long)l);
    if (add_vector(w, layer->attn_norm, hp->n_embd, arena_printf(a, "%s.input_layernorm.weight", base), e) ||
        add_vector(w, layer->ffn_norm, hp->n_embd, arena_printf(a, "%s.post_attention_layernorm.weight", base), e))
        return -1;
    const float *qk[2] = { layer->q_norm, layer->k_norm };
    for (int i = 0; i < 2; i++) {
        char *name = qk[i] ? arena_printf(a, "%s.self_attn.%c_norm.weight", base, "qk"[i]) : NULL;
        if (qk[i] && add_vector(w, qk[i], hp->head_dim, name, e))
            return -1;
    }
    for (int r = 0; r < ROLE_COUNT; r++) {
        const struct linear *lin = &layer->lin[r];
        bool bias = r <= ROLE_V ? w->biases.qkv : r == ROLE_O ? w->biases.o : w->biases.mlp;
        char *prefix = arena_printf(a, "%s.%s", base, role_hf_name[r]);
        if (!prefix)
            return err_nomem(e, "list of tensors", 256);
        bool ints = w->integers && lin->w.type == DT_QMAT;
        int rc = ints ? (w->integers == INTEGERS_CT ? add_ct : add_gptq)(w, &lin->w, prefix, e)
                      : add_matrix(w, &lin->w, arena_printf(a, "%s.weight", prefix), e);
        if (rc || (bias && add_vector(w, lin->b, lin->w.dim[0], arena_printf(a, "%s.bias", prefix), e)))
            return -1;
    }
    return 0;
}

int weights_plan(struct weights *w, const struct model *m, uint64_t shard_bytes, struct err *e)
{
    arena_init(&w->arena);
    w->model = &m->arena;
    if (add_matrix(w, &m->tok_embd, arena_strdup(&w->arena, "model.embed_tokens.weight"), e))
        return -1;
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        if (add_layer(w, m, l, e))
            return -1;
    if (add_vector(w, m->out_norm, m->hp.n_embd, arena_strdup(&w->arena, "model.norm.weight"), e) ||
        (!m->hp.tied && add_matrix(w, &m->lm_head, arena_strdup(&w->arena, "lm_head.weight"), e)))
        return -1;
    uint64_t limit = shard_bytes ? shard_bytes : SHARD_BYTES, fill = 0;
    for (size_t i = 0; i < w->n; i++) {
        uint64_t b = item_bytes(&w->items[i]);
        if (fill && fill + b > limit) {
            w->n_shards++;
            fill = 0;
        }
        fill += b;
        w->bytes += b;
        w->items[i].shard = w->n_shards;
    }
    w->n_shards++;
    return 0;
}

void weights_release(struct weights *w)
{
    mem_free(w->items);
    arena_release(&w->arena);
    memset(w, 0, sizeof *w);
}

/* ---- values ---------------------------------------------------------------- */

struct rows_job {
    const struct tensor *t;
    int64_t row0, n;
    float *dst;
};

#define ROWS_PER_JOB 16

static void rows_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t first = (int64_t)i * ROWS_PER_JOB, n = j->n - first;
    tensor_rows_f32(j->t, j->row0 + first, n < ROWS_PER_JOB ? n : ROWS_PER_JOB, j->dst + first * tensor_cols(j->t));
}

static void rows_f32(const struct tensor *t, int64_t row0, int64_t n, float *dst)
{
    struct rows_job j = { t, row0, n, dst };
    par_for((size_t)((n + ROWS_PER_JOB - 1) / ROWS_PER_JOB), rows_item, &j);
}

/* Rows of a float item and how many there are: a vector counts as one row. */
static int64_t item_rows(const struct item *it)
{
    return it->kind == ITEM_VECTOR ? 1 : it->dim[0];
}

static int64_t item_cols(const struct item *it)
{
    return it->kind == ITEM_VECTOR ? it->dim[0] : it->dim[1];
}

static int64_t chunk_rows(const struct item *it)
{
    int64_t n = CHUNK_FLOATS / (item_cols(it) > 0 ? item_cols(it) : 1);
    n = n < 1 ? 1 : n;
    return n < item_rows(it) ? n : item_rows(it);
}

static void item_values(const struct item *it, int64_t row0, int64_t n, float *dst)
{
    if (it->kind == ITEM_TENSOR)
        rows_f32(it->t, row0, n, dst);
    else if (it->v)
        memcpy(dst, it->v, (size_t)it->dim[0] * sizeof *dst);
    else
        memset(dst, 0, (size_t)it->dim[0] * sizeof *dst);
}

/* half_exact of a matrix; what is stored in F16 is taken not to fit BF16. */
static void matrix_exact(const struct tensor *t, bool *f16, bool *bf16)
{
    int64_t cols = tensor_cols(t);
    *bf16 = *bf16 && t->type != DT_F16;
    if (t->type == DT_QMAT || t->type == DT_F16)
        return;
    float *row = mem_alloc((size_t)cols, sizeof *row); /* without: writing says so */
    for (int64_t i = 0; row && i < tensor_rows(t) && (*f16 || *bf16); i++) {
        tensor_rows_f32(t, i, 1, row);
        half_exact(row, cols, f16, bf16);
    }
    mem_free(row);
}

enum st_dtype weights_float_type(const struct model *m)
{
    const struct hparams *hp = &m->hp;
    bool f16 = true, bf16 = true;
    matrix_exact(&m->tok_embd, &f16, &bf16);
    if (!hp->tied)
        matrix_exact(&m->lm_head, &f16, &bf16);
    half_exact(m->out_norm, hp->n_embd, &f16, &bf16);
    for (int64_t i = 0; i < hp->n_layer; i++) {
        const struct layer *l = &m->layers[i];
        half_exact(l->attn_norm, hp->n_embd, &f16, &bf16);
        half_exact(l->ffn_norm, hp->n_embd, &f16, &bf16);
        half_exact(l->q_norm, hp->head_dim, &f16, &bf16);
        half_exact(l->k_norm, hp->head_dim, &f16, &bf16);
        for (int r = 0; r < ROLE_COUNT; r++) {
            matrix_exact(&l->lin[r].w, &f16, &bf16);
            half_exact(l->lin[r].b, tensor_rows(&l->lin[r].w), &f16, &bf16);
        }
    }
    return !f16 && bf16 ? ST_BF16 : ST_F16;
}

/* Checks n values, and turns them into fp16 or bf16 in place (h may share f's memory) when the item says so. */
static int check_values(const struct item *it, int64_t row0, float *f, int64_t n, struct err *e)
{
    uint16_t *h = (uint16_t *)(void *)f;
    for (int64_t i = 0; i < n; i++) {
        float x = f[i];
        if (!isfinite(x))
            return err_set(e, ERR_NUMERIC, "tensor %s: value %lld of row %lld is not finite", it->name,
                           (long long)(i % item_cols(it)), (long long)(row0 + i / item_cols(it)));
        if (it->dtype == ST_F32)
            continue;
        bool bf = it->dtype == ST_BF16;
        uint16_t half = bf ? bf16_from_f32(x) : half_from_f32(x);
        if ((bf ? bf16_to_f32(half) : half_to_f32(half)) != x)
            return err_set(e, ERR_NUMERIC, "tensor %s: value %lld of row %lld is %.9g, which fp16 cannot hold exactly: "
                           "the model must be rounded to f16 before it is quantized", it->name,
                           (long long)(i % item_cols(it)), (long long)(row0 + i / item_cols(it)), (double)x);
        memcpy(&h[i], &half, sizeof half); /* behind the floats still to be read */
    }
    return 0;
}

/* ---- writing ----------------------------------------------------------------- */

struct progress {
    const struct log *log;
    const char *step;
    uint64_t done, total;
    const struct arena *model;
};

static int step(struct progress *p, uint64_t bytes, struct err *e)
{
    p->done += bytes;
    arena_forget(p->model);
    return log_progress(p->log, p->step, (double)p->done, (double)p->total, e);
}

static int write_floats(const struct item *it, struct st_writer *w, struct outfile *out, struct progress *p,
                        struct err *e)
{
    int64_t rows = item_rows(it), cols = item_cols(it), chunk = chunk_rows(it);
    size_t width = width_of(it->dtype);
    float *buf = mem_alloc((size_t)(chunk * cols), sizeof *buf);
    if (!buf)
        return err_nomem(e, it->name, (size_t)(chunk * cols) * sizeof *buf);
    int rc = 0;
    for (int64_t row = 0; row < rows && !rc; row += chunk) {
        int64_t n = rows - row < chunk ? rows - row : chunk;
        item_values(it, row, n, buf);
        rc = check_values(it, row, buf, n * cols, e) ||
             st_writer_data(w, out, buf, (size_t)(n * cols) * width, e) ||
             step(p, (uint64_t)(n * cols) * width, e) ? -1 : 0;
    }
    mem_free(buf);
    return rc;
}

static int write_integers(const struct item *it, bool v1, struct st_writer *w, struct outfile *out,
                          struct progress *p, struct err *e)
{
    size_t bytes = (size_t)item_bytes(it);
    void *buf = mem_zalloc(bytes, 1);
    if (!buf)
        return err_nomem(e, it->name, bytes);
    int rc = (it->kind >= ITEM_CT_PACKED ? ct_pack(it, buf, e) : gptq_pack(it, v1, buf, e)) || st_writer_data(w, out, buf, bytes, e) || step(p, bytes, e) ? -1 : 0;
    mem_free(buf);
    return rc;
}

static void shard_name(const struct weights *w, int shard, char *name, size_t n)
{
    if (w->n_shards == 1)
        snprintf(name, n, "model.safetensors");
    else
        snprintf(name, n, "model-%05d-of-%05d.safetensors", shard + 1, w->n_shards);
}

static int write_shard(const struct weights *w, int shard, const char *dir, struct progress *p, struct err *e)
{
    char name[64], path[4096];
    struct st_writer st;
    struct outfile out;
    shard_name(w, shard, name, sizeof name);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return err_set(e, ERR_USAGE, "%s: path is too long", dir);
    if (outfile_open(&out, path, e))
        return -1;
    st_writer_init(&st);
    int rc = 0;
    for (size_t i = 0; i < w->n && !rc; i++)
        if (w->items[i].shard == shard)
            rc = st_writer_tensor(&st, w->items[i].name, w->items[i].dtype, w->items[i].n_dims, w->items[i].dim, e);
    rc = rc || st_writer_begin(&st, &out, e) ? -1 : 0;
    for (size_t i = 0; i < w->n && !rc; i++)
        if (w->items[i].shard == shard)
            rc = w->items[i].kind <= ITEM_VECTOR ? write_floats(&w->items[i], &st, &out, p, e)
                                                 : write_integers(&w->items[i], w->v1, &st, &out, p, e);
    rc = rc || st_writer_end(&st, e) ? -1 : 0;
    if (rc)
        outfile_abort(&out);
    else
        rc = outfile_commit(&out, e);
    st_writer_release(&st);
    return rc;
}

static int write_index(const struct weights *w, const char *dir, struct err *e)
{
    json_t *map = json_object();
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)w->bytes, "weight_map", map);
    char name[64];
    int rc = root ? 0 : -1;
    for (size_t i = 0; i < w->n && !rc; i++) {
        shard_name(w, w->items[i].shard, name, sizeof name);
        rc = json_object_set_new(map, w->items[i].name, json_string(name));
    }
    rc = rc ? err_nomem(e, "model.safetensors.index.json", w->n * 64)
            : json_write(dir, "model.safetensors.index.json", root, e);
    json_decref(root);
    return rc;
}

int weights_write(const struct weights *w, const char *dir, const struct log *log, struct err *e)
{
    struct progress p = { log, "writing", 0, w->bytes, w->model };
    for (int s = 0; s < w->n_shards; s++)
        if (write_shard(w, s, dir, &p, e))
            return -1;
    return w->n_shards > 1 ? write_index(w, dir, e) : 0;
}

/* ---- verifying ----------------------------------------------------------------- */

/* What has been compared need not stay in memory (checkpoint_forget): a verified folder would count as large as itself. */

static int verify_floats(const struct item *it, const struct checkpoint *c, struct progress *p, struct err *e)
{
    struct tensor t;
    int found = checkpoint_tensor(c, it->name, &t, e);
    if (found <= 0)
        return found < 0 ? -1 : err_set(e, ERR_IO, "%s: tensor %s is missing after writing", c->path, it->name);
    if (tensor_expect(&t, it->dim[0], it->n_dims == 2 ? it->dim[1] : -1, e))
        return -1;
    int64_t rows = item_rows(it), cols = item_cols(it), chunk = chunk_rows(it), width = (int64_t)width_of(it->dtype);
    float *a = mem_alloc((size_t)(2 * chunk * cols), sizeof *a);
    if (!a)
        return err_nomem(e, it->name, (size_t)(2 * chunk * cols) * sizeof *a);
    float *b = a + chunk * cols;
    int rc = 0;
    for (int64_t row = 0; row < rows && !rc; row += chunk) {
        int64_t n = rows - row < chunk ? rows - row : chunk;
        item_values(it, row, n, a);
        rows_f32(&t, row, n, b);
        if (memcmp(a, b, (size_t)(n * cols) * sizeof *a))
            rc = err_set(e, ERR_IO, "%s: tensor %s differs from the model after writing (rows %lld to %lld)", c->path,
                         it->name, (long long)row, (long long)(row + n - 1));
        else
            rc = step(p, (uint64_t)(n * cols * width), e);
        checkpoint_forget_rows(c, &t, row, n);
    }
    mem_free(a);
    return rc;
}

/* Row by row in Hugging Face order, as the file has it. */
static const char *qmat_differs(const struct tensor *t, const struct qmat *b)
{
    const struct qmat *a = t->q;
    if (a->bits != b->bits || a->n_groups != b->n_groups || a->row_words != b->row_words)
        return "shape";
    for (int64_t i = 0; i < a->n_out; i++) {
        int64_t k = tensor_stored_row(t, i);
        if (memcmp(a->codes + k * a->row_words, b->codes + i * b->row_words, (size_t)a->row_words * 4))
            return "codes";
        if (memcmp(a->scale + k * a->n_groups, b->scale + i * b->n_groups, (size_t)a->n_groups * 2))
            return "scales";
        if (memcmp(a->zero + k * a->n_groups, b->zero + i * b->n_groups, (size_t)a->n_groups))
            return "zeros";
    }
    for (int64_t j = 0; j < a->n_in; j++) {
        int64_t x = a->g_idx ? a->g_idx[j] : j / a->group, y = b->g_idx ? b->g_idx[j] : j / b->group;
        if (x != y)
            return "groups";
    }
    return NULL;
}

static int verify_integers(const struct item *it, const struct checkpoint *c, struct progress *p, struct err *e)
{
    struct arena a;
    struct qmat q = { .bits = 0 };
    char prefix[256];
    bool ct = it->kind == ITEM_CT_PACKED;
    snprintf(prefix, sizeof prefix, "%.*s", (int)(strlen(it->name) - strlen(ct ? ".weight_packed" : ".qweight")), it->name);
    arena_init(&a);
    int rc = (ct ? checkpoint_ct : checkpoint_gptq)(c, prefix, it->t->q->n_out, it->t->q->n_in, &a, &q, e);
    const char *what = rc > 0 ? qmat_differs(it->t, &q) : NULL;
    if (rc == 0)
        rc = err_set(e, ERR_IO, "%s: tensor %s is missing after writing", c->path, it->name);
    else if (what)
        rc = err_set(e, ERR_IO, "%s: %s of %s differ from the model after writing", c->path, what, prefix);
    const struct st_entry *en = checkpoint_entry(c, it->name);
    if (en)
        checkpoint_forget(c, en->data, en->size);
    arena_release(&a);
    return rc < 0 ? -1 : step(p, item_bytes(it), e);
}

int weights_verify(const struct weights *w, const char *dir, const struct log *log, struct err *e)
{
    struct checkpoint *c = NULL;
    struct progress p = { log, "verifying", 0, w->bytes, w->model };
    if (checkpoint_open(&c, dir, e))
        return -1;
    int rc = 0;
    if (c->n_entries != w->n)
        rc = err_set(e, ERR_IO, "%s: has %zu tensors after writing, expected %zu", dir, c->n_entries, w->n);
    for (size_t i = 0; i < w->n && !rc; i++) {
        const struct item *it = &w->items[i];
        if (it->kind <= ITEM_VECTOR)
            rc = verify_floats(it, c, &p, e);
        else if (it->kind == ITEM_QWEIGHT || it->kind == ITEM_CT_PACKED) /* its companions with it */
            rc = verify_integers(it, c, &p, e);
        else
            rc = step(&p, item_bytes(it), e);
    }
    checkpoint_free(c);
    return rc;
}
