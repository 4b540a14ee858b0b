/* family: looking a model family up, by its Hugging Face or its GGUF name. */
#include "model/family.h"

#include <stdio.h>
#include <string.h>

#define FAMILY(name) extern const struct family family_##name;
#include "model/families.def"
#undef FAMILY

static const struct family *const table[] = {
#define FAMILY(name) &family_##name,
#include "model/families.def"
#undef FAMILY
};

#define N_FAMILIES (sizeof table / sizeof *table)

const struct family *family_by_name(const char *name)
{
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (!strcmp(table[i]->name, name))
            return table[i];
    return NULL;
}

const struct family *family_by_gguf(const char *arch)
{
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (!strcmp(table[i]->gguf_arch, arch))
            return table[i];
    return NULL;
}

const struct family *family_by_hf(const json_t *config, struct err *e)
{
    const char *arch = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const char *type = json_string_value(json_object_get(config, "model_type"));
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (arch ? !strcmp(table[i]->hf_arch, arch) : type && !strcmp(table[i]->hf_type, type))
            return table[i];
    if (!arch && !type) {
        err_set(e, ERR_FORMAT, "neither architectures nor model_type says what the model is");
        return NULL;
    }
    char known[256] = "";
    for (size_t i = 0, at = 0; i < N_FAMILIES && at < sizeof known; i++)
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", table[i]->hf_arch);
    err_set(e, ERR_UNSUPPORTED, "architecture %s is not supported (expected one of %s)",
            arch ? arch : type, known);
    return NULL;
}
