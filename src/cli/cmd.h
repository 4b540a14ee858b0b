/* cmd: the commands. Rows of commands.def. */
#ifndef D2Q_CLI_CMD_H
#define D2Q_CLI_CMD_H

#include "cli/opt.h"

#define COMMAND(name, operands, help, examples) int cmd_##name(const struct opt_spec *spec, int argc, char **argv);
#include "cli/commands.def"
#undef COMMAND

/* One per cmd_*.c. */
#define COMMAND(name, operands, help, examples) extern const struct opt cmd_##name##_opts[];
#include "cli/commands.def"
#undef COMMAND

struct command {
    struct opt_spec spec;
    int (*run)(const struct opt_spec *spec, int argc, char **argv);
};
extern const struct command command_table[];
extern const int command_count;

#endif
