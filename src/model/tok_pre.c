/* tok_pre: the pre-tokenizers, as lists of PCRE2 regexes. Each step cuts every piece of the step before at its matches; what lies
 * between two matches is a piece too. */
#include <string.h>

#include "model/tokenizer_impl.h"

const char regex_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char regex_llama3[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char regex_qwen2[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char regex_digit[] = "\\p{N}";
static const char regex_tekken[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* llama.cpp's for files that do not say (before May 2024): each in turn cuts what those before left */
static const char regex_fallback[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";

static const char *const gpt2[] = { regex_gpt2, NULL }, *const llama3[] = { regex_llama3, NULL },
                  *const qwen2[] = { regex_qwen2, NULL }, *const digits[] = { regex_digit, regex_gpt2, NULL },
                  *const tekken[] = { regex_tekken, NULL },
                  *const fallback[] = { "[\\p{P}\\$\\+<=>\\^~\\|]+", regex_fallback, "\\p{N}+", "[0-9][0-9][0-9]", NULL };

/* formats.md 3b, "Pre-tokenizers"; of several names for the same, the first is written. */
static const struct pre_row {
    const char *name;
    const char *const *list;
    bool ignore_merges;
} pre_table[] = {
    { "gpt-2", gpt2, false }, { "phi-2", gpt2, false }, { "jina-es", gpt2, false }, { "jina-de", gpt2, false },
    { "mpt", gpt2, false }, { "olmo", gpt2, false },
    { "llama-bpe", llama3, true }, { "llama3", llama3, true }, { "llama-v3", llama3, true }, { "falcon3", llama3, true },
    { "dbrx", llama3, false }, { "smaug-bpe", llama3, false },
    { "qwen2", qwen2, false }, { "deepseek-r1-qwen", qwen2, false }, { "megrez", qwen2, false }, { "stablelm2", qwen2, false },
    { "smollm", digits, false }, { "starcoder", digits, false }, { "refact", digits, false },
    { "codeshell", digits, false }, { "exaone", digits, false }, { "minerva-7b", digits, false },
    { "tekken", tekken, true }, { "default", fallback, false },
};

#define N_PRE_ROWS (sizeof pre_table / sizeof *pre_table)

const char *const *pre_by_name(const char *name, bool *ignore_merges)
{
    for (size_t i = 0; i < N_PRE_ROWS; i++)
        if (!strcmp(pre_table[i].name, name)) {
            *ignore_merges = pre_table[i].ignore_merges;
            return pre_table[i].list;
        }
    return NULL;
}

static bool same_steps(const struct tokenizer *t, const char *const *list)
{
    int i = 0;
    while (i < t->n_pre && list[i] && t->pre_kind[i] == PRE_SPLIT && !strcmp(t->pre_text[i], list[i]))
        i++;
    return i == t->n_pre && !list[i];
}

const char *pre_name(const struct tokenizer *t)
{
    const char *name = NULL;
    for (size_t i = 0; i < N_PRE_ROWS; i++)
        if (same_steps(t, pre_table[i].list)) {
            if (pre_table[i].ignore_merges == t->ignore_merges)
                return pre_table[i].name;
            name = name ? name : pre_table[i].name;
        }
    return name;
}

int pre_add(struct tokenizer *t, const char *regex, enum pre_kind kind, struct err *e)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR msg[128];
    if (t->n_pre == MAX_PRE)
        return err_set(e, ERR_UNSUPPORTED, "%s: more than %d pre-tokenizer steps", t->what, MAX_PRE);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!re) {
        pcre2_get_error_message(code, msg, sizeof msg);
        return err_set(e, ERR_FORMAT, "%s: pre-tokenizer regex '%.200s': %s at %zu", t->what, regex, (char *)msg, at);
    }
    pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* without JIT it is only slower */
    t->pre[t->n_pre] = re;
    t->pre_text[t->n_pre] = arena_strdup(&t->arena, regex);
    t->pre_kind[t->n_pre++] = kind;
    return t->pre_text[t->n_pre - 1] ? 0 : err_nomem(e, t->what, strlen(regex));
}

size_t utf8_len(const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    if (n == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (!len || len > n || p[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

#define MATCH_LIMIT 1000000 /* steps of one match; a regex that needs more is made to */

struct splitter {
    const struct tokenizer *t;
    pcre2_match_data *md[MAX_PRE];
    pcre2_match_context *limits;
    word_fn word;
    void *ud;
};

static int split_step(const struct splitter *sp, int step, const char *s, size_t n, struct err *e)
{
    if (n == 0)
        return 0;
    if (step == sp->t->n_pre)
        return sp->word(sp->ud, s, n, e);
    size_t at = 0, done = 0;
    const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sp->md[step]);
    while (at < n) {
        int rc = pcre2_match(sp->t->pre[step], (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, sp->md[step], sp->limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return err_set(e, ERR_FORMAT, "%s: pre-tokenizer regex failed on this text (PCRE2 error %d)", sp->t->what, rc);
        size_t b = ov[0], end = ov[1];
        if (b < done || end < b) /* \K, called from a lookaround, can report such */
            return err_set(e, ERR_FORMAT, "%s: pre-tokenizer regex '%.200s' matches backwards", sp->t->what, sp->t->pre_text[step]);
        if (end == b) { /* an empty match cuts nothing */
            at = b + (b < n ? utf8_len(s + b, n - b) : 1);
            continue;
        }
        if (split_step(sp, step + 1, s + done, b - done, e))
            return -1;
        if (sp->t->pre_kind[step] == PRE_SPLIT && split_step(sp, step + 1, s + b, end - b, e))
            return -1;
        at = done = end;
    }
    return split_step(sp, step + 1, s + done, n - done, e);
}

int pre_split(const struct tokenizer *t, const char *s, size_t n, word_fn word, void *ud, struct err *e)
{
    struct splitter sp = { .t = t, .word = word, .ud = ud };
    int rc = 0;
    sp.limits = pcre2_match_context_create(NULL);
    if (!sp.limits)
        return err_nomem(e, "regex match", 64);
    pcre2_set_match_limit(sp.limits, MATCH_LIMIT);
    for (int i = 0; i < t->n_pre; i++) {
        sp.md[i] = pcre2_match_data_create(1, NULL);
        if (!sp.md[i])
            rc = err_nomem(e, "regex match", 64);
    }
    if (!rc)
        rc = split_step(&sp, 0, s, n, e);
    for (int i = 0; i < t->n_pre; i++)
        pcre2_match_data_free(sp.md[i]);
    pcre2_match_context_free(sp.limits);
    return rc;
}
