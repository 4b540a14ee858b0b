/* session: text out of a model. Prefill in batches, then a token at a time from the key-value cache. */
#ifndef D2Q_RUN_SESSION_H
#define D2Q_RUN_SESSION_H

#include "base/err.h"
#include "base/log.h"
#include "model/model.h"
#include "run/sample.h"

struct session {
    const struct model *m;
    struct kv_cache kv;
    float *logits;             /* (n_vocab) of the last token */
    struct candidate *scratch; /* (n_vocab) */
    struct arena arena;
};

struct session_options {
    int64_t max_new; /* tokens at most */
    struct sample_options sample;
    uint64_t seed;
    bool ignore_eog; /* go on after an end token */
};

struct session_stats {
    int64_t n_prompt, n_new; /* run; n_prompt is less than the prompt when emit stopped in it */
    double prefill_seconds, decode_seconds;
    bool ended; /* by an end token, which is neither emitted nor counted */
};

/* Called for each new token with its bytes (possibly part of a UTF-8 sequence, possibly none), and with id -1 and no bytes before each
 * batch of the prompt. Non-zero stops the generation, which is no error. */
typedef int (*session_emit_fn)(void *ud, int32_t id, const char *bytes, size_t n);

/* cap: tokens of prompt and answer together. */
int session_init(struct session *s, const struct model *m, int64_t cap, struct err *e);
void session_release(struct session *s);

/* Appends ids to what the session holds and generates after them. A second call goes on with the same text. */
int session_generate(struct session *s, const int32_t *ids, int64_t n, const struct session_options *o,
                     session_emit_fn emit, void *ud, struct session_stats *st, struct err *e);
/* The same from text, tokenized as transformers would (specials known, BOS where the tokenizer adds it); makes a
 * session for it. */
int session_run(const struct model *m, const char *prompt, size_t n, const struct session_options *o,
                session_emit_fn emit, void *ud, struct session_stats *st, struct err *e);

/* Memory that the next takes besides the weights, with caches of 1 GiB. */
uint64_t session_text_bytes(const struct model *m, int64_t n_seq, int64_t n_tokens);
/* Text that the model makes up, to calibrate on: n_seq sequences of n_tokens each, behind each other in out.
 * Each begins with BOS (where the tokenizer adds it) and a random word, then samples at temperature 1, the first few
 * tokens more freely; after an end token a new text begins in the same sequence. Decoded in batches
 * whose caches take at most cache_bytes (0: 1 GiB; at least one sequence is run). */
int session_generate_text(const struct model *m, int64_t n_seq, int64_t n_tokens, uint64_t seed,
                          uint64_t cache_bytes, const struct log *log, struct token_list *out, struct err *e);

#endif
