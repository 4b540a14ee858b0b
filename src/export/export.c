/* export: the table, what the formats share (config.json, biases, side files), and the folder as a whole. */
#include "export/export.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export/gguf_out.h"
#include "export/verify.h"
#include "export/weights.h"
#include "model/family.h"

const struct exporter exporter_table[] = {
#define EXPORTER(name, file, help) { #name, help, file, name##_carries, name##_write },
#include "export/exporters.def"
#undef EXPORTER
};

const int exporter_count = (int)(sizeof exporter_table / sizeof *exporter_table);

const struct exporter *exporter_by_name(const char *name, struct err *e)
{
    char list[256] = "";
    for (int i = 0; i < exporter_count; i++) {
        if (!strcmp(exporter_table[i].name, name))
            return &exporter_table[i];
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", exporter_table[i].name);
    }
    err_set(e, ERR_USAGE, "format \"%s\": expected one of %s", name, list);
    return NULL;
}

/* ---- what the formats share ---------------------------------------------------- */

void matrix_pattern(char *out, size_t cap, const char *prefix, int64_t i)
{
    char name[128];
    matrix_name(name, sizeof name, i, "");
    size_t k = (size_t)snprintf(out, cap, "%s", prefix);
    for (const char *p = name; *p && k + 3 < cap; p++) {
        if (*p == '.')
            out[k++] = '\\';
        out[k++] = *p;
    }
    snprintf(out + k, cap - k, "$");
}

int json_write(const char *dir, const char *name, const json_t *o, struct err *e)
{
    char path[4096];
    struct outfile out;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return err_set(e, ERR_USAGE, "%s: path is too long", dir);
    char *text = json_dumps(o, JSON_INDENT(2));
    if (!text)
        return err_nomem(e, path, 4096);
    int rc = outfile_open(&out, path, e);
    if (!rc) {
        rc = outfile_write(&out, text, strlen(text), e) || outfile_write(&out, "\n", 1, e);
        if (rc)
            outfile_abort(&out);
        else
            rc = outfile_commit(&out, e);
    }
    free(text); /* from jansson */
    return rc ? -1 : 0;
}

/* Does any block have a bias among roles a..b? */
static bool has_bias(const struct model *m, enum role a, enum role b)
{
    for (int64_t l = 0; l < m->hp.n_layer; l++)
        for (int r = (int)a; r <= (int)b; r++)
            if (m->layers[l].lin[r].b)
                return true;
    return false;
}

/* Sets what config says of biases so that it covers *b, and reads back what the family makes of it: the
 * families differ in which keys they heed, and their own parsers know. */
static int settle_biases(json_t *c, struct export_biases *b, struct err *e)
{
    const struct family *f = family_by_hf(c, e);
    struct hparams hp = { 0 };
    if (!f || f->hparams(c, &hp, e))
        return -1;
    int rc = 0;
    if ((b->qkv && !hp.qkv_bias) || (b->o && !hp.o_bias))
        rc = json_object_set_new(c, "attention_bias", json_true());
    if (b->mlp && !hp.mlp_bias)
        rc = rc || json_object_set_new(c, "mlp_bias", json_true());
    if (rc)
        return err_nomem(e, "config.json", 4096);
    memset(&hp, 0, sizeof hp);
    if (f->hparams(c, &hp, e))
        return -1;
    *b = (struct export_biases){ hp.qkv_bias, hp.o_bias, hp.mlp_bias };
    if (!hp.mlp_bias && json_is_true(json_object_get(c, "mlp_bias")))
        json_object_del(c, "mlp_bias"); /* not heeded: it would mislead */
    return 0;
}

/* Llama's graph is that of Mistral without a window and of Qwen2: only the names in config.json differ, and the
 * defaults of what it leaves out. So those are written, and the result is compared as the family reads it. */
static int rename_to_llama(const struct model *m, json_t *c, struct err *e)
{
    const struct hparams *a = &m->hp;
    const struct family *llama = family_by_name("llama");
    struct hparams b = { 0 };
    if (a->qk_norm || a->window)
        return err_set(e, ERR_UNSUPPORTED, "a %s model with %s is no Llama model: --as-llama cannot apply", a->family,
                       a->qk_norm ? "norms of q and k" : "a sliding window");
    int rc = json_object_set_new(c, "architectures", json_pack("[s]", llama->hf_arch)) ||
             json_object_set_new(c, "model_type", json_string(llama->hf_type)) ||
             json_object_set_new(c, "num_key_value_heads", json_integer(a->n_head_kv)) ||
             json_object_set_new(c, "head_dim", json_integer(a->head_dim)) ||
             (!json_object_get(c, "rms_norm_eps") &&
              json_object_set_new(c, "rms_norm_eps", json_real((double)a->rms_eps))) ||
             (!json_object_get(c, "rope_parameters") && !json_object_get(c, "rope_theta") &&
              json_object_set_new(c, "rope_theta", json_real(a->rope_base)));
    if (rc)
        return err_nomem(e, "config.json", 4096);
    const char *foreign[] = { "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "auto_map" };
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        json_object_del(c, foreign[i]);
    if (llama->hparams(c, &b, e))
        return -1;
    if (a->n_vocab != b.n_vocab || a->n_embd != b.n_embd || a->n_layer != b.n_layer || a->n_head != b.n_head ||
        a->n_head_kv != b.n_head_kv || a->head_dim != b.head_dim || a->n_ff != b.n_ff || a->n_ctx != b.n_ctx ||
        a->rms_eps != b.rms_eps || a->rope_base != b.rope_base || a->tied != b.tied || b.qk_norm || b.window)
        return err_set(e, ERR_UNSUPPORTED, "config.json of this %s model means something else when it is read as "
                       "Llama: --as-llama cannot apply", a->family);
    return 0;
}

json_t *export_config(const struct model *m, const char *dtype, const struct export_options *o,
                      const struct export_plan *plan, struct export_biases *b, struct err *e)
{
    const struct export_biases need = { has_bias(m, ROLE_Q, ROLE_V), has_bias(m, ROLE_O, ROLE_O),
                                        has_bias(m, ROLE_GATE, ROLE_DOWN) || (plan && plan->mlp_bias) };
    json_t *c = json_deep_copy(m->config);
    int rc = !c;
    if (!rc) {
        json_object_del(c, "quantization_config");
        /* the key's old name for transformers before 4.56, its new one for those after */
        rc = json_object_set_new(c, "torch_dtype", json_string(dtype)) ||
             json_object_set_new(c, "dtype", json_string(dtype)) ||
             json_object_set_new(c, "tie_word_embeddings", json_boolean(m->hp.tied));
    }
    *b = need;
    if (rc)
        err_nomem(e, "config.json", 4096);
    else
        rc = (o->as_llama && rename_to_llama(m, c, e)) || settle_biases(c, b, e) ? -1 : 0;
    if (!rc && ((need.qkv && !b->qkv) || (need.o && !b->o)))
        rc = err_set(e, ERR_UNSUPPORTED, "the attention has biases that the family %s has no place for in transformers",
                     m->hp.family);
    if (!rc && need.mlp && !b->mlp && !(o->drop_corrections && !m->hp.mlp_bias))
        rc = err_set(e, ERR_UNSUPPORTED, "biases of gate_proj and up_proj (DAC) have no place in the family %s in "
                     "transformers, where they would be dropped without a word: quantize with --dac off, or leave "
                     "them out with --drop-corrections%s", m->hp.family,
                     m->hp.qk_norm || m->hp.window ? "" : ", or write it --as-llama");
    if (rc) {
        json_decref(c);
        return NULL;
    }
    return c;
}

/* ---- the folder ------------------------------------------------------------------ */

static int write_generation_config(const struct model *m, const char *dir, struct err *e)
{
    if (m->ck && m->ck->generation_config)
        return json_write(dir, "generation_config.json", m->ck->generation_config, e);
    json_t *g = json_object();
    const char *keys[] = { "bos_token_id", "eos_token_id", "pad_token_id" };
    int rc = !g;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !rc; i++) {
        json_t *v = json_object_get(m->config, keys[i]);
        if (v && !json_is_null(v))
            rc = json_object_set(g, keys[i], v);
    }
    rc = rc ? err_nomem(e, "generation_config.json", 256) : json_write(dir, "generation_config.json", g, e);
    json_decref(g);
    return rc;
}

static bool same_file(const char *path, const struct stat *a)
{
    struct stat b;
    return !stat(path, &b) && a->st_dev == b.st_dev && a->st_ino == b.st_ino;
}

/* Is this file one that the model is read from, or the folder of one? */
static bool is_source(const struct model *m, const struct stat *a)
{
    const struct checkpoint *ck = m->ck;
    if (!ck)
        return false;
    bool found = same_file(ck->path, a);
    for (int i = 0; i < ck->n_shards + ck->gguf.n_maps && !found; i++) {
        const char *path = i < ck->n_shards ? ck->shards[i].map.path : ck->gguf.maps[i - ck->n_shards].path, *slash = strrchr(path, '/');
        char dir[4096];
        int n = snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
        found = same_file(path, a) || ((size_t)n < sizeof dir && same_file(dir, a));
    }
    return found;
}

/* Replacing removes what was there, so it must be what we write, and not what we read. */
static int check_target(const struct model *m, const char *out_dir, struct err *e)
{
    struct stat a;
    char path[4096], foreign[256];
    int n = 0;
    if (stat(out_dir, &a))
        return lstat(out_dir, &a) ? 0 : err_set(e, ERR_USAGE, "%s: is a link to nothing", out_dir);
    DIR *d = opendir(out_dir);
    struct dirent *ent;
    if (!d)
        return err_errno(e, "%s: exists, but cannot be replaced by a folder", out_dir);
    while ((ent = readdir(d)))
        n += strcmp(ent->d_name, ".") && strcmp(ent->d_name, "..");
    closedir(d);
    if ((size_t)snprintf(path, sizeof path, "%s/" CHECKSUMS_FILE, out_dir) >= sizeof path)
        return err_set(e, ERR_USAGE, "%s: path is too long", out_dir);
    if (is_source(m, &a))
        return err_set(e, ERR_USAGE, "%s: is the folder that the model is read from; it is not replaced", out_dir);
    if (n && !file_exists(path))
        return err_set(e, ERR_USAGE, "%s: exists, is not empty and holds no model that d2q wrote (no " CHECKSUMS_FILE "); it is not replaced",
                       out_dir);
    n = n ? checksums_foreign(out_dir, foreign, sizeof foreign, e) : 0;
    return n > 0 ? err_set(e, ERR_USAGE, "%s: holds %s, which d2q did not write; it is not replaced", out_dir, foreign) : n;
}

static uint64_t folder_bytes(const char *dir)
{
    char path[4096];
    struct stat st;
    uint64_t sum = 0;
    DIR *d = opendir(dir);
    struct dirent *ent;
    while (d && (ent = readdir(d)))
        if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, ent->d_name) < sizeof path && !stat(path, &st) &&
            S_ISREG(st.st_mode))
            sum += (uint64_t)st.st_size;
    if (d)
        closedir(d);
    return sum;
}

static void warn_dropped(const struct model *m, const struct export_options *o, const char *out_dir,
                         const struct log *log)
{
    struct export_biases b = { false, false, true };
    json_decref(export_config(m, "float32", o, NULL, &b, NULL));
    if (!b.mlp && has_bias(m, ROLE_GATE, ROLE_DOWN))
        log_warn(log, "%s: the corrections (DAC) are left out: the family %s has no place for them", out_dir,
                 m->hp.family);
}

int export_needs_f16(const char *format, const struct export_plan *p, struct err *e)
{
    if (p && p->embd_blocks)
        return err_set(e, ERR_UNSUPPORTED, "format %s: embeddings and head are stored as f16, not as blocks of a GGUF type", format);
    if (p && p->not_f16)
        return err_set(e, ERR_UNSUPPORTED, "format %s: %s: floats are stored as f16; --keep it in f16, or write format hf or gguf", format, p->not_f16);
    return 0;
}

int export_check(const struct model *m, const char *format, const struct export_options *o,
                 const struct export_plan *plan, struct err *e)
{
    static const struct export_options defaults;
    const struct exporter *x = exporter_by_name(format, e);
    return !x || x->carries(m, o ? o : &defaults, plan, e) || (!x->file && m->ck && tokenizer_check_hf(m->ck, e)) ? -1 : 0;
}

static int check_file(const struct model *m, const char *path, struct err *e)
{
    struct stat a;
    char magic[4] = { 0 };
    if (stat(path, &a))
        return 0;
    if (!S_ISREG(a.st_mode))
        return err_set(e, ERR_USAGE, "%s: exists and is no file; it is not replaced", path);
    if (is_source(m, &a))
        return err_set(e, ERR_USAGE, "%s: is a file that the model is read from; it is not replaced", path);
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(magic, 1, sizeof magic, f) : 0;
    if (f)
        fclose(f);
    if (a.st_size && (n < sizeof magic || memcmp(magic, "GGUF", sizeof magic)))
        return err_set(e, ERR_USAGE, "%s: exists and is no GGUF file; it is not replaced", path);
    return 0;
}

/* What a writer left under the temporary name: one file, or the parts of a split one; 0 files: nothing. */
static int count_parts(const char *tmp)
{
    char name[4096];
    if (file_exists(tmp))
        return 1;
    for (int n = 2; n < 100000; n++)
        if (!gguf_part_name(tmp, 0, n, name, sizeof name) && file_exists(name))
            return n;
    return 0;
}

/* Beside a file: NAME.md for NAME.gguf. */
static int card_name(const char *path, char *out, size_t cap, struct err *e)
{
    size_t n = strlen(path), end = n > 5 && !strcmp(path + n - 5, ".gguf") ? n - 5 : n;
    return (size_t)snprintf(out, cap, "%.*s.md", (int)end, path) < cap ? 0 : err_set(e, ERR_USAGE, "%s: path is too long", path);
}

/* A card that lies beside the file must be one of ours (its tags say so). */
static int check_card(const char *file, struct err *e)
{
    char text[512] = "", path[4096];
    if (card_name(file, path, sizeof path, e))
        return -1;
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    return !n || strstr(text, "- d2quant\n") ? 0
                  : err_set(e, ERR_USAGE, "%s: exists and is no model card of d2q's; the file's card is not written over it", path);
}

int export_opens(const char *path, int files, char *out, size_t cap)
{
    return gguf_part_name(path, 0, files, out, cap);
}

int export_target(const struct model *m, const char *format, const char *path, struct err *e)
{
    const struct exporter *x = exporter_by_name(format, e);
    char parent[4096], real[PATH_MAX];
    const char *last = file_name(path);
    if (!x)
        return -1;
    if (!*path || !strcmp(last, ".") || !strcmp(last, "..") || (x->file && !*last))
        return err_set(e, ERR_USAGE, "'%s': expected the name of a file or folder to write", path);
    if ((x->file ? check_file : check_target)(m, path, e) || (x->file && check_card(path, e)))
        return -1;
    path = file_folder(path, real);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n && path[n - 1] != '/')
        n--;
    if ((size_t)snprintf(parent, sizeof parent, "%.*s", n ? (int)n : 1, n ? path : ".") >= sizeof parent)
        return err_set(e, ERR_USAGE, "%s: path is too long", path);
    return access(parent, W_OK | X_OK) ? err_errno(e, "%s: cannot be written: folder %s", path, parent) : 0;
}

static int part_bytes(const char *tmp, int n, uint64_t *bytes, struct err *e)
{
    char name[4096];
    struct stat st;
    *bytes = 0;
    for (int i = 0; i < n; i++) {
        if (gguf_part_name(tmp, i, n, name, sizeof name))
            return err_set(e, ERR_USAGE, "%s: path is too long", tmp);
        if (stat(name, &st))
            return err_errno(e, "%s", name);
        *bytes += (uint64_t)st.st_size;
    }
    return 0;
}

/* Parts get their final names last to first, so that the first, which readers open, appears when all are there; an older first
 * part goes before, since readers would take new parts behind it for its own. */
static int finish_parts(const struct model *m, const char *tmp, const char *path, int n, struct err *e)
{
    char from[4096], to[4096];
    for (int i = 0; i < n && n > 1; i++) {
        if (gguf_part_name(path, i, n, to, sizeof to))
            return err_set(e, ERR_USAGE, "%s: path is too long", path);
        if (check_file(m, to, e))
            return -1;
    }
    if (n > 1 && !gguf_part_name(path, 0, n, to, sizeof to) && unlink(to) && errno != ENOENT)
        return err_errno(e, "%s: cannot be replaced", to);
    for (int i = n - 1; i >= 0; i--) {
        if (gguf_part_name(tmp, i, n, from, sizeof from) || gguf_part_name(path, i, n, to, sizeof to))
            return err_set(e, ERR_USAGE, "%s: path is too long", path);
        if (file_move(from, to, e))
            return -1;
    }
    return 0;
}

static int export_file(const struct exporter *x, const struct model *m, const char *path, const struct export_options *o,
                       const struct log *log, uint64_t *bytes, struct err *e)
{
    char tmp[4096], name[4096], card[4096], card_tmp[4096];
    uint64_t total = 0;
    if ((size_t)snprintf(tmp, sizeof tmp, "%s.unverified-%ld", path, (long)getpid()) >= sizeof tmp)
        return err_set(e, ERR_USAGE, "%s: path is too long", path);
    if (check_file(m, path, e) || card_name(path, card, sizeof card, e) || card_name(tmp, card_tmp, sizeof card_tmp, e) ||
        (o->card && check_card(path, e)))
        return -1;
    file_sweep(path);
    int rc = x->write(m, tmp, o, log, e), n = rc ? 0 : count_parts(tmp);
    rc = rc || part_bytes(tmp, n, &total, e) || (m->ck && checkpoint_check(m->ck, e)) || (o->card && o->card(o->card_ud, card_tmp, total, e)) ||
         finish_parts(m, tmp, path, n, e) ? -1 : 0;
    if (!rc && o->card && file_move(card_tmp, card, e))
        rc = err_prefix(e, "%s: is in place, but not its model card", path);
    if (rc) {
        unlink(tmp);
        unlink(card_tmp);
        for (int i = 0, k = count_parts(tmp); k > 1 && i < k; i++)
            if (!gguf_part_name(tmp, i, k, name, sizeof name))
                unlink(name);
        return -1;
    }
    if (n > 1)
        unlink(path); /* an older whole one, which would be taken for the result */
    if (bytes)
        *bytes = total;
    if (o->files)
        *o->files = n;
    return 0;
}

int export_model(const struct model *m, const char *format, const char *out_dir, const struct export_options *o,
                 const struct log *log, uint64_t *bytes, struct err *e)
{
    static const struct export_options defaults;
    struct outdir out;
    o = o ? o : &defaults;
    const struct exporter *x = exporter_by_name(format, e);
    if (!x || model_whole(m, e) || x->carries(m, o, NULL, e))
        return -1;
    if (x->file)
        return export_file(x, m, out_dir, o, log, bytes, e);
    if (export_target(m, format, out_dir, e))
        return -1;
    if (outdir_open(&out, out_dir, e))
        return -1;
    warn_dropped(m, o, out_dir, log);
    int rc = x->write(m, out.tmp, o, log, e) || write_generation_config(m, out.tmp, e) ||
             ((m->tok || (m->ck && m->ck->container == CONTAINER_HF)) && tokenizer_write_hf(m->tok, m->ck, out.tmp, e)) || checksums_write(out.tmp, e) ||
             (m->ck && checkpoint_check(m->ck, e)) ? -1 : 0;
    uint64_t total = folder_bytes(out.tmp);
    char card[4096];
    if (!rc && o->card)
        rc = (size_t)snprintf(card, sizeof card, "%s/README.md", out.tmp) >= sizeof card
                 ? err_set(e, ERR_USAGE, "%s: path is too long", out_dir) : o->card(o->card_ud, card, total, e);
    if (rc) {
        outdir_abort(&out);
        return -1;
    }
    if (!m->tok)
        log_warn(log, "%s: the model has no tokenizer that d2q reads; what files of one there are were copied", out_dir);
    if (outdir_commit(&out, e))
        return -1;
    if (bytes)
        *bytes = total;
    return 0;
}
