/* windows: a text as windows of tokens, and a model run over one window.
 *
 * What perplexity, KL divergence and the like share. Logits come in tiles of rows, never as
 * a whole (window, n_vocab) matrix; two models are compared by running both over the same window
 * and walking their tiles side by side. */
#ifndef D2Q_EVAL_WINDOWS_H
#define D2Q_EVAL_WINDOWS_H

#include "base/err.h"
#include "base/log.h"
#include "model/model.h"

enum eval_protocol {
    PROTOCOL_GPTQ,  /* text tokenized once, windows of 2048, every prediction scored */
    PROTOCOL_LLAMA, /* windows of 512, first token replaced by BOS where the model adds it, second half scored */
};
enum eval_rule { RULE_AUTO, RULE_AS_IS, RULE_ROWS };

struct windows {
    struct token_list ids; /* of the whole text */
    int64_t size;          /* tokens in a window */
    int64_t n;             /* windows; what is left over at the end is dropped */
    int64_t first;         /* in a window, tokens first .. size-1 are scored */
    int32_t bos;           /* replaces the first token of each window; -1: does not */
    const char *protocol;  /* "gptq", "llama" */
    const char *text_rule; /* "wikitext-rows", "as-is" */
};

/* rule matters to PROTOCOL_GPTQ only (llama reads text as it is). ctx 0: the protocol's own; max_windows 0: all. */
int windows_init(struct windows *w, const struct model *m, const char *text, size_t n_text,
                 enum eval_protocol protocol, enum eval_rule rule, int64_t ctx, int64_t max_windows,
                 struct err *e);
/* -1: predictions made so do not belong into the file `path`, nor beside it: m begins a text with BOS and the protocol leaves it out. */
int windows_storable(const struct model *m, enum eval_protocol protocol, const char *path, struct err *e);
void windows_release(struct windows *w);
/* The i-th window's tokens, into ids (size). */
void windows_get(const struct windows *w, int64_t i, int32_t *ids);

/* A WikiText raw file has blank lines of one space. */
bool windows_is_wikitext(const char *text, size_t n);
/* The text that GPTQ-style evaluation tokenizes: rows " \n" become empty, others keep their "\n", and all
 * are joined by "\n\n". Fresh NUL-terminated block (mem_free). */
int windows_join_rows(const char *text, size_t n, char **out, size_t *n_out, struct err *e);

/* One model over one window at a time. */
struct pass {
    int64_t size, tile; /* tokens of a window; most rows of logits at once */
    struct fwd f;
    float *h;           /* (size, n_embd) after the last block */
    float *logits;      /* (tile, n_vocab) */
    struct arena arena;
};

int pass_init(struct pass *p, const struct model *m, int64_t size, struct err *e);
void pass_release(struct pass *p);
/* What a pass says of itself between blocks (NULL: nothing): `done` of `total`, of which the pass makes `part`. */
struct pass_log {
    const struct log *log;
    const char *step;
    double done, part, total;
};
int pass_run(struct pass *p, const struct model *m, const int32_t *ids, const struct pass_log *l, struct err *e);
/* Logits of rows row0 .. row0+n-1 of the window, n <= tile. */
int pass_logits(struct pass *p, const struct model *m, int64_t row0, int64_t n, struct err *e);

#endif
