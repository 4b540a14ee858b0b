/* base: the pool of threads, arenas, files that appear whole or not at all. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/par.h"
#include "scratch.h"

struct job {
    atomic_int count[1000];
    atomic_int worst;
};

static void item(void *ctx, size_t i, int worker)
{
    struct job *j = ctx;
    atomic_fetch_add(&j->count[i], 1);
    if (worker > atomic_load(&j->worst))
        atomic_store(&j->worst, worker);
}

static void nested(void *ctx, size_t i, int worker)
{
    (void)i;
    (void)worker;
    par_for(10, item, ctx);
}

static void test_every_item_once(void **state)
{
    (void)state;
    int counts[] = { 7, 1, 2, 16, 3 };
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        par_set_threads(counts[k]);
        for (size_t n = 0; n <= 1000; n += 37) {
            static struct job j;
            memset(&j, 0, sizeof j);
            par_for(n, item, &j);
            for (size_t i = 0; i < 1000; i++)
                assert_int_equal(atomic_load(&j.count[i]), i < n);
            assert_true(atomic_load(&j.worst) < counts[k]);
        }
    }
    static struct job j;
    memset(&j, 0, sizeof j);
    par_for(50, nested, &j);
    for (size_t i = 0; i < 10; i++)
        assert_int_equal(atomic_load(&j.count[i]), 50);
    for (int i = 0; i < 20000; i++) /* short jobs, one after the other */
        par_for(2, item, &j);
    assert_int_equal(atomic_load(&j.count[1]), 50 + 20000);
    par_set_threads(0);
}

static void test_memory(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a);
    for (size_t i = 1; i < 3000; i += 7) {
        uint8_t *p = arena_zalloc(&a, i, 97);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t k = 0; k < i * 97; k++)
            assert_int_equal(p[k], 0);
        memset(p, 0xff, i * 97);
    }
    assert_null(arena_alloc(&a, SIZE_MAX / 2, 3));
    assert_null(mem_alloc(SIZE_MAX, SIZE_MAX));
    assert_string_equal(arena_printf(&a, "%d-%s", 7, "x"), "7-x");
    arena_release(&a);
    mem_fail_after(2);
    void *p = mem_alloc(1, 1), *q = mem_alloc(1, 1), *r = mem_alloc(1, 1);
    assert_true(p && !q && r);
    mem_free(p);
    mem_free(r);
}

/* Resident pages of [p, p + n). */
static size_t resident(void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), count = 0;
    uintptr_t first = ((uintptr_t)p + page - 1) / page;
    int f = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    assert_true(f >= 0);
    for (size_t i = 0; i < n / page - 1; i++) {
        uint64_t entry;
        assert_int_equal(pread(f, &entry, sizeof entry, (off_t)((first + i) * sizeof entry)), sizeof entry);
        count += entry >> 63;
    }
    close(f);
    return count;
}

/* What is large lies in the folder, without a name; given back, its pages leave memory and come back as they were. */
static void test_spill(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    enum { N = 1 << 20 };
    struct arena a;
    arena_init(&a);
    arena_spill(&a, dir);
    uint32_t *large = arena_alloc(&a, N, sizeof *large), *small = arena_alloc(&a, 100, sizeof *small);
    for (uint32_t i = 0; i < N; i++)
        large[i] = i * 2654435761u;
    small[99] = 7;
    assert_true(resident(large, N * sizeof *large) > 1000);
    arena_forget(&a);
    assert_int_equal(resident(large, N * sizeof *large), 0);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(large[i], i * 2654435761u);
    assert_int_equal(small[99], 7);
    arena_spill(&a, "/nowhere"); /* memory, then */
    uint8_t *other = arena_zalloc(&a, N, 1);
    assert_non_null(other);
    arena_forget(&a);
    assert_int_equal(other[N - 1], 0);
    arena_release(&a);
    assert_true(!rmdir(dir) && !mkdir(dir, 0700)); /* nothing was left in it */
    scratch_remove(dir);
}

static void test_output_is_whole_or_absent(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "out.bin");
    struct outfile o;
    struct err e = { 0 };
    char *text;
    size_t n;
    assert_int_equal(outfile_open(&o, path, &e), 0);
    assert_int_equal(outfile_write(&o, "hello", 5, &e), 0);
    assert_int_equal(outfile_pad(&o, 32, &e), 0);
    assert_false(file_exists(path));
    assert_int_equal(outfile_commit(&o, &e), 0);
    assert_int_equal(file_read(path, 100, &text, &n, &e), 0);
    assert_int_equal(n, 32);
    assert_memory_equal(text, "hello\0\0\0", 8);
    mem_free(text);
    assert_int_equal(outfile_open(&o, path, &e), 0);
    assert_int_equal(outfile_write(&o, "other", 5, &e), 0);
    outfile_abort(&o);
    assert_int_equal(file_read(path, 100, &text, &n, &e), 0);
    assert_memory_equal(text, "hello", 5); /* the old file is untouched */
    mem_free(text);
    assert_int_equal(file_read(path, 10, &text, &n, &e), -1);
    assert_int_equal(outfile_open(&o, scratch_path(dir, "no/such/folder"), &e), -1);
    assert_non_null(strstr(e.msg, "no/such/folder"));
    struct file_map m;
    scratch_write(scratch_path(dir, "empty"), "", 0);
    assert_int_equal(file_map_open(&m, scratch_path(dir, "empty"), &e), -1);
    assert_int_equal(file_map_open(&m, dir, &e), -1);
    scratch_remove(dir);
}

static void test_cursor(void **state)
{
    (void)state;
    const uint8_t data[7] = { 1, 2, 3, 4, 5, 6, 7 };
    struct cursor c;
    struct err e = { 0 };
    uint32_t v;
    uint64_t w = 0;
    cursor_init(&c, data, sizeof data, "some.file");
    assert_int_equal(cursor_u32(&c, &v, &e), 0);
    assert_int_equal(v, 0x04030201);
    assert_int_equal(cursor_u64(&c, &w, &e), -1);
    assert_non_null(strstr(e.msg, "some.file"));
    assert_non_null(strstr(e.msg, "byte 4"));
}

/* transformers writes int(1e30) for "no limit"; 64 bits are enough for whatever we take as an integer. */
static void test_json_with_huge_integers(void **state)
{
    (void)state;
    static const char text[] = "{\"max\": 1000000000000000019884624838656, \"a\": [-99999999999999999999, 12, 1.25, 9007199254740993],"
                               " \"s\": \"1000000000000000019884624838656\", \"r\": 0.1000000000000000055511151231257827e1}";
    struct err e = { 0 };
    json_t *o;
    assert_int_equal(json_from_text(text, sizeof text - 1, &o, &e), 0);
    json_t *max = json_object_get(o, "max"), *a = json_object_get(o, "a");
    assert_true(json_is_real(max) && fabs(json_real_value(max) / 1e30 - 1) < 1e-15);
    assert_true(fabs(json_real_value(json_array_get(a, 0)) / -1e20 - 1) < 1e-15);
    assert_true(json_integer_value(json_array_get(a, 1)) == 12 && json_real_value(json_array_get(a, 2)) == 1.25);
    assert_true(json_integer_value(json_array_get(a, 3)) == 9007199254740993);
    assert_string_equal(json_string_value(json_object_get(o, "s")), "1000000000000000019884624838656");
    assert_true(json_real_value(json_object_get(o, "r")) == 1.0);
    json_decref(o);
    assert_int_equal(json_from_text("[1000000000000000019884624838656", 32, &o, &e), -1);
    assert_null(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_memory), cmocka_unit_test(test_spill),
        cmocka_unit_test(test_json_with_huge_integers),
        cmocka_unit_test(test_output_is_whole_or_absent),
        cmocka_unit_test(test_cursor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
