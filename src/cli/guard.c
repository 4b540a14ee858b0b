/* guard: see guard.h. Everything in the handler is safe in a signal: no memory, no stdio. */
#include "cli/guard.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "cli/opt.h"

static const char *volatile hint;

static void say(const char *s)
{
    (void)!write(STDERR_FILENO, s, strlen(s));
}

static const char *hex(const char *p, uintptr_t *v)
{
    for (*v = 0;; p++) {
        int d = *p >= '0' && *p <= '9' ? *p - '0' : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10 : -1;
        if (d < 0)
            return p;
        *v = *v * 16 + (uintptr_t)d;
    }
}

/* Does this line of /proc/self/maps, "begin-end perms offset dev inode   path", hold the address? */
static bool holds(const char *line, uintptr_t at)
{
    uintptr_t begin, end;
    const char *p = hex(line, &begin);
    if (*p != '-')
        return false;
    hex(p + 1, &end);
    return at >= begin && at < end;
}

/* The path in the line of the mapping around `at`, in line; NULL: not found. */
static const char *mapped_at(uintptr_t at, char *line, size_t cap)
{
    char buf[1024];
    size_t fill = 0;
    ssize_t n;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = read(fd, buf, sizeof buf)) > 0)
        for (ssize_t i = 0; i < n; i++) {
            if (buf[i] != '\n') {
                line[fill] = buf[i];
                fill += fill + 1 < cap;
                continue;
            }
            line[fill] = '\0';
            fill = 0;
            if (holds(line, at)) {
                close(fd);
                return strchr(line, '/');
            }
        }
    if (fd >= 0)
        close(fd);
    return NULL;
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
    static char line[4400];
    static atomic_flag told = ATOMIC_FLAG_INIT;
    (void)sig;
    (void)context;
    while (atomic_flag_test_and_set(&told)) /* another thread met it too, and will end the process */
        pause();
    const char *path = mapped_at((uintptr_t)info->si_addr, line, sizeof line);
    say("\nd2q: error: ");
    say(path ? path : "a mapped file");
    say(": cannot be read: it was truncated while it was in use, or its disk fails\n");
    if (hint) {
        say("d2q: the work so far is kept in ");
        say(hint);
        say(": the same command goes on\n");
    }
    _exit(EXIT_FAILED);
}

void guard_install(void)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_sigaction = on_bus;
    a.sa_flags = (int)SA_SIGINFO;
    sigaction(SIGBUS, &a, NULL);
}

void guard_hint(const char *work_dir)
{
    hint = work_dir;
}
