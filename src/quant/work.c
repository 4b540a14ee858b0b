#include "quant/work.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "backend/backend.h"
#include "base/file.h"
#include "quant/block.h"

#define WORK_VERSION 4
#define DIGEST SHA256_DIGEST_SIZE
#define PATH_CAP 4200
#define RECIPE_MAX ((size_t)1 << 20)

static int path_of(const struct work *w, const char *name, char path[PATH_CAP], struct err *e)
{
    int n = snprintf(path, PATH_CAP, "%s/%s", w->dir, name);
    return n < 0 || n >= PATH_CAP ? err_set(e, ERR_USAGE, "%s: path is too long", w->dir) : 0;
}

/* ---- recipe ------------------------------------------------------------------------ */

static void hex(struct sha256_ctx *ctx, char out[2 * DIGEST + 1])
{
    uint8_t d[DIGEST];
    sha256_digest(ctx, sizeof d, d);
    for (size_t i = 0; i < sizeof d; i++)
        snprintf(out + 2 * i, 3, "%02x", d[i]);
}

#define PIECES 64
#define PIECE 1024

/* All of a small block of data, of a large one its size and PIECES pieces spread over it. */
static void add_data(struct sha256_ctx *ctx, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t size = n;
    sha256_update(ctx, sizeof size, (const uint8_t *)&size);
    if (!p)
        return;
    if (n <= (size_t)PIECES * PIECE) {
        sha256_update(ctx, n, p);
        return;
    }
    for (size_t i = 0; i < PIECES; i++)
        sha256_update(ctx, PIECE, p + (n - PIECE) / (PIECES - 1) * i);
}

/* Samples map far more than they read where the kernel keeps files in large pages. */
static void add_tensor(struct sha256_ctx *ctx, const struct model *m, const struct tensor *t)
{
    int64_t shape[4] = { t->type, t->dim[0], t->dim[1], t->perm_dim };
    sha256_update(ctx, sizeof shape, (const uint8_t *)shape);
    add_data(ctx, t->data, t->size);
    if (m->ck)
        checkpoint_forget(m->ck, t->data, t->size);
}

/* Where the model lies does not count; its configuration, norms, biases and samples of its matrices do. */
static void model_digest(const struct model *m, char out[2 * DIGEST + 1])
{
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    char *config = m->config ? json_dumps(m->config, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    add_data(&ctx, config, config ? strlen(config) : 0);
    free(config);
    add_tensor(&ctx, m, &m->tok_embd);
    add_tensor(&ctx, m, &m->lm_head);
    size_t d = (size_t)m->hp.n_embd * sizeof(float), h = (size_t)m->hp.head_dim * sizeof(float);
    add_data(&ctx, m->out_norm, d);
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        const struct layer *l = &m->layers[i];
        add_data(&ctx, l->attn_norm, d);
        add_data(&ctx, l->ffn_norm, d);
        add_data(&ctx, l->q_norm, h);
        add_data(&ctx, l->k_norm, h);
        for (int r = 0; r < ROLE_COUNT; r++) {
            add_tensor(&ctx, m, &l->lin[r].w);
            add_data(&ctx, l->lin[r].b, (size_t)tensor_rows(&l->lin[r].w) * sizeof(float));
        }
    }
    hex(&ctx, out);
}

/* Not on_failure: a run that was stopped by a bad matrix goes on under another rule. take_block asks whether what is there fits it. */
static json_t *options_json(const struct quant_options *o)
{
    json_t *keep = json_array(), *j;
    for (int i = 0; i < o->n_keep; i++)
        json_array_append_new(keep, json_sprintf("%s=%s", o->keep[i].pattern, grid_table[o->keep[i].grid].name));
    j = json_pack("{sssssisisisbsbsbsisb}", "method", method_table[o->method].name, "grid", grid_table[o->grid].name, "bits", o->bits,
                  "group", o->group, "zero_min", o->zero_min, "dsq", o->dsq, "dsq_norms", o->dsq_norms, "dsq_o", o->dsq_o, "dac", (int)o->dac,
                  "dac_accept", o->dac_accept);
    json_object_update_new(j, json_pack("{sfsfsfsfsisisisfsi}", "alpha", o->alpha, "beta", o->beta, "prop_damp", o->prop_damp, "shrink", o->shrink,
                                        "order", (int)o->order, "search", (int)o->search, "sweeps", o->sweeps, "damp", o->damp,
                                        "sinks", (int)o->sinks));
    json_object_set_new(j, "rotate", json_boolean(o->rotate));
    json_object_update_new(j, json_pack("{sisbsisisfssso}", "dsq_init", (int)o->dsq_init, "dsq_weighted", o->dsq_weighted,
                                        "dsq_rounds", o->dsq_rounds, "tune", o->tune, "tune_lr", o->tune_lr, "kept",
                                        o->kept_packed ? "packed" : dtype_table[o->kept].name, "keep", keep));
    return j;
}

json_t *work_recipe(const struct model *m, const struct quant_options *o, const struct calib *calib, const json_t *self,
                    const char *version)
{
    char digest[2 * DIGEST + 1];
    json_t *j = json_object(), *c = NULL;
    model_digest(m, digest);
    json_object_set_new(j, "model", json_string(digest));
    if (calib) {
        struct sha256_ctx ctx;
        sha256_init(&ctx);
        sha256_update(&ctx, (size_t)(calib->n + 1) * sizeof *calib->start, (const uint8_t *)calib->start);
        sha256_update(&ctx, (size_t)calib_tokens(calib) * sizeof *calib->ids, (const uint8_t *)calib->ids);
        hex(&ctx, digest);
        c = json_pack("{sIsIss}", "sequences", (json_int_t)calib->n, "tokens", (json_int_t)calib_tokens(calib), "sha256", digest);
        if (self)
            json_object_set_new(c, "self", json_deep_copy(self));
    } else if (self)
        c = json_deep_copy(self);
    json_object_set_new(j, "calibration", c ? c : json_null());
    json_object_set_new(j, "options", options_json(o));
    json_object_update_new(j, json_pack("{sissssss}", "work_version", WORK_VERSION, "version", version, "isa", backend_isa(),
                                        "blas", backend_blas()));
    return j;
}

static void difference(const char *name, const json_t *there, const json_t *now, char *out, size_t cap)
{
    char *a = there ? json_dumps(there, JSON_COMPACT | JSON_ENCODE_ANY) : NULL, *b = now ? json_dumps(now, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    size_t at = strlen(out);
    snprintf(out + at, cap - at, "%s%s: %.40s there, %.40s now", at ? "; " : "", name, a ? a : "nothing", b ? b : "nothing");
    free(a);
    free(b);
}

static void differences(const char *prefix, const json_t *old, const json_t *now, char *out, size_t cap)
{
    const char *key;
    json_t *v;
    char name[96];
    json_object_foreach((json_t *)(uintptr_t)now, key, v) {
        const json_t *o = json_object_get(old, key);
        snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key);
        if (json_is_object(o) && json_is_object(v))
            differences(name, o, v, out, cap);
        else if (!json_equal(o, v))
            difference(name, o, v, out, cap);
    }
    json_object_foreach((json_t *)(uintptr_t)old, key, v) {
        snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key);
        if (!json_object_get(now, key))
            difference(name, v, NULL, out, cap);
    }
}

/* 1: *old (json_decref) is the recipe there, 0: there is none. A file of that name that no run wrote is refused. */
static int load_recipe(const char *path, json_t **old, struct err *e)
{
    char *text;
    size_t n;
    *old = NULL;
    if (!file_exists(path))
        return 0;
    if (file_read(path, RECIPE_MAX, &text, &n, e))
        return -1;
    *old = json_loadb(text, n, 0, NULL);
    mem_free(text);
    if (json_is_integer(json_object_get(*old, "work_version")))
        return 1;
    json_decref(*old);
    *old = NULL;
    return err_set(e, ERR_FORMAT, "%s: is not the recipe of a run; delete the folder, or name another one with --work", path);
}

static int compare_recipe(const struct work *w, const json_t *old, const json_t *recipe, struct err *e)
{
    /* through text as well: numbers are compared as they are printed */
    char diff[600] = "", *dump = json_dumps(recipe, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_t *now = dump ? json_loads(dump, 0, NULL) : NULL;
    free(dump);
    if (!now)
        return err_nomem(e, "recipe", 0);
    bool same = json_equal(old, now);
    if (!same)
        differences("", old, now, diff, sizeof diff);
    json_decref(now);
    return same ? 0
                : err_set(e, ERR_USAGE, "%s holds the work of another run (%s): repeat its command to go on with it, --fresh to "
                          "throw it away, or name another folder with --work", w->dir, diff);
}

static int save_recipe(const char *path, const json_t *recipe, struct err *e)
{
    struct outfile f;
    char *text = json_dumps(recipe, JSON_INDENT(1) | JSON_SORT_KEYS);
    if (!text)
        return err_nomem(e, "recipe", 0);
    int rc = outfile_open(&f, path, e);
    if (!rc) {
        rc = outfile_write(&f, text, strlen(text), e);
        if (rc)
            outfile_abort(&f);
        else
            rc = outfile_commit(&f, e);
    }
    free(text);
    return rc;
}

/* ---- the folder ---------------------------------------------------------------------- */

/* Files of work; the first WORTH are worth keeping. The recipe is the last, also to be deleted: no end of ours leaves others without it. */
static const char *const ours[] = { "block-[0-9]*.bin", "calib.bin", "state.bin", "recipe.json" };
#define OURS (sizeof ours / sizeof *ours)
#define WORTH 2

/* Has dir a file of the first n kinds? Its name in out (cap bytes; NULL: not asked for). */
static bool find_ours(const char *dir, size_t n, char *out, size_t cap)
{
    bool found = false;
    DIR *d = opendir(dir);
    struct dirent *ent;
    while (d && !found && (ent = readdir(d)))
        for (size_t i = 0; i < n && !found; i++) {
            found = !fnmatch(ours[i], ent->d_name, 0);
            if (found && out)
                snprintf(out, cap, "%s", ent->d_name);
        }
    if (d)
        closedir(d);
    return found;
}

enum sweep { SWEEP_ALL, SWEEP_TEMPORARY };

static int sweep(const char *dir, enum sweep what, struct err *e)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < OURS; i++) {
        char tmp[64];
        struct dirent *ent;
        DIR *d = opendir(dir);
        if (!d)
            return errno == ENOENT ? 0 : err_errno(e, "%s: cannot open", dir);
        snprintf(tmp, sizeof tmp, "%s.tmp-[0-9]*", ours[i]);
        while (!rc && (ent = readdir(d)))
            if ((!fnmatch(tmp, ent->d_name, 0) || (what == SWEEP_ALL && !fnmatch(ours[i], ent->d_name, 0))) &&
                unlinkat(dirfd(d), ent->d_name, 0) && errno != ENOENT)
                rc = err_errno(e, "%s/%s: cannot delete", dir, ent->d_name);
        closedir(d);
    }
    return rc;
}

static int lock(struct work *w, struct err *e)
{
    char path[PATH_CAP];
    if (path_of(w, "lock", path, e))
        return -1;
    w->lock = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    w->made_lock = w->lock >= 0;
    if (w->lock < 0 && errno == EEXIST)
        w->lock = open(path, O_RDWR | O_CLOEXEC);
    if (w->lock < 0)
        return err_errno(e, "%s: cannot create", path);
    if (!flock(w->lock, LOCK_EX | LOCK_NB))
        return 0;
    int why = errno;
    close(w->lock); /* not ours: work_close must leave the folder alone */
    w->lock = -1;
    errno = why;
    return errno == EWOULDBLOCK ? err_set(e, ERR_USAGE, "%s is in use by another run; name another folder with --work", w->dir)
                                : err_errno(e, "%s: cannot lock", path);
}

/* Locks the folder and looks whose it is. path: of the recipe; *old (json_decref) is the one there, NULL: there is none, and no file of
 * work. Files named as ours without one are somebody else's: refused. */
static int enter(struct work *w, char path[PATH_CAP], json_t **old, struct err *e)
{
    char name[256];
    *old = NULL;
    if (lock(w, e) || path_of(w, "recipe.json", path, e) || load_recipe(path, old, e) < 0)
        return -1;
    return *old || !find_ours(w->dir, OURS, name, sizeof name) ? 0
               : err_set(e, ERR_USAGE, "%s/%s: no run left it there (there is no recipe.json beside it), and a run would write over it; name "
                         "another folder with --work", w->dir, name);
}

int work_open(struct work *w, const char *dir, bool fresh, const json_t *recipe, struct err *e)
{
    char path[PATH_CAP];
    json_t *old = NULL;
    memset(w, 0, sizeof *w);
    w->lock = -1;
    w->dir = mem_strdup(dir);
    if (!w->dir)
        return err_nomem(e, dir, strlen(dir));
    int rc = mkdir(dir, 0777) && errno != EEXIST ? err_errno(e, "%s: cannot create the work folder", dir) : 0;
    rc = rc || enter(w, path, &old, e) || (old && !fresh && compare_recipe(w, old, recipe, e));
    w->entered = !rc;
    rc = rc || sweep(dir, fresh ? SWEEP_ALL : SWEEP_TEMPORARY, e) || ((fresh || !old) && save_recipe(path, recipe, e));
    json_decref(old);
    if (rc)
        work_close(w);
    return rc ? -1 : 0;
}

static int remove_lock(const struct work *w, struct err *e)
{
    char path[PATH_CAP];
    if (path_of(w, "lock", path, e))
        return -1;
    unlink(path);
    return rmdir(w->dir) && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST ? err_errno(e, "%s: cannot delete", w->dir) : 0;
}

void work_close(struct work *w)
{
    if (!w->dir)
        return;
    if (w->lock >= 0 && (w->entered ? !find_ours(w->dir, WORTH, NULL, 0) && !sweep(w->dir, SWEEP_ALL, NULL) : w->made_lock))
        remove_lock(w, NULL);
    if (w->lock >= 0)
        close(w->lock);
    mem_free(w->dir);
    memset(w, 0, sizeof *w);
    w->lock = -1;
}

int work_remove(const char *dir, struct err *e)
{
    char path[PATH_CAP];
    struct work w = { .dir = (char *)(uintptr_t)dir, .lock = -1 };
    json_t *old = NULL;
    if (!file_exists(dir))
        return 0;
    int rc = enter(&w, path, &old, e) || sweep(dir, SWEEP_ALL, e) ? -1 : 0;
    json_decref(old);
    if (w.lock < 0) /* a run goes on there, and removes it when it is done */
        return e->code == ERR_USAGE ? 0 : -1;
    if ((!rc || w.made_lock) && remove_lock(&w, rc ? NULL : e))
        rc = -1;
    close(w.lock);
    return rc;
}

/* ---- files with a checksum ------------------------------------------------------------- */

struct sink {
    struct outfile f;
    struct sha256_ctx sha;
    struct err *e;
    int rc;
};

static void put(struct sink *s, const void *p, size_t n)
{
    if (s->rc)
        return;
    sha256_update(&s->sha, n, p);
    s->rc = outfile_write(&s->f, p, n, s->e);
}

static void put_i64(struct sink *s, int64_t v)
{
    put(s, &v, sizeof v);
}

static int sink_open(struct sink *s, const struct work *w, const char *name, const char *magic, struct err *e)
{
    char path[PATH_CAP];
    sha256_init(&s->sha);
    s->e = e;
    s->rc = path_of(w, name, path, e) || outfile_open(&s->f, path, e) ? -1 : 0;
    if (s->rc)
        return -1;
    put(s, magic, 8);
    return 0;
}

static int sink_close(struct sink *s)
{
    uint8_t d[DIGEST];
    sha256_digest(&s->sha, sizeof d, d);
    if (!s->rc)
        s->rc = outfile_write(&s->f, d, sizeof d, s->e);
    if (s->rc)
        outfile_abort(&s->f);
    else
        s->rc = outfile_commit(&s->f, s->e);
    return s->rc;
}

/* 1: mapped, whole and unchanged, c behind the magic; 0: it is not. */
static int source_open(const struct work *w, const char *name, const char *magic, struct file_map *map, struct cursor *c,
                       const struct log *log)
{
    char path[PATH_CAP];
    uint8_t d[DIGEST];
    struct sha256_ctx sha;
    struct err why = { 0 };
    memset(map, 0, sizeof *map);
    if (path_of(w, name, path, &why) || !file_exists(path))
        return 0;
    if (file_map_open(map, path, &why)) {
        log_warn(log, "%s; its work is done again", why.msg);
        return 0;
    }
    if (map->size >= 8 + DIGEST && !memcmp(map->data, magic, 8)) {
        sha256_init(&sha);
        sha256_update(&sha, map->size - DIGEST, map->data);
        sha256_digest(&sha, sizeof d, d);
        cursor_init(c, map->data + 8, map->size - DIGEST - 8, map->path);
        if (!memcmp(d, map->data + map->size - DIGEST, DIGEST))
            return 1;
    }
    log_warn(log, "%s: is damaged; its work is done again", path);
    file_map_release(map);
    return 0;
}

static int take(struct cursor *c, void *to, size_t n, struct err *e)
{
    const uint8_t *p;
    if (cursor_take(c, n, &p, e))
        return -1;
    memcpy(to, p, n);
    return 0;
}

static int take_i64(struct cursor *c, int64_t *v, struct err *e)
{
    return take(c, v, sizeof *v, e);
}

static int unlike(const struct cursor *c, const char *what, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: %s is not that of this run; use --fresh", c->what, what);
}

/* ---- calibration tokens ----------------------------------------------------------------- */

int work_tokens_load(const struct work *w, int32_t **ids, size_t *n, struct err *e)
{
    struct file_map map;
    struct cursor c;
    *ids = NULL;
    if (!source_open(w, "calib.bin", "D2QWTOK1", &map, &c, NULL))
        return 0;
    *n = cursor_left(&c) / sizeof **ids;
    *ids = mem_alloc(*n ? *n : 1, sizeof **ids);
    int rc = *ids ? take(&c, *ids, *n * sizeof **ids, e) : err_nomem(e, "calibration tokens", *n * sizeof **ids);
    file_map_release(&map);
    return rc ? -1 : 1;
}

int work_tokens_save(const struct work *w, const int32_t *ids, size_t n, struct err *e)
{
    struct sink s;
    if (sink_open(&s, w, "calib.bin", "D2QWTOK1", e))
        return -1;
    put(&s, ids, n * sizeof *ids);
    return sink_close(&s);
}

/* ---- a block ------------------------------------------------------------------------------ */

static void put_linear(struct sink *s, const struct linear *l)
{
    const struct tensor *t = &l->w;
    put_i64(s, t->type);
    if (t->type == DT_QMAT) {
        const struct qmat *q = t->q;
        int64_t head[] = { q->bits, q->group, q->sym, q->g_idx != NULL };
        put(s, head, sizeof head);
        put(s, q->codes, (size_t)(q->n_out * q->row_words) * sizeof *q->codes);
        put(s, q->scale, (size_t)(q->n_out * q->n_groups) * sizeof *q->scale);
        put(s, q->zero, (size_t)(q->n_out * q->n_groups));
        if (q->g_idx)
            put(s, q->g_idx, (size_t)q->n_in * sizeof *q->g_idx);
    } else {
        put_i64(s, (int64_t)t->size);
        put(s, t->data, t->size);
    }
    put_i64(s, l->b != NULL);
    if (l->b)
        put(s, l->b, (size_t)tensor_rows(t) * sizeof *l->b);
}

static int take_qmat(struct cursor *c, struct arena *a, struct tensor *t, struct err *e)
{
    int64_t head[4];
    struct qmat *q = arena_alloc(a, 1, sizeof *q);
    if (!q)
        return err_nomem(e, t->name, sizeof *q);
    if (take(c, head, sizeof head, e))
        return -1;
    if (head[0] < 2 || head[0] > 8 || head[1] < 1 || head[1] > INT32_MAX) /* a group may be wider than the matrix */
        return unlike(c, t->name, e);
    if (qmat_init(q, a, t->dim[0], t->dim[1], (int)head[0], (int)head[1], head[2] != 0, e) ||
        take(c, q->codes, (size_t)(q->n_out * q->row_words) * sizeof *q->codes, e) ||
        take(c, q->scale, (size_t)(q->n_out * q->n_groups) * sizeof *q->scale, e) ||
        take(c, q->zero, (size_t)(q->n_out * q->n_groups), e))
        return -1;
    t->q = q;
    if (!head[3])
        return 0;
    q->g_idx = arena_alloc(a, (size_t)q->n_in, sizeof *q->g_idx);
    return q->g_idx ? take(c, q->g_idx, (size_t)q->n_in * sizeof *q->g_idx, e) : err_nomem(e, t->name, (size_t)q->n_in * 4);
}

static int take_linear(struct cursor *c, struct arena *a, struct linear *l, struct err *e)
{
    int64_t type, size, has_bias, n_out = tensor_rows(&l->w), n_in = tensor_cols(&l->w);
    struct tensor t = { .name = l->w.name, .n_dims = 2, .dim = { n_out, n_in, 1, 1 } };
    if (take_i64(c, &type, e))
        return -1;
    if (type < 0 || type > DT_QMAT)
        return unlike(c, t.name, e);
    t.type = (enum dtype)type;
    if (t.type == DT_QMAT) {
        if (take_qmat(c, a, &t, e))
            return -1;
    } else {
        if (take_i64(c, &size, e))
            return -1;
        if (size != tensor_bytes(t.type, n_out, n_in, t.name, e))
            return unlike(c, t.name, e);
        void *data = arena_alloc(a, (size_t)size, 1);
        if (!data)
            return err_nomem(e, t.name, (size_t)size);
        t.data = data;
        t.size = (size_t)size;
        if (take(c, data, t.size, e))
            return -1;
    }
    if (take_i64(c, &has_bias, e))
        return -1;
    float *b = has_bias ? arena_alloc(a, (size_t)n_out, sizeof *b) : NULL;
    if (has_bias && !b)
        return err_nomem(e, t.name, (size_t)n_out * sizeof *b);
    if (b && take(c, b, (size_t)n_out * sizeof *b, e))
        return -1;
    l->w = t;
    l->b = b;
    return 0;
}

static void block_name(int64_t index, char name[32])
{
    snprintf(name, 32, "block-%05lld.bin", (long long)index);
}

static int state_save(const struct work *w, const struct run *r, int64_t next, struct err *e)
{
    struct sink s;
    size_t bytes = (size_t)(r->n_tok * r->m->hp.n_embd) * sizeof(float);
    if (sink_open(&s, w, "state.bin", "D2QWHID1", e))
        return -1;
    put_i64(&s, next);
    put(&s, r->hq, bytes);
    if (r->hf)
        put(&s, r->hf, bytes);
    return sink_close(&s);
}

int work_block_save(const struct work *w, const struct run *r, int64_t index, struct err *e)
{
    struct sink s;
    char name[32];
    block_name(index, name);
    if (sink_open(&s, w, name, "D2QWBLK3", e))
        return -1;
    put_i64(&s, index);
    for (int i = 0; i < ROLE_COUNT; i++) {
        struct quant_tensor t = r->res->tensors[index * ROLE_COUNT + i];
        t.name = NULL;
        put(&s, &t, sizeof t);
        put_linear(&s, &r->m->layers[index].lin[i]);
    }
    put(&s, r->m->layers[index].attn_norm, (size_t)r->m->hp.n_embd * sizeof(float));
    put(&s, r->m->layers[index].ffn_norm, (size_t)r->m->hp.n_embd * sizeof(float));
    put(&s, &r->res->blocks[index], sizeof r->res->blocks[index]);
    if (sink_close(&s))
        return -1;
    return r->calib ? state_save(w, r, index + 1, e) : 0;
}

static int take_block(struct cursor *c, struct run *r, int64_t index, struct err *e)
{
    struct quant_result *res = r->res;
    int64_t i64;
    if (take_i64(c, &i64, e))
        return -1;
    if (i64 != index)
        return unlike(c, "its number", e);
    for (int i = 0; i < ROLE_COUNT; i++) {
        struct quant_tensor *t = &res->tensors[index * ROLE_COUNT + i];
        if (take(c, t, sizeof *t, e) || take_linear(c, &r->m->arena, &r->m->layers[index].lin[i], e))
            return -1;
        t->type[sizeof t->type - 1] = '\0';
        t->name = arena_printf(&res->arena, "model.layers.%lld.%s.weight", (long long)index, role_hf_name[i]);
        if (!t->name)
            return err_nomem(e, "results", 0);
        t->fallback[sizeof t->fallback - 1] = '\0';
        static const char *const rules[] = { "", "rtn", "keep" };
        if (t->fallback[0] && strcmp(t->fallback, rules[r->o->on_failure]))
            return err_set(e, ERR_USAGE, "%s: %s fell back by --on-failure %s there: give the same rule, or --fresh", c->what, t->name, t->fallback);
    }
    res->n_tensors += ROLE_COUNT;
    int64_t d = r->m->hp.n_embd;
    float *norms = arena_alloc(&r->m->arena, (size_t)(2 * d), sizeof *norms);
    if (!norms)
        return err_nomem(e, "norms", (size_t)(2 * d) * sizeof *norms);
    if (take(c, norms, (size_t)(2 * d) * sizeof *norms, e))
        return -1;
    r->m->layers[index].attn_norm = norms;
    r->m->layers[index].ffn_norm = norms + d;
    return take(c, &res->blocks[index], sizeof res->blocks[index], e);
}

/* ---- going on -------------------------------------------------------------------------------- */

/* Is every block before n there and whole? Asked before any is taken over. */
static int64_t whole_blocks(const struct work *w, int64_t n, const struct log *log)
{
    for (int64_t i = 0; i < n; i++) {
        struct file_map map;
        struct cursor c;
        char name[32];
        block_name(i, name);
        if (!source_open(w, name, "D2QWBLK3", &map, &c, log))
            return i;
        file_map_release(&map);
    }
    return n;
}

/* *next: the block whose inputs state.bin holds, now r's; 0 without a whole state and every block before it. */
static int state_load(const struct work *w, struct run *r, int64_t *next, struct err *e)
{
    struct file_map map;
    struct cursor c;
    int64_t at = 0;
    size_t bytes = (size_t)(r->n_tok * r->m->hp.n_embd) * sizeof(float);
    *next = 0;
    if (!source_open(w, "state.bin", "D2QWHID1", &map, &c, r->log))
        return 0;
    int rc = take_i64(&c, &at, e);
    if (!rc && (at < 1 || at > r->m->hp.n_layer || cursor_left(&c) != bytes * (r->hf ? 2 : 1)))
        rc = unlike(&c, "its size", e);
    if (!rc && whole_blocks(w, at, r->log) == at) {
        rc = take(&c, r->hq, bytes, e) || (r->hf && take(&c, r->hf, bytes, e)) ? -1 : 0;
        *next = at;
    }
    file_map_release(&map);
    return rc;
}

int work_restore(struct work *w, struct run *r, struct err *e)
{
    int64_t n = r->m->hp.n_layer, next;
    w->done = 0;
    if (!r->calib)
        next = whole_blocks(w, n, r->log);
    else if (state_load(w, r, &next, e))
        return -1;
    for (int64_t i = 0; i < next; i++) {
        struct file_map map;
        struct cursor c;
        char name[32];
        block_name(i, name);
        if (!source_open(w, name, "D2QWBLK3", &map, &c, r->log))
            return err_set(e, ERR_IO, "%s/%s: changed while it was read", w->dir, name);
        int rc = take_block(&c, r, i, e);
        file_map_release(&map);
        if (rc)
            return -1;
    }
    w->done = next;
    if (next)
        log_info(r->log, "going on from %s: %lld of %lld blocks are done", w->dir, (long long)next, (long long)n);
    return 0;
}

uint64_t work_bytes(const struct model *m, const struct quant_options *o, int64_t calib_tokens)
{
    struct quant_plan p;
    quant_plan(m, o, calib_tokens, calib_tokens ? 1 : 0, &p);
    uint64_t state = method_table[o->method].needs_calib
                         ? (uint64_t)(calib_tokens * m->hp.n_embd) * sizeof(float) * (quant_float_path(o) ? 2 : 1) : 0;
    uint64_t spilled = o->spill ? p.quantized_bytes + p.kept_bytes + p.states_bytes : 0;
    return p.quantized_bytes + 2 * state + (uint64_t)calib_tokens * sizeof(int32_t) + spilled; /* the old state goes when the new is whole */
}
