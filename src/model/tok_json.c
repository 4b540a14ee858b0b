/* tok_json: a tokenizer from tokenizer.json (Hugging Face tokenizers), tokenizer_config.json and generation_config.json.
 * Every component that is not understood is refused by its name: a tokenizer that is almost right is worse than none. */
#include <string.h>

#include "base/json.h"
#include "model/tokenizer_impl.h"

#define MAX_JSON ((size_t)256 << 20)
#define MAX_TOKENS (1 << 24)

static int unsupported(const struct tokenizer *t, const char *part, const char *type, struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED, "%s: %s '%.60s' is not supported", t->what, part, type);
}

static int bad(const struct tokenizer *t, const char *what, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: %s", t->what, what);
}

static bool flag(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key));
}

static const char *type_of(const json_t *o)
{
    const char *s = json_string_value(json_object_get(o, "type"));
    return s ? s : "(no type)";
}

/* ---- vocabulary ------------------------------------------------------------------ */

static int read_id(const struct tokenizer *t, const json_t *v, const char *text, int32_t *id, struct err *e)
{
    json_int_t i = json_is_integer(v) ? json_integer_value(v) : -1;
    if (i < 0 || i >= MAX_TOKENS)
        return err_set(e, ERR_FORMAT, "%s: token '%.40s': expected an id from 0 to 2^24-1", t->what, text);
    *id = (int32_t)i;
    return 0;
}

static int count_tokens(struct tokenizer *t, const json_t *vocab, const json_t *added, struct err *e)
{
    const char *text;
    json_t *v;
    int32_t id = -1, max = -1;
    size_t i, seen = json_object_size(vocab) + json_array_size(added);
    json_object_foreach((json_t *)(uintptr_t)vocab, text, v) {
        if (read_id(t, v, text, &id, e))
            return -1;
        max = id > max ? id : max;
    }
    json_array_foreach(added, i, v) {
        const char *content = json_string_value(json_object_get(v, "content"));
        if (!content || read_id(t, json_object_get(v, "id"), content, &id, e))
            return content ? -1 : bad(t, "an added token has no content", e);
        max = id > max ? id : max;
    }
    if (max < 0)
        return bad(t, "the vocabulary is empty", e);
    if ((size_t)max > 4 * seen + 65536)
        return bad(t, "token ids are far larger than their number", e);
    t->n = max + 1;
    t->tokens = arena_alloc(&t->arena, (size_t)t->n, sizeof *t->tokens);
    t->added.a = arena_alloc(&t->arena, json_array_size(added) + 1, sizeof *t->added.a);
    if (!t->tokens || !t->added.a)
        return err_nomem(e, t->what, (size_t)t->n * sizeof *t->tokens);
    for (int32_t k = 0; k < t->n; k++)
        t->tokens[k] = (struct token){ "", 0, TOKEN_UNUSED, 0 };
    return 0;
}

static int set_token(struct tokenizer *t, int32_t id, const char *s, size_t n, enum token_kind kind, struct err *e)
{
    struct token *k = &t->tokens[id];
    char *raw = arena_strndup(&t->arena, s, n);
    if (!raw)
        return err_nomem(e, t->what, n);
    *k = (struct token){ raw, n, kind, 0 };
    if (kind == TOKEN_NORMAL && t->byte_level)
        token_bytes(k, raw, s, n);
    if (kind == TOKEN_NORMAL && t->byte_fallback && byte_name(s, n, &k->byte))
        k->kind = TOKEN_BYTE;
    return 0;
}

static int read_vocab(struct tokenizer *t, const json_t *vocab, const json_t *added, struct err *e)
{
    const char *text;
    size_t i;
    json_t *v;
    if (count_tokens(t, vocab, added, e))
        return -1;
    json_object_foreach((json_t *)(uintptr_t)vocab, text, v) {
        int32_t id = (int32_t)json_integer_value(v);
        if (t->tokens[id].kind != TOKEN_UNUSED)
            return err_set(e, ERR_FORMAT, "%s: id %d belongs to two tokens, one of them '%.40s'", t->what, id, text);
        if (set_token(t, id, text, strlen(text), TOKEN_NORMAL, e))
            return -1;
    }
    json_array_foreach(added, i, v) {
        const json_t *c = json_object_get(v, "content");
        int32_t id = (int32_t)json_integer_value(json_object_get(v, "id"));
        bool special = flag(v, "special");
        size_t n = json_string_length(c);
        if (n == 0)
            continue;
        if (set_token(t, id, json_string_value(c), n, special ? TOKEN_SPECIAL : TOKEN_ADDED, e))
            return -1;
        t->added.a[t->added.n++] = (struct added){ t->tokens[id].raw, n, id, special, flag(v, "lstrip"), flag(v, "rstrip"), flag(v, "normalized") };
    }
    return 0;
}

/* One side of a merge as it stands in the vocabulary's map. */
static int32_t piece_id(const struct tokenizer *t, const char *s, size_t n, char *buf, size_t *raw_n)
{
    if (n == 0 || n > 1024)
        return -1;
    if (!t->byte_level) {
        memcpy(buf, s, n);
        *raw_n = n;
    } else if (!raw_from_chars(s, n, buf, raw_n)) {
        return -1;
    }
    return str_map_find(t, buf, *raw_n);
}

static int read_merges(struct tokenizer *t, const json_t *merges, struct err *e)
{
    size_t i;
    json_t *v;
    char buf[2048];
    if (!json_is_array(merges))
        return bad(t, "model.merges: expected an array", e);
    if (merge_map_init(t, json_array_size(merges), e))
        return -1;
    json_array_foreach(merges, i, v) {
        const char *l = NULL, *r = NULL;
        size_t ln = 0, rn = 0, raw_l, raw_r;
        if (json_is_string(v)) {
            l = json_string_value(v);
            r = strchr(l, ' ');
            ln = r ? (size_t)(r - l) : 0;
            r = r ? r + 1 : NULL;
            rn = r ? strlen(r) : 0;
        } else if (json_array_size(v) == 2) {
            l = json_string_value(json_array_get(v, 0));
            r = json_string_value(json_array_get(v, 1));
            ln = l ? strlen(l) : 0;
            rn = r ? strlen(r) : 0;
        }
        int32_t li = l && r ? piece_id(t, l, ln, buf, &raw_l) : -1;
        int32_t ri = li >= 0 ? piece_id(t, r, rn, buf + raw_l, &raw_r) : -1;
        int32_t id = ri >= 0 ? str_map_find(t, buf, raw_l + raw_r) : -1;
        if (id < 0)
            return err_set(e, ERR_FORMAT, "%s: model.merges entry %zu ('%.40s' + '%.40s') is not a pair of tokens with a merged one",
                           t->what, i, l ? l : "", r ? r : "");
        merge_map_add(t, li, ri, id, (uint32_t)i);
    }
    return 0;
}

/* ---- normalizer, pre-tokenizer, post-processor, decoder ------------------------------ */

static int read_normalizer(struct tokenizer *t, const json_t *o, struct err *e)
{
    size_t i;
    json_t *v;
    if (!o || json_is_null(o))
        return 0;
    const char *type = type_of(o);
    if (!strcmp(type, "Sequence")) {
        json_array_foreach(json_object_get(o, "normalizers"), i, v)
            if (read_normalizer(t, v, e))
                return -1;
        return 0;
    }
    if (!strcmp(type, "NFC")) {
        t->nfc = true;
        return 0;
    }
    const char *marker = "\xe2\x96\x81";
    if (!strcmp(type, "Prepend")) {
        const char *p = json_string_value(json_object_get(o, "prepend"));
        if (!p || strcmp(p, marker))
            return unsupported(t, "normalizer Prepend of", p ? p : "?", e);
        t->space_prefix = true;
        return 0;
    }
    if (!strcmp(type, "Replace")) {
        const char *p = json_string_value(json_object_get(json_object_get(o, "pattern"), "String"));
        const char *c = json_string_value(json_object_get(o, "content"));
        if (!p || !c || strcmp(p, " ") || strcmp(c, marker))
            return unsupported(t, "normalizer Replace of", p ? p : "a regex", e);
        t->space_marker = true;
        return 0;
    }
    return unsupported(t, "normalizer", type, e);
}

static int read_split(struct tokenizer *t, const json_t *o, struct err *e)
{
    const json_t *pattern = json_object_get(o, "pattern");
    const char *re = json_string_value(json_object_get(pattern, "Regex"));
    const char *behavior = json_string_value(json_object_get(o, "behavior"));
    if (!re)
        return unsupported(t, "pre-tokenizer Split by", "a plain string", e);
    if (flag(o, "invert"))
        return unsupported(t, "pre-tokenizer Split with", "invert", e);
    if (behavior && !strcmp(behavior, "Removed"))
        return pre_add(t, re, PRE_REMOVE, e);
    if (!behavior || strcmp(behavior, "Isolated"))
        return unsupported(t, "pre-tokenizer Split with behavior", behavior ? behavior : "?", e);
    return pre_add(t, re, PRE_SPLIT, e);
}

static int read_metaspace(struct tokenizer *t, const json_t *o, struct err *e)
{
    const char *scheme = json_string_value(json_object_get(o, "prepend_scheme"));
    const char *replacement = json_string_value(json_object_get(o, "replacement"));
    if (replacement && strcmp(replacement, "\xe2\x96\x81"))
        return unsupported(t, "Metaspace with replacement", replacement, e);
    t->space_marker = true;
    t->space_prefix = scheme ? strcmp(scheme, "never") != 0 : flag(o, "add_prefix_space");
    t->prefix_first_only = scheme && !strcmp(scheme, "first");
    t->prefix_if_missing = true;
    if (!json_is_false(json_object_get(o, "split"))) /* words begin at a marker */
        return pre_add(t, "\xe2\x96\x81?[^\xe2\x96\x81]*", PRE_SPLIT, e);
    return 0;
}

static int read_pre(struct tokenizer *t, const json_t *o, struct err *e)
{
    size_t i;
    json_t *v;
    if (!o || json_is_null(o))
        return 0;
    const char *type = type_of(o);
    if (!strcmp(type, "Sequence")) {
        json_array_foreach(json_object_get(o, "pretokenizers"), i, v)
            if (read_pre(t, v, e))
                return -1;
        return 0;
    }
    if (!strcmp(type, "Split"))
        return read_split(t, o, e);
    if (!strcmp(type, "Digits"))
        return pre_add(t, flag(o, "individual_digits") ? "\\p{N}" : "\\p{N}+", PRE_SPLIT, e);
    if (!strcmp(type, "Metaspace"))
        return read_metaspace(t, o, e);
    if (!strcmp(type, "ByteLevel")) {
        t->add_prefix_space = flag(o, "add_prefix_space");
        return json_is_false(json_object_get(o, "use_regex")) ? 0 : pre_add(t, regex_gpt2, PRE_SPLIT, e);
    }
    return unsupported(t, "pre-tokenizer", type, e);
}

static bool has_byte_level(const json_t *o)
{
    size_t i;
    json_t *v;
    if (!strcmp(type_of(o), "ByteLevel"))
        return true;
    json_array_foreach(json_object_get(o, "pretokenizers"), i, v)
        if (has_byte_level(v))
            return true;
    return false;
}

/* TemplateProcessing: what stands before and after $A in "single". */
static int read_post(struct tokenizer *t, const json_t *o, struct err *e)
{
    size_t i;
    json_t *v;
    if (!o || json_is_null(o) || !strcmp(type_of(o), "ByteLevel"))
        return 0;
    if (!strcmp(type_of(o), "Sequence")) {
        json_array_foreach(json_object_get(o, "processors"), i, v)
            if (read_post(t, v, e))
                return -1;
        return 0;
    }
    if (strcmp(type_of(o), "TemplateProcessing"))
        return unsupported(t, "post-processor", type_of(o), e);
    bool after = false;
    json_array_foreach(json_object_get(o, "single"), i, v) {
        const json_t *sp = json_object_get(v, "SpecialToken");
        const char *id = json_string_value(json_object_get(sp, "id"));
        if (!sp) {
            after = true;
            continue;
        }
        int32_t tok = id ? str_map_find(t, id, strlen(id)) : -1;
        if (tok < 0)
            return unsupported(t, "post-processor with token", id ? id : "?", e);
        *(after ? &t->eos : &t->bos) = tok;
        *(after ? &t->add_eos : &t->add_bos) = true;
    }
    return 0;
}

/* ---- the files ------------------------------------------------------------------------ */

static int load_json(const struct checkpoint *c, const char *name, json_t **out, struct err *e)
{
    char *text;
    size_t n;
    int found = checkpoint_file(c, name, &text, &n, e);
    *out = NULL;
    if (found < 1)
        return found;
    if (n > MAX_JSON) {
        mem_free(text);
        return err_set(e, ERR_FORMAT, "%s/%s: %zu bytes, expected at most %zu", c->path, name, n, MAX_JSON);
    }
    int rc = json_from_text(text, n, out, e);
    mem_free(text);
    if (rc)
        return err_prefix(e, "%s/%s", c->path, name);
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return err_set(e, ERR_FORMAT, "%s/%s: expected a JSON object", c->path, name);
    }
    return 1;
}

/* "<s>", or {"content": "<s>", ...} */
static int32_t named_token(const struct tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    const char *s = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    return s ? str_map_find(t, s, strlen(s)) : -1;
}

/* One template, or {"name", "template"} of several: then the one called default, as transformers takes it. */
static const json_t *chat_template(const json_t *config)
{
    const json_t *template = json_object_get(config, "chat_template"), *v;
    size_t i;
    json_array_foreach(template, i, v) {
        const char *name = json_string_value(json_object_get(v, "name"));
        if (name && !strcmp(name, "default"))
            return json_object_get(v, "template");
    }
    return template;
}

/* Llama's tokenizer classes make their post-processor of these keys, whatever tokenizer.json has (DeepSeek's distilled models). */
static void read_flags(struct tokenizer *t, const json_t *config)
{
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    const json_t *bos = json_object_get(config, "add_bos_token"), *eos = json_object_get(config, "add_eos_token");
    if (!class || (strcmp(class, "LlamaTokenizer") && strcmp(class, "LlamaTokenizerFast")))
        return;
    if (json_is_boolean(bos) && t->bos >= 0)
        t->add_bos = json_is_true(bos);
    if (json_is_boolean(eos) && t->eos >= 0)
        t->add_eos = json_is_true(eos);
}

static int read_config(struct tokenizer *t, const struct checkpoint *c, struct err *e)
{
    json_t *config, *v;
    size_t i;
    if (load_json(c, "tokenizer_config.json", &config, e) < 0)
        return -1;
    int32_t id;
    if (t->bos < 0)
        t->bos = named_token(t, config, "bos_token");
    if ((id = named_token(t, config, "eos_token")) >= 0)
        t->eos = id;
    t->pad = named_token(t, config, "pad_token");
    read_flags(t, config);
    const json_t *template = chat_template(config);
    int rc = 0;
    if (json_is_string(template) &&
        !(t->chat_template = arena_strndup(&t->arena, json_string_value(template), json_string_length(template))))
        rc = err_nomem(e, "chat template", json_string_length(template));
    json_decref(config);
    char *text;
    size_t n;
    int found = rc ? 0 : checkpoint_file(c, "chat_template.jinja", &text, &n, e);
    if (found > 0) {
        t->chat_template = arena_strndup(&t->arena, text, n);
        mem_free(text);
        if (!t->chat_template)
            rc = err_nomem(e, "chat template", n);
    }
    const json_t *eos = json_object_get(c->generation_config ? c->generation_config : c->config, "eos_token_id");
    if (t->eos < 0 && json_is_integer(eos) && json_integer_value(eos) >= 0 && json_integer_value(eos) < t->n)
        t->eos = (int32_t)json_integer_value(eos);
    tokenizer_add_eog(t, t->eos);
    if (json_is_integer(eos))
        tokenizer_add_eog(t, json_integer_value(eos));
    json_array_foreach(eos, i, v)
        if (json_is_integer(v))
            tokenizer_add_eog(t, json_integer_value(v));
    return rc || found < 0 ? -1 : 0;
}

static int read_all(struct tokenizer *t, const json_t *root, const struct checkpoint *c, struct err *e)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const json_t *pre = json_object_get(root, "pre_tokenizer"), *added = json_object_get(root, "added_tokens");
    if (!json_is_object(model))
        return bad(t, "model: expected an object", e);
    if (json_object_get(model, "type") && strcmp(type_of(model), "BPE"))
        return unsupported(t, "model", type_of(model), e);
    if (!json_is_object(vocab))
        return bad(t, "model.vocab: expected an object", e);
    if (added && !json_is_array(added) && !json_is_null(added))
        return bad(t, "added_tokens: expected an array", e);
    const char *odd[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    for (int i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, odd[i])) > 0)
            return unsupported(t, "model option", odd[i], e);
    if (json_real_value(json_object_get(model, "dropout")) > 0)
        return unsupported(t, "model option", "dropout", e);
    t->byte_level = has_byte_level(pre);
    t->byte_fallback = flag(model, "byte_fallback");
    t->ignore_merges = flag(model, "ignore_merges");
    if (read_vocab(t, vocab, added, e) || tokenizer_finish(t, e) ||
        read_merges(t, json_object_get(model, "merges"), e) ||
        read_normalizer(t, json_object_get(root, "normalizer"), e) || (t->space_marker && tokenizer_normalize_added(t, e)) || read_pre(t, pre, e) ||
        read_post(t, json_object_get(root, "post_processor"), e))
        return -1;
    if (!t->byte_level && !t->space_marker)
        return unsupported(t, "tokenizer", "neither byte-level nor SentencePiece-style BPE", e);
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    t->unk = unk && !t->byte_level ? str_map_find(t, unk, strlen(unk)) : -1;
    return read_config(t, c, e);
}

int tokenizer_from_json(struct tokenizer *t, const struct checkpoint *c, struct err *e)
{
    json_t *root;
    int found = load_json(c, "tokenizer.json", &root, e);
    if (found < 1)
        return found ? -1 : err_set(e, ERR_FORMAT, "%s: tokenizer.json is missing", c->path);
    t->what = arena_printf(&t->arena, "%s/tokenizer.json", c->path);
    if (!t->what) {
        json_decref(root);
        return err_nomem(e, c->path, 64);
    }
    int rc = read_all(t, root, c, e);
    json_decref(root);
    return rc;
}
