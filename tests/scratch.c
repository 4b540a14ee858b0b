#include "scratch.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

const char *scratch_dir(void)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = malloc(4096);
    assert_non_null(dir);
    snprintf(dir, 4096, "%s/d2q-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static void remove_level(const char *dir, int depth)
{
    char path[4096];
    DIR *d = opendir(dir);
    struct dirent *ent;
    while (d && (ent = readdir(d))) {
        if (!strcmp(ent->d_name, ".") || !strcmp(ent->d_name, ".."))
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, ent->d_name);
        if (unlink(path) && depth > 0)
            remove_level(path, depth - 1);
    }
    if (d)
        closedir(d);
    rmdir(dir);
}

void scratch_remove(const char *dir)
{
    remove_level(dir, 2);
    free((void *)(uintptr_t)dir);
}

const char *scratch_path(const char *dir, const char *name)
{
    static char ring[8][4096];
    static int next;
    char *p = ring[next++ % 8];
    snprintf(p, sizeof ring[0], "%s/%s", dir, name);
    return p;
}

void scratch_write(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

void scratch_safetensors(const char *path, const char *header, int64_t len, size_t n_data, int64_t keep)
{
    size_t n = strlen(header), total = 8 + n + n_data;
    uint64_t word = len < 0 ? n : (uint64_t)len;
    uint8_t *file = malloc(total);
    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)(word >> (8 * i));
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        file[8 + n + i] = (uint8_t)i;
    scratch_write(path, file, keep >= 0 && (size_t)keep < total ? (size_t)keep : total);
    free(file);
}
