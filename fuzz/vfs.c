/* vfs: base/file's input functions over files in memory. The linker puts them in (--wrap, Makefile: FUZZ_WRAP). */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "fuzz.h"

#define MAX_FILES 16

struct vfile {
    const char *path;
    const uint8_t *data;
    size_t n;
    uint8_t *owned;
};

static struct vfile files[MAX_FILES];
static int n_files;

static const struct {
    char letter;
    const char *path;
    bool safetensors;
} names[] = {
    { 'c', VFS_DIR "/config.json", false },
    { 'g', VFS_DIR "/generation_config.json", false },
    { 'q', VFS_DIR "/quantize_config.json", false },
    { 'i', VFS_DIR "/model.safetensors.index.json", false },
    { 'm', VFS_DIR "/model.safetensors", true },
    { '1', VFS_DIR "/model-00001-of-00003.safetensors", true },
    { '2', VFS_DIR "/model-00002-of-00003.safetensors", true },
    { '3', VFS_DIR "/model-00003-of-00003.safetensors", true },
    { 't', VFS_DIR "/tokenizer.json", false },
    { 'k', VFS_DIR "/tokenizer_config.json", false },
    { 'j', VFS_DIR "/chat_template.jinja", false },
    { 'l', VFS_DIR "/items.jsonl", false },
    { 'f', VFS_DIR "/mmlu_fewshot.jsonl", false },
    { 'x', VFS_DIR "/text", false },
    { 'A', VFS_DIR "/m-00001-of-00003.gguf", false },
    { 'B', VFS_DIR "/m-00002-of-00003.gguf", false },
    { 'C', VFS_DIR "/m-00003-of-00003.gguf", false },
};

static struct vfile *find(const char *path)
{
    for (int i = 0; i < n_files; i++)
        if (!strcmp(files[i].path, path))
            return &files[i];
    return NULL;
}

void vfs_clear(void)
{
    for (int i = 0; i < n_files; i++)
        free(files[i].owned);
    n_files = 0;
}

static void put(const char *path, const uint8_t *data, size_t n, uint8_t *owned)
{
    struct vfile *f = find(path);
    if (!f && n_files == MAX_FILES) {
        free(owned);
        return;
    }
    if (f)
        free(f->owned);
    else
        f = &files[n_files++];
    *f = (struct vfile){ path, data, n, owned };
}

void vfs_put(const char *path, const void *data, size_t n)
{
    put(path, data, n, NULL);
}

void vfs_put_safetensors(const char *path, const uint8_t *data, size_t n)
{
    if (n && data[0] == 0xff) {
        put(path, data + 1, n - 1, NULL);
        return;
    }
    const uint8_t *nul = n ? memchr(data, 0, n) : NULL;
    size_t header = nul ? (size_t)(nul - data) : n, rest = nul ? n - header - 1 : 0;
    uint8_t *file = malloc(8 + header + rest);
    FUZZ_CHECK(file);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)header >> (8 * i));
    if (header)
        memcpy(file + 8, data, header);
    if (rest)
        memcpy(file + 8 + header, nul + 1, rest);
    put(path, file, 8 + header + rest, file);
}

static const uint8_t *mark(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *m = memmem(p, (size_t)(end - p), "@@", 2);
    return m && end - m >= 3 ? m : NULL;
}

void vfs_put_sections(const uint8_t *data, size_t n)
{
    const uint8_t *end = data + n, *m = n ? mark(data, end) : NULL;
    while (m) {
        const uint8_t *body = m + 3, *next = mark(body, end), *stop = next ? next : end;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (names[i].letter == (char)m[2]) {
                if (names[i].safetensors)
                    vfs_put_safetensors(names[i].path, body, (size_t)(stop - body));
                else
                    vfs_put(names[i].path, body, (size_t)(stop - body));
            }
        m = next;
    }
}

bool vfs_section(char letter, const uint8_t **data, size_t *n)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct vfile *f = names[i].letter == letter ? find(names[i].path) : NULL;
        if (f) {
            *data = f->data;
            *n = f->n;
            return true;
        }
    }
    return false;
}

/* ---- in place of base/file ---------------------------------------------------- */

int __wrap_file_map_open(struct file_map *m, const char *path, struct err *e);
void __wrap_file_map_release(struct file_map *m);
void __wrap_file_map_forget(const struct file_map *m, const void *p, size_t n);
int __wrap_file_read(const char *path, size_t max, char **out, size_t *size, struct err *e);
int __wrap_file_head(const char *path, void *buf, size_t n);
bool __wrap_file_exists(const char *path);
bool __wrap_file_is_dir(const char *path);
int __wrap_file_inside(const char *dir, const char *path, struct err *e);
DIR *__wrap_opendir(const char *path);
DIR *__real_opendir(const char *path);

int __wrap_file_map_open(struct file_map *m, const char *path, struct err *e)
{
    const struct vfile *f = find(path);
    memset(m, 0, sizeof *m);
    if (!f)
        return err_set(e, ERR_IO, "%s: cannot open", path);
    if (f->n == 0)
        return err_set(e, ERR_FORMAT, "%s: file is empty", path);
    void *p = NULL; /* as much aligned as anything that looks at a mapping's alignment needs */
    FUZZ_CHECK(!posix_memalign(&p, 64, f->n));
    memcpy(p, f->data, f->n);
    m->data = p;
    m->size = f->n;
    m->path = mem_strdup(path);
    return 0;
}

void __wrap_file_map_release(struct file_map *m)
{
    free((void *)(uintptr_t)m->data);
    mem_free(m->path);
    memset(m, 0, sizeof *m);
}

void __wrap_file_map_forget(const struct file_map *m, const void *p, size_t n)
{
    const uint8_t *at = p;
    FUZZ_CHECK(at >= m->data && n <= m->size && (size_t)(at - m->data) <= m->size - n);
}

int __wrap_file_read(const char *path, size_t max, char **out, size_t *size, struct err *e)
{
    const struct vfile *f = find(path);
    if (!f)
        return err_set(e, ERR_IO, "%s: cannot open", path);
    if (f->n > max)
        return err_set(e, ERR_FORMAT, "%s: file has %zu bytes, expected at most %zu", path, f->n, max);
    char *p = mem_alloc(f->n + 1, 1);
    FUZZ_CHECK(p);
    memcpy(p, f->data, f->n);
    p[f->n] = 0;
    *out = p;
    *size = f->n;
    return 0;
}

int __wrap_file_head(const char *path, void *buf, size_t n)
{
    const struct vfile *f = find(path);
    if (!f || f->n < n)
        return -1;
    memcpy(buf, f->data, n);
    return 0;
}

bool __wrap_file_exists(const char *path)
{
    return find(path) || !strcmp(path, VFS_DIR);
}

bool __wrap_file_is_dir(const char *path)
{
    return !strcmp(path, VFS_DIR);
}

int __wrap_file_inside(const char *dir, const char *path, struct err *e)
{
    (void)dir, (void)path, (void)e;
    return 0;
}

DIR *__wrap_opendir(const char *path)
{
    if (strncmp(path, VFS_DIR, strlen(VFS_DIR))) /* libFuzzer's own */
        return __real_opendir(path);
    errno = ENOENT;
    return NULL;
}
