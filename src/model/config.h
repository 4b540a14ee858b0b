/* config: reading a Hugging Face config.json with errors that name the key.
 *
 * An absent key and a null are told apart only where transformers does. */
#ifndef D2Q_MODEL_CONFIG_H
#define D2Q_MODEL_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"

/* The value of key, or NULL when it is absent or null. */
const json_t *config_get(const json_t *config, const char *key);

/* Each leaves *v alone when the key is absent or null (set the default first), and fails
 * when it is present and of the wrong type or out of lo..hi. */
int config_int(const json_t *config, const char *key, int64_t lo, int64_t hi, int64_t *v, struct err *e);
int config_double(const json_t *config, const char *key, double *v, struct err *e);
int config_bool(const json_t *config, const char *key, bool *v, struct err *e);
/* *v is borrowed from config. */
int config_string(const json_t *config, const char *key, const char **v, struct err *e);

/* What all families share: sizes, norm epsilon, rope base, tying, activation. kv_default: key/value
 * heads when config does not say (0: as many as heads); transformers' classes differ in this. */
int config_common(const json_t *config, int64_t kv_default, struct hparams *hp, struct err *e);
/* ERR_UNSUPPORTED when use_sliding_window is true or layer_types names anything but full attention. */
int config_no_sliding(const json_t *config, struct err *e);

/* config.json's rope_parameters (transformers 5) or rope_scaling (4); NULL: neither. */
const json_t *config_rope(const json_t *config);

#endif
