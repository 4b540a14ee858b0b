/* checkpoint: opening a model on disk and finding things in it.
 *
 * A Hugging Face folder is config.json plus model.safetensors, or the shards that
 * model.safetensors.index.json names. Shard names come from a file we do not trust, so they must
 * be plain names within the folder, and links may not leave it (but to the Hub's blobs: its cache consists of links).
 * The index decides which shard a tensor is taken from; a tensor in a shard that the index does not
 * name does not exist. metadata.total_size is not looked at: many published files have it wrong,
 * and the shards are checked one by one. */
#include "io/checkpoint.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nettle/sha2.h>

#include "base/digest.h"
#include "base/json.h"

#define JSON_FILE_MAX (256u << 20) /* tokenizer.json of a large vocabulary has about 30 MB */
#define INDEX_FILE "model.safetensors.index.json"

/* ---- files of a folder -------------------------------------------------- */

static char *join(const struct checkpoint *c, const char *name)
{
    size_t n = strlen(c->path) + strlen(name) + 2;
    char *p = mem_alloc(n, 1);
    if (p)
        snprintf(p, n, "%s/%s", c->path, name);
    return p;
}

int checkpoint_file(const struct checkpoint *c, const char *name, char **text, size_t *n, struct err *e)
{
    if (c->container != CONTAINER_HF)
        return 0;
    char *path = join(c, name);
    if (!path)
        return err_nomem(e, name, strlen(name));
    int rc = 0;
    if (file_exists(path))
        rc = file_inside(c->path, path, e) || (text && file_read(path, JSON_FILE_MAX, text, n, e)) ? -1 : 1;
    mem_free(path);
    return rc;
}

/* A JSON object from a side file: 1 found, 0 absent, -1 error. */
static int read_object(const struct checkpoint *c, const char *name, json_t **out, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    int rc = checkpoint_file(c, name, &text, &n, e);
    if (rc <= 0)
        return rc;
    rc = json_from_text(text, n, out, e);
    mem_free(text);
    if (rc)
        return err_prefix(e, "%s/%s", c->path, name);
    if (json_is_object(*out))
        return 1;
    json_decref(*out);
    *out = NULL;
    return err_set(e, ERR_FORMAT, "%s/%s: expected a JSON object", c->path, name);
}

/* ---- Hugging Face folders ------------------------------------------------ */

static bool hf_probe(const char *path)
{
    return file_is_dir(path);
}

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_entry *)a)->name, ((const struct st_entry *)b)->name);
}

static const struct st_entry *find_entry(const struct st_entry *entries, size_t n, const char *name)
{
    struct st_entry key = { .name = name };
    return n ? bsearch(&key, entries, n, sizeof key, entry_by_name) : NULL;
}

static int open_shard(struct checkpoint *c, const char *name, struct st_file *f, struct err *e)
{
    char *path = join(c, name);
    if (!path)
        return err_nomem(e, name, strlen(name));
    int rc = file_inside(c->path, path, e) || st_open(f, path, e) ? -1 : 0;
    mem_free(path);
    return rc;
}

static int open_single(struct checkpoint *c, const char *name, struct err *e)
{
    c->shards = arena_zalloc(&c->arena, 1, sizeof *c->shards);
    if (!c->shards)
        return err_nomem(e, c->path, sizeof *c->shards);
    if (open_shard(c, name, &c->shards[0], e))
        return -1;
    c->n_shards = 1;
    c->entries = c->shards[0].entries;
    c->n_entries = c->shards[0].n;
    return 0;
}

/* The number of name in the shard list, or the first free one. */
static int shard_slot(const char *const *names, int n, const char *name)
{
    int i = 0;
    while (i < n && strcmp(names[i], name))
        i++;
    return i;
}

/* Opens each shard that weight_map names and takes from it the tensors it is named for. */
static int open_mapped(struct checkpoint *c, json_t *map, struct err *e)
{
    size_t n = json_object_size(map);
    const char **names = arena_alloc(&c->arena, n, sizeof *names);
    c->shards = arena_zalloc(&c->arena, n, sizeof *c->shards);
    c->entries = arena_alloc(&c->arena, n, sizeof *c->entries);
    if (!names || !c->shards || !c->entries)
        return err_nomem(e, c->path, n * sizeof *c->shards);
    const char *key;
    json_t *v;
    json_object_foreach(map, key, v) {
        const char *shard = json_string_value(v);
        if (!shard)
            return err_set(e, ERR_FORMAT, "%s/" INDEX_FILE ": expected the file of tensor %s to be a string",
                           c->path, key);
        if (!*shard || *shard == '.' || strchr(shard, '/') || strchr(shard, '\\'))
            return err_set(e, ERR_FORMAT, "%s/" INDEX_FILE ": tensor %s: expected the plain name of a file in the "
                           "folder, found \"%s\"", c->path, key, shard);
        int s = shard_slot(names, c->n_shards, shard);
        if (s == c->n_shards) {
            if (open_shard(c, shard, &c->shards[s], e))
                return -1;
            names[c->n_shards++] = shard;
        }
        const struct st_entry *en = find_entry(c->shards[s].entries, c->shards[s].n, key);
        if (!en)
            return err_set(e, ERR_FORMAT, "%s/%s: tensor %s is missing, which " INDEX_FILE " says is there",
                           c->path, shard, key);
        c->entries[c->n_entries++] = *en;
    }
    qsort(c->entries, c->n_entries, sizeof *c->entries, entry_by_name);
    return 0;
}

static int open_index(struct checkpoint *c, json_t *index, struct err *e)
{
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map))
        return err_set(e, ERR_FORMAT, "%s/" INDEX_FILE ": expected an object \"weight_map\"", c->path);
    return open_mapped(c, map, e);
}

/* The only *.safetensors file of the folder (AutoGPTQ: "gptq_model-4bit-128g.safetensors"); 1 found, 0 none
 * or several, -1 error. *name is allocated in the arena. */
static int only_safetensors(struct checkpoint *c, char **name, struct err *e)
{
    DIR *d = opendir(c->path);
    if (!d)
        return err_errno(e, "%s: cannot list", c->path);
    static const char ext[] = ".safetensors";
    int found = 0;
    struct dirent *ent;
    while ((ent = readdir(d))) {
        size_t n = strlen(ent->d_name);
        if (n < sizeof ext || strcmp(ent->d_name + n - (sizeof ext - 1), ext))
            continue;
        *name = arena_strdup(&c->arena, ent->d_name);
        found++;
    }
    closedir(d);
    if (found == 1 && !*name)
        return err_nomem(e, c->path, 256);
    return found == 1;
}

static int open_weights(struct checkpoint *c, struct err *e)
{
    char *single = join(c, "model.safetensors"), *name = NULL;
    if (!single)
        return err_nomem(e, c->path, strlen(c->path));
    bool exists = file_exists(single);
    mem_free(single);
    if (exists)
        return open_single(c, "model.safetensors", e);
    json_t *index = NULL;
    int rc = read_object(c, INDEX_FILE, &index, e);
    if (rc > 0)
        rc = open_index(c, index, e) ? -1 : 1;
    json_decref(index);
    if (rc == 0) {
        rc = only_safetensors(c, &name, e);
        if (rc > 0)
            rc = open_single(c, name, e) ? -1 : 1;
    }
    if (rc == 0)
        return err_set(e, ERR_FORMAT, "%s: expected model.safetensors or " INDEX_FILE " in the folder, found "
                       "neither (PyTorch .bin files are not read)", c->path);
    return rc < 0 ? -1 : 0;
}

static int hf_open(struct checkpoint *c, struct err *e)
{
    int rc = read_object(c, "config.json", &c->config, e);
    if (rc == 0)
        return err_set(e, ERR_FORMAT, "%s: expected config.json in the folder, found none", c->path);
    if (rc < 0 || read_object(c, "generation_config.json", &c->generation_config, e) < 0)
        return -1;
    json_t *quant = json_object_get(c->config, "quantization_config");
    if (quant && !json_is_null(quant)) {
        if (!json_is_object(quant))
            return err_set(e, ERR_FORMAT, "%s/config.json: expected \"quantization_config\" to be an object", c->path);
        c->quant_config = json_incref(quant);
    } else if (read_object(c, "quantize_config.json", &c->quant_config, e) < 0) {
        return -1;
    }
    if (open_weights(c, e))
        return -1;
    for (size_t i = 0; i < c->n_entries; i++)
        c->data_bytes += c->entries[i].size;
    return 0;
}

static int hf_tensor(const struct checkpoint *c, const char *name, struct tensor *t, struct err *e)
{
    const struct st_entry *en = checkpoint_entry(c, name);
    if (!en)
        return 0;
    enum dtype type = en->dtype == ST_F32 ? DT_F32 : en->dtype == ST_F16 ? DT_F16
                    : en->dtype == ST_BF16 ? DT_BF16 : DT_COUNT;
    if (type == DT_COUNT)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s: expected type F32, F16 or BF16, found %s", c->path, name,
                       en->dtype_name);
    *t = (struct tensor){ .name = en->name, .type = type, .n_dims = en->n_dims, .data = en->data, .size = en->size };
    memcpy(t->dim, en->dim, sizeof t->dim);
    return 1;
}

const struct st_entry *checkpoint_entry(const struct checkpoint *c, const char *name)
{
    return find_entry(c->entries, c->n_entries, name);
}

/* ---- GGUF files ----------------------------------------------------------- */

static bool gguf_file_probe(const char *path)
{
    char magic[4];
    size_t n = strlen(path);
    if (file_is_dir(path))
        return false;
    if (n > 5 && !strcmp(path + n - 5, ".gguf"))
        return true;
    return !file_head(path, magic, sizeof magic) && !memcmp(magic, "GGUF", sizeof magic);
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp((*(const struct tensor *const *)a)->name, (*(const struct tensor *const *)b)->name);
}

static int gguf_file_open(struct checkpoint *c, struct err *e)
{
    if (gguf_open(&c->gguf, c->path, e))
        return -1;
    uint64_t n = c->gguf.n_tensors;
    c->gguf_sorted = arena_alloc(&c->arena, n, sizeof *c->gguf_sorted);
    if (!c->gguf_sorted)
        return err_nomem(e, c->path, n * sizeof *c->gguf_sorted);
    for (uint64_t i = 0; i < n; i++) {
        c->gguf_sorted[i] = &c->gguf.tensors[i];
        c->data_bytes += c->gguf.tensors[i].size;
    }
    qsort(c->gguf_sorted, n, sizeof *c->gguf_sorted, tensor_by_name);
    return 0;
}

static int gguf_file_tensor(const struct checkpoint *c, const char *name, struct tensor *t, struct err *e)
{
    const struct tensor key = { .name = name }, *p = &key;
    const struct tensor **hit = c->gguf.n_tensors ? bsearch(&p, c->gguf_sorted, c->gguf.n_tensors,
                                                            sizeof *c->gguf_sorted, tensor_by_name) : NULL;
    if (!hit)
        return 0;
    *t = **hit;
    if (t->type == DT_COUNT)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s: ggml type %u is not supported", c->path, name,
                       (unsigned)c->gguf.ggml_type[*hit - c->gguf.tensors]);
    return 1;
}

/* ---- the table ------------------------------------------------------------- */

static const struct {
    const char *label;
    bool (*probe)(const char *path);
    int (*open)(struct checkpoint *c, struct err *e);
    int (*tensor)(const struct checkpoint *c, const char *name, struct tensor *t, struct err *e);
} containers[] = {
#define CONTAINER(id, label, prefix) [id] = { label, prefix##_probe, prefix##_open, prefix##_tensor },
#include "io/containers.def"
#undef CONTAINER
};

#define N_CONTAINERS (sizeof containers / sizeof *containers)

static int open_any(struct checkpoint *c, struct err *e)
{
    if (!file_exists(c->path))
        return err_set(e, ERR_IO, "%s: no such file or folder", c->path);
    for (size_t i = 0; i < N_CONTAINERS; i++)
        if (containers[i].probe(c->path)) {
            c->container = (enum container)i;
            return containers[i].open(c, e);
        }
    return err_set(e, ERR_FORMAT, "%s: expected %s or %s, found another kind of file", c->path,
                   containers[CONTAINER_HF].label, containers[CONTAINER_GGUF].label);
}

static int set_name(struct checkpoint *c, struct err *e)
{
    char real[PATH_MAX];
    const char *name = file_name(c->path);
    if ((!strcmp(name, ".") || !strcmp(name, "..")) && realpath(c->path, real))
        name = file_name(real);
    c->name = arena_strdup(&c->arena, name);
    return c->name ? 0 : err_nomem(e, c->path, strlen(name));
}

int checkpoint_open(struct checkpoint **out, const char *path, struct err *e)
{
    struct checkpoint *c = mem_zalloc(1, sizeof *c);
    if (!c)
        return err_nomem(e, path, sizeof *c);
    arena_init(&c->arena);
    c->path = mem_strdup(path);
    if (!c->path) {
        err_nomem(e, path, strlen(path));
        goto fail;
    }
    for (size_t n = strlen(c->path); n > 1 && c->path[n - 1] == '/'; n--)
        c->path[n - 1] = 0;
    if (set_name(c, e) || open_any(c, e))
        goto fail;
    *out = c;
    return 0;
fail:
    checkpoint_free(c);
    return -1;
}

void checkpoint_forget(const struct checkpoint *c, const void *data, size_t n)
{
    for (int i = 0; i < c->n_shards; i++)
        file_map_forget(&c->shards[i].map, data, n);
    for (int i = 0; i < c->gguf.n_maps; i++)
        file_map_forget(&c->gguf.maps[i], data, n);
}

void checkpoint_forget_rows(const struct checkpoint *c, const struct tensor *t, int64_t row0, int64_t n)
{
    size_t row = t->type == DT_QMAT ? 0 : t->size / (size_t)tensor_rows(t);
    if (c && row)
        checkpoint_forget(c, (const uint8_t *)t->data + (size_t)row0 * row, (size_t)n * row);
}

#define PIECE ((size_t)1 << 20)

void checkpoint_sha256(const struct checkpoint *c, const void *data, size_t n, char hex[65])
{
    const uint8_t *p = data;
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    for (size_t at = 0, k; at < n; at += k) {
        k = n - at < PIECE ? n - at : PIECE;
        sha256_update(&ctx, k, p + at);
        checkpoint_forget(c, p + at, k);
    }
    digest_hex(&ctx, hex);
}

int checkpoint_check(const struct checkpoint *c, struct err *e)
{
    for (int i = 0; i < c->n_shards; i++)
        if (file_map_check(&c->shards[i].map, e))
            return -1;
    for (int i = 0; i < c->gguf.n_maps; i++)
        if (file_map_check(&c->gguf.maps[i], e))
            return -1;
    return 0;
}

void checkpoint_free(struct checkpoint *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_shards; i++)
        st_release(&c->shards[i]);
    if (c->container == CONTAINER_GGUF)
        gguf_release(&c->gguf);
    json_decref(c->config);
    json_decref(c->generation_config);
    json_decref(c->quant_config);
    arena_release(&c->arena);
    mem_free(c->path);
    mem_free(c);
}

int checkpoint_tensor(const struct checkpoint *c, const char *name, struct tensor *t, struct err *e)
{
    return containers[c->container].tensor(c, name, t, e);
}
