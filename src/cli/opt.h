/* opt: command lines from tables.
 *
 * A command has one array of struct opt; parsing, validation and --help all come from it. An option writes to its
 * offset in the command's arguments, which the command fills with defaults first (the library's own, so
 * that help shows what is true). Every arguments struct begins with struct common. */
#ifndef D2Q_CLI_OPT_H
#define D2Q_CLI_OPT_H

#include <stddef.h>

enum opt_type {
    OPT_FLAG,   /* int, becomes 1; takes no value */
    OPT_INT,    /* int */
    OPT_I64,    /* int64_t */
    OPT_U64,    /* uint64_t */
    OPT_NUM,    /* double */
    OPT_STR,    /* const char * */
    OPT_ONOFF,  /* int, "on" or "off" */
    OPT_PAIR,   /* double[2], "A,B" or "off" (0,0) */
    OPT_SIZE,   /* uint64_t bytes: "500MiB", "4GB", "1000000" */
    OPT_STRS,   /* struct opt_list; may be given several times */
};

#define OPT_LIST_MAX 64
struct opt_list {
    int n;
    const char *v[OPT_LIST_MAX];
};

struct opt {
    const char *name;    /* without dashes; NULL ends the array */
    char letter;         /* short form, or 0 */
    enum opt_type type;
    size_t offset;
    const char *arg;     /* its value's name in help; NULL: the choices */
    const char *choices; /* "a|b", "@methods" for a table of the library, or NULL */
    double min, max;     /* numbers */
    const char *help;
    const char *preset;  /* what help calls the default; NULL: printed from the arguments */
};

struct common {
    int threads, quiet, json, help;
    const char *model;    /* the operand */
    struct opt_list more; /* the operands after it, where a command's name several ("...") */
};

struct opt_spec {
    const char *command, *operands, *help; /* operands with "...": several models */
    const char *examples; /* lines, see commands.def */
    const struct opt *opts;
};

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_WRONG_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* Parses argv (without the program's and the command's names) into args, applies the common options.
 * -1: go on; otherwise the exit status (help was printed to stdout, or an error to stderr). */
int opt_parse(const struct opt_spec *s, int argc, char **argv, void *args);
/* Can a file get the name that option --name was given (NULL: it was not)? Asked before work whose result goes there: -1, or the exit status. */
int opt_out_file(const struct opt_spec *s, const char *name, const char *path);
void opt_help(const struct opt_spec *s, const void *args);

#define OPT_MAX 64
#define OPT_VALUE_MAX 512
/* The command's own options, then the common ones; the number of them. */
int opt_all(const struct opt_spec *s, const struct opt *out[OPT_MAX]);
/* What stands for its value in help: a name, or its choices with | between; "" of a flag. */
void opt_value(const struct opt *o, char *out, size_t cap);
/* The value that args holds for it, as a user would write it; "" when there is none. */
void opt_default(const struct opt *o, const void *args, char *out, size_t cap);
/* Prints "d2q COMMAND: error: ..." and returns EXIT_WRONG_USAGE. */
int opt_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The name in a NULL-terminated list that `word` may have been meant to be; NULL: none is near. */
const char *opt_nearest(const char *word, const char *const *names);

#endif
