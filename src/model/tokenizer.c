/* tokenizer: text to ids and back. See tokenizer_impl.h for the parts. */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

static const char marker[] = "\xe2\x96\x81"; /* U+2581 */

/* ---- bytes as characters (GPT-2) ------------------------------------------- */

static int byte_codepoint(uint8_t b)
{
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)
        return b;
    return b <= 32 ? 256 + b : b <= 160 ? 256 + 33 + (b - 127) : 256 + 33 + 34;
}

size_t byte_char(uint8_t byte, char out[2])
{
    int c = byte_codepoint(byte);
    if (c < 128) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 63));
    return 2;
}

bool raw_from_chars(const char *s, size_t n, char *out, size_t *out_n)
{
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_len(s + i, n - i);
        int c = len == 1 ? s[i] : len == 2 ? (s[i] & 31) << 6 | (s[i + 1] & 63) : -1;
        int b = c < 256 ? c : c <= 288 ? c - 256 : c <= 322 ? c - 289 + 127 : 173;
        if (c < 0 || byte_codepoint((uint8_t)b) != c)
            return false;
        out[k++] = (char)b;
        i += len;
    }
    *out_n = k;
    return true;
}

void token_bytes(struct token *k, char *raw, const char *s, size_t n)
{
    if (raw_from_chars(s, n, raw, &k->n))
        return;
    memcpy(raw, s, n);
    k->n = n;
}

bool byte_name(const char *s, size_t n, uint8_t *byte)
{
    static const char hex[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
        return false;
    const char *hi = memchr(hex, s[3], 16), *lo = memchr(hex, s[4], 16);
    if (!hi || !lo)
        return false;
    *byte = (uint8_t)((hi - hex) * 16 + (lo - hex));
    return true;
}

/* ---- life ------------------------------------------------------------------- */

static void find_byte_tokens(struct tokenizer *t)
{
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_id[b] = t->byte_level ? str_map_find(t, &c, 1) : -1;
    }
    for (int32_t i = 0; !t->byte_level && i < t->n; i++)
        if (t->tokens[i].kind == TOKEN_BYTE)
            t->byte_id[t->tokens[i].byte] = i;
}

void tokenizer_add_eog(struct tokenizer *t, int64_t id)
{
    if (id >= 0 && id < t->n)
        t->eog[id] = 1;
}

/* Tokens that end a turn, whatever a file says is its eos. */
static void find_eog(struct tokenizer *t)
{
    static const char *const names[] = { "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>",
                                         "<|eom_id|>", "<|end_of_text|>" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = str_map_find(t, names[i], strlen(names[i]));
        if (id >= 0 && (t->tokens[id].kind == TOKEN_SPECIAL || t->tokens[id].kind == TOKEN_ADDED))
            t->eog[id] = 1;
    }
    tokenizer_add_eog(t, t->eos);
}

/* Longest first; of equal length in the order of ids. */
static int longer(const void *a, const void *b)
{
    const struct added *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : (x->id > y->id) - (x->id < y->id);
}

static void sort_added(struct added_list *l)
{
    if (l->n)
        qsort(l->a, l->n, sizeof *l->a, longer);
    for (size_t i = 0; i < l->n; i++)
        l->first[(uint8_t)l->a[i].text[0]] = 1;
}

int tokenizer_finish(struct tokenizer *t, struct err *e)
{
    if (str_map_build(t, e))
        return -1;
    find_byte_tokens(t);
    t->eog = arena_zalloc(&t->arena, (size_t)t->n + 1, 1);
    if (!t->eog)
        return err_nomem(e, t->what, (size_t)t->n);
    find_eog(t);
    sort_added(&t->added);
    return 0;
}

int tokenizer_load(struct tokenizer **out, const struct checkpoint *c, struct err *e)
{
    struct tokenizer *t = mem_zalloc(1, sizeof *t);
    if (!t)
        return err_nomem(e, "tokenizer", sizeof *t);
    arena_init(&t->arena);
    t->what = arena_strdup(&t->arena, c->path);
    t->bos = t->eos = t->unk = t->pad = -1;
    int rc = !t->what ? err_nomem(e, c->path, 64)
             : c->container == CONTAINER_HF ? tokenizer_from_json(t, c, e) : tokenizer_from_gguf(t, c, e);
    if (rc) {
        tokenizer_free(t);
        return -1;
    }
    *out = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n_pre; i++)
        pcre2_code_free(t->pre[i]);
    arena_release(&t->arena);
    mem_free(t);
}

/* ---- encoding ---------------------------------------------------------------- */

struct encoder {
    const struct tokenizer *t;
    struct bpe_scratch scratch;
    struct token_list *out;
    bool specials;
};

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int encode_word(void *ud, const char *s, size_t n, struct err *e)
{
    struct encoder *en = ud;
    return bpe_word(en->t, s, n, &en->scratch, en->out, e);
}

/* s with " " as U+2581 and, if asked, one in front; fresh block. */
static char *mark_spaces(const char *s, size_t n, bool prefix, size_t *out_n)
{
    char *p = mem_alloc(3 * (n + 1), 1);
    size_t k = 0;
    if (!p)
        return NULL;
    if (prefix) {
        memcpy(p, marker, 3);
        k = 3;
    }
    for (size_t i = 0; i < n; i++)
        if (s[i] == ' ') {
            memcpy(p + k, marker, 3);
            k += 3;
        } else {
            p[k++] = s[i];
        }
    *out_n = k;
    return p;
}

int tokenizer_normalize_added(struct tokenizer *t, struct err *e)
{
    size_t n = t->added.n;
    t->normed.a = arena_alloc(&t->arena, n + 1, sizeof *t->normed.a);
    if (!t->normed.a)
        return err_nomem(e, t->what, n * sizeof *t->normed.a);
    t->added.n = 0;
    for (size_t i = 0; i < n; i++) {
        struct added a = t->added.a[i];
        if (!a.normalized) {
            t->added.a[t->added.n++] = a;
            continue;
        }
        char *marked = mark_spaces(a.text, a.n, t->space_prefix, &a.n);
        a.text = marked ? arena_strndup(&t->arena, marked, a.n) : NULL;
        mem_free(marked);
        if (!a.text)
            return err_nomem(e, t->what, a.n);
        t->normed.a[t->normed.n++] = a;
    }
    sort_added(&t->normed);
    return 0;
}

/* Valid UTF-8 text between added tokens and invalid bytes. */
static int encode_valid(struct encoder *en, const char *s, size_t n, struct err *e)
{
    const struct tokenizer *t = en->t;
    if (!t->nfc || n == 0)
        return pre_split(t, s, n, encode_word, en, e);
    utf8proc_uint8_t *norm = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &norm,
                                        UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (len < 0)
        return err_set(e, ERR_FORMAT, "%s: NFC of the text failed: %s", t->what, utf8proc_errmsg(len));
    int rc = pre_split(t, (const char *)norm, (size_t)len, encode_word, en, e);
    free(norm); /* utf8proc's own allocation */
    return rc;
}

static int encode_bytes(struct encoder *en, const char *s, size_t n, bool first, struct err *e)
{
    (void)first;
    for (size_t i = 0, from = 0; i <= n;) {
        size_t len = i < n ? utf8_len(s + i, n - i) : 0;
        if (len) {
            i += len;
            continue;
        }
        if (encode_valid(en, s + from, i - from, e) || (i < n && bpe_word(en->t, s + i, 1, &en->scratch, en->out, e)))
            return -1;
        from = ++i;
    }
    return 0;
}

/* The longest that stands at s. Added tokens are always found in text, special ones among them only when asked for. */
static const struct added *added_at(const struct added_list *l, const char *s, size_t n, bool specials)
{
    for (size_t i = 0; l->first[(uint8_t)s[0]] && i < l->n; i++)
        if ((specials || !l->a[i].special) && l->a[i].n <= n && !memcmp(l->a[i].text, s, l->a[i].n))
            return &l->a[i];
    return NULL;
}

/* first: the piece begins the text that is cut. */
typedef int (*piece_fn)(struct encoder *en, const char *s, size_t n, bool first, struct err *e);

/* s with the tokens of l cut out of it: their ids, and what `piece` makes of the text between them. */
static int cut_added(struct encoder *en, const struct added_list *l, const char *s, size_t n, piece_fn piece, struct err *e)
{
    size_t from = 0, i = 0;
    while (l->n && i < n) {
        const struct added *a = added_at(l, s + i, n - i, en->specials);
        if (!a) {
            i++;
            continue;
        }
        size_t end = i;
        while (a->lstrip && end > from && is_space(s[end - 1]))
            end--;
        if (piece(en, s + from, end - from, from == 0, e) || token_list_add(en->out, a->id, e))
            return -1;
        i += a->n;
        while (a->rstrip && i < n && is_space(s[i]))
            i++;
        from = i;
    }
    return piece(en, s + from, n - from, from == 0, e);
}

/* A piece of text between added tokens; first: it begins the whole text. */
static int encode_piece(struct encoder *en, const char *s, size_t n, bool first, struct err *e)
{
    const struct tokenizer *t = en->t;
    if (n == 0)
        return 0;
    if (!t->space_marker && !(t->add_prefix_space && s[0] != ' '))
        return encode_bytes(en, s, n, first, e);
    size_t len;
    char *p;
    if (t->space_marker) {
        bool has = t->prefix_if_missing && (s[0] == ' ' || (n >= 3 && !memcmp(s, marker, 3)));
        p = mark_spaces(s, n, t->space_prefix && !has && (first || !t->prefix_first_only), &len);
    } else {
        p = mem_alloc(n + 1, 1);
        len = n + 1;
        if (p) {
            p[0] = ' ';
            memcpy(p + 1, s, n);
        }
    }
    if (!p)
        return err_nomem(e, "text", 3 * n);
    int rc = cut_added(en, &t->normed, p, len, encode_bytes, e);
    mem_free(p);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool add_bos, bool specials,
                     struct token_list *out, struct err *e)
{
    struct encoder en = { .t = t, .out = out, .specials = specials };
    int rc = 0;
    if (add_bos && t->add_bos && t->bos >= 0)
        rc = token_list_add(out, t->bos, e);
    rc = rc || cut_added(&en, &t->added, text, n, encode_piece, e);
    if (!rc && add_bos && t->add_eos && t->eos >= 0)
        rc = token_list_add(out, t->eos, e);
    bpe_scratch_release(&en.scratch);
    return rc ? -1 : 0;
}

/* ---- decoding ---------------------------------------------------------------- */

static size_t put(char *buf, size_t cap, size_t at, const char *s, size_t n)
{
    if (at < cap)
        memcpy(buf + at, s, n < cap - at ? n : cap - at);
    return at + n;
}

const struct added *tokenizer_normed(const struct tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->normed.n; i++)
        if (t->normed.a[i].id == id)
            return &t->normed.a[i];
    return NULL;
}

size_t tokenizer_piece(const struct tokenizer *t, int32_t id, bool show_special, char *buf, size_t cap)
{
    if (id < 0 || id >= t->n)
        return 0;
    const struct token *k = &t->tokens[id];
    if (k->kind == TOKEN_UNUSED || (k->kind == TOKEN_SPECIAL && !show_special))
        return 0;
    if (k->kind == TOKEN_BYTE)
        return put(buf, cap, 0, (const char *)&k->byte, 1);
    const char *s = k->raw;
    size_t n = k->n, at = 0;
    bool marked = t->space_marker && k->kind == TOKEN_NORMAL;
    const struct added *normed = k->kind == TOKEN_NORMAL ? NULL : tokenizer_normed(t, id);
    if (normed) { /* as it stands in normalized text, like the package tokenizers (0.23) */
        s = normed->text;
        n = normed->n;
        marked = true;
    }
    if (!marked)
        return put(buf, cap, 0, s, n);
    for (size_t i = 0; i < n;) {
        bool space = n - i >= 3 && !memcmp(s + i, marker, 3);
        at = put(buf, cap, at, space ? " " : s + i, 1);
        i += space ? 3 : 1;
    }
    return at;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool show_special,
                     char **text, size_t *len, struct err *e)
{
    size_t total = 0, at = 0;
    for (size_t i = 0; i < n; i++)
        total += tokenizer_piece(t, ids[i], show_special, NULL, 0);
    char *p = mem_alloc(total + 1, 1);
    if (!p)
        return err_nomem(e, "text", total);
    for (size_t i = 0; i < n; i++)
        at += tokenizer_piece(t, ids[i], show_special, p + at, total - at);
    if (t->space_marker && t->space_prefix && at && p[0] == ' ')
        memmove(p, p + 1, --at); /* the prefix that encoding put there */
    p[at] = 0;
    *text = p;
    *len = at;
    return 0;
}

/* ---- facts --------------------------------------------------------------------- */

int32_t tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->n;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->add_bos && t->bos >= 0;
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n && t->eog[id];
}

const char *tokenizer_chat_template(const struct tokenizer *t)
{
    return t->chat_template;
}
