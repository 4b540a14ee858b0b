/* kl_base: see kl_base.h. Nothing in a file is believed: sizes are products checked against the file's length before
 * anything is read, tokens against the vocabulary, and each row's scale and least value when it is used. */
#include "eval/kl_base.h"

#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/mem.h"
#include "base/par.h"

static const char magic[8] = { '_', 'l', 'o', 'g', 'i', 't', 's', '_' };

#define HEADER 20
#define ROW_HEAD 8      /* scale, least */
#define RANGE 16.0f     /* what lies further below the largest is cut */

static int64_t row_bytes(int64_t n_vocab)
{
    return ROW_HEAD + 4 * ((n_vocab + 1) / 2);
}

/* ---- reading ---------------------------------------------------------------- */

bool kl_base_is(const char *path)
{
    char head[sizeof magic];
    return !file_head(path, head, sizeof head) && !memcmp(head, magic, sizeof magic);
}

static int read_count(struct cursor *c, const char *what, int64_t least, int64_t *out, struct err *e)
{
    uint32_t v;
    if (cursor_u32(c, &v, e))
        return -1;
    *out = (int32_t)v;
    if (*out >= least)
        return 0;
    return err_set(e, ERR_FORMAT, "%s: %s is %lld, expected %lld or more", c->what, what, (long long)*out, (long long)least);
}

static int check_tokens(const struct kl_base *b, struct err *e)
{
    for (int64_t i = 0; i < b->n * b->window; i++)
        if (b->tokens[i] < 0 || b->tokens[i] >= b->n_vocab)
            return err_set(e, ERR_FORMAT, "%s: token %lld is %d, expected 0 to %lld", b->map.path, (long long)i,
                           b->tokens[i], (long long)b->n_vocab - 1);
    return 0;
}

static int read_header(struct kl_base *b, struct err *e)
{
    struct cursor c;
    const uint8_t *p;
    int64_t n_tok, body, total;
    cursor_init(&c, b->map.data, b->map.size, b->map.path);
    if (cursor_take(&c, sizeof magic, &p, e))
        return -1;
    if (memcmp(p, magic, sizeof magic))
        return err_set(e, ERR_FORMAT, "%s: is not a file of log probabilities (it does not begin with _logits_)", c.what);
    if (read_count(&c, "window", KL_BASE_WINDOW, &b->window, e) || read_count(&c, "size of the vocabulary", 1, &b->n_vocab, e) ||
        read_count(&c, "number of windows", 1, &b->n, e))
        return -1;
    b->rows = b->window - 1 - b->window / 2;
    b->row_bytes = row_bytes(b->n_vocab);
    if (__builtin_mul_overflow(b->n, b->window * 4, &n_tok) || __builtin_mul_overflow(b->n, b->rows, &body) ||
        __builtin_mul_overflow(body, b->row_bytes, &body) || __builtin_add_overflow(n_tok, body, &total) ||
        __builtin_add_overflow(total, HEADER, &total))
        return err_set(e, ERR_FORMAT, "%s: %lld windows of %lld tokens over %lld words are no possible size", c.what,
                       (long long)b->n, (long long)b->window, (long long)b->n_vocab);
    if ((uint64_t)total != b->map.size)
        return err_set(e, ERR_FORMAT, "%s: has %zu bytes, but %lld windows of %lld tokens over %lld words make %lld: %s",
                       c.what, b->map.size, (long long)b->n, (long long)b->window, (long long)b->n_vocab, (long long)total,
                       (uint64_t)total > b->map.size ? "its writing was broken off" : "it is not what it says");
    b->tokens = (const int32_t *)(const void *)(b->map.data + HEADER); /* a mapping: 4-byte aligned */
    b->data = b->map.data + HEADER + n_tok;
    return check_tokens(b, e);
}

int kl_base_open(struct kl_base *b, const char *path, struct err *e)
{
    memset(b, 0, sizeof *b);
    if (file_map_open(&b->map, path, e))
        return -1;
    if (!read_header(b, e))
        return 0;
    kl_base_release(b);
    return -1;
}

void kl_base_release(struct kl_base *b)
{
    file_map_release(&b->map);
    memset(b, 0, sizeof *b);
}

struct decode {
    const struct kl_base *b;
    const uint8_t *data;
    float *out;
};

static void decode_row(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct decode *d = ctx;
    const uint8_t *row = d->data + (int64_t)i * d->b->row_bytes;
    float head[2], *out = d->out + (int64_t)i * d->b->n_vocab;
    const uint16_t *code = (const uint16_t *)(const void *)(row + ROW_HEAD);
    memcpy(head, row, sizeof head);
    for (int64_t k = 0; k < d->b->n_vocab; k++)
        out[k] = head[0] * (float)code[k] + head[1];
}

int kl_base_rows(const struct kl_base *b, int64_t i, int64_t row0, int64_t n, float *out, struct err *e)
{
    struct decode d = { b, b->data + (i * b->rows + row0) * b->row_bytes, out };
    for (int64_t r = 0; r < n; r++) {
        float head[2];
        memcpy(head, d.data + r * b->row_bytes, sizeof head);
        /* log p of a whole vocabulary: at most 0 but for rounding, and no wider than RANGE */
        if (!(head[0] >= 0 && head[0] <= 2 * RANGE / 65535) || !(head[1] <= 0.01f && head[1] >= -1e4f) ||
            head[1] + 65535 * head[0] > 0.01f)
            return err_set(e, ERR_FORMAT, "%s: row %lld of window %lld: scale %g and least value %g are not of log "
                           "probabilities", b->map.path, (long long)(row0 + r), (long long)i, (double)head[0], (double)head[1]);
    }
    par_for((size_t)n, decode_row, &d);
    file_map_forget(&b->map, d.data, (size_t)(n * b->row_bytes));
    return 0;
}

/* ---- writing ---------------------------------------------------------------- */

int kl_base_create(struct kl_base_writer *w, const char *path, const struct windows *win, int64_t n_vocab, int64_t tile,
                   struct err *e)
{
    const int32_t counts[3] = { (int32_t)win->size, (int32_t)n_vocab, (int32_t)win->n };
    memset(w, 0, sizeof *w);
    if (win->size < KL_BASE_WINDOW)
        return err_set(e, ERR_USAGE, "%s: holds windows of %d tokens or more, found %lld", path, KL_BASE_WINDOW, (long long)win->size);
    w->n_vocab = n_vocab;
    w->row_bytes = row_bytes(n_vocab);
    w->tile = tile;
    w->rows = mem_zalloc((size_t)tile, (size_t)w->row_bytes);
    if (!w->rows)
        return err_nomem(e, "log probabilities", (size_t)(tile * w->row_bytes));
    if (!outfile_open(&w->out, path, e) && !outfile_write(&w->out, magic, sizeof magic, e) &&
        !outfile_write(&w->out, counts, sizeof counts, e) &&
        !outfile_write(&w->out, win->ids.ids, (size_t)(win->n * win->size) * sizeof(int32_t), e))
        return 0;
    kl_base_abort(w);
    return -1;
}

struct encode {
    struct kl_base_writer *w;
    const float *logits;
};

/* float arithmetic in llama-perplexity's order, so that both write the same codes of the same logits */
static void encode_row(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct encode *c = ctx;
    const float *x = c->logits + (int64_t)i * c->w->n_vocab;
    uint8_t *row = c->w->rows + (int64_t)i * c->w->row_bytes;
    uint16_t *code = (uint16_t *)(void *)(row + ROW_HEAD);
    int64_t n = c->w->n_vocab;
    float max, least = x[0];
    float lse = (float)log(cpu_kernels()->sum_exp(x, n, &max));
    for (int64_t k = 1; k < n; k++)
        least = x[k] < least ? x[k] : least;
    least = least > max - RANGE ? least : max - RANGE;
    float head[2] = { (max - least) / 65535.0f, least - max - lse };
    memcpy(row, head, sizeof head);
    if (!(head[0] > 0)) {
        memset(code, 0, (size_t)n * sizeof *code);
        return;
    }
    float inv = 1.0f / head[0];
    for (int64_t k = 0; k < n; k++) {
        float v = x[k] > least ? inv * (x[k] - least) : 0;
        v = v + 12582912.0f; /* rounds to an integer, half to even */
        int32_t bits;
        memcpy(&bits, &v, sizeof bits);
        bits = (bits & 0x007fffff) - 0x00400000;
        code[k] = (uint16_t)(bits > 65535 ? 65535 : bits);
    }
}

int kl_base_add(struct kl_base_writer *w, const float *logits, int64_t n, struct err *e)
{
    struct encode c = { w, logits };
    if (n > w->tile)
        return err_set(e, ERR_USAGE, "%lld rows of log probabilities at once, expected %lld at most", (long long)n,
                       (long long)w->tile);
    par_for((size_t)n, encode_row, &c);
    return outfile_write(&w->out, w->rows, (size_t)(n * w->row_bytes), e);
}

int kl_base_commit(struct kl_base_writer *w, struct err *e)
{
    int rc = outfile_commit(&w->out, e);
    mem_free(w->rows);
    memset(w, 0, sizeof *w);
    return rc;
}

void kl_base_abort(struct kl_base_writer *w)
{
    outfile_abort(&w->out);
    mem_free(w->rows);
    memset(w, 0, sizeof *w);
}
