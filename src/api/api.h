/* api: what the files of the facade share. */
#ifndef D2Q_API_API_H
#define D2Q_API_API_H

#include <jansson.h>

#include "base/err.h"
#include "base/log.h"
#include "d2quant.h"
#include "export/export.h"
#include "model/model.h"
#include "quant/quant.h"

struct d2q_model {
    struct model *m;
    uint64_t rss; /* the program's peak when it was open: program, libraries, tokenizer */
};

/* -1, with *out filled from e. */
int api_fail(d2q_error *out, const struct err *e);
/* Hands root over as text in *json (root is released); 0 or -1. */
int api_json(json_t *root, char **json, d2q_error *err);
/* The caller's callback behind a struct log: ud is a struct reporter. */
struct reporter {
    d2q_log_fn fn;
    void *ud;
};
int api_log(void *ud, enum log_kind kind, const char *text, double done, double total);
/* The public options as the quantizer's, for m. */
int api_quant_options(const d2q_quantize_options *in, const struct model *m, struct quant_options *o, struct err *e);
/* Is all calibration text to be the model's own? */
bool api_only_self(const d2q_quantize_options *in);
/* Views of the blocks' matrices as they are now, n_layer * ROLE_COUNT (mem_free); NULL with *e. */
struct tensor *api_matrices(const struct model *m, struct err *e);
/* Has the model a matrix called name (NULL: fine)? */
int api_histogram_check(const struct model *m, const char *name, struct err *e);
/* "histogram" into root: values of the matrix `name` (NULL: of the one with the largest error) before, as in those views, and now. */
int api_histogram(const struct tensor *before, const struct model *m, const char *name, const struct quant_result *res, json_t *root,
                  struct err *e);
/* "seconds", "peak_rss_bytes", "version" */
void api_common(json_t *root, double t0);

#endif
