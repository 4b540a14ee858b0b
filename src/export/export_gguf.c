/* format gguf: one file for llama.cpp. The layout of names, rows and types is its converter's (formats.md 3b).
 *
 * Nothing is rounded here. Grouped integers take the packed type that holds their grid exactly (tensor/pack.h) or are
 * refused; what is stored in a GGUF type already keeps its bytes; float32 matrices become f16 or bf16 only where
 * that holds every value. Vectors are F32. For architecture llama the rows of q and k go as (head, pair, half). */
#include <stdio.h>
#include <string.h>

#include "base/par.h"
#include "export/gguf_out.h"
#include "tensor/half.h"
#include "tensor/pack.h"

#define CHUNK_BYTES ((size_t)4 << 20)

/* ---- what there is to write ------------------------------------------------------ */

static int add(struct gguf_out *g, struct gguf_item it, struct err *e)
{
    if (!it.name)
        return err_nomem(e, "list of tensors", 64);
    if (g->n == g->cap) {
        size_t cap = g->cap ? 2 * g->cap : 256;
        struct gguf_item *grown = mem_grow(g->items, g->n, cap, sizeof *grown);
        if (!grown)
            return err_nomem(e, "list of tensors", cap * sizeof *grown);
        g->items = grown;
        g->cap = cap;
    }
    g->items[g->n++] = it;
    return 0;
}

static int add_vector(struct gguf_out *g, const char *name, const float *v, int64_t n, int64_t perm, struct err *e)
{
    return v ? add(g, (struct gguf_item){ name, DT_F32, n, 0, perm, NULL, v, 0 }, e) : 0;
}

struct exact_job {
    const struct tensor *t;
    uint8_t *f16, *bf16; /* per item */
};

static void exact_item(void *ctx, size_t i, int worker)
{
    const struct exact_job *j = ctx;
    const float *row = (const float *)j->t->data + (int64_t)i * tensor_cols(j->t);
    bool f16 = true, bf16 = true;
    (void)worker;
    half_exact(row, tensor_cols(j->t), &f16, &bf16);
    j->f16[i] = f16;
    j->bf16[i] = bf16;
}

/* The smallest float type that holds every value of float32 data. */
static int exact_type(const struct tensor *t, enum dtype *type, struct err *e)
{
    size_t rows = (size_t)tensor_rows(t);
    uint8_t *flags = mem_alloc(2 * rows + 1, 1);
    if (!flags)
        return err_nomem(e, t->name, 2 * rows);
    struct exact_job j = { t, flags, flags + rows };
    par_for(rows, exact_item, &j);
    bool f16 = !memchr(j.f16, 0, rows), bf16 = !memchr(j.bf16, 0, rows);
    *type = f16 ? DT_F16 : bf16 ? DT_BF16 : DT_F32;
    mem_free(flags);
    return 0;
}

static int refuse_grid(const char *name, const struct pack_grid *p, struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED, "%s: %d bits, group %lld, zero points %d to %d, rows of %lld: no type of GGUF holds that "
                   "exactly. There are: %s", name, p->bits, (long long)p->group, p->zmin, p->zmax, (long long)p->n_in, pack_grids);
}

static int matrix_type(const struct tensor *t, enum dtype *type, struct err *e)
{
    if (t->type == DT_F32)
        return exact_type(t, type, e);
    *type = t->type;
    if (t->type != DT_QMAT)
        return 0;
    const struct pack_grid p = pack_grid_of(t->q);
    *type = pack_type(&p);
    return *type == DT_COUNT ? refuse_grid(t->name, &p, e) : pack_check(t->q, *type, t->name, e);
}

static int add_matrix(struct gguf_out *g, const char *name, const struct tensor *t, int64_t perm, struct err *e)
{
    struct gguf_item it = { name, DT_F32, tensor_rows(t), tensor_cols(t), perm, t, NULL, 0 };
    if (matrix_type(t, &it.type, e))
        return -1;
    return tensor_bytes(it.type, it.rows, it.cols, t->name, e) < 0 ? -1 : add(g, it, e);
}

static int add_layer(struct gguf_out *g, int64_t l, struct err *e)
{
    const struct layer *layer = &g->m->layers[l];
    const struct hparams *hp = &g->m->hp;
    struct arena *a = &g->arena;
    char blk[32];
    snprintf(blk, sizeof blk, "blk.%lld", (long long)l);
    if (add_vector(g, arena_printf(a, "%s.attn_norm.weight", blk), layer->attn_norm, hp->n_embd, 0, e) ||
        add_vector(g, arena_printf(a, "%s.ffn_norm.weight", blk), layer->ffn_norm, hp->n_embd, 0, e) ||
        add_vector(g, arena_printf(a, "%s.attn_q_norm.weight", blk), layer->q_norm, hp->head_dim, 0, e) ||
        add_vector(g, arena_printf(a, "%s.attn_k_norm.weight", blk), layer->k_norm, hp->head_dim, 0, e))
        return -1;
    for (int r = 0; r < ROLE_COUNT; r++) {
        const struct linear *lin = &layer->lin[r];
        int64_t perm = g->family->gguf_perm && r <= ROLE_K ? hp->head_dim : 0;
        const float *b = r >= ROLE_GATE && g->drop_mlp_bias ? NULL : lin->b;
        if (add_matrix(g, arena_printf(a, "%s.%s.weight", blk, role_gguf_name[r]), &lin->w, perm, e) ||
            add_vector(g, arena_printf(a, "%s.%s.bias", blk, role_gguf_name[r]), b, lin->w.dim[0], perm, e))
            return -1;
    }
    return 0;
}

static int plan_items(struct gguf_out *g, struct err *e)
{
    const struct model *m = g->m;
    if (add_matrix(g, "token_embd.weight", &m->tok_embd, 0, e) ||
        add_vector(g, "output_norm.weight", m->out_norm, m->hp.n_embd, 0, e) ||
        (!m->hp.tied && add_matrix(g, "output.weight", &m->lm_head, 0, e)))
        return -1;
    float *factor = arena_alloc(&g->arena, (size_t)(m->hp.head_dim / 2), sizeof *factor);
    int found = factor ? gguf_rope_factors(m, factor, e) : err_nomem(e, "rope_freqs.weight", 4);
    if (found < 0 || (found && add_vector(g, "rope_freqs.weight", factor, m->hp.head_dim / 2, 0, e)))
        return -1;
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        if (add_layer(g, l, e))
            return -1;
    return 0;
}

/* ---- what can be written ------------------------------------------------------------ */

static bool has_bias(const struct model *m, enum role a, enum role b)
{
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        for (int r = (int)a; r <= (int)b; r++)
            if (m->layers[l].lin[r].b)
                return true;
    return false;
}

static int check_biases(struct gguf_out *g, const struct export_plan *p, struct err *e)
{
    const struct model *m = g->m;
    bool mlp = has_bias(m, ROLE_GATE, ROLE_DOWN) || (p && p->mlp_bias);
    if (g->family->mlp_bias_gguf) /* such an architecture has a place for all of them */
        return 0;
    if (has_bias(m, ROLE_O, ROLE_O))
        return err_set(e, ERR_UNSUPPORTED, "llama.cpp has no place for a bias of attn_output in architecture %s",
                       g->family->gguf_arch);
    if (mlp && !(g->o->drop_corrections && !m->hp.mlp_bias))
        return err_set(e, ERR_UNSUPPORTED, "biases of gate_proj and up_proj (DAC) have no place in architecture %s of "
                       "llama.cpp: quantize with --dac off, or leave them out with --drop-corrections%s",
                       g->family->gguf_arch, m->hp.qk_norm ? "" : ", or write it --as-llama");
    g->drop_mlp_bias = mlp;
    return 0;
}

static int init(struct gguf_out *g, const struct model *m, const struct export_options *o, const struct export_plan *p,
                struct err *e)
{
    memset(g, 0, sizeof *g);
    arena_init(&g->arena);
    g->m = m;
    g->o = o;
    g->family = family_by_name(o->as_llama ? "llama" : m->hp.family);
    /* attention within the window is all there is up to that length: exact, only shorter */
    g->n_ctx = m->hp.window && m->hp.window < m->hp.n_ctx ? m->hp.window : m->hp.n_ctx;
    if (o->as_llama && m->hp.qk_norm)
        return err_set(e, ERR_UNSUPPORTED, "a %s model with norms of q and k is no Llama model: --as-llama cannot apply",
                       m->hp.family);
    return check_biases(g, p, e);
}

static void release(struct gguf_out *g)
{
    mem_free(g->items);
    arena_release(&g->arena);
}

int gguf_carries(const struct model *m, const struct export_options *o, const struct export_plan *p, struct err *e)
{
    struct gguf_out g;
    int rc = init(&g, m, o, p, e) || (m->tok && tokenizer_check_gguf(m->tok, m->ck, m->hp.n_vocab, e)) ? -1 : 0;
    for (int64_t i = 0; p && p->lin && i < m->hp.n_layer * ROLE_COUNT && !rc; i++)
        if (p->lin[i].type == DT_QMAT && pack_type(&p->lin[i].grid) == DT_COUNT)
            rc = refuse_grid(role_hf_name[i % ROLE_COUNT], &p->lin[i].grid, e);
    release(&g);
    return rc;
}

/* ---- writing --------------------------------------------------------------------------- */

struct rows_job {
    const struct gguf_item *it;
    int64_t row0;
    size_t row_bytes;
    uint8_t *out, *scratch; /* scratch: cols bytes for each worker */
};

/* Where the file's row comes from, in Hugging Face order: (head, pair, half) from (head, half, pair). */
static int64_t logical_row(int64_t row, int64_t d)
{
    if (!d)
        return row;
    int64_t head = row / d, r = row % d;
    return head * d + r % 2 * (d / 2) + r / 2;
}

static void rows_item(void *ctx, size_t i, int worker)
{
    const struct rows_job *j = ctx;
    const struct gguf_item *it = j->it;
    const struct tensor *t = it->t;
    uint8_t *out = j->out + i * j->row_bytes;
    int64_t row = tensor_stored_row(t, logical_row(j->row0 + (int64_t)i, it->perm));
    if (t->type == DT_QMAT) {
        pack_row(t->q, row, it->type, j->scratch + worker * it->cols, out);
    } else if (t->type == it->type) {
        memcpy(out, (const uint8_t *)t->data + (size_t)row * j->row_bytes, j->row_bytes);
    } else { /* float32 whose values the type holds */
        const float *f = (const float *)t->data + row * it->cols;
        for (int64_t k = 0; k < it->cols; k++) {
            uint16_t h = it->type == DT_F16 ? half_from_f32(f[k]) : bf16_from_f32(f[k]);
            out[2 * k] = (uint8_t)h;
            out[2 * k + 1] = (uint8_t)(h >> 8);
        }
    }
}

static int write_matrix(const struct gguf_item *it, const struct checkpoint *source, struct gguf_writer *w, struct outfile *out, struct err *e)
{
    size_t row_bytes = (size_t)(it->cols / dtype_table[it->type].block_len * dtype_table[it->type].block_bytes);
    int64_t chunk = (int64_t)(CHUNK_BYTES / (row_bytes ? row_bytes : 1)) + 1;
    chunk = chunk < it->rows ? chunk : it->rows;
    uint8_t *buf = mem_alloc((size_t)chunk * row_bytes + (size_t)par_threads() * (size_t)it->cols, 1);
    if (!buf)
        return err_nomem(e, it->name, (size_t)chunk * row_bytes);
    int rc = 0;
    for (int64_t row = 0; row < it->rows && !rc; row += chunk) {
        int64_t n = it->rows - row < chunk ? it->rows - row : chunk;
        struct rows_job j = { it, row, row_bytes, buf, buf + (size_t)chunk * row_bytes };
        par_for((size_t)n, rows_item, &j);
        rc = gguf_writer_data(w, out, buf, (size_t)n * row_bytes, e);
        checkpoint_forget_rows(source, it->t, row, n);
    }
    mem_free(buf);
    return rc;
}

static int write_vector(const struct gguf_item *it, struct gguf_writer *w, struct outfile *out, struct err *e)
{
    for (int64_t i = 0; i < it->rows; i++) {
        uint32_t u;
        memcpy(&u, &it->v[logical_row(i, it->perm)], sizeof u);
        const uint8_t le[4] = { (uint8_t)u, (uint8_t)(u >> 8), (uint8_t)(u >> 16), (uint8_t)(u >> 24) };
        if (gguf_writer_data(w, out, le, sizeof le, e))
            return -1;
    }
    return 0;
}

/* Parts of at most shard_bytes (more where one tensor is larger). */
static void assign_parts(struct gguf_out *g)
{
    uint64_t fill = 0, limit = g->o->shard_bytes;
    g->n_parts = 1;
    g->bytes = 0;
    for (size_t i = 0; i < g->n; i++) {
        struct gguf_item *it = &g->items[i];
        uint64_t bytes = it->cols ? (uint64_t)tensor_bytes(it->type, it->rows, it->cols, it->name, NULL) : 4 * (uint64_t)it->rows;
        if (limit && fill && fill + bytes > limit) {
            g->n_parts++;
            fill = 0;
        }
        fill += bytes;
        g->bytes += bytes;
        it->part = g->n_parts - 1;
    }
}

/* All metadata in the first part, in each which one it is. */
static int put_split(const struct gguf_out *g, struct gguf_writer *w, int part, struct err *e)
{
    return gguf_put_int(w, "split.no", GGUF_U16, part, e) || gguf_put_int(w, "split.count", GGUF_U16, g->n_parts, e) ||
           gguf_put_int(w, "split.tensors.count", GGUF_I32, (int64_t)g->n, e) ? -1 : 0;
}

static int write_part(const struct gguf_out *g, int part, const char *path, uint64_t *done, const struct log *log, struct err *e)
{
    struct gguf_writer w;
    struct outfile out;
    int rc = 0;
    gguf_writer_init(&w);
    if ((part == 0 && gguf_put_meta(g, &w, log, e)) || (g->n_parts > 1 && put_split(g, &w, part, e)))
        rc = -1;
    for (size_t i = 0; i < g->n && !rc; i++) {
        const int64_t dim[2] = { g->items[i].rows, g->items[i].cols };
        if (g->items[i].part == part)
            rc = gguf_writer_tensor(&w, g->items[i].name, g->items[i].type, dim[1] ? 2 : 1, dim, e);
    }
    rc = rc || gguf_put_checksums(&w, e) || outfile_open(&out, path, e);
    if (rc) {
        gguf_writer_release(&w);
        return -1;
    }
    rc = gguf_writer_begin(&w, &out, e);
    for (size_t i = 0, k = 0; i < g->n && !rc; i++) {
        if (g->items[i].part != part)
            continue;
        rc = g->items[i].t ? write_matrix(&g->items[i], g->m->ck, &w, &out, e) : write_vector(&g->items[i], &w, &out, e);
        *done += w.tensors[k++].size;
        arena_forget(&g->m->arena);
        rc = rc || log_progress(log, "writing", (double)*done, (double)g->bytes, e);
    }
    rc = rc || gguf_writer_end(&w, &out, e);
    gguf_writer_release(&w);
    if (rc)
        outfile_abort(&out);
    return rc ? -1 : outfile_commit(&out, e);
}

int gguf_part_name(const char *path, int part, int n, char *out, size_t cap)
{
    size_t len = strlen(path), stem = len > 5 && !strcmp(path + len - 5, ".gguf") ? len - 5 : len;
    int k = n == 1 ? snprintf(out, cap, "%s", path)
                   : snprintf(out, cap, "%.*s-%05d-of-%05d.gguf", (int)stem, path, part + 1, n);
    return k < 0 || (size_t)k >= cap ? -1 : 0;
}

static int write_files(const struct gguf_out *g, const char *path, const struct log *log, struct err *e)
{
    char name[4096];
    uint64_t done = 0;
    for (int part = 0; part < g->n_parts; part++)
        if (gguf_part_name(path, part, g->n_parts, name, sizeof name) ? err_set(e, ERR_USAGE, "%s: path is too long", path)
                                                                      : write_part(g, part, name, &done, log, e))
            return -1;
    if (gguf_part_name(path, 0, g->n_parts, name, sizeof name))
        return err_set(e, ERR_USAGE, "%s: path is too long", path);
    return gguf_verify(g, name, log, e);
}

int gguf_write(const struct model *m, const char *path, const struct export_options *o, const struct log *log,
               struct err *e)
{
    struct gguf_out g;
    int rc = init(&g, m, o, NULL, e) || plan_items(&g, e) ? -1 : 0;
    if (!rc) {
        assign_parts(&g);
        rc = write_files(&g, path, log, e);
    }
    if (!rc && g.drop_mlp_bias)
        log_warn(log, "%s: the corrections (DAC) are left out: architecture %s has no place for them", path,
                 g.family->gguf_arch);
    if (!rc && g.n_ctx < m->hp.n_ctx)
        log_warn(log, "the context length is written as %lld: llama.cpp does not apply this model's attention window, within "
                 "which nothing changes", (long long)g.n_ctx);
    release(&g);
    return rc;
}
