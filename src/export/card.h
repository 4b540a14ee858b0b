/* card: the model card beside an output (README.md of a folder, NAME.md of a file): what it is, how to make it again, what
 * loads it. Front matter as Hugging Face reads it. */
#ifndef D2Q_EXPORT_CARD_H
#define D2Q_EXPORT_CARD_H

#include "export/export.h"

struct card {
    const struct model *m;
    const char *format;
    const char *command;    /* the command line */
    const json_t *meta;     /* {"options", "backend", ...}, or NULL */
    const json_t *loads;    /* of loads_list */
    const json_t *inputs;   /* of card_inputs */
    double bpw;             /* of the quantized weights */
    uint64_t bytes;
};

/* What the weights came from: [{"what", "file", "sha256"}], by reading it once more. calib: a text file, "self" or NULL. */
json_t *card_inputs(const struct model *m, const char *calib, struct err *e);
int card_write(const struct card *c, const char *path, struct err *e);

#endif
