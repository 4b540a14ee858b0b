/* kl_base: stored predictions of a reference model, in the file format of llama-perplexity --kl-divergence-base.
 *
 * Little-endian: "_logits_", int32 window, int32 n_vocab, int32 windows, int32 tokens (windows, window), then for
 * each window the rows of its second half, window - 1 - window/2 of them: float scale, float least, n_vocab codes
 * of 16 bits (and one of padding when n_vocab is odd), where log p = scale * code + least. What lies more than 16
 * below the largest log p is stored as that. Only PROTOCOL_LLAMA can be stored so. */
#ifndef D2Q_EVAL_KL_BASE_H
#define D2Q_EVAL_KL_BASE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/file.h"
#include "eval/windows.h"

#define KL_BASE_WINDOW 4       /* tokens at least */
#define KL_BASE_FLOOR (-16.0f) /* llama-perplexity leaves log p at or below this out of its sums */

struct kl_base {
    struct file_map map;
    int64_t window, n_vocab, n;  /* n windows */
    int64_t rows, row_bytes;     /* of one window; of one row */
    const int32_t *tokens;       /* (n, window), view */
    const uint8_t *data;         /* (n, rows, row_bytes), view */
};

/* Does the file begin as such files do? False also when it cannot be read. */
bool kl_base_is(const char *path);
int kl_base_open(struct kl_base *b, const char *path, struct err *e);
void kl_base_release(struct kl_base *b);
/* log p of rows row0 .. row0+n-1 of window i, into out (n, n_vocab). */
int kl_base_rows(const struct kl_base *b, int64_t i, int64_t row0, int64_t n, float *out, struct err *e);

struct kl_base_writer {
    struct outfile out;
    int64_t n_vocab, row_bytes, tile;
    uint8_t *rows;               /* (tile, row_bytes) */
};

/* The windows' tokens are written; rows follow in their order, at most `tile` at once. */
int kl_base_create(struct kl_base_writer *w, const char *path, const struct windows *win, int64_t n_vocab, int64_t tile,
                   struct err *e);
int kl_base_add(struct kl_base_writer *w, const float *logits, int64_t n, struct err *e);
int kl_base_commit(struct kl_base_writer *w, struct err *e); /* releases either way */
void kl_base_abort(struct kl_base_writer *w);                /* safe on a zeroed or finished struct */

#endif
