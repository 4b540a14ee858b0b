/* tok_write: the tokenizer files of a Hugging Face folder. A folder's own files are copied; a GGUF file's metadata becomes
 * tokenizer.json, tokenizer_config.json and special_tokens_map.json that AutoTokenizer loads with the same ids. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/tokenizer_impl.h"

static int write_file(const char *dir, const char *name, const char *text, size_t n, struct err *e)
{
    char path[4096];
    struct outfile o;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return err_set(e, ERR_IO, "%s/%s: path is too long", dir, name);
    if (outfile_open(&o, path, e))
        return -1;
    if (outfile_write(&o, text, n, e)) {
        outfile_abort(&o);
        return -1;
    }
    return outfile_commit(&o, e);
}

/* Takes root over. */
static int write_json(const char *dir, const char *name, json_t *root, struct err *e)
{
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text)
        return err_set(e, ERR_FORMAT, "%s/%s: the vocabulary holds text that is not UTF-8", dir, name);
    int rc = write_file(dir, name, text, strlen(text), e);
    free(text); /* jansson's own allocation */
    return rc;
}

/* dir NULL: only looks whether they may be copied. */
static int copy_folder(const struct checkpoint *c, const char *dir, struct err *e)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
                                         "chat_template.jinja" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *text;
        size_t n;
        int found = checkpoint_file(c, names[i], dir ? &text : NULL, &n, e);
        if (found < 0)
            return -1;
        if (!found || !dir)
            continue;
        int rc = write_file(dir, names[i], text, n, e);
        mem_free(text);
        if (rc)
            return -1;
    }
    return 0;
}

/* ---- from GGUF ---------------------------------------------------------------------------- */

/* A token's text as tokenizer.json has it: byte-level tokens in GPT-2's characters. NULL when not UTF-8. */
static json_t *token_text(const struct tokenizer *t, int32_t id)
{
    const struct token *k = &t->tokens[id];
    char buf[2 * 1024 + 2];
    size_t n = 0;
    if (!t->byte_level || k->kind != TOKEN_NORMAL)
        return json_stringn(k->raw, k->n);
    if (k->n > 1024)
        return NULL;
    for (size_t i = 0; i < k->n; i++)
        n += byte_char((uint8_t)k->raw[i], buf + n);
    return json_stringn(buf, n);
}

static json_t *vocab_json(const struct tokenizer *t)
{
    json_t *vocab = json_object();
    for (int32_t i = 0; i < t->n; i++) {
        json_t *text = token_text(t, i);
        if (!text) {
            json_decref(vocab);
            return NULL;
        }
        json_object_set_new(vocab, json_string_value(text), json_integer(i));
        json_decref(text);
    }
    return vocab;
}

static json_t *merges_json(const struct tokenizer *t)
{
    size_t n;
    struct merge *list = merges_by_rank(t, &n);
    if (!list)
        return NULL;
    json_t *out = json_array();
    for (size_t i = 0; out && i < n; i++) {
        json_t *l = token_text(t, list[i].left), *r = token_text(t, list[i].right);
        if (!l || !r) {
            json_decref(l);
            json_decref(r);
            json_decref(out);
            out = NULL;
            break;
        }
        json_array_append_new(out, json_pack("[oo]", l, r));
    }
    mem_free(list);
    return out;
}

static json_t *added_json(const struct tokenizer *t)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < t->n; i++) {
        enum token_kind kind = t->tokens[i].kind;
        if (kind == TOKEN_SPECIAL || kind == TOKEN_ADDED)
            json_array_append_new(list, json_pack("{sisosbsbsbsbsb}", "id", i, "content", token_text(t, i), "single_word", 0,
                                                  "lstrip", 0, "rstrip", 0, "normalized", 0, "special", kind == TOKEN_SPECIAL));
    }
    return list;
}

static json_t *text_of(const struct tokenizer *t, int32_t id)
{
    return id >= 0 ? token_text(t, id) : json_null();
}

static json_t *byte_level(bool add_prefix_space, bool use_regex)
{
    return json_pack("{sssbsbsb}", "type", "ByteLevel", "add_prefix_space", add_prefix_space, "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *pre_json(const struct tokenizer *t)
{
    if (!t->byte_level)
        return json_null();
    json_t *list = json_array();
    for (int i = 0; i < t->n_pre; i++)
        json_array_append_new(list, json_pack("{sss{ss}sssb}", "type", "Split", "pattern", "Regex", t->pre_text[i], "behavior",
                                              "Isolated", "invert", 0));
    json_array_append_new(list, byte_level(t->add_prefix_space, false));
    return json_pack("{ssso}", "type", "Sequence", "pretokenizers", list);
}

static json_t *normalizer_json(const struct tokenizer *t)
{
    if (t->byte_level)
        return json_null();
    json_t *list = json_array();
    if (t->space_prefix)
        json_array_append_new(list, json_pack("{ssss}", "type", "Prepend", "prepend", "\xe2\x96\x81"));
    json_array_append_new(list, json_pack("{sss{ss}ss}", "type", "Replace", "pattern", "String", " ", "content", "\xe2\x96\x81"));
    return json_pack("{ssso}", "type", "Sequence", "normalizers", list);
}

static json_t *decoder_json(const struct tokenizer *t)
{
    if (t->byte_level)
        return byte_level(true, true);
    json_t *list = json_pack("[{sss{ss}ss},{ss},{ss}]", "type", "Replace", "pattern", "String", "\xe2\x96\x81", "content", " ",
                             "type", "ByteFallback", "type", "Fuse");
    if (t->space_prefix)
        json_array_append_new(list, json_pack("{sssssisi}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{ssso}", "type", "Sequence", "decoders", list);
}

static json_t *special_item(const struct tokenizer *t, int32_t id)
{
    return json_pack("{s{sosi}}", "SpecialToken", "id", token_text(t, id), "type_id", 0);
}

static json_t *post_json(const struct tokenizer *t)
{
    bool bos = t->add_bos && t->bos >= 0, eos = t->add_eos && t->eos >= 0;
    if (!bos && !eos)
        return t->byte_level ? byte_level(true, true) : json_null();
    json_t *single = json_array(), *pair = json_array(), *special = json_object();
    for (int k = 0; k < 2; k++) {
        json_t *into = k ? pair : single;
        for (int part = 0; part <= k; part++) {
            if (bos)
                json_array_append_new(into, special_item(t, t->bos));
            json_array_append_new(into, json_pack("{s{sssi}}", "Sequence", "id", part ? "B" : "A", "type_id", part));
            if (eos)
                json_array_append_new(into, special_item(t, t->eos));
        }
    }
    int32_t ids[2] = { bos ? t->bos : -1, eos ? t->eos : -1 };
    for (int k = 0; k < 2; k++) {
        json_t *text = ids[k] >= 0 ? token_text(t, ids[k]) : NULL;
        if (text)
            json_object_set_new(special, json_string_value(text),
                                json_pack("{sOs[i]s[O]}", "id", text, "ids", ids[k], "tokens", text));
        json_decref(text);
    }
    return json_pack("{sssososo}", "type", "TemplateProcessing", "single", single, "pair", pair, "special_tokens", special);
}

static json_t *tokenizer_json(const struct tokenizer *t)
{
    json_t *vocab = vocab_json(t), *merges = vocab ? merges_json(t) : NULL;
    if (!vocab || !merges) {
        json_decref(vocab);
        return NULL;
    }
    json_t *model = json_pack("{sssnsosnsnsbsbsbsoso}", "type", "BPE", "dropout", "unk_token", text_of(t, t->unk),
                              "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", !t->byte_level, "byte_fallback",
                              t->byte_fallback, "ignore_merges", t->ignore_merges, "vocab", vocab, "merges", merges);
    return json_pack("{sssnsnsosososososo}", "version", "1.0", "truncation", "padding", "added_tokens", added_json(t),
                     "normalizer", normalizer_json(t), "pre_tokenizer", pre_json(t), "post_processor", post_json(t), "decoder",
                     decoder_json(t), "model", model);
}

static void set_special(json_t *o, const struct tokenizer *t, const char *key, int32_t id)
{
    json_t *text = id >= 0 ? token_text(t, id) : NULL;
    if (text)
        json_object_set_new(o, key, text);
}

static void set_specials(json_t *o, const struct tokenizer *t)
{
    set_special(o, t, "bos_token", t->bos);
    set_special(o, t, "eos_token", t->eos);
    set_special(o, t, "unk_token", t->unk);
    set_special(o, t, "pad_token", t->pad);
}

int tokenizer_check_hf(const struct checkpoint *c, struct err *e)
{
    return c->container == CONTAINER_HF ? copy_folder(c, NULL, e) : 0;
}

int tokenizer_write_hf(const struct tokenizer *t, const struct checkpoint *c, const char *dir, struct err *e)
{
    if (c->container == CONTAINER_HF)
        return copy_folder(c, dir, e);
    json_t *special = json_object();
    json_t *config = json_pack("{sssbsbsb}", "tokenizer_class", "PreTrainedTokenizerFast", "add_bos_token", t->add_bos,
                               "add_prefix_space", t->add_prefix_space, "clean_up_tokenization_spaces", 0);
    set_specials(config, t);
    set_specials(special, t);
    if (t->chat_template)
        json_object_set_new(config, "chat_template", json_string(t->chat_template));
    int rc = write_json(dir, "tokenizer.json", tokenizer_json(t), e);
    if (rc)
        json_decref(config);
    else
        rc = write_json(dir, "tokenizer_config.json", config, e);
    if (rc)
        json_decref(special);
    else
        rc = write_json(dir, "special_tokens_map.json", special, e);
    return rc;
}
