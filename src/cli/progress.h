/* progress: the library's log callback on stderr, and SIGINT.
 *
 * On a terminal one line is redrawn, with rate and time left; elsewhere plain lines, one every few seconds at most.
 * Warnings are always shown, the rest not with --quiet. */
#ifndef D2Q_CLI_PROGRESS_H
#define D2Q_CLI_PROGRESS_H

#include <signal.h>

struct progress {
    int quiet, tty;
    int drawn;       /* the redrawn line is on the screen */
    char kind[32];   /* first word of the step: its rate is counted by itself */
    double start, base; /* when the kind began, and at how much */
    double last;     /* when something was shown */
    const char *what; /* shown before each step; NULL: nothing */
};

void progress_init(struct progress *p, int quiet);
/* A d2q_log_fn; ud is a struct progress. Non-zero once SIGINT came. */
int progress_log(void *ud, int kind, const char *text, double done, double total);
/* From now on steps are those of `what` (a model's name): rates begin anew. */
void progress_what(struct progress *p, const char *what);
/* Takes the redrawn line away. */
void progress_clear(struct progress *p);

/* From then on SIGINT only sets the flag, and a second one ends the program. */
void interrupt_catch(void);
int interrupted(void);
double clock_now(void);

#endif
