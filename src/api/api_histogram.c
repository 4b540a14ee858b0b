/* api_histogram: the values of one matrix before and after. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/api.h"

#define BINS 120
#define REACH 4.0 /* bins from -REACH to REACH times the rms before */

struct tensor *api_matrices(const struct model *m, struct err *e)
{
    size_t n = (size_t)(m->hp.n_layer * ROLE_COUNT);
    struct tensor *list = mem_alloc(n ? n : 1, sizeof *list);
    if (!list)
        err_nomem(e, "matrices", n * sizeof *list);
    for (size_t i = 0; list && i < n; i++)
        list[i] = m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
    return list;
}

/* Index of the matrix; -1: none has the name. Results stand in the order of blocks and roles. */
static int64_t choose(const char *name, const struct quant_result *res)
{
    int64_t at = 0;
    for (int64_t i = 0; i < res->n_tensors; i++) {
        if (name && !strcmp(res->tensors[i].name, name))
            return i;
        if (res->tensors[i].err > res->tensors[at].err)
            at = i;
    }
    return name ? -1 : at;
}

int api_histogram_check(const struct model *m, const char *name, struct err *e)
{
    char one[128];
    for (int64_t i = 0; name && i < m->hp.n_layer * ROLE_COUNT; i++) {
        matrix_name(one, sizeof one, i, ".weight");
        if (!strcmp(one, name))
            return 0;
    }
    return name ? err_set(e, ERR_USAGE, "histogram: expected a matrix such as model.layers.0.%s.weight, found '%s'",
                          role_hf_name[ROLE_DOWN], name) : 0;
}

struct values {
    double sum_sq, min, max;
    int64_t n, below, above, bin[BINS];
};

/* Adds the values of t; reach > 0: counts them in bins too. */
static void count(struct values *v, const struct tensor *t, float *row, double reach)
{
    int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    *v = (struct values){ .min = INFINITY, .max = -INFINITY };
    for (int64_t i = 0; i < rows; i++) {
        tensor_rows_f32(t, i, 1, row);
        for (int64_t j = 0; j < cols; j++) {
            double x = row[j], at = reach > 0 ? floor((x + reach) / (2 * reach) * BINS) : 0;
            v->sum_sq += x * x;
            v->min = x < v->min ? x : v->min;
            v->max = x > v->max ? x : v->max;
            v->below += at < 0;
            v->above += at >= BINS;
            if (at >= 0 && at < BINS)
                v->bin[(int)at]++;
        }
    }
    v->n = rows * cols;
}

static json_t *values_json(const struct values *v)
{
    json_t *bins = json_array();
    for (int i = 0; i < BINS; i++)
        json_array_append_new(bins, json_integer((json_int_t)v->bin[i]));
    return json_pack("{sfsfsfsIsIso}", "min", v->min, "max", v->max, "rms", sqrt(v->sum_sq / (double)v->n), "below",
                     (json_int_t)v->below, "above", (json_int_t)v->above, "bins", bins);
}

int api_histogram(const struct tensor *before, const struct model *m, const char *name, const struct quant_result *res, json_t *root,
                  struct err *e)
{
    int64_t at = choose(name, res);
    if (at < 0 || !res->n_tensors)
        return 0;
    const struct tensor *a = &before[at], *b = &m->layers[at / ROLE_COUNT].lin[at % ROLE_COUNT].w;
    float *row = mem_alloc((size_t)tensor_cols(a), sizeof *row);
    struct values va, vb;
    if (!row)
        return err_nomem(e, a->name, (size_t)tensor_cols(a) * sizeof *row);
    count(&va, a, row, 0);
    double rms = sqrt(va.sum_sq / (double)va.n), reach = rms > 0 ? REACH * rms : 1;
    count(&va, a, row, reach);
    count(&vb, b, row, reach);
    mem_free(row);
    json_object_set_new(root, "histogram", json_pack("{sssfsfsIsoso}", "name", res->tensors[at].name, "from", -reach, "to", reach,
                                                     "values", (json_int_t)va.n, "before", values_json(&va), "after", values_json(&vb)));
    return 0;
}
