/* calib: calibration text to token sequences.
 *
 * Plain text is tokenized once and cut every seqlen tokens. JSONL (a first line that is a JSON object) gives one
 * document a line, its "text" or the contents of its chat "messages", joined by a blank line. */
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "quant/quant.h"

#define MAX_TEXT ((size_t)1 << 30)

int calib_from_tokens(struct calib *c, const int32_t *ids, int64_t n_ids, int64_t n, int64_t seqlen,
                      uint64_t seed, struct err *e)
{
    memset(c, 0, sizeof *c);
    arena_init(&c->arena);
    if (n < 1 || seqlen < 2)
        return err_set(e, ERR_USAGE, "calibration: expected at least one sequence of two tokens or more");
    if (n_ids < 2)
        return err_set(e, ERR_FORMAT, "calibration text has %lld tokens, expected at least 2", (long long)n_ids);
    if (n_ids < seqlen)
        seqlen = n_ids;
    int64_t have = n_ids / seqlen, take = n < have ? n : have;
    struct rng rng = { seed };
    uint8_t *chosen = arena_zalloc(&c->arena, (size_t)have, 1);
    c->start = arena_alloc(&c->arena, (size_t)take + 1, sizeof *c->start);
    c->ids = arena_alloc(&c->arena, (size_t)(take * seqlen), sizeof *c->ids);
    if (!chosen || !c->start || !c->ids) {
        calib_release(c);
        return err_nomem(e, "calibration tokens", (size_t)(take * seqlen) * sizeof *c->ids);
    }
    for (int64_t i = have - take; i < have; i++) { /* Floyd: take of have, each set equally likely */
        int64_t k = (int64_t)(rng_next(&rng) % (uint64_t)(i + 1));
        chosen[chosen[k] ? i : k] = 1;
    }
    for (int64_t i = 0; i < have; i++)
        if (chosen[i]) {
            c->start[c->n] = c->n * seqlen;
            memcpy(c->ids + c->n * seqlen, ids + i * seqlen, (size_t)seqlen * sizeof *ids);
            c->n++;
        }
    c->start[c->n] = c->n * seqlen;
    return 0;
}

int calib_prepend(struct calib *c, const int32_t *ids, int64_t n, int64_t seqlen, struct err *e)
{
    int64_t had = calib_tokens(c), more = n * seqlen;
    int64_t *start = arena_alloc(&c->arena, (size_t)(c->n + n + 1), sizeof *start);
    int32_t *all = arena_alloc(&c->arena, (size_t)(had + more), sizeof *all);
    if (!start || !all)
        return err_nomem(e, "calibration tokens", (size_t)(had + more) * sizeof *all);
    memcpy(all, ids, (size_t)more * sizeof *all);
    memcpy(all + more, c->ids, (size_t)had * sizeof *all);
    for (int64_t i = 0; i < n; i++)
        start[i] = i * seqlen;
    for (int64_t i = 0; i <= c->n; i++)
        start[n + i] = more + c->start[i];
    c->start = start;
    c->ids = all;
    c->n += n;
    return 0;
}

struct text {
    char *p;
    size_t n, cap;
};

static int text_add(struct text *t, const char *s, size_t n, struct err *e)
{
    if (t->n + n + 2 > t->cap) {
        size_t cap = (t->n + n + 2) * 2;
        char *p = mem_grow(t->p, t->n, cap, 1);
        if (!p)
            return err_nomem(e, "calibration text", cap);
        t->p = p;
        t->cap = cap;
    }
    memcpy(t->p + t->n, s, n);
    t->n += n;
    return 0;
}

static int add_document(struct text *t, const json_t *doc, const char *path, int64_t line, struct err *e)
{
    const json_t *text = json_object_get(doc, "text"), *messages = json_object_get(doc, "messages");
    if (t->n && text_add(t, "\n\n", 2, e))
        return -1;
    if (json_is_string(text))
        return text_add(t, json_string_value(text), json_string_length(text), e);
    if (!json_is_array(messages))
        return err_set(e, ERR_FORMAT, "%s: line %lld: expected a \"text\" string or a \"messages\" array", path,
                       (long long)line);
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *content = json_object_get(json_array_get(messages, i), "content");
        if (!json_is_string(content))
            return err_set(e, ERR_FORMAT, "%s: line %lld: message %zu has no \"content\" string", path,
                           (long long)line, i);
        if ((i && text_add(t, "\n\n", 2, e)) ||
            text_add(t, json_string_value(content), json_string_length(content), e))
            return -1;
    }
    return 0;
}

static int read_jsonl(struct text *t, const char *buf, size_t n, const char *path, struct err *e)
{
    int64_t line = 1;
    for (size_t i = 0; i < n; line++) {
        const char *end = memchr(buf + i, '\n', n - i);
        size_t len = end ? (size_t)(end - (buf + i)) : n - i;
        if (strspn(buf + i, " \t\r") < len) {
            json_t *doc;
            if (json_from_text(buf + i, len, &doc, e))
                return err_prefix(e, "%s: line %lld", path, (long long)line);
            int rc = add_document(t, doc, path, line, e);
            json_decref(doc);
            if (rc)
                return -1;
        }
        i += len + 1;
    }
    return 0;
}

static bool is_jsonl(const char *buf, size_t n)
{
    json_t *doc = NULL;
    size_t blank = strspn(buf, " \t\r\n");
    buf += blank;
    n -= blank;
    const char *end = memchr(buf, '\n', n);
    if (n == 0 || buf[0] != '{')
        return false;
    json_from_text(buf, end ? (size_t)(end - buf) : n, &doc, NULL);
    bool yes = json_is_object(doc);
    json_decref(doc);
    return yes;
}

int calib_from_file(struct calib *c, const struct model *m, const char *path, int64_t n,
                    int64_t seqlen, uint64_t seed, struct err *e)
{
    char *buf = NULL;
    size_t size;
    struct text t = { 0 };
    struct token_list ids = { 0 };
    memset(c, 0, sizeof *c);
    if (!m->tok)
        return err_set(e, ERR_UNSUPPORTED, "%s: has no tokenizer (of a folder tokenizer.json is read), so calibration text cannot be read", m->ck->path);
    if (file_read(path, MAX_TEXT, &buf, &size, e))
        return -1;
    size_t mark = size >= 3 && !memcmp(buf, "\xef\xbb\xbf", 3) ? 3 : 0; /* a byte order mark is no text */
    const char *text = buf + mark;
    size -= mark;
    int rc = is_jsonl(text, size) ? read_jsonl(&t, text, size, path, e) : text_add(&t, text, size, e);
    rc = rc || tokenizer_encode(m->tok, t.p ? t.p : "", t.n, true, false, &ids, e);
    if (!rc && ids.n < 2)
        rc = err_set(e, ERR_FORMAT, "%s: calibration text has %zu tokens, expected at least 2", path, ids.n);
    rc = rc || calib_from_tokens(c, ids.ids, (int64_t)ids.n, n, seqlen, seed, e);
    mem_free(ids.ids);
    mem_free(t.p);
    mem_free(buf);
    return rc ? -1 : 0;
}

void calib_release(struct calib *c)
{
    arena_release(&c->arena);
    memset(c, 0, sizeof *c);
}

int64_t calib_tokens(const struct calib *c)
{
    return c->start[c->n];
}
