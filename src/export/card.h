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
    double bpw;             /* of the quantized weights */
    uint64_t bytes;
};

/* Reads the model's source files and the calibration text once more, for their SHA-256. */
int card_write(const struct card *c, const char *path, struct err *e);

#endif
