/* format hf: every matrix dequantized to float32, so that any program can check what we measured. */
#include "export/weights.h"

int hf_carries(const struct model *m, const struct export_options *o, const struct export_plan *p, struct err *e)
{
    struct export_biases b;
    json_t *config = export_config(m, "float32", o, p, &b, e);
    json_decref(config);
    return config ? 0 : -1;
}

int hf_write(const struct model *m, const char *dir, const struct export_options *o, const struct log *log,
             struct err *e)
{
    struct weights w = { .dtype = ST_F32 };
    json_t *config = export_config(m, "float32", o, NULL, &w.biases, e);
    int rc = !config || json_write(dir, "config.json", config, e) || weights_plan(&w, m, o->shard_bytes, e) ||
             weights_write(&w, dir, log, e) || weights_verify(&w, dir, log, e) ? -1 : 0;
    json_decref(config);
    weights_release(&w);
    return rc;
}
