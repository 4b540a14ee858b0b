/* windows: cutting a text, and running a model over a window. See windows.h; protocols: doc and formats 3d. */
#include "eval/windows.h"

#include <string.h>

#define TILE_ROWS 256
#define TILE_BYTES ((int64_t)64 << 20) /* of logits */

/* ---- text ----------------------------------------------------------------- */

/* Length of the line at p, its "\n" included. */
static size_t line_len(const char *p, size_t left)
{
    const char *nl = memchr(p, '\n', left);
    return nl ? (size_t)(nl - p) + 1 : left;
}

bool windows_is_wikitext(const char *text, size_t n)
{
    bool one_space = false;
    for (size_t i = 0, len; i < n; i += len) {
        len = line_len(text + i, n - i);
        if (len == 1 && text[i] == '\n')
            return false;
        one_space = one_space || (len == 2 && text[i] == ' ' && text[i + 1] == '\n');
    }
    return one_space;
}

int windows_join_rows(const char *text, size_t n, char **out, size_t *n_out, struct err *e)
{
    size_t rows = 0, at = 0;
    for (size_t i = 0; i < n; i += line_len(text + i, n - i))
        rows++;
    char *buf = mem_alloc(n + 2 * rows + 1, 1);
    if (!buf)
        return err_nomem(e, "evaluation text", n + 2 * rows + 1);
    for (size_t i = 0, len; i < n; i += len) {
        len = line_len(text + i, n - i);
        if (i) {
            buf[at++] = '\n';
            buf[at++] = '\n';
        }
        if (len == 2 && text[i] == ' ' && text[i + 1] == '\n')
            continue;
        memcpy(buf + at, text + i, len);
        at += len;
    }
    buf[at] = 0;
    *out = buf;
    *n_out = at;
    return 0;
}

/* ---- windows -------------------------------------------------------------- */

static int encode(struct windows *w, const struct model *m, const char *text, size_t n,
                  enum eval_protocol protocol, enum eval_rule rule, struct err *e)
{
    /* transformers turns the text of special tokens into those tokens; llama-perplexity does not */
    bool specials = protocol == PROTOCOL_GPTQ;
    bool rows = protocol == PROTOCOL_GPTQ &&
                (rule == RULE_ROWS || (rule == RULE_AUTO && windows_is_wikitext(text, n)));
    w->text_rule = rows ? "wikitext-rows" : "as-is";
    if (!rows)
        return tokenizer_encode(m->tok, text, n, true, specials, &w->ids, e);
    char *joined;
    size_t n_joined;
    if (windows_join_rows(text, n, &joined, &n_joined, e))
        return -1;
    int rc = tokenizer_encode(m->tok, joined, n_joined, true, specials, &w->ids, e);
    mem_free(joined);
    return rc;
}

int windows_init(struct windows *w, const struct model *m, const char *text, size_t n_text,
                 enum eval_protocol protocol, enum eval_rule rule, int64_t ctx, int64_t max_windows,
                 struct err *e)
{
    bool llama = protocol == PROTOCOL_LLAMA;
    memset(w, 0, sizeof *w);
    w->protocol = llama ? "llama" : "gptq";
    w->size = ctx ? ctx : llama ? 512 : 2048;
    w->bos = -1;
    if (w->size < (llama ? 4 : 2) || w->size > INT32_MAX / 2)
        return err_set(e, ERR_USAGE, "a window of %lld tokens makes no sense (expected %d or more)",
                       (long long)w->size, llama ? 4 : 2);
    if (max_windows < 0)
        return err_set(e, ERR_USAGE, "expected a positive number of windows, found %lld", (long long)max_windows);
    if (!m->tok)
        return err_set(e, ERR_USAGE, "%s: there is no tokenizer (of a folder tokenizer.json is read), so text cannot be evaluated", m->ck->path);
    if (encode(w, m, text, n_text, protocol, rule, e))
        goto fail;
    w->n = (int64_t)w->ids.n / w->size;
    if (w->n < 1) {
        err_set(e, ERR_USAGE, "the text has %zu tokens, fewer than one window of %lld: take a longer text or a "
                "smaller context", w->ids.n, (long long)w->size);
        goto fail;
    }
    if (max_windows && w->n > max_windows)
        w->n = max_windows;
    w->first = llama ? w->size / 2 + 1 : 1;
    if (llama && tokenizer_adds_bos(m->tok))
        w->bos = tokenizer_bos(m->tok);
    return 0;
fail:
    windows_release(w);
    return -1;
}

int windows_storable(const struct model *m, enum eval_protocol protocol, const char *path, struct err *e)
{
    return protocol == PROTOCOL_GPTQ && m->tok && tokenizer_adds_bos(m->tok)
               ? err_set(e, ERR_USAGE, "%s: stored predictions follow a BOS in each window (protocol llama), protocol gptq has none: take "
                         "llama, or compare with the model itself", path) : 0;
}

void windows_release(struct windows *w)
{
    mem_free(w->ids.ids);
    memset(w, 0, sizeof *w);
}

void windows_get(const struct windows *w, int64_t i, int32_t *ids)
{
    memcpy(ids, w->ids.ids + i * w->size, (size_t)w->size * sizeof *ids);
    if (w->bos >= 0)
        ids[0] = w->bos;
}

/* ---- a model over a window -------------------------------------------------- */

int pass_init(struct pass *p, const struct model *m, int64_t size, struct err *e)
{
    memset(p, 0, sizeof *p);
    arena_init(&p->arena);
    if (fwd_init(&p->f, &m->hp, size, e))
        return -1;
    p->size = size;
    p->tile = TILE_BYTES / ((int64_t)sizeof(float) * m->hp.n_vocab);
    p->tile = p->tile > TILE_ROWS ? TILE_ROWS : p->tile < 1 ? 1 : p->tile;
    p->tile = p->tile > size ? size : p->tile;
    p->h = arena_alloc(&p->arena, (size_t)size, (size_t)m->hp.n_embd * sizeof(float));
    p->logits = arena_alloc(&p->arena, (size_t)p->tile, (size_t)m->hp.n_vocab * sizeof(float));
    if (!p->h || !p->logits) {
        pass_release(p);
        return err_nomem(e, "hidden states and logits",
                         (size_t)(size * m->hp.n_embd + p->tile * m->hp.n_vocab) * sizeof(float));
    }
    return 0;
}

void pass_release(struct pass *p)
{
    fwd_release(&p->f);
    arena_release(&p->arena);
    memset(p, 0, sizeof *p);
}

int pass_run(struct pass *p, const struct model *m, const int32_t *ids, const struct pass_log *l, struct err *e)
{
    if (fwd_embed(m, ids, p->size, p->h, e))
        return -1;
    for (int64_t i = 0; i < m->hp.n_layer; i++)
        if ((l && log_progress(l->log, l->step, l->done + l->part * (double)i / (double)m->hp.n_layer, l->total, e)) ||
            fwd_block(m, &m->layers[i], &p->f, p->h, p->size, e))
            return -1;
    return 0;
}

int pass_logits(struct pass *p, const struct model *m, int64_t row0, int64_t n, struct err *e)
{
    return fwd_logits(m, p->h + row0 * m->hp.n_embd, n, p->f.x, p->logits, e);
}
