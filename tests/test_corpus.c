/* Replays fuzz/corpus: seeds and whatever the fuzzers found, through the targets of fuzz/ without libFuzzer. What a target checks
 * aborts; a sanitized build (make asan) sees more. Each input alone must take less than a second. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "fuzz.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void replay_file(const char *path, void (*run)(const uint8_t *, size_t))
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long n = ftell(f);
    assert_true(n >= 0 && n < 1 << 20);
    rewind(f);
    uint8_t *data = malloc((size_t)n + 1); /* exactly as long, so that a read past its end is seen: but for 0 bytes */
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)n, f), n);
    fclose(f);
    double t0 = seconds();
    run(data, (size_t)n);
    vfs_clear();
    double t = seconds() - t0;
    if (t > 1)
        fail_msg("%s: took %.1f s", path, t);
    free(data);
}

static void replay(const char *name, void (*run)(const uint8_t *, size_t))
{
    char dir[256], path[1024];
    int n = 0;
    snprintf(dir, sizeof dir, "fuzz/corpus/%s", name);
    DIR *d = opendir(dir);
    assert_non_null(d);
    struct dirent *ent;
    while ((ent = readdir(d)))
        if (ent->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", dir, ent->d_name);
            replay_file(path, run);
            n++;
        }
    closedir(d);
    assert_true(n >= 2);
}

#define TARGET(name, dict)            \
    static void corpus_##name(void **state)  \
    {                                 \
        (void)state;                  \
        replay(#name, fuzz_##name);   \
    }
#include "targets.def"
#undef TARGET

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TARGET(name, dict) cmocka_unit_test(corpus_##name),
#include "targets.def"
#undef TARGET
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
