/* manual: man pages and shell completion, from the tables of commands and options. All to stdout. */
#ifndef D2Q_CLI_MANUAL_H
#define D2Q_CLI_MANUAL_H

#include "cli/opt.h"

/* d2q(1), and d2q-COMMAND(1); args: the command's arguments with their defaults. */
void manual_main(void);
void manual_command(const struct opt_spec *s, const void *args);

/* "bash", "zsh" or "fish"; 0, or -1 for another. */
int completion(const char *shell);

#endif
