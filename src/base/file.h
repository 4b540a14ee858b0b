/* file: mapped input, a bounded cursor over it, and atomic output.
 *
 * Output appears under its final name only when it is whole: it is written to
 * "<path>.tmp-<pid>", synced, and renamed. A folder likewise. */
#ifndef D2Q_BASE_FILE_H
#define D2Q_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* ---- input ------------------------------------------------------------- */

struct file_map {
    const uint8_t *data; /* read-only mapping; valid until release */
    size_t size;
    char *path;
    int64_t inode, mtime[2]; /* when it was mapped; seconds, nanoseconds */
};

int file_map_open(struct file_map *m, const char *path, struct err *e);
void file_map_release(struct file_map *m); /* safe on a zeroed struct */
/* -1: the file was written to or truncated since it was mapped. One that was deleted or replaced is fine: what is mapped stays. */
int file_map_check(const struct file_map *m, struct err *e);
/* Gives back the memory of the whole pages in [p, p+n); they are read again when touched. Outside the mapping: nothing. */
void file_map_forget(const struct file_map *m, const void *p, size_t n);

/* Whole file into a fresh NUL-terminated block (mem_free). Files larger than max are refused. */
int file_read(const char *path, size_t max, char **out, size_t *size, struct err *e);
bool file_exists(const char *path);
/* The first n bytes of a regular file; -1 if it has fewer or cannot be read. */
int file_head(const char *path, void *buf, size_t n);
/* A folder that somebody else made may hold links. Fails if path is one that leaves dir for elsewhere than, as in the Hub's
 * cache, dir/../../blobs: what it names would be read, and some files are copied into outputs, as if it came with the folder. */
int file_inside(const char *dir, const char *path, struct err *e);
bool file_is_dir(const char *path);
/* What is behind the last slash of path. */
const char *file_name(const char *path);
/* The folder that a link at path leads to, in real (PATH_MAX); path itself where there is no folder: a link to one stays, what it names is
 * replaced. */
const char *file_folder(const char *path, char *real);

/* A reader that cannot run past its end. Little-endian; every getter fails with
 * the file's name and the byte offset where the data ran out. */
struct cursor {
    const uint8_t *base, *p, *end;
    const char *what; /* the file's name, for messages */
};

void cursor_init(struct cursor *c, const uint8_t *data, size_t size, const char *what);
size_t cursor_pos(const struct cursor *c);
size_t cursor_left(const struct cursor *c);
int cursor_take(struct cursor *c, size_t n, const uint8_t **p, struct err *e); /* view of n bytes */
int cursor_u8(struct cursor *c, uint8_t *v, struct err *e);
int cursor_u16(struct cursor *c, uint16_t *v, struct err *e);
int cursor_u32(struct cursor *c, uint32_t *v, struct err *e);
int cursor_u64(struct cursor *c, uint64_t *v, struct err *e);

/* ---- output ------------------------------------------------------------ */

struct outfile {
    int fd;
    uint64_t pos; /* bytes written so far */
    char *path, *tmp;
    uint8_t *buf; /* write buffer */
    size_t fill;
};

int outfile_open(struct outfile *o, const char *path, struct err *e);
int outfile_write(struct outfile *o, const void *data, size_t n, struct err *e);
int outfile_pad(struct outfile *o, uint64_t align, struct err *e); /* zeros up to a multiple */
/* Overwrites n bytes at byte `at`, all of which have been written before. */
int outfile_patch(struct outfile *o, uint64_t at, const void *data, size_t n, struct err *e);
int outfile_commit(struct outfile *o, struct err *e); /* flush, fsync, rename; releases either way */
void outfile_abort(struct outfile *o);                /* unlinks; safe on a zeroed or finished struct */

/* Renames a finished file, replacing what is there, and syncs the folder. */
int file_move(const char *from, const char *to, struct err *e);

/* Deletes what runs that were killed left of path under temporary names: those whose process is no more, or
 * was an earlier one of this number (in a container it is 1 every time). */
void file_sweep(const char *path);

/* A folder written as a whole: outdir_open sweeps and makes "<path>.tmp-<pid>", files are
 * written under o->tmp, outdir_commit renames it to path. An existing path is
 * exchanged for it and then removed (files only one level deep). */
struct outdir {
    char *path, *tmp;
};

int outdir_open(struct outdir *o, const char *path, struct err *e);
int outdir_commit(struct outdir *o, struct err *e);
void outdir_abort(struct outdir *o);

#endif
