/* guard: a mapped file that shrinks or whose disk fails kills a program by SIGBUS. The guard turns that into a message that names
 * the file, and exit status 1. */
#ifndef D2Q_CLI_GUARD_H
#define D2Q_CLI_GUARD_H

void guard_install(void);
/* Printed after that message (borrowed; NULL: nothing). */
void guard_hint(const char *work_dir);

#endif
