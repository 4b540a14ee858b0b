/* api_diff: two models, tensor by tensor. */
#include <math.h>
#include <string.h>

#include "api/api.h"
#include "base/json.h"
#include "quant/quant.h"

#define ROWS 256

struct totals {
    json_t *list;
    int64_t differ;
    const char *path_a, *path_b;
};

static void type_name(const struct tensor *t, char *out, size_t cap)
{
    if (t->type == DT_QMAT)
        snprintf(out, cap, "int%d g%d", t->q->bits, t->q->group);
    else
        snprintf(out, cap, "%s", dtype_table[t->type].name);
}

static void add_row(struct totals *s, const char *name, const char *ta, const char *tb, double diff, double size, double top)
{
    bool number = isfinite(diff) && isfinite(size); /* JSON has no others: null */
    double rel = size > 0 ? sqrt(diff / size) : diff > 0 ? 1.0 : 0.0;
    json_array_append_new(s->list, json_pack("{sssssssoso}", "name", name, "type_a", ta, "type_b", tb, "rel", number ? json_real(rel) : json_null(),
                                             "max_abs", number ? json_real(top) : json_null()));
    s->differ += diff != 0;
}

static void add_values(const float *a, const float *b, int64_t n, double *diff, double *size, double *top)
{
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - b[i];
        *diff += d * d; /* NaN or Inf where one of them is */
        *size += (double)a[i] * a[i];
        *top = fabs(d) > *top ? fabs(d) : *top;
    }
}

static int add_matrix(struct totals *s, const char *name, const struct tensor *a, const struct tensor *b, struct err *e)
{
    int64_t rows = tensor_rows(a), cols = tensor_cols(a);
    double diff = 0, size = 0, top = 0;
    char ta[32], tb[32];
    if (tensor_rows(b) != rows || tensor_cols(b) != cols)
        return err_set(e, ERR_USAGE, "%s: is %lld x %lld in %s and %lld x %lld in %s: these models cannot be compared", name, (long long)rows,
                       (long long)cols, s->path_a, (long long)tensor_rows(b), (long long)tensor_cols(b), s->path_b);
    float *x = mem_alloc((size_t)(2 * ROWS * cols), sizeof *x);
    if (!x)
        return err_nomem(e, name, (size_t)(2 * ROWS * cols) * sizeof *x);
    for (int64_t r = 0; r < rows; r += ROWS) {
        int64_t n = rows - r < ROWS ? rows - r : ROWS;
        tensor_rows_f32(a, r, n, x);
        tensor_rows_f32(b, r, n, x + ROWS * cols);
        add_values(x, x + ROWS * cols, n * cols, &diff, &size, &top);
    }
    mem_free(x);
    type_name(a, ta, sizeof ta);
    type_name(b, tb, sizeof tb);
    add_row(s, name, ta, tb, diff, size, top);
    return 0;
}

/* A norm, or a bias that may be missing on one side (it counts as zero). */
static int add_vector(struct totals *s, const char *name, const float *a, const float *b, int64_t n, struct err *e)
{
    double diff = 0, size = 0, top = 0;
    if (!a && !b)
        return 0;
    float *zero = mem_zalloc((size_t)n, sizeof *zero);
    if (!zero)
        return err_nomem(e, name, (size_t)n * sizeof *zero);
    add_values(a ? a : zero, b ? b : zero, n, &diff, &size, &top);
    mem_free(zero);
    add_row(s, name, a ? "vector" : "none", b ? "vector" : "none", diff, size, top);
    return 0;
}

static int add_layer(struct totals *s, int64_t i, const struct hparams *hp, const struct layer *a, const struct layer *b, struct err *e)
{
    char name[128];
    const struct {
        const char *name;
        const float *a, *b;
        int64_t n;
    } norms[] = { { "input_layernorm", a->attn_norm, b->attn_norm, hp->n_embd },
                  { "post_attention_layernorm", a->ffn_norm, b->ffn_norm, hp->n_embd },
                  { "self_attn.q_norm", a->q_norm, b->q_norm, hp->head_dim },
                  { "self_attn.k_norm", a->k_norm, b->k_norm, hp->head_dim } };
    for (size_t k = 0; k < sizeof norms / sizeof *norms; k++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)i, norms[k].name);
        if (add_vector(s, name, norms[k].a, norms[k].b, norms[k].n, e))
            return -1;
    }
    for (int r = 0; r < ROLE_COUNT; r++) {
        matrix_name(name, sizeof name, i * ROLE_COUNT + r, ".weight");
        if (add_matrix(s, name, &a->lin[r].w, &b->lin[r].w, e))
            return -1;
        matrix_name(name, sizeof name, i * ROLE_COUNT + r, ".bias");
        if (add_vector(s, name, a->lin[r].b, b->lin[r].b, tensor_rows(&a->lin[r].w), e))
            return -1;
    }
    return 0;
}

int d2q_diff(d2q_model *da, d2q_model *db, char **json, d2q_error *err)
{
    const struct model *a = da->m, *b = db->m;
    struct totals s = { json_array(), 0, a->ck->path, b->ck->path };
    struct err e;
    double t0 = log_now();
    int rc = model_whole(a, &e) || model_whole(b, &e) ? -1 : 0;
    if (!rc && (a->hp.n_layer != b->hp.n_layer || a->hp.n_embd != b->hp.n_embd || a->hp.head_dim != b->hp.head_dim))
        rc = err_set(&e, ERR_USAGE, "%s has %lld layers of width %lld with heads of %lld, %s %lld of %lld with %lld: these models cannot be "
                     "compared", s.path_a, (long long)a->hp.n_layer, (long long)a->hp.n_embd, (long long)a->hp.head_dim, s.path_b,
                     (long long)b->hp.n_layer, (long long)b->hp.n_embd, (long long)b->hp.head_dim);
    rc = rc || add_matrix(&s, "model.embed_tokens.weight", &a->tok_embd, &b->tok_embd, &e) ||
         add_matrix(&s, "lm_head.weight", &a->lm_head, &b->lm_head, &e) ||
         add_vector(&s, "model.norm.weight", a->out_norm, b->out_norm, a->hp.n_embd, &e);
    for (int64_t i = 0; !rc && i < a->hp.n_layer; i++)
        rc = add_layer(&s, i, &a->hp, &a->layers[i], &b->layers[i], &e);
    if (rc) {
        json_decref(s.list);
        return api_fail(err, &e);
    }
    json_t *root = json_pack("{sososIso}", "a", json_path(s.path_a), "b", json_path(s.path_b), "differ", (json_int_t)s.differ, "tensors", s.list);
    api_common(root, t0);
    return api_json(root, json, err);
}
