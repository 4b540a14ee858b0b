/* tok_write_gguf: a tokenizer as GGUF metadata, as llama.cpp's converter would write it, and the check that both forms
 * agree. Token texts go in the order of ids; ids without a token become unused "[PAD<id>]". */
#include <string.h>

#include "model/tokenizer_impl.h"

static int put_text(struct gguf_writer *w, const char *key, const char *s, struct err *e)
{
    return gguf_put_string(w, key, s, strlen(s), e);
}

/* A token's text: bytes of byte-level tokens as GPT-2's characters. */
static int token_text(const struct tokenizer *t, int64_t id, struct arena *a, struct gguf_str *s, struct err *e)
{
    const struct token *k = id < t->n ? &t->tokens[id] : NULL;
    char *p;
    if (!k || (k->kind == TOKEN_UNUSED && k->n == 0)) {
        p = arena_printf(a, "[PAD%lld]", (long long)id);
        *s = (struct gguf_str){ p, p ? strlen(p) : 0 };
        return p ? 0 : err_nomem(e, t->what, 32);
    }
    *s = (struct gguf_str){ k->raw, k->n };
    if (!t->byte_level || k->kind != TOKEN_NORMAL)
        return 0;
    p = arena_alloc(a, 2 * k->n + 1, 1);
    if (!p)
        return err_nomem(e, t->what, 2 * k->n);
    s->p = p;
    s->n = 0;
    for (size_t i = 0; i < k->n; i++)
        s->n += byte_char((uint8_t)k->raw[i], p + s->n);
    return 0;
}

static int32_t token_type(const struct tokenizer *t, int64_t id)
{
    if (id >= t->n)
        return GGUF_TOKEN_UNUSED;
    switch (t->tokens[id].kind) {
    case TOKEN_SPECIAL: return id == t->unk ? GGUF_TOKEN_UNKNOWN : GGUF_TOKEN_CONTROL;
    case TOKEN_ADDED: return GGUF_TOKEN_USER;
    case TOKEN_UNUSED: return GGUF_TOKEN_UNUSED;
    case TOKEN_BYTE: return GGUF_TOKEN_BYTE;
    default: return id == t->unk ? GGUF_TOKEN_UNKNOWN : GGUF_TOKEN_NORMAL;
    }
}

static int put_tokens(const struct tokenizer *t, int64_t n, struct arena *a, struct gguf_writer *w, struct err *e)
{
    struct gguf_str *text = arena_alloc(a, (size_t)n, sizeof *text);
    int32_t *type = arena_alloc(a, (size_t)n, sizeof *type);
    if (!text || !type)
        return err_nomem(e, t->what, (size_t)n * sizeof *text);
    for (int64_t i = 0; i < n; i++) {
        if (token_text(t, i, a, &text[i], e))
            return -1;
        type[i] = token_type(t, i);
    }
    return gguf_put_array(w, "tokenizer.ggml.tokens", GGUF_STRING, text, (uint64_t)n, e) ||
           gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, type, (uint64_t)n, e) ? -1 : 0;
}

static int put_merges(const struct tokenizer *t, const struct merge *m, size_t n, struct arena *a, struct gguf_writer *w,
                      struct err *e)
{
    struct gguf_str *text = arena_alloc(a, n + 1, sizeof *text), l, r;
    if (!text)
        return err_nomem(e, t->what, n * sizeof *text);
    for (size_t i = 0; i < n; i++) {
        if (token_text(t, m[i].left, a, &l, e) || token_text(t, m[i].right, a, &r, e))
            return -1;
        char *p = arena_alloc(a, l.n + r.n + 1, 1);
        if (!p)
            return err_nomem(e, t->what, l.n + r.n + 1);
        memcpy(p, l.p, l.n);
        p[l.n] = ' ';
        memcpy(p + l.n + 1, r.p, r.n);
        text[i] = (struct gguf_str){ p, l.n + r.n + 1 };
    }
    return gguf_put_array(w, "tokenizer.ggml.merges", GGUF_STRING, text, n, e);
}

/* SentencePiece's scores: tokenizer.json keeps their order only, which is all that merging looks at. A piece is worth
 * minus the rank of its first merge; what no merge makes comes last. */
static int put_scores(const struct tokenizer *t, int64_t n_tokens, const struct merge *m, size_t n, struct arena *a,
                      struct gguf_writer *w, struct err *e)
{
    float *score = arena_alloc(a, (size_t)n_tokens, sizeof *score);
    if (!score)
        return err_nomem(e, t->what, (size_t)n_tokens * sizeof *score);
    for (int64_t i = 0; i < n_tokens; i++)
        score[i] = i < t->n && t->tokens[i].kind == TOKEN_NORMAL ? -(float)n : 0;
    for (size_t i = n; i-- > 0;)
        if (m[i].id < n_tokens) /* a merge may make an added token that the model has no row for */
            score[m[i].id] = -(float)i;
    return gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, score, (uint64_t)n_tokens, e);
}

static int put_model(const struct tokenizer *t, int64_t n_vocab, struct arena *a, struct gguf_writer *w, struct err *e)
{
    const char *pre = t->byte_level ? pre_name(t) : "default";
    size_t n;
    struct merge *m = merges_by_rank(t, &n);
    if (!m)
        return err_nomem(e, t->what, t->merges.size * sizeof *m);
    int rc = put_text(w, "tokenizer.ggml.model", t->byte_level ? "gpt2" : "llama", e) ||
             put_text(w, "tokenizer.ggml.pre", pre, e) || put_tokens(t, n_vocab, a, w, e) ||
             (t->byte_level ? put_merges(t, m, n, a, w, e) : put_scores(t, n_vocab, m, n, a, w, e)) ? -1 : 0;
    mem_free(m);
    return rc;
}

/* Ids that the model has no row for are left out. */
static int put_id(struct gguf_writer *w, const char *key, int32_t id, int64_t n_vocab, struct err *e)
{
    return id < 0 || id >= n_vocab ? 0 : gguf_put_int(w, key, GGUF_U32, id, e);
}

static int put_rest(const struct tokenizer *t, int64_t n, struct gguf_writer *w, struct err *e)
{
    return put_id(w, "tokenizer.ggml.bos_token_id", t->bos, n, e) || put_id(w, "tokenizer.ggml.eos_token_id", t->eos, n, e) ||
           put_id(w, "tokenizer.ggml.unknown_token_id", t->unk, n, e) ||
           put_id(w, "tokenizer.ggml.padding_token_id", t->pad, n, e) ||
           gguf_put_int(w, "tokenizer.ggml.add_bos_token", GGUF_BOOL, t->add_bos && t->bos >= 0, e) ||
           gguf_put_int(w, "tokenizer.ggml.add_eos_token", GGUF_BOOL, t->add_eos && t->eos >= 0, e) ||
           gguf_put_int(w, "tokenizer.ggml.add_space_prefix", GGUF_BOOL,
                        t->byte_level ? t->add_prefix_space : t->space_prefix, e) ||
           (t->chat_template && put_text(w, "tokenizer.chat_template", t->chat_template, e)) ? -1 : 0;
}

/* What llama.cpp will do differently for want of a key. */
static void warn(const struct tokenizer *t, int64_t n_vocab, const struct log *log)
{
    if (t->n > n_vocab)
        log_warn(log, "%s: %lld special tokens have ids beyond the model's %lld and are left out", t->what, (long long)(t->n - n_vocab),
                 (long long)n_vocab);
    if (t->nfc)
        log_warn(log, "GGUF has no key for Unicode normalization (NFC): text that is not normalized gets other tokens there");
    for (size_t i = 0; i < t->added.n; i++)
        if (t->added.a[i].lstrip || t->added.a[i].rstrip) {
            log_warn(log, "GGUF has no key for added tokens that take the space beside them, such as %.40s: llama.cpp may leave it", t->added.a[i].text);
            break;
        }
    if (t->normed.n)
        log_warn(log, "llama.cpp finds added tokens such as %.40s wherever they stand, this tokenizer behind a space only", t->normed.a[0].text);
    if (t->byte_level && t->add_prefix_space)
        log_warn(log, "llama.cpp puts no space in front of a text with byte-level tokens, this tokenizer does");
    if (t->space_prefix && t->prefix_if_missing)
        log_warn(log, "llama.cpp puts a space in front of text that begins with one too, this tokenizer does not");
    if (t->space_prefix && t->prefix_first_only)
        log_warn(log, "llama.cpp puts a space in front of text behind special tokens too, this tokenizer does not");
}

int tokenizer_check_gguf(const struct tokenizer *t, const struct checkpoint *c, int64_t n_vocab, struct err *e)
{
    if (c->container == CONTAINER_GGUF) /* copied */
        return 0;
    for (int64_t id = n_vocab; id < t->n; id++) /* a <pad> that was added without a row, say */
        if (t->tokens[id].kind != TOKEN_SPECIAL && t->tokens[id].kind != TOKEN_ADDED && t->tokens[id].n)
            return err_set(e, ERR_UNSUPPORTED, "%s: the tokenizer has %d tokens, the model %lld", t->what, t->n, (long long)n_vocab);
    if (t->byte_level && !pre_name(t))
        return err_set(e, ERR_UNSUPPORTED, "%s: its pre-tokenizer (%d steps, the first '%.80s') has no name in GGUF", t->what,
                       t->n_pre, t->n_pre ? t->pre_text[0] : "");
    return 0;
}

int tokenizer_write_gguf(const struct tokenizer *t, const struct checkpoint *c, int64_t n_vocab, struct gguf_writer *w,
                         const struct log *log, struct err *e)
{
    struct arena a;
    if (c->container == CONTAINER_GGUF) {
        for (uint64_t i = 0; i < c->gguf.n_kv; i++)
            if (!strncmp(c->gguf.kv[i].key, "tokenizer.", 10) && gguf_put_kv(w, &c->gguf.kv[i], e))
                return -1;
        return 0;
    }
    if (tokenizer_check_gguf(t, c, n_vocab, e))
        return -1;
    arena_init(&a);
    int rc = put_model(t, n_vocab, &a, w, e) || put_rest(t, n_vocab, w, e) ? -1 : 0;
    arena_release(&a);
    if (!rc)
        warn(t, n_vocab, log);
    return rc;
}

/* ---- comparing --------------------------------------------------------------------- */

static const char probe[] =
    "The naïve café's 12,345 owners (est. 1999) don't say: \"we'll see\" -- they've  been\tthere.\r\n\n\n"
    "    if (x[0] != 3.14e-10) { return; } // ¿Qué? Übergröße ﬁ Ωmega Привет שלום مرحبا 你好,世界 日本語 한국어 "
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb \xf0\x9f\x99\x82 x\xc2\xb2 \xe2\x85\xa7 \xe0\xa5\xa7\xe0\xa5\xa8 I'M YOU'RE ...   \n \n end";

static int same_ids(const struct tokenizer *a, const struct tokenizer *b, const char *text, size_t n, bool bos, struct err *e)
{
    struct token_list x = { 0 }, y = { 0 };
    int rc = tokenizer_encode(a, text, n, bos, true, &x, e) || tokenizer_encode(b, text, n, bos, true, &y, e) ? -1 : 0;
    size_t i = 0;
    while (!rc && i < x.n && i < y.n && x.ids[i] == y.ids[i])
        i++;
    if (!rc && (i < x.n || i < y.n))
        rc = err_set(e, ERR_UNSUPPORTED, "%s: the tokenizer as GGUF states it makes %zu tokens of a test text, expected %zu: "
                     "they differ from token %zu on (%d, expected %d)", a->what, y.n, x.n, i, i < y.n ? y.ids[i] : -1,
                     i < x.n ? x.ids[i] : -1);
    mem_free(x.ids);
    mem_free(y.ids);
    return rc;
}

int tokenizer_compare(const struct tokenizer *original, const struct tokenizer *b, struct err *e)
{
    char buf[4096];
    size_t n = 0;
    struct tokenizer plain = *original; /* without what GGUF has no key for (warn tells) */
    const struct tokenizer *a = &plain;
    plain.prefix_if_missing = plain.prefix_first_only = false;
    const char *inner = strchr(probe, ' '); /* text that begins with a space */
    if (same_ids(a, b, probe, sizeof probe - 1, true, e) || same_ids(a, b, inner, strlen(inner), true, e))
        return -1;
    if (a->nfc != b->nfc) /* tokens may be pieces of what NFC changes */
        return 0;
    for (int32_t id = 0; id < a->n && id < b->n; id += 1 + a->n / 20000) {
        if (tokenizer_normed(a, id)) /* warn tells */
            continue;
        size_t k = tokenizer_piece(a, id, false, buf + n, sizeof buf - n);
        if (n + k > sizeof buf) { /* it was cut */
            if (same_ids(a, b, buf, n, false, e))
                return -1;
            n = 0;
            continue;
        }
        n += k;
    }
    return same_ids(a, b, buf, n, false, e);
}
