#include "export/card.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"

static int add_input(json_t *list, const char *what, const char *path, const char *hex, struct err *e)
{
    json_t *row = json_pack("{ssssss}", "what", what, "file", file_name(path), "sha256", hex);
    return json_array_append_new(list, row ? row : json_pack("{ssssss}", "what", what, "file", "?", "sha256", hex)) /* not UTF-8 */
               ? err_nomem(e, path, strlen(hex)) : 0;
}

/* Of what was read, whatever bears its name by now. */
static int add_map(json_t *list, const struct checkpoint *c, const struct file_map *m, struct err *e)
{
    char hex[65];
    checkpoint_sha256(c, m->data, m->size, hex);
    return add_input(list, "weights", m->path, hex, e);
}

static int add_calib(json_t *list, const char *path, struct err *e)
{
    char hex[65] = "no longer there";
    if (file_exists(path) && file_sha256(path, hex, e))
        return -1;
    return add_input(list, "calibration text", path, hex, e);
}

json_t *card_inputs(const struct model *m, const char *calib, struct err *e)
{
    const struct checkpoint *ck = m->ck;
    json_t *list = json_array();
    int rc = list ? 0 : err_nomem(e, "inputs", 64);
    for (int i = 0; !rc && i < ck->gguf.n_maps; i++)
        rc = add_map(list, ck, &ck->gguf.maps[i], e);
    for (int i = 0; !rc && i < ck->n_shards; i++)
        rc = add_map(list, ck, &ck->shards[i].map, e);
    if (!rc && calib && strcmp(calib, "self"))
        rc = add_calib(list, calib, e);
    if (!rc)
        return list;
    json_decref(list);
    return NULL;
}

static void inputs(const struct card *c, struct text *t)
{
    const char *calib = json_string_value(json_object_get(json_object_get(c->meta, "options"), "calib"));
    const json_t *row;
    size_t i;
    text_add(t, "\n## Made from\n\n| | file | SHA-256 |\n| --- | --- | --- |\n");
    json_array_foreach(c->inputs, i, row)
        text_add(t, "| %s | `%s` | `%s` |\n", json_string_value(json_object_get(row, "what")),
                 json_string_value(json_object_get(row, "file")), json_string_value(json_object_get(row, "sha256")));
    if (calib && !strcmp(calib, "self"))
        text_add(t, "\nCalibrated on text that the float model generated itself.\n");
}

static void recipe(const json_t *options, struct text *t)
{
    const char *key;
    json_t *v;
    text_add(t, "\n## Recipe\n\n| option | value |\n| --- | --- |\n");
    json_object_foreach((json_t *)(uintptr_t)options, key, v) {
        char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        text_add(t, "| %s | `%s` |\n", key, json_is_string(v) ? json_string_value(v) : text ? text : "");
        free(text);
    }
}

static void loads(const struct card *c, struct text *t)
{
    const json_t *row;
    size_t i;
    text_add(t, "\n## What loads it\n\n| runtime | | how | known from |\n| --- | --- | --- | --- |\n");
    json_array_foreach(c->loads, i, row) {
        const char *condition = json_string_value(json_object_get(row, "condition"));
        bool ok = json_is_true(json_object_get(row, "loads"));
        text_add(t, "| %s | %s%s%s | %s | %s: %s |\n", json_string_value(json_object_get(row, "runtime")), ok ? "yes" : "no",
                *condition ? ": " : "", condition, json_string_value(json_object_get(row, "how")),
                json_is_true(json_object_get(row, "run_here")) ? "run here" : "from source, not run",
                json_string_value(json_object_get(row, "source")));
    }
    text_add(t, "\n`d2q run`, `d2q eval` read it too.\n");
}

static void body(const struct card *c, struct text *t)
{
    const json_t *options = json_object_get(c->meta, "options");
    const char *from = c->m->ck->name, *method = json_string_value(json_object_get(options, "method"));
    const char *grid = json_string_value(json_object_get(options, "grid"));
    json_t *name = json_path(from);
    char *quoted = json_dumps(name, JSON_ENCODE_ANY); /* YAML takes it */
    text_add(t, "---\nbase_model: %s\ntags:\n- d2quant\n- quantized\n- %s\n", quoted ? quoted : "unknown", c->format);
    free(quoted);
    json_decref(name);
    if (strcmp(c->format, "gguf"))
        text_add(t, "library_name: transformers\n");
    text_add(t, "---\n\n# %s, quantized\n\n", from);
    if (c->bpw > 0)
        text_add(t, "%.3f bits a weight in the blocks", c->bpw);
    if (method)
        text_add(t, ", method %s, grid %s", method, grid ? grid : "-");
    text_add(t, "; format %s, %.1f MB in all.\nWritten by d2quant %s; every tensor was read back and compared.\n\n"
            "## Command\n\n```\n%s\n```\n", c->format, (double)c->bytes / 1e6, D2Q_VERSION, c->command);
    inputs(c, t);
    if (options)
        recipe(options, t);
    loads(c, t);
}

int card_write(const struct card *c, const char *path, struct err *e)
{
    struct text t = { 0 };
    struct outfile out;
    body(c, &t);
    int rc = t.failed ? err_nomem(e, path, t.n) : 0;
    if (!rc && !(rc = outfile_open(&out, path, e))) {
        if (outfile_write(&out, t.p, t.n, e)) {
            outfile_abort(&out);
            rc = -1;
        } else {
            rc = outfile_commit(&out, e);
        }
    }
    text_release(&t);
    return rc;
}
