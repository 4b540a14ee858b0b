/* progress: see progress.h. */
#include "cli/progress.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/show.h"
#include "d2quant.h"

#define PLAIN_EVERY 5.0 /* seconds */
#define REDRAW_EVERY 0.1

static volatile sig_atomic_t stop_flag;

static void on_interrupt(int sig)
{
    (void)sig;
    stop_flag = 1;
}

void interrupt_catch(void)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = on_interrupt;
    a.sa_flags = (int)SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

int interrupted(void)
{
    return stop_flag;
}

double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_init(struct progress *p, int quiet)
{
    memset(p, 0, sizeof *p);
    p->quiet = quiet;
    p->tty = isatty(STDERR_FILENO);
}

void progress_clear(struct progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = 0;
}

/* What a step counts: its first word, the unit, and how many of its steps make one. */
static const struct unit {
    const char *kind, *unit;
    double each;
} units[] = {
    { "block", "blocks", 4 },
    { "perplexity", "windows", 1 },
    { "divergence", "windows", 1 },
    { "calibration", "tokens", 1 },
    { "writing", "MiB", 1048576 },
    { "checking", "MiB", 1048576 },
    { "verifying", "blocks", 1 },
    { "measuring", "blocks", 1 },
    { "tuning", "sequences", 1 },
    { "", "tokens", 1 },
};
static const struct unit *unit_of(const char *kind)
{
    size_t n = sizeof units / sizeof *units;
    for (size_t i = 0; i < n; i++)
        if (!strcmp(units[i].kind, kind))
            return &units[i];
    return &units[n - 1]; /* tasks go by their own names */
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || w.ws_col < 2 ? 200 : w.ws_col;
}

static void step(struct progress *p, const char *text, double done, double total)
{
    double now = clock_now();
    size_t n = strcspn(text, " ,");
    n = n < sizeof p->kind ? n : sizeof p->kind - 1;
    if (strlen(p->kind) != n || memcmp(p->kind, text, n)) {
        snprintf(p->kind, sizeof p->kind, "%.*s", (int)n, text);
        p->start = p->last = now;
        p->base = done;
        return;
    }
    if (p->quiet || now - p->last < (p->tty ? REDRAW_EVERY : PLAIN_EVERY))
        return;
    p->last = now;
    double spent = now - p->start, part = done - p->base;
    if (part < 0) { /* begun anew */
        p->start = now;
        p->base = done;
        return;
    }
    char rate[48] = "", left[24] = "?", memory[24], line[256];
    const struct unit *u = unit_of(p->kind);
    if (spent > 0)
        snprintf(rate, sizeof rate, "  %.3g %s/s", part / u->each / spent, u->unit);
    if (part > 0)
        show_seconds((total - done) * spent / part, left, sizeof left);
    show_bytes((double)d2q_peak_rss(), memory, sizeof memory);
    snprintf(line, sizeof line, "%s%s%s  %.0f %%%s  %s left  peak %s", p->what ? p->what : "", p->what ? ": " : "", text,
             total > 0 ? 100 * done / total : 100, rate, left, memory);
    if (p->tty) /* no longer than a row, or it could not be taken back */
        fprintf(stderr, "\r\033[K%.*s", columns() - 1, line);
    else
        fprintf(stderr, "%s\n", line);
    p->drawn = p->tty;
}

void progress_what(struct progress *p, const char *what)
{
    p->what = what;
    p->kind[0] = '\0';
}

/* One finished matrix: text is its JSON. */
static void tensor(const char *text)
{
    json_t *t = json_loads(text, 0, NULL);
    const char *name = json_string_value(json_object_get(t, "name")), *type = json_string_value(json_object_get(t, "type"));
    const char *fallback = json_string_value(json_object_get(t, "fallback"));
    char more[80] = "";
    if (json_integer_value(json_object_get(t, "dead")))
        snprintf(more, sizeof more, "  %lld dead inputs", (long long)json_integer_value(json_object_get(t, "dead")));
    if (fallback && *fallback)
        snprintf(more + strlen(more), sizeof more - strlen(more), "  FALLBACK %s", fallback);
    fprintf(stderr, "%-44s %-14s err %.3e  damp %-6.3g %6.2f s%s\n", name ? name : "?", type ? type : "?",
            json_number_value(json_object_get(t, "err")), json_number_value(json_object_get(t, "damp")),
            json_number_value(json_object_get(t, "seconds")), more);
    json_decref(t);
}

int progress_log(void *ud, int kind, const char *text, double done, double total)
{
    struct progress *p = ud;
    if (kind == D2Q_LOG_PROGRESS) {
        step(p, text, done, total);
        return interrupted();
    }
    if (p->quiet && kind != D2Q_LOG_WARN)
        return 0;
    progress_clear(p);
    if (kind == D2Q_LOG_TENSOR)
        tensor(text);
    else
        fprintf(stderr, "%s%s\n", kind == D2Q_LOG_WARN ? "d2q: warning: " : "", text);
    return 0;
}
