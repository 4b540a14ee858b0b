/* api: opening, tables, inspection. */
#include "api/api.h"

#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/bench.h"
#include "base/json.h"
#include "base/par.h"
#include "eval/task.h"
#include "model/family.h"
#include "run/speed.h"

int api_fail(d2q_error *out, const struct err *e)
{
    if (out) {
        out->code = (int)e->code;
        memcpy(out->message, e->msg, sizeof out->message);
    }
    return -1;
}

int api_json(json_t *root, char **json, d2q_error *err)
{
    struct err e;
    *json = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(root);
    if (*json)
        return 0;
    err_set(&e, ERR_MEMORY, "out of memory: result");
    return api_fail(err, &e);
}

void api_common(json_t *root, double t0)
{
    json_object_set_new(root, "seconds", json_real(log_now() - t0));
    json_object_set_new(root, "peak_rss_bytes", json_integer((json_int_t)mem_peak_rss()));
    json_object_set_new(root, "version", json_string(d2q_version()));
}

int api_log(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    const struct reporter *r = ud;
    return r->fn ? r->fn(r->ud, (int)kind, text, done, total) : 0;
}

const char *d2q_version(void)
{
    return D2Q_VERSION;
}

void d2q_free(void *p)
{
    free(p); /* jansson's own allocations */
}

void d2q_set_threads(int n)
{
    par_set_threads(n);
}

uint64_t d2q_peak_rss(void)
{
    return mem_peak_rss();
}

char *d2q_list(const char *table)
{
    json_t *list = json_array();
    if (!strcmp(table, "methods")) {
        for (int i = 0; i < METHOD_COUNT; i++)
            json_array_append_new(list, json_pack("{ssss}", "name", method_table[i].name, "help", method_table[i].help));
    } else if (!strcmp(table, "grids")) {
        for (int i = 0; i < GRID_COUNT; i++)
            if (grid_table[i].kind != KIND_FLOAT)
                json_array_append_new(list, json_pack("{ssss}", "name", grid_table[i].name, "help", grid_table[i].help));
    } else if (!strcmp(table, "formats")) {
        for (int i = 0; i < exporter_count; i++)
            json_array_append_new(list, json_pack("{ssss}", "name", exporter_table[i].name, "help", exporter_table[i].help));
    } else if (!strcmp(table, "tasks")) {
        for (int i = 0; i < task_count; i++)
            json_array_append_new(list, json_pack("{ssss}", "name", task_table[i].name, "help", task_table[i].file));
    } else if (!strcmp(table, "families")) {
#define FAMILY(n) json_array_append_new(list, json_pack("{ssss}", "name", #n, "help", family_by_name(#n)->hf_arch));
#include "model/families.def"
#undef FAMILY
    } else if (!strcmp(table, "types")) {
        for (int i = 0; i < DT_QMAT; i++)
            json_array_append_new(list, json_pack("{sssf}", "name", dtype_table[i].name, "bpw", dtype_bits((enum dtype)i)));
    } else {
        json_decref(list);
        return NULL;
    }
    char *text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

int d2q_grid_is_type(const char *grid)
{
    enum grid_id id = grid_by_name(grid);
    return id < GRID_COUNT && grid_table[id].type != DT_QMAT;
}

d2q_model *d2q_open(const char *path, d2q_error *err)
{
    struct err e = { 0 };
    d2q_model *m = mem_zalloc(1, sizeof *m);
    if (!m || backend_init(&e) || model_open(&m->m, path, &e)) {
        if (!m)
            err_nomem(&e, "model", sizeof *m);
        mem_free(m);
        api_fail(err, &e);
        return NULL;
    }
    m->rss = mem_peak_rss();
    return m;
}

void d2q_close(d2q_model *m)
{
    if (!m)
        return;
    model_free(m->m);
    mem_free(m);
}

/* ---- inspection ---------------------------------------------------------------------- */

static json_t *tensor_json(const struct tensor *t, double bpw)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++)
        json_array_append_new(shape, json_integer(t->dim[i]));
    char type[32];
    if (t->type == DT_QMAT)
        snprintf(type, sizeof type, "int%d g%d %s", t->q->bits, t->q->group, t->q->sym ? "sym" : "asym");
    else
        snprintf(type, sizeof type, "%s", dtype_table[t->type].name);
    return json_pack("{sssssosf}", "name", t->name, "type", type, "shape", shape, "bpw", bpw);
}

static double bits_of(const struct tensor *t)
{
    return t->type == DT_QMAT ? qmat_bpw(t->q) : dtype_bits(t->type);
}

static void add_tensor(json_t *list, const struct tensor *t, double *bits, double *n)
{
    double bpw = bits_of(t), count = (double)tensor_count(t);
    *bits += bpw * count;
    *n += count;
    json_array_append_new(list, tensor_json(t, bpw));
}

static bool has_name(const struct tensor *t, const char *name, const char *hf)
{
    return !strcmp(name, t->name) || !strcmp(name, hf);
}

/* The tensor called so, by its name in the file or, of a matrix, by that of Hugging Face folders; of others (norms, biases) it is put
 * into *other. NULL: there is none. */
static const struct tensor *find_tensor(const struct model *m, const char *name, struct tensor *other)
{
    char hf[128];
    if (has_name(&m->tok_embd, name, "model.embed_tokens.weight"))
        return &m->tok_embd;
    if (!m->hp.tied && has_name(&m->lm_head, name, "lm_head.weight"))
        return &m->lm_head;
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        matrix_name(hf, sizeof hf, i, ".weight");
        if (has_name(&m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w, name, hf))
            return &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
    }
    return checkpoint_tensor(m->ck, name, other, NULL) > 0 && other->type < DT_QMAT ? other : NULL;
}

/* min, max, mean, rms of one tensor, row by row */
static int add_figures(json_t *o, const struct tensor *t, struct err *e)
{
    int64_t cols = tensor_cols(t), rows = tensor_rows(t);
    float *row = mem_alloc((size_t)cols, sizeof *row);
    double min = 0, max = 0, sum = 0, sq = 0;
    int64_t bad = 0;
    if (!row)
        return err_nomem(e, t->name, (size_t)cols * sizeof *row);
    for (int64_t i = 0; i < rows; i++) {
        tensor_rows_f32(t, i, 1, row);
        for (int64_t j = 0; j < cols; j++) {
            double v = row[j];
            if (v - v != 0) {
                bad++;
                continue;
            }
            min = (i || j) && min < v ? min : v;
            max = (i || j) && max > v ? max : v;
            sum += v;
            sq += v * v;
        }
    }
    mem_free(row);
    double n = (double)(rows * cols);
    json_object_update_new(o, json_pack("{sfsfsfsfsI}", "min", min, "max", max, "mean", sum / n, "mean_square", sq / n,
                                        "not_finite", (json_int_t)bad));
    return 0;
}

int d2q_inspect(d2q_model *dm, const char *only, char **json, d2q_error *err)
{
    const struct model *m = dm->m;
    const struct hparams *hp = &m->hp;
    struct err e;
    double t0 = log_now(), bits = 0, n = 0, block_bits = 0, block_n = 0;
    json_t *list = json_array(), *root = json_object();
    add_tensor(list, &m->tok_embd, &bits, &n);
    if (!hp->tied)
        add_tensor(list, &m->lm_head, &bits, &n);
    for (int64_t i = 0; i < hp->n_layer; i++)
        for (int r = 0; r < ROLE_COUNT; r++)
            add_tensor(list, &m->layers[i].lin[r].w, &block_bits, &block_n);
    struct tensor other;
    const struct tensor *found = only ? find_tensor(m, only, &other) : NULL;
    int rc = only && !found ? err_set(&e, ERR_USAGE, "%s: has no tensor of numbers named %s", m->ck->path, only) : 0;
    if (!rc && found) {
        json_array_clear(list);
        json_array_append_new(list, tensor_json(found, bits_of(found)));
        rc = add_figures(json_array_get(list, 0), found, &e);
    }
    if (rc) {
        json_decref(list);
        json_decref(root);
        return api_fail(err, &e);
    }
    json_object_update_new(root, json_pack("{sosssIsIsIsIsIsIsIsIsb}", "path", json_path(m->ck->path), "family", hp->family, "n_vocab",
                                           (json_int_t)hp->n_vocab, "n_embd", (json_int_t)hp->n_embd, "n_layer",
                                           (json_int_t)hp->n_layer, "n_head", (json_int_t)hp->n_head, "n_head_kv",
                                           (json_int_t)hp->n_head_kv, "head_dim", (json_int_t)hp->head_dim, "n_ff",
                                           (json_int_t)hp->n_ff, "n_ctx", (json_int_t)hp->n_ctx, "tied", hp->tied));
    json_object_update_new(root, json_pack("{sfsfsIso}", "parameters", n + block_n, "bpw", block_n > 0 ? block_bits / block_n : 0,
                                           "bytes", (json_int_t)m->ck->data_bytes, "tensors", list));
    json_object_set_new(root, "backend", json_pack("{ssss}", "isa", backend_isa(), "blas", backend_blas()));
    api_common(root, t0);
    return api_json(root, json, err);
}

void d2q_bench_options_init(d2q_bench_options *o)
{
    *o = (d2q_bench_options){ .seconds = 0.5, .prefill = 512, .decode = 64, .rounds = 2 };
}

/* Matrix products and the like, on the shapes of m. */
static int bench_products(const struct hparams *hp, double seconds, json_t *root, struct err *e)
{
    struct bench_linear row[3] = {
        { .n = 1024, .n_out = hp->n_head * hp->head_dim, .n_in = hp->n_embd },
        { .n = 1024, .n_out = hp->n_ff, .n_in = hp->n_embd },
        { .n = 1024, .n_out = hp->n_embd, .n_in = hp->n_ff },
    };
    struct bench_rest rest = { .n = 1024, .n_head = hp->n_head, .n_head_kv = hp->n_head_kv, .head_dim = hp->head_dim };
    if (backend_bench(row, 3, &rest, seconds, e))
        return -1;
    json_t *list = json_array();
    for (int i = 0; i < 3; i++)
        json_array_append_new(list, json_pack("{sIsIsIsfsfsfsfsf}", "n", (json_int_t)row[i].n, "n_out", (json_int_t)row[i].n_out,
                                              "n_in", (json_int_t)row[i].n_in, "sgemm_all", row[i].blas_all, "sgemm_each",
                                              row[i].blas_each, "f32", row[i].f32, "f16", row[i].f16, "q4_1", row[i].q4_1));
    json_object_set_new(root, "gflops", list);
    json_object_set_new(root, "attention_seconds", json_real(rest.attention_seconds));
    json_object_set_new(root, "exp_per_second", json_real(rest.exp_per_second));
    return 0;
}

int d2q_bench(d2q_model *dm, const d2q_bench_options *o, char **json, d2q_error *err)
{
    struct err e;
    double t0 = log_now();
    struct speed s = { .n_prefill = o->prefill, .n_decode = o->decode, .rounds = o->rounds };
    json_t *root = json_object();
    double copy = 0;
    if (model_whole(dm->m, &e) || (o->seconds > 0 && (bench_products(&dm->m->hp, o->seconds, root, &e) || (copy = backend_bench_copy(&e)) < 0)) ||
        speed_measure(dm->m, &s, &e)) {
        json_decref(root);
        return api_fail(err, &e);
    }
    if (copy > 0)
        json_object_set_new(root, "copy_bytes_per_second", json_real(copy));
    if (o->prefill > 0)
        json_object_set_new(root, "prefill", json_pack("{sIsf}", "tokens", (json_int_t)o->prefill, "per_second", s.prefill_per_second));
    if (o->decode > 0)
        json_object_set_new(root, "decode", json_pack("{sIsfsI}", "tokens", (json_int_t)o->decode, "per_second",
                                                        s.decode_per_second, "bytes", (json_int_t)s.bytes));
    json_object_set_new(root, "isa", json_string(backend_isa()));
    json_object_set_new(root, "blas", json_string(backend_blas()));
    json_object_set_new(root, "threads", json_integer(par_threads()));
    api_common(root, t0);
    return api_json(root, json, err);
}
