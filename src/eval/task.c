#include "eval/task.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "eval/choice.h"

#define MAX_FILE ((size_t)1 << 30)

const struct task_info task_table[] = {
#define TASK(name, file, norm, seven) { #name, file, norm, seven },
#include "eval/tasks.def"
#undef TASK
};
const int task_count = (int)(sizeof task_table / sizeof *task_table);

const struct task_info *task_find(const char *s)
{
    size_t n = strlen(s);
    for (int i = 0; i < task_count; i++) {
        size_t k = strlen(task_table[i].file);
        if (!strcmp(task_table[i].name, s) || (n >= k && !strcmp(s + n - k, task_table[i].file)))
            return &task_table[i];
    }
    return NULL;
}

struct item {
    char *id;
    int64_t gold, n;       /* choices */
    int64_t first_score;   /* in scores and chars */
};

struct task {
    const char *path;
    const struct model *m;
    const struct task_options *o;
    json_t *examples;      /* MMLU's: subject -> what comes before the question */
    struct item *items;
    int64_t n, cap;
    struct question *q;
    int64_t n_q, cap_q;
    double *score;         /* of all choices */
    int64_t *chars;        /* of all choices, without the leading space */
    int64_t n_score, cap_score;
    struct token_list scratch;
    struct arena arena;
};

/* ---- lines -------------------------------------------------------------------------- */

static int bad(const struct task *t, int64_t line, const char *expected, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: line %lld: expected %s", t->path, (long long)line, expected);
}

/* Calls fn for every line that is not empty, until it returns nonzero. */
static int each_line(struct task *t, const char *path, int (*fn)(struct task *, json_t *, int64_t, struct err *), int64_t limit,
                     struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    int rc = 0;
    if (file_read(path, MAX_FILE, &text, &n, e))
        return -1;
    int64_t line = 1, done = 0;
    for (char *p = text, *end = text + n; !rc && p < end && (!limit || done < limit); line++) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        if (strspn(p, " \t\r") < (size_t)(stop - p)) {
            json_t *o;
            rc = json_from_text(p, (size_t)(stop - p), &o, e) ? err_prefix(e, "%s: line %lld", path, (long long)line)
                 : !json_is_object(o) ? err_set(e, ERR_FORMAT, "%s: line %lld: expected a JSON object", path, (long long)line)
                                      : fn(t, o, line, e);
            json_decref(o);
            done++;
        }
        p = stop + 1;
    }
    mem_free(text);
    return rc;
}

static int add_example(struct task *t, json_t *o, int64_t line, struct err *e)
{
    const char *subject = json_string_value(json_object_get(o, "subject"));
    const char *d = json_string_value(json_object_get(o, "description")), *shots = json_string_value(json_object_get(o, "fewshot"));
    if (!subject || !d || !shots)
        return bad(t, line, "\"subject\", \"description\" and \"fewshot\" of its examples", e);
    return json_object_set_new(t->examples, subject, json_sprintf("%s%s", d, t->o->shots ? shots : "")) ? err_nomem(e, t->path, 64) : 0;
}

/* ---- questions ------------------------------------------------------------------------ */

#define GROW(array, n, cap, more)                                                          \
    ((n) + (more) <= (cap) ? 0                                                             \
                           : ((cap) = 2 * ((n) + (more)), ((array) = mem_grow((array), (size_t)(n), (size_t)(cap), sizeof *(array))) ? 0 : -1))

/* Tokens of a + b, valid until the next call; *n of them. */
static const int32_t *encode(struct task *t, const char *a, const char *b, int64_t *n, struct err *e)
{
    size_t na = strlen(a), nb = strlen(b);
    char *text = mem_alloc(na + nb + 1, 1);
    if (!text) {
        err_nomem(e, t->path, na + nb);
        return NULL;
    }
    memcpy(text, a, na);
    memcpy(text + na, b, nb + 1);
    t->scratch.n = 0;
    int rc = tokenizer_encode(t->m->tok, text, na + nb, false, true, &t->scratch, e);
    mem_free(text);
    *n = (int64_t)t->scratch.n;
    if (!rc && !*n)
        rc = err_set(e, ERR_FORMAT, "%s: a context has no token", t->path);
    return rc ? NULL : t->scratch.ids;
}

/* What is encoded after n_ctx tokens of context in context + choice. */
static const int32_t *encode_choice(struct task *t, const char *ctx, int64_t n_ctx, const char *choice, int64_t *n, struct err *e)
{
    const int32_t *ids = encode(t, ctx, choice, n, e);
    if (!ids)
        return NULL;
    if (*n <= n_ctx) {
        err_set(e, ERR_FORMAT, "%s: choice '%s' adds no token to its context", t->path, choice);
        return NULL;
    }
    *n -= n_ctx;
    return ids + n_ctx;
}

/* A copy in the arena. */
static int32_t *keep_ids(struct task *t, const int32_t *ids, int64_t n, struct err *e)
{
    int32_t *own = arena_alloc(&t->arena, (size_t)n, sizeof *own);
    if (own)
        memcpy(own, ids, (size_t)n * sizeof *own);
    else
        err_nomem(e, t->path, (size_t)n * sizeof *own);
    return own;
}

static int64_t characters(const char *s)
{
    int64_t n = 0;
    for (s += *s == ' '; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

/* A context, after `before`, and n choices, whose scores follow those that are there. */
static int add_question(struct task *t, const char *before, const char *ctx, const char *const *choice, int64_t n, struct err *e)
{
    struct question q = { .n = n };
    int64_t *start = arena_alloc(&t->arena, (size_t)n + 1, sizeof *start), cap = 0, k;
    int32_t *ids = NULL;
    const int32_t *c = encode(t, before, ctx, &q.n_ctx, e);
    if (!c)
        return -1;
    if (!start || GROW(t->q, t->n_q, t->cap_q, 1))
        return err_nomem(e, t->path, sizeof q);
    if (!(q.ctx = keep_ids(t, c, q.n_ctx, e)))
        return -1;
    char *whole = *before ? mem_alloc(strlen(before) + strlen(ctx) + 1, 1) : NULL;
    if (whole)
        strcat(strcpy(whole, before), ctx);
    int rc = *before && !whole ? err_nomem(e, t->path, strlen(ctx)) : 0;
    start[0] = 0;
    for (int64_t i = 0; i < n && !rc; i++) {
        c = encode_choice(t, whole ? whole : ctx, q.n_ctx, choice[i], &k, e);
        rc = !c ? -1 : GROW(ids, start[i], cap, k) ? err_nomem(e, t->path, 64) : 0;
        if (rc)
            break;
        memcpy(ids + start[i], c, (size_t)k * sizeof *ids);
        start[i + 1] = start[i] + k;
    }
    if (!rc && !(q.ids = keep_ids(t, ids, start[n], e)))
        rc = -1;
    mem_free(ids);
    mem_free(whole);
    q.start = start;
    if (!rc)
        t->q[t->n_q++] = q;
    return rc;
}

#define MAX_CHOICES 64

/* Its strings, "" pointers into the JSON; a choice that the harness begins with one more space ("lead") gets it. */
static int strings(struct task *t, const json_t *list, const json_t *lead, const char *out[MAX_CHOICES])
{
    size_t n = json_array_size(list);
    if (n < 1 || n > MAX_CHOICES)
        return -1;
    for (size_t i = 0; i < n; i++) {
        out[i] = json_string_value(json_array_get(list, i));
        if (out[i] && json_integer_value(json_array_get(lead, i)) == 1)
            out[i] = arena_printf(&t->arena, " %s", out[i]);
        if (!out[i])
            return -1;
    }
    return (int)n;
}

/* MMLU: what comes before the question; "" elsewhere, NULL with an error where the subject is not known. */
static const char *before(const struct task *t, const char *id, int64_t line, struct err *e)
{
    if (!t->examples)
        return "";
    const char *dash = strrchr(id, '-');
    char subject[128];
    snprintf(subject, sizeof subject, "%.*s", dash ? (int)(dash - id) : 0, id);
    const char *s = json_string_value(json_object_get(t->examples, subject));
    if (!s)
        err_set(e, ERR_FORMAT, "%s: line %lld: mmlu_fewshot.jsonl has no subject '%s'", t->path, (long long)line, subject);
    return s;
}

static int add_item(struct task *t, json_t *o, int64_t line, struct err *e)
{
    const char *text[MAX_CHOICES], *id = json_string_value(json_object_get(o, "id"));
    const char *ctx = json_string_value(json_object_get(o, "context")), *cont = json_string_value(json_object_get(o, "continuation"));
    const json_t *gold = json_object_get(o, "gold"), *contexts = json_object_get(o, "contexts");
    int n = strings(t, contexts ? contexts : json_object_get(o, "choices"), json_object_get(o, "lead"), text);
    if (!id || n < 1 || !json_is_integer(gold) || json_integer_value(gold) < 0 || json_integer_value(gold) >= n ||
        !(contexts ? cont : ctx))
        return bad(t, line, "\"id\", \"context\", \"choices\" (strings) and \"gold\" (one's index), or \"contexts\" and \"continuation\"", e);
    const char *prompt = before(t, id, line, e);
    if (!prompt)
        return -1;
    if (GROW(t->items, t->n, t->cap, 1) || GROW(t->chars, t->n_score, t->cap_score, n))
        return err_nomem(e, t->path, sizeof *t->items);
    struct item *item = &t->items[t->n++];
    *item = (struct item){ arena_printf(&t->arena, "%s", id), json_integer_value(gold), n, t->n_score };
    for (int i = 0; i < n; i++)
        t->chars[t->n_score++] = characters(contexts ? cont : text[i]);
    if (!contexts)
        return add_question(t, prompt, ctx, text, n, e);
    for (int i = 0; i < n; i++)
        if (add_question(t, prompt, text[i], &cont, 1, e))
            return -1;
    return 0;
}

/* ---- results ---------------------------------------------------------------------------- */

/* Index of the largest score, or score per character; the first of equals. */
static int64_t best(const struct task *t, const struct item *it, bool norm)
{
    int64_t at = 0;
    double top = -INFINITY;
    for (int64_t i = 0; i < it->n; i++) {
        double s = t->score[it->first_score + i], c = (double)t->chars[it->first_score + i];
        s = norm ? s / (c > 0 ? c : 1) : s;
        if (s > top) {
            top = s;
            at = i;
        }
    }
    return at;
}

static int write_item(const struct task *t, const char *name, const struct item *it, struct err *e)
{
    json_t *ll = json_array();
    for (int64_t i = 0; i < it->n; i++)
        json_array_append_new(ll, json_real(t->score[it->first_score + i]));
    json_t *o = json_pack("{sosssIsIsIso}", "task", json_path(name), "id", it->id, "gold", (json_int_t)it->gold, "choice",
                          (json_int_t)best(t, it, false), "choice_norm", (json_int_t)best(t, it, true), "ll", ll);
    char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
    int rc = !line ? err_nomem(e, "result of an item", 256)
                   : outfile_write(t->o->items, line, strlen(line), e) || outfile_write(t->o->items, "\n", 1, e) ? -1 : 0;
    free(line); /* from jansson */
    json_decref(o);
    return rc;
}

/* Of a share p of n: the standard error of the mean, as lm-evaluation-harness estimates it. */
static double share_err(double p, int64_t n)
{
    return n > 1 ? sqrt(p * (1 - p) / (double)(n - 1)) : 0;
}

static int results(const struct task *t, const char *name, struct task_result *r, struct err *e)
{
    int64_t right = 0, right_norm = 0;
    for (int64_t i = 0; i < t->n; i++) {
        const struct item *it = &t->items[i];
        int64_t done = 0;
        while (done < it->n && isfinite(t->score[it->first_score + done]))
            done++;
        if (done < it->n && r->interrupted)
            continue;
        if (done < it->n)
            return err_set(e, ERR_NUMERIC, "%s: item %s: the model's prediction is not finite", t->path, it->id);
        r->n++;
        right += best(t, it, false) == it->gold;
        right_norm += best(t, it, true) == it->gold;
        if (t->o->items && write_item(t, name, it, e))
            return -1;
    }
    if (!r->n)
        return err_set(e, ERR_CANCELLED, "cancelled during %s", name);
    r->acc = (double)right / (double)r->n;
    r->acc_norm = (double)right_norm / (double)r->n;
    r->acc_err = share_err(r->acc, r->n);
    r->acc_norm_err = share_err(r->acc_norm, r->n);
    return 0;
}

static int load(struct task *t, bool mmlu, struct err *e)
{
    if (mmlu) {
        const char *slash = strrchr(t->path, '/');
        char *path = arena_printf(&t->arena, "%.*smmlu_fewshot.jsonl", slash ? (int)(slash - t->path) + 1 : 0, t->path);
        t->examples = json_object();
        if (!path || !t->examples)
            return err_nomem(e, t->path, 256);
        if (each_line(t, path, add_example, 0, e))
            return -1;
    }
    if (each_line(t, t->path, add_item, t->o->limit, e))
        return -1;
    if (!t->n)
        return err_set(e, ERR_FORMAT, "%s: no items", t->path);
    t->score = arena_alloc(&t->arena, (size_t)t->n_score, sizeof *t->score);
    if (!t->score)
        return err_nomem(e, t->path, (size_t)t->n_score * sizeof *t->score);
    int64_t at = 0;
    for (int64_t i = 0; i < t->n_q; i++) { /* questions and scores were added in one order */
        t->q[i].logp = t->score + at;
        at += t->q[i].n;
    }
    return 0;
}

int task_check(const char *name, const char *path, const struct task_options *o, struct err *e)
{
    if (o->shots && o->shots != 5)
        return err_set(e, ERR_USAGE, "shots: expected 0 or 5, found %d", o->shots);
    if (o->shots && strcmp(name, "mmlu"))
        return err_set(e, ERR_USAGE, "%s: only mmlu has examples for --shots", path);
    return access(path, R_OK) ? err_errno(e, "%s", path) : 0;
}

int task_run(const struct model *m, const char *name, const char *path, const struct task_options *o, const struct log *log,
             struct task_result *r, struct err *e)
{
    struct task t = { .path = path, .m = m, .o = o };
    double t0 = log_now();
    memset(r, 0, sizeof *r);
    if (model_whole(m, e) || task_check(name, path, o, e))
        return -1;
    if (!m->tok)
        return err_set(e, ERR_UNSUPPORTED, "%s: has no tokenizer, which tasks need", m->ck->path);
    arena_init(&t.arena);
    int rc = load(&t, !strcmp(name, "mmlu"), e) || choice_score(m, t.q, t.n_q, log, name, &r->interrupted, e) || results(&t, name, r, e) ? -1 : 0;
    for (int64_t i = 0; i < t.n_q; i++)
        r->tokens += t.q[i].n_ctx + t.q[i].start[t.q[i].n] - t.q[i].n;
    r->seconds = log_now() - t0;
    json_decref(t.examples);
    mem_free(t.items);
    mem_free(t.q);
    mem_free(t.chars);
    mem_free(t.scratch.ids);
    arena_release(&t.arena);
    return rc;
}
