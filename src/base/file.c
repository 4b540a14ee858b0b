#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define OUT_BUF (1u << 20)

/* ---- input ------------------------------------------------------------- */

static int open_regular(const char *path, int *fd, struct stat *st, struct err *e)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    if (*fd < 0)
        return err_errno(e, "%s: cannot open", path);
    if (fstat(*fd, st) != 0)
        err_errno(e, "%s: cannot stat", path);
    else if (!S_ISREG(st->st_mode))
        err_set(e, ERR_IO, "%s: expected a regular file", path);
    else
        return 0;
    close(*fd);
    return -1;
}

int file_map_open(struct file_map *m, const char *path, struct err *e)
{
    int fd;
    struct stat st;
    memset(m, 0, sizeof *m);
    if (open_regular(path, &fd, &st, e))
        return -1;
    size_t size = (size_t)st.st_size;
    if (size == 0) {
        close(fd);
        return err_set(e, ERR_FORMAT, "%s: file is empty", path);
    }
    void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        err_errno(e, "%s: cannot map %zu bytes", path, size);
    close(fd);
    if (p == MAP_FAILED)
        return -1;
    m->path = mem_strdup(path);
    if (!m->path) {
        munmap(p, size);
        return err_nomem(e, path, strlen(path));
    }
    m->data = p;
    m->size = size;
    m->inode = (int64_t)st.st_ino;
    m->mtime[0] = st.st_mtim.tv_sec;
    m->mtime[1] = st.st_mtim.tv_nsec;
    return 0;
}

int file_map_check(const struct file_map *m, struct err *e)
{
    struct stat st;
    if (stat(m->path, &st) || (int64_t)st.st_ino != m->inode)
        return 0;
    if ((size_t)st.st_size != m->size)
        return err_set(e, ERR_IO, "%s: changed while it was read: it had %zu bytes, now %lld", m->path, m->size, (long long)st.st_size);
    if (st.st_mtim.tv_sec != m->mtime[0] || st.st_mtim.tv_nsec != m->mtime[1])
        return err_set(e, ERR_IO, "%s: changed while it was read: it was written to", m->path);
    return 0;
}

void file_map_release(struct file_map *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->size);
    mem_free(m->path);
    memset(m, 0, sizeof *m);
}

void file_map_forget(const struct file_map *m, const void *p, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), base = (uintptr_t)m->data, a = (uintptr_t)p;
    if (!m->data || a < base || a - base > m->size || n > m->size - (a - base))
        return;
    uintptr_t first = (a + page - 1) / page * page, end = (a + n) / page * page;
    if (first < end)
        madvise((void *)first, end - first, MADV_DONTNEED);
}

int file_read(const char *path, size_t max, char **out, size_t *size, struct err *e)
{
    int fd;
    struct stat st;
    if (open_regular(path, &fd, &st, e))
        return -1;
    size_t n = (size_t)st.st_size;
    if (n > max) {
        close(fd);
        return err_set(e, ERR_FORMAT, "%s: file has %zu bytes, expected at most %zu", path, n, max);
    }
    char *p = mem_alloc(n + 1, 1);
    if (!p) {
        close(fd);
        return err_nomem(e, path, n);
    }
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(fd, p + got, n - got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            if (r < 0)
                err_errno(e, "%s: read failed at byte %zu", path, got);
            else
                err_set(e, ERR_IO, "%s: file shrank from %zu to %zu bytes while reading", path, n, got);
            close(fd);
            mem_free(p);
            return -1;
        }
        got += (size_t)r;
    }
    close(fd);
    p[n] = 0;
    *out = p;
    *size = n;
    return 0;
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

int file_head(const char *path, void *buf, size_t n)
{
    int fd;
    struct stat st;
    if (open_regular(path, &fd, &st, NULL))
        return -1;
    ssize_t got = read(fd, buf, n);
    close(fd);
    return got == (ssize_t)n ? 0 : -1;
}

const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *file_folder(const char *path, char *real)
{
    return file_is_dir(path) && realpath(path, real) ? real : path;
}

static bool begins(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return !strncmp(path, dir, n) && path[n] == '/';
}

int file_inside(const char *dir, const char *path, struct err *e)
{
    struct stat st;
    char home[PATH_MAX], target[PATH_MAX];
    if (lstat(path, &st) || !S_ISLNK(st.st_mode))
        return 0;
    if (!realpath(dir, home) || !realpath(path, target))
        return err_errno(e, "%s: cannot follow the link", path);
    if (begins(target, home))
        return 0;
    for (int up = 0; up < 2; up++) { /* snapshots/<revision> of the Hub's cache: its files lie in blobs beside snapshots */
        char *slash = strrchr(home, '/');
        if (slash)
            *slash = 0;
    }
    size_t n = strlen(home);
    if (n + sizeof "/blobs" <= sizeof home && begins(target, strcat(home, "/blobs")))
        return 0;
    return err_set(e, ERR_FORMAT, "%s: is a link to %s, outside of its folder: copy or hard-link the file if you trust it", path,
                   target);
}

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

void cursor_init(struct cursor *c, const uint8_t *data, size_t size, const char *what)
{
    c->base = c->p = data;
    c->end = data + size;
    c->what = what;
}

size_t cursor_pos(const struct cursor *c)
{
    return (size_t)(c->p - c->base);
}

size_t cursor_left(const struct cursor *c)
{
    return (size_t)(c->end - c->p);
}

int cursor_take(struct cursor *c, size_t n, const uint8_t **p, struct err *e)
{
    if (n > cursor_left(c))
        return err_set(e, ERR_FORMAT, "%s: truncated: %zu bytes expected at byte %zu, %zu left",
                       c->what, n, cursor_pos(c), cursor_left(c));
    *p = c->p;
    c->p += n;
    return 0;
}

static int cursor_le(struct cursor *c, size_t n, uint64_t *v, struct err *e)
{
    const uint8_t *p = NULL;
    if (cursor_take(c, n, &p, e))
        return -1;
    *v = 0;
    for (size_t i = 0; i < n; i++)
        *v |= (uint64_t)p[i] << (8 * i);
    return 0;
}

int cursor_u8(struct cursor *c, uint8_t *v, struct err *e)
{
    uint64_t x = 0;
    if (cursor_le(c, 1, &x, e))
        return -1;
    *v = (uint8_t)x;
    return 0;
}

int cursor_u16(struct cursor *c, uint16_t *v, struct err *e)
{
    uint64_t x = 0;
    if (cursor_le(c, 2, &x, e))
        return -1;
    *v = (uint16_t)x;
    return 0;
}

int cursor_u32(struct cursor *c, uint32_t *v, struct err *e)
{
    uint64_t x = 0;
    if (cursor_le(c, 4, &x, e))
        return -1;
    *v = (uint32_t)x;
    return 0;
}

int cursor_u64(struct cursor *c, uint64_t *v, struct err *e)
{
    return cursor_le(c, 8, v, e);
}

/* ---- output ------------------------------------------------------------ */

static char *path_printf(const char *path, const char *suffix)
{
    size_t n = strlen(path) + strlen(suffix) + 32;
    char *p = mem_alloc(n, 1);
    if (p)
        snprintf(p, n, "%s%s-%ld", path, suffix, (long)getpid());
    return p;
}

/* Makes a rename durable: syncs the folder that holds path. Needs no memory, since it is too late to fail for that. */
static int sync_parent(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char dir[PATH_MAX] = ".";
    if (slash && (size_t)(slash - path) < sizeof dir)
        snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(e, "%s: is in place, but its folder cannot be opened to be synced", path);
    int rc = fsync(fd) && errno != EINVAL ? err_errno(e, "%s: is in place, but its folder cannot be synced", path) : 0;
    close(fd);
    return rc;
}

int outfile_open(struct outfile *o, const char *path, struct err *e)
{
    memset(o, 0, sizeof *o);
    o->fd = -1;
    o->path = mem_strdup(path);
    o->tmp = path_printf(path, ".tmp");
    o->buf = mem_alloc(OUT_BUF, 1);
    if (!o->path || !o->tmp || !o->buf) {
        outfile_abort(o);
        return err_nomem(e, path, OUT_BUF);
    }
    o->fd = open(o->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (o->fd < 0) {
        err_errno(e, "%s: cannot create", path);
        mem_free(o->tmp);
        o->tmp = NULL;
        outfile_abort(o);
        return -1;
    }
    return 0;
}

static int flush(struct outfile *o, struct err *e)
{
    size_t done = 0;
    while (done < o->fill) {
        ssize_t r = write(o->fd, o->buf + done, o->fill - done);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            errno = r ? errno : EIO;
            return err_errno(e, "%s: write failed at byte %llu", o->path,
                             (unsigned long long)(o->pos - o->fill + done));
        }
        done += (size_t)r;
    }
    o->fill = 0;
    return 0;
}

int outfile_write(struct outfile *o, const void *data, size_t n, struct err *e)
{
    const uint8_t *p = data;
    while (n) {
        size_t k = OUT_BUF - o->fill < n ? OUT_BUF - o->fill : n;
        memcpy(o->buf + o->fill, p, k);
        o->fill += k;
        o->pos += k;
        p += k;
        n -= k;
        if (o->fill == OUT_BUF && flush(o, e))
            return -1;
    }
    return 0;
}

int outfile_pad(struct outfile *o, uint64_t align, struct err *e)
{
    static const uint8_t zeros[64];
    uint64_t n = (align - o->pos % align) % align;
    while (n) {
        size_t k = n < sizeof zeros ? (size_t)n : sizeof zeros;
        if (outfile_write(o, zeros, k, e))
            return -1;
        n -= k;
    }
    return 0;
}

int outfile_patch(struct outfile *o, uint64_t at, const void *data, size_t n, struct err *e)
{
    const uint8_t *p = data;
    if (at > o->pos || n > o->pos - at)
        return err_set(e, ERR_USAGE, "%s: %zu bytes at %llu are not there yet", o->path, n, (unsigned long long)at);
    if (flush(o, e))
        return -1;
    while (n) {
        ssize_t r = pwrite(o->fd, p, n, (off_t)at);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            errno = r ? errno : EIO;
            return err_errno(e, "%s: write failed at byte %llu", o->path, (unsigned long long)at);
        }
        p += r;
        at += (uint64_t)r;
        n -= (size_t)r;
    }
    return 0;
}

static void outfile_release(struct outfile *o)
{
    if (o->fd >= 0)
        close(o->fd);
    mem_free(o->path);
    mem_free(o->tmp);
    mem_free(o->buf);
    memset(o, 0, sizeof *o);
    o->fd = -1;
}

int outfile_commit(struct outfile *o, struct err *e)
{
    if (flush(o, e) || (fsync(o->fd) && err_errno(e, "%s: cannot sync", o->path))) {
        outfile_abort(o);
        return -1;
    }
    int rc = close(o->fd);
    o->fd = -1;
    if ((rc && err_errno(e, "%s: cannot close", o->path)) ||
        (rename(o->tmp, o->path) && err_errno(e, "%s: cannot rename into place", o->path))) {
        outfile_abort(o);
        return -1;
    }
    rc = sync_parent(o->path, e);
    outfile_release(o);
    return rc;
}

int file_move(const char *from, const char *to, struct err *e)
{
    if (rename(from, to))
        return err_errno(e, "%s: cannot rename into place", to);
    return sync_parent(to, e);
}

void outfile_abort(struct outfile *o)
{
    if (!o->buf && !o->path)
        return;
    if (o->tmp)
        unlink(o->tmp);
    outfile_release(o);
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (d) {
        struct dirent *ent;
        while ((ent = readdir(d)))
            if (strcmp(ent->d_name, ".") && strcmp(ent->d_name, ".."))
                unlinkat(dirfd(d), ent->d_name, 0);
        closedir(d);
    }
    rmdir(path);
}

void file_sweep(const char *path)
{
    const char *base = file_name(path);
    static const char *const marks[] = { ".tmp-", ".unverified-" };
    char dir[PATH_MAX], full[PATH_MAX];
    size_t n = strlen(base);
    if ((size_t)snprintf(dir, sizeof dir, "%.*s", base > path ? (int)(base - path) : 2, base > path ? path : "./") >= sizeof dir)
        return;
    DIR *d = opendir(dir);
    struct dirent *ent;
    while (d && n && (ent = readdir(d)))
        for (size_t i = 0; i < sizeof marks / sizeof *marks && !strncmp(ent->d_name, base, n); i++) {
            const char *p = ent->d_name + n;
            size_t k = strlen(marks[i]);
            if (strncmp(p, marks[i], k))
                continue;
            char *end;
            long pid = strtol(p + k, &end, 10);
            bool ours = !*end || *end == '.' || (*end == '-' && end[1] >= '0' && end[1] <= '9'); /* .md, -00001-of-00003.gguf */
            bool gone = pid == getpid() || (pid > 0 && kill((pid_t)pid, 0) && errno == ESRCH);
            if (!ours || !gone || (size_t)snprintf(full, sizeof full, "%s%s", dir, ent->d_name) >= sizeof full)
                continue;
            if (unlink(full))
                remove_tree(full);
        }
    if (d)
        closedir(d);
}

static void outdir_release(struct outdir *o)
{
    mem_free(o->path);
    mem_free(o->tmp);
    memset(o, 0, sizeof *o);
}

int outdir_open(struct outdir *o, const char *path, struct err *e)
{
    memset(o, 0, sizeof *o);
    char real[PATH_MAX];
    o->path = mem_strdup(file_folder(path, real));
    size_t n = o->path ? strlen(o->path) : 0;
    while (n > 1 && o->path[n - 1] == '/')
        o->path[--n] = 0;
    o->tmp = o->path ? path_printf(o->path, ".tmp") : NULL;
    if (!o->path || !o->tmp) {
        outdir_release(o);
        return err_nomem(e, path, strlen(path));
    }
    if (file_exists(o->path) && !file_is_dir(o->path)) {
        err_set(e, ERR_IO, "%s: exists and is not a folder", o->path);
        outdir_release(o);
        return -1;
    }
    file_sweep(o->path);
    if (mkdir(o->tmp, 0777)) {
        err_errno(e, "%s: cannot create", o->path);
        outdir_release(o);
        return -1;
    }
    return 0;
}

/* Where the file system cannot exchange two names, the old folder has no name for a moment and is put back if the new one does
 * not get it. */
static int replace_folder(const struct outdir *o, struct err *e)
{
    if (!file_is_dir(o->path))
        return rename(o->tmp, o->path) ? err_errno(e, "%s: cannot rename into place", o->path) : 0;
    if (!renameat2(AT_FDCWD, o->tmp, AT_FDCWD, o->path, RENAME_EXCHANGE)) {
        remove_tree(o->tmp);
        return 0;
    }
    char *old = path_printf(o->path, ".old");
    if (!old)
        return err_nomem(e, o->path, strlen(o->path));
    int rc = rename(o->path, old) ? err_errno(e, "%s: cannot move the old folder aside", o->path) : 0;
    if (!rc && rename(o->tmp, o->path)) {
        rc = err_errno(e, "%s: cannot rename into place", o->path);
        (void)!rename(old, o->path);
    }
    if (!rc)
        remove_tree(old);
    mem_free(old);
    return rc;
}

int outdir_commit(struct outdir *o, struct err *e)
{
    if (replace_folder(o, e)) {
        outdir_abort(o);
        return -1;
    }
    int rc = sync_parent(o->path, e);
    outdir_release(o);
    return rc;
}

void outdir_abort(struct outdir *o)
{
    if (o->tmp)
        remove_tree(o->tmp);
    outdir_release(o);
}
