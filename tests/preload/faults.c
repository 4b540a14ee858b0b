/* faults: a library to preload that makes the operating system fail. D2Q_FAULT="CALL:ERROR:N[+][:PATH]"
 *   CALL   open, read, write, pwrite, fsync, close, rename, mkdir, unlink, mmap, statvfs, or disk
 *   ERROR  enospc, eio, eacces, erofs, enomem, emfile, or short (read, write and pwrite do half of what they are asked for), or stop
 *          (nothing fails, but the program stops there until it gets SIGCONT)
 *   N      the N-th such call fails, counted from 1; with + so do all after it
 *   PATH   only calls on regular files and folders whose path has this in it
 * CALL disk: N bytes may be written in all; the write that reaches the limit is short and those after it fail, as on a full disk.
 * statvfs does not fail, it says that N bytes are free. D2Q_FAULT_LOG: a file that gets a line with the number of calls at the end. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static char call[16], kind[16], only[256];
static long limit;
static bool onwards;
static atomic_long seen;

__attribute__((constructor)) static void start(void)
{
    const char *s = getenv("D2Q_FAULT");
    char number[32] = "";
    if (!s || sscanf(s, "%15[^:]:%15[^:]:%31[^:]:%255s", call, kind, number, only) < 3)
        return;
    onwards = strchr(number, '+') != NULL;
    limit = strtol(number, NULL, 10);
}

__attribute__((destructor)) static void stop(void)
{
    const char *log = getenv("D2Q_FAULT_LOG");
    FILE *f = log ? fopen(log, "w") : NULL;
    if (f) {
        fprintf(f, "%ld\n", atomic_load(&seen));
        fclose(f);
    }
}

static void *next(const char *name)
{
    void *p = dlsym(RTLD_NEXT, name);
    if (!p)
        abort();
    return p;
}

static int error(void)
{
    static const struct { const char *name; int value; } errors[] = { { "enospc", ENOSPC }, { "eio", EIO }, { "eacces", EACCES },
                                                                      { "erofs", EROFS }, { "enomem", ENOMEM }, { "emfile", EMFILE } };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (!strcmp(errors[i].name, kind))
            return errors[i].value;
    return EIO;
}

static bool path_counts(const char *path)
{
    return !*only || (path && strstr(path, only));
}

static bool fd_counts(int fd)
{
    char link[64], path[4096];
    struct stat st;
    if (fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    return path_counts(path);
}

/* Is this the call that fails? */
static bool hit(const char *name, bool counts)
{
    if (strcmp(call, name) || !counts)
        return false;
    long k = atomic_fetch_add(&seen, 1) + 1;
    if (k == limit && !strcmp(kind, "stop")) {
        raise(SIGSTOP);
        return false;
    }
    return k == limit || (onwards && k > limit);
}

static bool fails(const char *name, bool counts)
{
    if (!hit(name, counts))
        return false;
    errno = error();
    return true;
}

/* How much of n bytes may be written: n itself, less, or -1 with errno. */
static ssize_t room(const char *name, int fd, size_t n)
{
    if (!strcmp(call, "disk")) {
        if (!fd_counts(fd))
            return (ssize_t)n;
        long before = atomic_fetch_add(&seen, (long)n);
        if (before + (long)n <= limit)
            return (ssize_t)n;
        if (before < limit)
            return limit - before;
        errno = ENOSPC;
        return -1;
    }
    if (strcmp(call, name) || !hit(name, fd_counts(fd)))
        return (ssize_t)n;
    if (!strcmp(kind, "short"))
        return (ssize_t)(n > 1 ? n / 2 : n);
    errno = error();
    return -1;
}

ssize_t write(int fd, const void *p, size_t n)
{
    ssize_t (*real)(int, const void *, size_t) = next("write");
    ssize_t k = room("write", fd, n);
    return k < 0 ? -1 : real(fd, p, (size_t)k);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    ssize_t (*real)(int, const void *, size_t, off_t) = next("pwrite");
    ssize_t k = room("pwrite", fd, n);
    return k < 0 ? -1 : real(fd, p, (size_t)k, at);
}

ssize_t read(int fd, void *p, size_t n)
{
    ssize_t (*real)(int, void *, size_t) = next("read");
    ssize_t k = room("read", fd, n);
    return k < 0 ? -1 : real(fd, p, (size_t)k);
}

int fsync(int fd)
{
    int (*real)(int) = next("fsync");
    return fails("fsync", fd_counts(fd)) ? -1 : real(fd);
}

int close(int fd)
{
    int (*real)(int) = next("close");
    bool bad = !strcmp(call, "close") && fails("close", fd_counts(fd));
    int why = errno, rc = real(fd);
    if (bad)
        errno = why;
    return bad ? -1 : rc;
}

int open(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...) = next("open");
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list ap;
        va_start(ap, flags);
        mode = (mode_t)va_arg(ap, unsigned);
        va_end(ap);
    }
    return fails("open", path_counts(path)) ? -1 : real(path, flags, mode);
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = next("rename");
    return fails("rename", path_counts(to)) ? -1 : real(from, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    int (*real)(int, const char *, int, const char *, unsigned) = next("renameat2");
    return fails("rename", path_counts(to)) ? -1 : real(a, from, b, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = next("mkdir");
    return fails("mkdir", path_counts(path)) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    int (*real)(const char *) = next("unlink");
    return fails("unlink", path_counts(path)) ? -1 : real(path);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    void *(*real)(void *, size_t, int, int, int, off_t) = next("mmap");
    return !strcmp(call, "mmap") && fd >= 0 && fails("mmap", fd_counts(fd)) ? MAP_FAILED : real(at, n, prot, flags, fd, offset);
}

int statvfs(const char *path, struct statvfs *v)
{
    int (*real)(const char *, struct statvfs *) = next("statvfs");
    int rc = real(path, v);
    if (!rc && !strcmp(call, "statvfs") && path_counts(path))
        v->f_bavail = (fsblkcnt_t)limit / v->f_frsize;
    return rc;
}
