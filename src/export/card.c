#include "export/card.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/file.h"

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int file_line(FILE *f, const char *what, const char *path, struct err *e)
{
    char hex[65];
    if (file_sha256(path, hex, e))
        return -1;
    fprintf(f, "| %s | `%s` | `%s` |\n", what, base_name(path), hex);
    return 0;
}

/* The files that the weights came from, and the calibration text. */
static int inputs(const struct card *c, FILE *f, struct err *e)
{
    const struct checkpoint *ck = c->m->ck;
    const char *calib = json_string_value(json_object_get(json_object_get(c->meta, "options"), "calib"));
    fprintf(f, "\n## Made from\n\n| | file | SHA-256 |\n| --- | --- | --- |\n");
    for (int i = 0; i < ck->gguf.n_maps; i++)
        if (file_line(f, "weights", ck->gguf.maps[i].path, e))
            return -1;
    for (int i = 0; i < ck->n_shards; i++)
        if (file_line(f, "weights", ck->shards[i].map.path, e))
            return -1;
    if (calib && strcmp(calib, "self"))
        return file_line(f, "calibration text", calib, e);
    if (calib)
        fprintf(f, "\nCalibrated on text that the float model generated itself.\n");
    return 0;
}

static void recipe(const json_t *options, FILE *f)
{
    const char *key;
    json_t *v;
    fprintf(f, "\n## Recipe\n\n| option | value |\n| --- | --- |\n");
    json_object_foreach((json_t *)(uintptr_t)options, key, v) {
        char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        fprintf(f, "| %s | `%s` |\n", key, json_is_string(v) ? json_string_value(v) : text ? text : "");
        free(text);
    }
}

static void loads(const struct card *c, FILE *f)
{
    const json_t *row;
    size_t i;
    fprintf(f, "\n## What loads it\n\n| runtime | | how | known from |\n| --- | --- | --- | --- |\n");
    json_array_foreach(c->loads, i, row) {
        const char *condition = json_string_value(json_object_get(row, "condition"));
        bool ok = json_is_true(json_object_get(row, "loads"));
        fprintf(f, "| %s | %s%s%s | %s | %s: %s |\n", json_string_value(json_object_get(row, "runtime")), ok ? "yes" : "no",
                *condition ? ": " : "", condition, json_string_value(json_object_get(row, "how")),
                json_is_true(json_object_get(row, "run_here")) ? "run here" : "from source, not run",
                json_string_value(json_object_get(row, "source")));
    }
    fprintf(f, "\n`d2q run`, `d2q eval` read it too.\n");
}

static int body(const struct card *c, FILE *f, struct err *e)
{
    const json_t *options = json_object_get(c->meta, "options");
    const char *from = base_name(c->m->ck->path), *method = json_string_value(json_object_get(options, "method"));
    const char *grid = json_string_value(json_object_get(options, "grid"));
    fprintf(f, "---\nbase_model: %s\ntags:\n- d2quant\n- quantized\n- %s\n", from, c->format);
    if (strcmp(c->format, "gguf"))
        fprintf(f, "library_name: transformers\n");
    fprintf(f, "---\n\n# %s, quantized\n\n", from);
    if (c->bpw > 0)
        fprintf(f, "%.3f bits a weight in the blocks", c->bpw);
    if (method)
        fprintf(f, ", method %s, grid %s", method, grid ? grid : "-");
    fprintf(f, "; format %s, %.1f MB in all.\nWritten by d2quant %s; every tensor was read back and compared.\n\n"
            "## Command\n\n```\n%s\n```\n", c->format, (double)c->bytes / 1e6, D2Q_VERSION, c->command);
    if (inputs(c, f, e))
        return -1;
    if (options)
        recipe(options, f);
    loads(c, f);
    return 0;
}

int card_write(const struct card *c, const char *path, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    struct outfile out;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return err_nomem(e, path, 4096);
    int rc = body(c, f, e);
    if (fclose(f) && !rc)
        rc = err_nomem(e, path, n);
    if (!rc && !(rc = outfile_open(&out, path, e))) {
        if (outfile_write(&out, text, n, e)) {
            outfile_abort(&out);
            rc = -1;
        } else {
            rc = outfile_commit(&out, e);
        }
    }
    free(text); /* from open_memstream */
    return rc;
}
