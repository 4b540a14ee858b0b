/* gguf_verify: the written file, opened as any model is, must compute what the model in memory computes: every weight,
 * bias and norm is compared as a number, in Hugging Face order, so names, permutation and packing are all covered. */
#include <math.h>
#include <string.h>

#include "base/par.h"
#include "export/gguf_out.h"
#include "export/verify.h"

#define ROWS 4096 /* compared, then given back: a table is never in memory whole */

struct compare_job {
    const struct tensor *a, *b;
    int64_t row0;
    float *scratch;  /* two rows for each worker */
    uint8_t *differ; /* a byte for each row */
};

/* A zero may change its sign: q2_0 holds 0 times a negative d. */
static void compare_item(void *ctx, size_t i, int worker)
{
    const struct compare_job *j = ctx;
    int64_t cols = tensor_cols(j->a), k = 0;
    float *x = j->scratch + 2 * worker * cols, *y = x + cols;
    tensor_rows_f32(j->a, j->row0 + (int64_t)i, 1, x);
    tensor_rows_f32(j->b, j->row0 + (int64_t)i, 1, y);
    while (k < cols && x[k] == y[k] && isfinite(x[k]))
        k++;
    j->differ[i] = k < cols;
}

/* What the source model itself has wrong is said of its file, not of the temporary one. */
static int compare_matrix(const struct gguf_out *g, const struct model *back, const struct tensor *a, const struct tensor *b, struct err *e)
{
    int64_t rows = tensor_rows(a), cols = tensor_cols(a), bad = -1;
    float *scratch = mem_alloc(2 * (size_t)(par_threads() * cols), sizeof *scratch);
    uint8_t differ[ROWS];
    if (!scratch)
        return err_nomem(e, b->name, 2 * (size_t)(par_threads() * cols) * sizeof *scratch);
    for (int64_t i = 0; i < rows && bad < 0; i += ROWS) {
        int64_t n = rows - i < ROWS ? rows - i : ROWS;
        struct compare_job j = { a, b, i, scratch, differ };
        par_for((size_t)n, compare_item, &j);
        const uint8_t *at = memchr(differ, 1, (size_t)n);
        bad = at ? i + (at - differ) : -1;
        checkpoint_forget_rows(g->m->ck, a, i, n);
        checkpoint_forget_rows(back->ck, b, i, n);
    }
    bool source = bad >= 0 && !verify_row_finite(a, bad, scratch);
    mem_free(scratch);
    if (source)
        return err_set(e, ERR_NUMERIC, "%s: tensor %s: row %lld has a value that is not finite", g->m->ck->path, a->name, (long long)bad);
    return bad < 0 ? 0 : err_set(e, ERR_IO, "%s: tensor %s: row %lld differs from the model after writing", back->ck->path, b->name,
                                 (long long)bad);
}

static int compare_vector(const struct gguf_out *g, const struct model *back, const char *what, int64_t layer, const float *a,
                          const float *b, int64_t n, struct err *e)
{
    int64_t i = 0;
    while (a && b && i < n && a[i] == b[i] && isfinite(a[i]))
        i++;
    if ((!a && !b) || (a && b && i == n))
        return 0;
    if (a && i < n && !isfinite(a[i]))
        return err_set(e, ERR_NUMERIC, "%s: block %lld, %s: value %lld is not finite", g->m->ck->path, (long long)layer, what, (long long)i);
    return err_set(e, ERR_IO, "%s: block %lld, %s: value %lld differs from the model after writing", back->ck->path, (long long)layer,
                   what, (long long)i);
}

static int compare_layer(const struct gguf_out *g, const struct model *back, int64_t l, struct err *e)
{
    const struct layer *a = &g->m->layers[l], *b = &back->layers[l];
    const struct hparams *hp = &g->m->hp;
    if (compare_vector(g, back, "attn_norm", l, a->attn_norm, b->attn_norm, hp->n_embd, e) ||
        compare_vector(g, back, "ffn_norm", l, a->ffn_norm, b->ffn_norm, hp->n_embd, e) ||
        compare_vector(g, back, "attn_q_norm", l, a->q_norm, b->q_norm, hp->head_dim, e) ||
        compare_vector(g, back, "attn_k_norm", l, a->k_norm, b->k_norm, hp->head_dim, e))
        return -1;
    for (int r = 0; r < ROLE_COUNT; r++) {
        const float *bias = r >= ROLE_GATE && g->drop_mlp_bias ? NULL : a->lin[r].b;
        if (compare_matrix(g, back, &a->lin[r].w, &b->lin[r].w, e) ||
            compare_vector(g, back, role_gguf_name[r], l, bias, b->lin[r].b, a->lin[r].w.dim[0], e))
            return -1;
    }
    return 0;
}

/* Frequencies: the file has the base in float32, and factors where we may have a product; a rounding of both is allowed. */
static int compare_rope(const struct gguf_out *g, const struct model *back, struct err *e)
{
    for (int64_t i = 0; i < g->m->hp.head_dim / 2; i++) {
        float a = g->m->inv_freq[i], b = back->inv_freq[i];
        if (!(fabsf(a - b) <= 2.5e-7f * fabsf(a)))
            return err_set(e, ERR_IO, "%s: rotary frequency %lld is %.9g after writing, expected %.9g", back->ck->path,
                           (long long)i, (double)b, (double)a);
    }
    if (g->m->rope_attn_scale != back->rope_attn_scale)
        return err_set(e, ERR_UNSUPPORTED, "GGUF has no key for this model's scale of cos and sin");
    return 0;
}

static int compare_shape(const struct gguf_out *g, const struct model *back, struct err *e)
{
    const struct hparams *a = &g->m->hp, *b = &back->hp;
    if (a->n_vocab != b->n_vocab || a->n_embd != b->n_embd || a->n_layer != b->n_layer || a->n_head != b->n_head ||
        a->n_head_kv != b->n_head_kv || a->head_dim != b->head_dim || a->n_ff != b->n_ff || a->rms_eps != b->rms_eps ||
        a->tied != b->tied || a->qk_norm != b->qk_norm || back->ck->gguf.n_tensors != g->n)
        return err_set(e, ERR_IO, "%s: the shape of the model differs after writing", back->ck->path);
    return 0;
}

static int compare_models(const struct gguf_out *g, const struct model *back, const struct log *log, struct err *e)
{
    const struct model *m = g->m;
    if (compare_shape(g, back, e) || compare_rope(g, back, e) ||
        compare_vector(g, back, "output_norm", 0, m->out_norm, back->out_norm, m->hp.n_embd, e) ||
        compare_matrix(g, back, &m->tok_embd, &back->tok_embd, e) ||
        (!m->hp.tied && compare_matrix(g, back, &m->lm_head, &back->lm_head, e)))
        return -1;
    for (int64_t l = 0; l < m->hp.n_layer; l++) {
        arena_forget(&m->arena);
        if (compare_layer(g, back, l, e) ||
            log_progress(log, "verifying", (double)(l + 1), (double)m->hp.n_layer, e))
            return -1;
    }
    return m->tok && back->tok ? tokenizer_compare(m->tok, back->tok, e) : 0;
}

int gguf_verify(const struct gguf_out *g, const char *path, const struct log *log, struct err *e)
{
    struct model *back;
    if (model_open(&back, path, e))
        return -1;
    int rc = compare_models(g, back, log, e) || verify_checksums(back->ck, e) ? -1 : 0;
    model_free(back);
    return rc;
}
