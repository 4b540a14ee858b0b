#include "export/verify.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/json.h"
#include "base/par.h"
#include "export/weights.h"

#define SUM_LEN 64
#define CHECKSUMS_MAX ((size_t)256 << 20)
#define FAILURES_MAX 100 /* more say nothing new */

/* One tensor of either container. */
struct part {
    const char *name;
    const void *data;
    size_t size;
    bool is_float; /* t can be read as numbers */
    struct tensor t;
};

static size_t count_parts(const struct checkpoint *c)
{
    return c->container == CONTAINER_GGUF ? (size_t)c->gguf.n_tensors : c->n_entries;
}

static void part_at(const struct checkpoint *c, size_t i, struct part *p)
{
    struct tensor *t = &p->t;
    if (c->container == CONTAINER_GGUF) {
        *t = c->gguf.tensors[i];
        *p = (struct part){ t->name, t->data, t->size, t->type != DT_COUNT, *t };
        return;
    }
    const struct st_entry *en = &c->entries[i];
    *p = (struct part){ .name = en->name, .data = en->data, .size = en->size };
    p->is_float = en->n_dims > 0 && checkpoint_tensor(c, en->name, t, NULL) > 0;
}

/* ---- checksums ------------------------------------------------------------------- */

/* "SHA256  NAME" of every part into {name: sum}. */
static int gguf_sums(const struct checkpoint *c, json_t *sums, struct err *e)
{
    for (const struct gguf_sums *s = c->gguf.sums; s; s = s->next) {
        struct gguf_iter it = { s->kv, s->kv->data, 0 };
        if (s->kv->type != GGUF_ARRAY || s->kv->elem != GGUF_STRING)
            return err_set(e, ERR_FORMAT, "%s: key " GGUF_SUMS ": expected an array of strings", c->path);
        for (uint64_t i = 0; i < s->kv->n; i++) {
            struct gguf_str t = gguf_iter_str(&it);
            if (t.n < SUM_LEN + 3 || t.p[SUM_LEN] != ' ' || t.p[SUM_LEN + 1] != ' ' ||
                json_object_setn_new(sums, t.p + SUM_LEN + 2, t.n - SUM_LEN - 2, json_stringn(t.p, SUM_LEN)))
                return err_set(e, ERR_FORMAT, "%s: key " GGUF_SUMS ", string %llu: expected a SHA-256 and the name of a tensor", c->path,
                               (unsigned long long)i);
        }
    }
    return 0;
}

/* The checksums that came with c: *tensors and *files, objects; both NULL: there are none. */
static int load_sums(const struct checkpoint *c, json_t **tensors, json_t **files, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    *tensors = *files = NULL;
    if (c->container == CONTAINER_GGUF) {
        if (!c->gguf.sums)
            return 0;
        *tensors = json_object();
        *files = json_object();
        return !*tensors || !*files ? err_nomem(e, c->path, 64) : gguf_sums(c, *tensors, e);
    }
    int rc = checkpoint_file(c, CHECKSUMS_FILE, &text, &n, e);
    if (rc <= 0)
        return rc;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    mem_free(text);
    *tensors = json_incref(json_object_get(root, "tensors"));
    *files = json_incref(json_object_get(root, "files"));
    json_decref(root);
    return json_is_object(*tensors) && json_is_object(*files)
               ? 0 : err_set(e, ERR_FORMAT, "%s/" CHECKSUMS_FILE ": expected objects \"tensors\" and \"files\"", c->path);
}

/* NULL: as it was written; else why not, in buf. */
static const char *sum_differs(const struct checkpoint *c, const struct part *p, const json_t *sums, char *buf, size_t cap)
{
    const char *want = json_string_value(json_object_get(sums, p->name));
    char hex[SUM_LEN + 1];
    if (!want)
        return "no checksum of it was left: it was added after writing";
    checkpoint_sha256(c, p->data, p->size, hex);
    if (!strcmp(hex, want))
        return NULL;
    snprintf(buf, cap, "its bytes changed after writing: SHA-256 expected %.16s..., found %.16s...", want, hex);
    return buf;
}

int verify_checksums(const struct checkpoint *c, struct err *e)
{
    json_t *sums, *files;
    struct part p;
    char buf[160];
    int rc = load_sums(c, &sums, &files, e);
    for (size_t i = 0; !rc && sums && i < count_parts(c); i++) {
        part_at(c, i, &p);
        const char *why = sum_differs(c, &p, sums, buf, sizeof buf);
        if (why)
            rc = err_set(e, ERR_IO, "%s: tensor %s: %s", c->path, p.name, why);
    }
    json_decref(sums);
    json_decref(files);
    return rc;
}

/* Weight files are covered tensor by tensor; README.md, the card, is the user's to edit. */
static bool is_summed(const char *dir, const char *name)
{
    char path[4096];
    struct stat st;
    size_t n = strlen(name), k = strlen(".safetensors");
    return name[0] != '.' && strcmp(name, CHECKSUMS_FILE) && strcmp(name, "README.md") && (n < k || strcmp(name + n - k, ".safetensors")) &&
           (size_t)snprintf(path, sizeof path, "%s/%s", dir, name) < sizeof path && !stat(path, &st) && S_ISREG(st.st_mode);
}

/* By name: a folder's own order differs from run to run. */
static int sum_files(const char *dir, json_t *files, struct err *e)
{
    char path[4096], hex[SUM_LEN + 1];
    struct dirent **list;
    int n = scandir(dir, &list, NULL, alphasort), rc = n < 0 ? err_errno(e, "%s: cannot list", dir) : 0;
    for (int i = 0; i < n; i++) {
        const char *name = list[i]->d_name;
        if (!rc && is_summed(dir, name)) {
            snprintf(path, sizeof path, "%s/%s", dir, name);
            rc = file_sha256(path, hex, e);
            if (!rc && json_object_set_new(files, name, json_string(hex)))
                rc = err_nomem(e, CHECKSUMS_FILE, 64);
        }
        free(list[i]); /* from libc */
    }
    if (n >= 0)
        free(list);
    return rc;
}

int checksums_write(const char *dir, struct err *e)
{
    struct checkpoint *c = NULL;
    struct part p;
    char hex[SUM_LEN + 1];
    json_t *tensors = json_object(), *files = json_object();
    int rc = !tensors || !files ? err_nomem(e, CHECKSUMS_FILE, 64) : checkpoint_open(&c, dir, e) || sum_files(dir, files, e) ? -1 : 0;
    for (size_t i = 0; !rc && i < count_parts(c); i++) {
        part_at(c, i, &p);
        checkpoint_sha256(c, p.data, p.size, hex);
        if (json_object_set_new(tensors, p.name, json_string(hex)))
            rc = err_nomem(e, CHECKSUMS_FILE, 64);
    }
    json_t *root = rc ? NULL : json_pack("{sOsO}", "tensors", tensors, "files", files);
    if (!rc)
        rc = root ? json_write(dir, CHECKSUMS_FILE, root, e) : err_nomem(e, CHECKSUMS_FILE, 64);
    json_decref(root);
    json_decref(tensors);
    json_decref(files);
    checkpoint_free(c);
    return rc;
}

/* model.safetensors, model-00001-of-00003.safetensors */
static bool is_weights(const char *name)
{
    int at = -1, part, of;
    return !strcmp(name, "model.safetensors") || (sscanf(name, "model-%5d-of-%5d.safetensors%n", &part, &of, &at) == 2 && at > 0 && !name[at]);
}

/* Is it one that d2q writes into a folder, `files` being the list of checksums? */
static bool is_ours(const char *name, const json_t *files)
{
    return !strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, CHECKSUMS_FILE) || !strcmp(name, "README.md") || is_weights(name) ||
           json_object_get(files, name);
}

int checksums_foreign(const char *dir, char *out, size_t cap, struct err *e)
{
    char path[4096], *text = NULL;
    size_t n = 0;
    if ((size_t)snprintf(path, sizeof path, "%s/" CHECKSUMS_FILE, dir) >= sizeof path || file_read(path, CHECKSUMS_MAX, &text, &n, e))
        return -1;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL), *files = json_object_get(root, "files");
    DIR *d = opendir(dir);
    const struct dirent *ent;
    int found = 0;
    while (d && !found && (ent = readdir(d))) {
        const char *name = ent->d_name;
        found = !is_ours(name, files);
        snprintf(out, cap, "%s", name);
    }
    if (d)
        closedir(d);
    mem_free(text);
    json_decref(root);
    return found;
}

/* ---- all of it ---------------------------------------------------------------------- */

struct check {
    const struct checkpoint *c;
    json_t *failures, *sums, *files;
    int64_t n_sums, n_files;
};

static int fail(struct check *k, const char *name, const char *why, struct err *e)
{
    if (json_array_size(k->failures) >= FAILURES_MAX)
        return 0;
    return json_array_append_new(k->failures, json_pack("{soso}", "tensor", json_path(name), "why", json_path(why))) ? err_nomem(e, "report", 64) : 0;
}

struct finite_job {
    const struct tensor *t;
    float *scratch; /* a row for each worker */
    uint8_t *bad;   /* a byte for each row */
};

bool verify_row_finite(const struct tensor *t, int64_t row, float *x)
{
    int64_t cols = tensor_cols(t), k = 0;
    tensor_rows_f32(t, row, 1, x);
    while (k < cols && isfinite(x[k]))
        k++;
    return k == cols;
}

static void finite_item(void *ctx, size_t i, int worker)
{
    const struct finite_job *j = ctx;
    j->bad[i] = !verify_row_finite(j->t, (int64_t)i, j->scratch + worker * tensor_cols(j->t));
}

/* *row: the first with a value that is no number, or -1. */
static int first_bad_row(const struct tensor *t, int64_t *row, struct err *e)
{
    size_t rows = (size_t)tensor_rows(t), cols = (size_t)tensor_cols(t);
    struct finite_job j = { t, mem_alloc((size_t)par_threads() * cols, sizeof(float)), mem_alloc(rows + 1, 1) };
    int rc = !j.scratch || !j.bad ? err_nomem(e, t->name, rows + cols * sizeof(float)) : 0;
    if (!rc) {
        par_for(rows, finite_item, &j);
        const uint8_t *p = memchr(j.bad, 1, rows);
        *row = p ? p - j.bad : -1;
    }
    mem_free(j.scratch);
    mem_free(j.bad);
    return rc;
}

static int check_part(struct check *k, const struct part *p, struct err *e)
{
    char buf[160];
    const char *why = k->sums ? sum_differs(k->c, p, k->sums, buf, sizeof buf) : NULL;
    int64_t row = -1;
    k->n_sums += k->sums != NULL;
    if (why)
        return fail(k, p->name, why, e);
    if (p->is_float && first_bad_row(&p->t, &row, e))
        return -1;
    if (row < 0)
        return 0;
    snprintf(buf, sizeof buf, "row %lld has a value that is not finite", (long long)row);
    return fail(k, p->name, buf, e);
}

/* Checksums of what is not there; files that are not, or that changed. */
static int check_rest(struct check *k, struct err *e)
{
    const char *name;
    json_t *v;
    struct tensor t;
    json_object_foreach(k->sums, name, v) {
        bool there = k->c->container == CONTAINER_GGUF ? checkpoint_tensor(k->c, name, &t, NULL) != 0 : checkpoint_entry(k->c, name) != NULL;
        if (!there && fail(k, name, "is missing: its checksum is there", e))
            return -1;
    }
    json_object_foreach(k->files, name, v) {
        char path[4096], hex[SUM_LEN + 1];
        struct err why = { 0 };
        k->n_files++;
        if (strchr(name, '/') || (size_t)snprintf(path, sizeof path, "%s/%s", k->c->path, name) >= sizeof path) {
            if (fail(k, name, "is no plain name of a file", e))
                return -1;
            continue;
        }
        if (file_sha256(path, hex, &why)) {
            if (why.code == ERR_MEMORY)
                return err_set(e, why.code, "%s", why.msg);
            if (fail(k, name, why.msg, e))
                return -1;
        } else if (!json_is_string(v) || strcmp(hex, json_string_value(v))) {
            if (fail(k, name, "the file changed after writing", e))
                return -1;
        }
    }
    return 0;
}

/* Files beside those recorded, which a loader might take (a chat template, a tokenizer); what begins with a dot nothing does. */
static int check_new(struct check *k, struct err *e)
{
    DIR *d = k->files ? opendir(k->c->path) : NULL;
    const struct dirent *ent;
    int rc = 0;
    while (d && !rc && (ent = readdir(d)))
        if (*ent->d_name != '.' && !is_ours(ent->d_name, k->files))
            rc = fail(k, ent->d_name, "is new: it has no checksum", e);
    if (d)
        closedir(d);
    return rc;
}

/* As a model: configuration, names, shapes, tokenizer. One of another family is not judged. */
static int check_model(struct check *k, struct err *e)
{
    struct model *m = NULL;
    struct err why = { 0 };
    int rc = model_open(&m, k->c->path, &why);
    model_free(m);
    if (!rc || why.code == ERR_UNSUPPORTED)
        return 0;
    return why.code == ERR_MEMORY ? err_set(e, why.code, "%s", why.msg) : fail(k, "", why.msg, e);
}

static int check_all(struct check *k, const struct log *log, struct err *e)
{
    struct part p;
    double done = 0;
    for (size_t i = 0; i < count_parts(k->c); i++) {
        part_at(k->c, i, &p);
        done += (double)p.size;
        if (check_part(k, &p, e) || log_progress(log, "checking", done, (double)k->c->data_bytes, e))
            return -1;
        checkpoint_forget(k->c, p.data, p.size);
    }
    return check_rest(k, e) || check_new(k, e) || check_model(k, e) ? -1 : 0;
}

int verify_model(const char *path, const struct log *log, json_t **report, struct err *e)
{
    struct checkpoint *c = NULL;
    struct check k = { 0 };
    if (checkpoint_open(&c, path, e))
        return -1;
    k.c = c;
    k.failures = json_array();
    int rc = !k.failures ? err_nomem(e, "report", 64) : load_sums(c, &k.sums, &k.files, e) || check_all(&k, log, e) ? -1 : 0;
    if (!rc) {
        *report = json_pack("{sosIsIsIsIsbsO}", "path", json_path(path), "tensors", (json_int_t)count_parts(c), "checksums", (json_int_t)k.n_sums,
                            "files", (json_int_t)k.n_files, "bytes", (json_int_t)c->data_bytes, "has_checksums", k.sums != NULL,
                            "failures", k.failures);
        rc = *report ? 0 : err_nomem(e, "report", 64);
    }
    json_decref(k.failures);
    json_decref(k.sums);
    json_decref(k.files);
    checkpoint_free(c);
    return rc;
}
