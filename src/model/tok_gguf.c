/* tok_gguf: a tokenizer from GGUF metadata (tokenizer.ggml.*). */
#include <string.h>

#include "base/par.h"
#include "model/tokenizer_impl.h"

static int missing(const struct tokenizer *t, const char *key, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: key %s is missing", t->what, key);
}

static int read_tokens(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct gguf_iter it, types;
    int found = gguf_iter_init(&it, g, "tokenizer.ggml.tokens", GGUF_STRING, e);
    if (found < 1)
        return found ? err_prefix(e, "%s", t->what) : missing(t, "tokenizer.ggml.tokens", e);
    if (it.kv->n < 1 || it.kv->n > 1u << 24)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.tokens: expected 1 to 2^24 tokens, found %llu", t->what,
                       (unsigned long long)it.kv->n);
    int typed = gguf_iter_init(&types, g, "tokenizer.ggml.token_type", GGUF_I32, e);
    if (typed < 0)
        return err_prefix(e, "%s", t->what);
    if (typed && types.kv->n != it.kv->n)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.token_type has %llu entries, expected %llu", t->what,
                       (unsigned long long)types.kv->n, (unsigned long long)it.kv->n);
    t->n = (int32_t)it.kv->n;
    t->tokens = arena_zalloc(&t->arena, (size_t)t->n, sizeof *t->tokens);
    t->added.a = arena_alloc(&t->arena, (size_t)t->n, sizeof *t->added.a);
    if (!t->tokens || !t->added.a)
        return err_nomem(e, t->what, (size_t)t->n * sizeof *t->tokens);
    for (int32_t i = 0; i < t->n; i++) {
        struct token *k = &t->tokens[i];
        struct gguf_str s = gguf_iter_str(&it);
        int64_t type = typed ? gguf_iter_int(&types) : GGUF_TOKEN_NORMAL;
        char *raw = arena_strndup(&t->arena, s.p, s.n);
        if (!raw)
            return err_nomem(e, t->what, s.n);
        k->raw = raw;
        k->n = s.n;
        k->kind = type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_UNKNOWN ? TOKEN_SPECIAL
                  : type == GGUF_TOKEN_USER                                ? TOKEN_ADDED
                  : type == GGUF_TOKEN_UNUSED                              ? TOKEN_UNUSED
                  : type == GGUF_TOKEN_BYTE                                ? TOKEN_BYTE
                                                                           : TOKEN_NORMAL;
        if (k->kind == TOKEN_BYTE && !byte_name(s.p, s.n, &k->byte))
            return err_set(e, ERR_FORMAT, "%s: token %d is of type byte, expected a name like <0x0A>, found '%.20s'", t->what,
                           i, raw);
        if ((k->kind == TOKEN_SPECIAL || k->kind == TOKEN_ADDED) && s.n)
            t->added.a[t->added.n++] = (struct added){ raw, s.n, i, k->kind == TOKEN_SPECIAL, false, false, false };
        if (t->byte_level && k->kind == TOKEN_NORMAL)
            token_bytes(k, raw, s.p, s.n);
    }
    return 0;
}

/* A merge of the file: "left right" in characters of the byte alphabet. 0: m filled but for its rank. */
enum merge_fault { MERGE_FINE, MERGE_SHAPE, MERGE_UNKNOWN };
static enum merge_fault find_merge(const struct tokenizer *t, struct gguf_str s, struct merge *m)
{
    char buf[2][1024];
    const char *gap = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL; /* a piece may itself begin with " "? no: Ġ */
    size_t ln = gap ? (size_t)(gap - s.p) : 0, rn = gap ? s.n - ln - 1 : 0, n[2];
    if (!ln || !rn || ln > 1024 || rn > 1024 || ln + rn > 1024 || !raw_from_chars(s.p, ln, buf[0], &n[0]) ||
        !raw_from_chars(gap + 1, rn, buf[1], &n[1]))
        return MERGE_SHAPE;
    m->left = str_map_find(t, buf[0], n[0]);
    m->right = str_map_find(t, buf[1], n[1]);
    memcpy(buf[0] + n[0], buf[1], n[1]);
    m->id = str_map_find(t, buf[0], n[0] + n[1]);
    return m->left < 0 || m->right < 0 || m->id < 0 ? MERGE_UNKNOWN : MERGE_FINE;
}

#define MERGES 2048 /* looked up as one item of work: most of what it takes to open a file */

struct merges_job {
    const struct tokenizer *t;
    const struct gguf_str *text;
    struct merge *found; /* id < 0: at fault */
    size_t n;
};

static void find_merges(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct merges_job *j = ctx;
    for (size_t i = item * MERGES; i < j->n && i < (item + 1) * MERGES; i++)
        if (find_merge(j->t, j->text[i], &j->found[i]) != MERGE_FINE)
            j->found[i].id = -1;
}

static int add_merges(struct tokenizer *t, const struct gguf_str *text, struct merge *found, size_t n, struct err *e)
{
    struct merges_job j = { t, text, found, n };
    par_for((n + MERGES - 1) / MERGES, find_merges, &j);
    for (size_t i = 0; i < n; i++) {
        struct gguf_str s = text[i];
        if (found[i].id >= 0)
            merge_map_add(t, found[i].left, found[i].right, found[i].id, (uint32_t)i);
        else if (find_merge(t, s, &found[i]) == MERGE_SHAPE)
            return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.merges entry %zu: expected two pieces, found '%.*s'", t->what, i,
                           (int)(s.n < 40 ? s.n : 40), s.p);
        else
            return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.merges entry %zu ('%.*s') names a token that is not in the vocabulary",
                           t->what, i, (int)(s.n < 40 ? s.n : 40), s.p);
    }
    return 0;
}

static int read_merges(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct gguf_iter it;
    int found = gguf_iter_init(&it, g, "tokenizer.ggml.merges", GGUF_STRING, e);
    if (found < 1)
        return found ? err_prefix(e, "%s", t->what) : missing(t, "tokenizer.ggml.merges", e);
    size_t n = (size_t)it.kv->n;
    if (n > 1u << 24)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.merges: %zu entries are too many", t->what, n);
    if (merge_map_init(t, n, e))
        return -1;
    struct gguf_str *text = mem_alloc(n + 1, sizeof *text);
    struct merge *merge = mem_alloc(n + 1, sizeof *merge);
    for (size_t i = 0; text && i < n; i++)
        text[i] = gguf_iter_str(&it);
    int rc = text && merge ? add_merges(t, text, merge, n, e) : err_nomem(e, t->what, n * (sizeof *text + sizeof *merge));
    mem_free(text);
    mem_free(merge);
    return rc;
}

static int read_scores(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct gguf_iter it;
    int found = gguf_iter_init(&it, g, "tokenizer.ggml.scores", GGUF_F32, e);
    if (found < 1)
        return found ? err_prefix(e, "%s", t->what) : missing(t, "tokenizer.ggml.scores", e);
    if (it.kv->n != (uint64_t)t->n)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.scores has %llu entries, expected %d", t->what,
                       (unsigned long long)it.kv->n, t->n);
    float *score = mem_alloc((size_t)t->n, sizeof *score);
    if (!score)
        return err_nomem(e, t->what, (size_t)t->n * sizeof *score);
    for (int32_t i = 0; i < t->n; i++)
        score[i] = (float)gguf_iter_float(&it);
    int rc = merges_from_scores(t, score, NULL, NULL, e);
    mem_free(score);
    return rc;
}

static int read_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t *id, struct err *e)
{
    int64_t v;
    int found = gguf_int(g, key, &v, e);
    if (found < 0)
        return err_prefix(e, "%s", t->what);
    if (!found)
        return 0;
    if (v == -1 || v == UINT32_MAX) { /* both are written for "none" */
        *id = -1;
        return 0;
    }
    if (v < 0 || v >= t->n)
        return err_set(e, ERR_FORMAT, "%s: %s: expected 0 to %d, found %lld", t->what, key, t->n - 1, (long long)v);
    *id = (int32_t)v;
    return 0;
}

static int read_flag(const struct tokenizer *t, const struct gguf *g, const char *key, bool *flag, struct err *e)
{
    int64_t v;
    int found = gguf_int(g, key, &v, e);
    if (found > 0)
        *flag = v != 0;
    return found < 0 ? err_prefix(e, "%s", t->what) : 0;
}

static int read_pre(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct gguf_str s;
    char name[64];
    int found = gguf_string(g, "tokenizer.ggml.pre", &s, e);
    if (found < 0)
        return err_prefix(e, "%s", t->what);
    if (!found)
        s = (struct gguf_str){ "default", 7 };
    if (s.n >= sizeof name)
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.pre: a name of %zu bytes", t->what, s.n);
    memcpy(name, s.p, s.n);
    name[s.n] = 0;
    const char *const *list = pre_by_name(name, &t->ignore_merges);
    if (!list)
        return err_set(e, ERR_UNSUPPORTED, "%s: pre-tokenizer '%s' (tokenizer.ggml.pre) is not supported", t->what, name);
    for (; *list; list++)
        if (pre_add(t, *list, PRE_SPLIT, e))
            return -1;
    return 0;
}

int tokenizer_from_gguf(struct tokenizer *t, const struct checkpoint *c, struct err *e)
{
    const struct gguf *g = &c->gguf;
    struct gguf_str model, text;
    int found = gguf_string(g, "tokenizer.ggml.model", &model, e);
    if (found < 1)
        return found ? err_prefix(e, "%s", t->what) : missing(t, "tokenizer.ggml.model", e);
    bool spm = model.n == 5 && !memcmp(model.p, "llama", 5);
    if (!spm && !(model.n == 4 && !memcmp(model.p, "gpt2", 4)))
        return err_set(e, ERR_UNSUPPORTED, "%s: tokenizer model '%.*s' is not supported (expected gpt2 or llama)", t->what,
                       (int)(model.n < 40 ? model.n : 40), model.p);
    t->byte_level = !spm;
    t->space_marker = t->space_prefix = t->byte_fallback = spm;
    t->prefix_first_only = false;
    if (read_tokens(t, g, e))
        return -1;
    t->bos = spm ? 1 : -1;
    t->eos = spm ? 2 : -1;
    t->unk = spm ? 0 : -1;
    if (read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, e) || read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, e) ||
        read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, e) ||
        read_id(t, g, "tokenizer.ggml.padding_token_id", &t->pad, e))
        return -1;
    if (t->bos >= t->n || t->eos >= t->n || t->unk >= t->n)
        return err_set(e, ERR_FORMAT, "%s: a vocabulary of %d tokens has no room for <unk>, <s>, </s>", t->what, t->n);
    bool llama3 = false;
    if (t->byte_level) {
        t->unk = -1; /* byte-level BPE meets no unknown symbol */
        if (read_pre(t, g, e))
            return -1;
        llama3 = t->ignore_merges;
    }
    t->add_bos = spm || llama3;
    if (read_flag(t, g, "tokenizer.ggml.add_bos_token", &t->add_bos, e) ||
        read_flag(t, g, "tokenizer.ggml.add_eos_token", &t->add_eos, e) ||
        read_flag(t, g, "tokenizer.ggml.add_space_prefix", spm ? &t->space_prefix : &t->add_prefix_space, e))
        return -1;
    int32_t eot = -1, eom = -1; /* end a turn as eos does */
    if (read_id(t, g, "tokenizer.ggml.eot_token_id", &eot, e) || read_id(t, g, "tokenizer.ggml.eom_token_id", &eom, e) || tokenizer_finish(t, e))
        return -1;
    tokenizer_add_eog(t, eot);
    tokenizer_add_eog(t, eom);
    if (spm ? read_scores(t, g, e) : read_merges(t, g, e))
        return -1;
    found = gguf_string(g, "tokenizer.chat_template", &text, e);
    if (found > 0 && !(t->chat_template = arena_strndup(&t->arena, text.p, text.n)))
        return err_nomem(e, t->what, text.n);
    return found < 0 ? err_prefix(e, "%s", t->what) : 0;
}
