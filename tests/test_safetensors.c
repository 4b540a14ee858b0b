/* safetensors against files written by the format's own library (tools/golden_hf.py), and against a corpus of
 * broken ones, each named. Comparisons are exact: nothing here rounds. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "scratch.h"

#define GOLDEN "tests/fixtures/hf/dtypes.safetensors"

static const struct st_entry *find(const struct st_file *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (!strcmp(f->entries[i].name, name))
            return &f->entries[i];
    fail_msg("tensor %s is missing", name);
    return NULL;
}

static void reads_what_the_package_wrote(void **state)
{
    (void)state;
    struct st_file f;
    struct err e = { 0 };
    if (st_open(&f, GOLDEN, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(f.n, 10);
    for (size_t i = 1; i < f.n; i++)
        assert_true(strcmp(f.entries[i - 1].name, f.entries[i].name) < 0);

    const struct st_entry *t = find(&f, "i64");
    assert_int_equal(t->dtype, ST_I64);
    assert_int_equal(t->n_dims, 2);
    const int64_t want64[4] = { 1, -2, INT64_C(1) << 40, -(INT64_C(1) << 40) };
    assert_memory_equal(t->data, want64, sizeof want64);
    t = find(&f, "i32");
    const int32_t want32[6] = { -3, -2, -1, 0, 1, 2 };
    assert_int_equal(t->size, sizeof want32);
    assert_memory_equal(t->data, want32, sizeof want32);
    t = find(&f, "scalar");
    assert_int_equal(t->n_dims, 0);
    assert_true(*(const float *)t->data == 2.5f);
    t = find(&f, "empty");
    assert_int_equal(t->size, 0);
    assert_int_equal(t->dim[1], 4);
    t = find(&f, "four");
    assert_int_equal(t->n_dims, 4);
    assert_int_equal(t->dim[0] * 1000 + t->dim[1] * 100 + t->dim[2] * 10 + t->dim[3], 2132);
    assert_int_equal(find(&f, "bf16")->dtype, ST_BF16);
    assert_int_equal(find(&f, "f16")->size, 28);
    assert_int_equal(find(&f, "u8")->dtype, ST_U8);
    assert_true(*(const float *)find(&f, "quote \" back\\ \xc3\xbc")->data == 1.0f);
    st_release(&f);
}

static int by_place(const void *a, const void *b)
{
    const struct st_entry *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->size > y->size) - (x->size < y->size);
}

/* Declared in the same order, our file is the package's file, byte for byte. */
static void writes_what_the_package_wrote(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "out.safetensors");
    struct st_file f;
    struct st_writer w;
    struct outfile o;
    struct err e = { 0 };
    assert_int_equal(st_open(&f, GOLDEN, &e), 0);
    qsort(f.entries, f.n, sizeof *f.entries, by_place);
    st_writer_init(&w);
    for (size_t i = 0; i < f.n; i++) {
        const struct st_entry *t = &f.entries[i];
        assert_int_equal(st_writer_tensor(&w, t->name, t->dtype, t->n_dims, t->dim, &e), 0);
    }
    assert_int_equal(outfile_open(&o, path, &e), 0);
    assert_int_equal(st_writer_begin(&w, &o, &e), 0);
    for (size_t i = 0; i < f.n; i++) { /* in two pieces */
        size_t half = f.entries[i].size / 2;
        const uint8_t *p = f.entries[i].data;
        assert_int_equal(st_writer_data(&w, &o, p, half, &e), 0);
        assert_int_equal(st_writer_data(&w, &o, p + half, f.entries[i].size - half, &e), 0);
    }
    assert_int_equal(st_writer_end(&w, &e), 0);
    assert_int_equal(outfile_commit(&o, &e), 0);
    st_writer_release(&w);
    st_release(&f);

    struct file_map a, b;
    assert_int_equal(file_map_open(&a, GOLDEN, &e), 0);
    assert_int_equal(file_map_open(&b, path, &e), 0);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    file_map_release(&a);
    file_map_release(&b);
    scratch_remove(dir);
}

static void writer_refuses_misuse(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    struct st_writer w;
    struct outfile o;
    struct err e = { 0 };
    const int64_t two = 2, huge[2] = { INT64_MAX, INT64_MAX };
    uint8_t data[16] = { 0 };
    st_writer_init(&w);
    assert_int_equal(outfile_open(&o, scratch_path(dir, "x"), &e), 0);
    assert_int_equal(st_writer_tensor(&w, "h", ST_F32, 2, huge, &e), -1);
    assert_int_equal(st_writer_tensor(&w, "o", ST_OTHER, 1, &two, &e), -1);
    assert_int_equal(st_writer_tensor(&w, "a", ST_F32, 1, &two, &e), 0);
    assert_int_equal(st_writer_begin(&w, &o, &e), 0);
    assert_int_equal(st_writer_data(&w, &o, data, 9, &e), -1);
    assert_non_null(strstr(e.msg, "tensor a"));
    assert_int_equal(st_writer_end(&w, &e), -1);
    assert_int_equal(st_writer_data(&w, &o, data, 8, &e), 0);
    assert_int_equal(st_writer_end(&w, &e), 0);
    assert_int_equal(st_writer_data(&w, &o, data, 1, &e), -1);
    assert_int_equal(st_writer_tensor(&w, "a", ST_F32, 1, &two, &e), 0);
    assert_int_equal(st_writer_begin(&w, &o, &e), -1);
    assert_non_null(strstr(e.msg, "declared twice"));
    assert_int_equal(st_writer_tensor(&w, "\xff", ST_F32, 1, &two, &e), 0);
    outfile_abort(&o);
    st_writer_release(&w);
    scratch_remove(dir);
}

/* ---- the corpus -------------------------------------------------------- */

#define T(name, dtype, shape, a, b) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #a "," #b "]}"

static const struct {
    const char *name, *header;
    int64_t len;  /* length word; -1: the truth */
    size_t data;  /* bytes of data */
    int64_t keep; /* file cut to this; -1: whole */
    const char *want;
} corpus[] = {
    { "empty file", "{}", -1, 0, 0, "is empty" },
    { "length word cut", "{}", -1, 0, 7, "truncated" },
    { "header cut", "{" T("a", "F32", "1", 0, 4) "}", -1, 4, 20, "header length" },
    { "length of all ones", "{}", INT64_MAX, 0, -1, "header length" },
    { "length above 100 MB", "{}", 100000001, 0, -1, "header length" },
    { "length one too large", "{}", 3, 0, -1, "header length" },
    { "length one too small", "{" T("a", "F32", "1", 0, 4) "}", 10, 4, -1, "not valid JSON" },
    { "length zero", "{}", 0, 0, -1, "'{'" },
    { "header is an array", "[1]", -1, 0, -1, "'{'" },
    { "header is no JSON", "{\"a\":}", -1, 0, -1, "not valid JSON" },
    { "header is binary", "{\x01\x02\xff", -1, 0, -1, "not valid JSON" },
    { "text after the object", "{} {}", -1, 0, -1, "not valid JSON" },
    { "name twice", "{" T("a", "U8", "1", 0, 1) "," T("a", "U8", "1", 1, 2) "}", -1, 2, -1, "duplicate" },
    { "name with NUL", "{\"a\\u0000b\":{}}", -1, 0, -1, "not valid JSON" },
    { "name not UTF-8", "{\"\xc3(\":{}}", -1, 0, -1, "not valid JSON" },
    { "entry is a number", "{\"a\":1}", -1, 0, -1, "\"dtype\"" },
    { "dtype missing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, -1, "\"dtype\"" },
    { "dtype a number", "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, -1, "\"dtype\"" },
    { "dtype unknown", "{" T("a", "F33", "1", 0, 4) "}", -1, 4, -1, "unknown dtype \"F33\"" },
    { "shape missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", -1, 4, -1, "\"shape\"" },
    { "shape of strings", "{" T("a", "F32", "\"1\"", 0, 4) "}", -1, 4, -1, "dimension 0" },
    { "shape of reals", "{" T("a", "F32", "1.0", 0, 4) "}", -1, 4, -1, "dimension 0" },
    { "shape negative", "{" T("a", "F32", "-1,-1", 0, 4) "}", -1, 4, -1, "dimension 0" },
    { "shape beyond int64", "{" T("a", "F32", "99999999999999999999", 0, 4) "}", -1, 4, -1, "expected dimension 0" },
    { "shape product wraps to 1", "{" T("a", "F32", "4294967296,4294967296,1", 0, 4) "}", -1, 4, -1, "too large" },
    { "shape times width wraps", "{" T("a", "F32", "4611686018427387905", 0, 4) "}", -1, 4, -1, "too large" },
    { "shape of five", "{" T("a", "F32", "1,1,1,1,1", 0, 4) "}", -1, 4, -1, "5 dimensions" },
    { "offsets missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, -1, "data_offsets" },
    { "offsets of one", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4]}}", -1, 4, -1, "data_offsets" },
    { "offsets negative", "{" T("a", "F32", "1", -4, 0) "}", -1, 4, -1, "data_offsets" },
    { "offsets backwards", "{" T("a", "F32", "1", 4, 0) "}", -1, 4, -1, "data_offsets" },
    { "offsets past the end", "{" T("a", "F32", "1", 0, 8) "}", -1, 4, -1, "truncated?" },
    { "offsets far past the end", "{" T("a", "F32", "1", 9223372036854775803, 9223372036854775807) "}", -1, 4, -1, "truncated?" },
    { "data cut", "{" T("a", "F32", "4", 0, 16) "}", -1, 15, -1, "truncated?" },
    { "size below shape", "{" T("a", "F32", "2", 0, 4) "}", -1, 4, -1, "needs 8 bytes" },
    { "size above shape", "{" T("a", "F16", "1", 0, 4) "}", -1, 4, -1, "needs 2 bytes" },
    { "half a byte", "{" T("a", "F4", "3", 0, 1) "}", -1, 1, -1, "needs 2 bytes" },
    { "overlap", "{" T("a", "F32", "2", 0, 8) "," T("b", "F32", "2", 4, 12) "}", -1, 12, -1, "overlap" },
    { "same place", "{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 0, 4) "}", -1, 4, -1, "overlap" },
    { "hole", "{" T("a", "U8", "1", 0, 1) "," T("b", "U8", "1", 2, 3) "}", -1, 3, -1, "belong to no tensor" },
    { "hole at the front", "{" T("a", "U8", "1", 1, 2) "}", -1, 2, -1, "belong to no tensor" },
    { "bytes at the end", "{" T("a", "U8", "1", 0, 1) "}", -1, 9, -1, "8 bytes after" },
    { "metadata a string", "{\"__metadata__\":\"x\"}", -1, 0, -1, "__metadata__" },
    { "metadata of numbers", "{\"__metadata__\":{\"x\":1}}", -1, 0, -1, "__metadata__" },
};

static void refuses_the_corpus(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    for (size_t i = 0; i < sizeof corpus / sizeof *corpus; i++) {
        const char *path = scratch_path(dir, "bad.safetensors");
        struct st_file f;
        struct err e = { 0 };
        scratch_safetensors(path, corpus[i].header, corpus[i].len, corpus[i].data, corpus[i].keep);
        if (st_open(&f, path, &e) == 0)
            fail_msg("%s: was accepted", corpus[i].name);
        if (!strstr(e.msg, corpus[i].want) || !strstr(e.msg, "bad.safetensors"))
            fail_msg("%s: expected \"%s\", found \"%s\"", corpus[i].name, corpus[i].want, e.msg);
    }
    /* nesting: 100000 arrays deep */
    size_t n = 100000;
    char *deep = malloc(2 * n + 8);
    assert_non_null(deep);
    snprintf(deep, 8, "{\"a\":");
    memset(deep + 5, '[', n);
    memset(deep + 5 + n, ']', n);
    memcpy(deep + 5 + 2 * n, "}", 2);
    struct st_file f;
    struct err e = { 0 };
    scratch_safetensors(scratch_path(dir, "deep"), deep, -1, 0, -1);
    assert_int_equal(st_open(&f, scratch_path(dir, "deep"), &e), -1);
    assert_non_null(strstr(e.msg, "nested deeper than 64 levels"));
    free(deep);
    scratch_remove(dir);
}

/* Every prefix of a good file is an error. */
static void refuses_every_truncation(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "cut");
    struct file_map m;
    struct err e = { 0 };
    assert_int_equal(file_map_open(&m, GOLDEN, &e), 0);
    for (size_t n = 0; n < m.size; n++) {
        struct st_file f;
        scratch_write(path, m.data, n);
        if (st_open(&f, path, &e) == 0)
            fail_msg("the first %zu of %zu bytes were accepted", n, m.size);
    }
    file_map_release(&m);
    scratch_remove(dir);
}

/* Two bits of every byte of the header changed in turn: an error or a file whose tensors all lie inside (ASan looks on). */
static void survives_flipped_bytes(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "flip");
    struct file_map m;
    struct err e = { 0 };
    unsigned sum = 0;
    assert_int_equal(file_map_open(&m, GOLDEN, &e), 0);
    uint8_t *copy = malloc(m.size);
    assert_non_null(copy);
    for (size_t i = 0; i < 664 && i < m.size; i++)
        for (unsigned bit = (unsigned)i % 4; bit < 8; bit += 4) {
            struct st_file f;
            memcpy(copy, m.data, m.size);
            copy[i] ^= (uint8_t)(1u << bit);
            scratch_write(path, copy, m.size);
            if (st_open(&f, path, &e))
                continue;
            for (size_t k = 0; k < f.n; k++)
                for (size_t b = 0; b < f.entries[k].size; b++)
                    sum += ((const uint8_t *)f.entries[k].data)[b];
            st_release(&f);
        }
    assert_true(sum > 0); /* a changed name is no error */
    free(copy);
    file_map_release(&m);
    scratch_remove(dir);
}

/* Unaligned data are read right: the header has an odd length. */
static void reads_unaligned_data(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "odd");
    struct st_file f;
    struct err e = { 0 };
    const char *headers[] = { "{" T("a", "U8", "1", 0, 1) "," T("b", "F32", "2", 1, 9) "}",
                              "{" T("a", "U8", "1", 0, 1) "," T("b", "F32", "2", 1, 9) "} " };
    const uint8_t want[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    for (int i = 0; i < 2; i++) {
        scratch_safetensors(path, headers[i], -1, 9, -1);
        assert_int_equal(st_open(&f, path, &e), 0);
        assert_int_equal((uintptr_t)f.entries[1].data % 4, 0);
        assert_memory_equal(f.entries[1].data, want, 8);
        st_release(&f);
    }
    scratch_remove(dir);
}

static void reports_failed_allocations(void **state)
{
    (void)state;
    struct st_file f;
    struct err e = { 0 };
    long n = 1;
    for (; n < 1000; n++) {
        mem_fail_after(n);
        int rc = st_open(&f, GOLDEN, &e);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(e.code, ERR_MEMORY);
    }
    assert_in_range(n, 2, 999);
    st_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_the_package_wrote),  cmocka_unit_test(writes_what_the_package_wrote),
        cmocka_unit_test(writer_refuses_misuse),         cmocka_unit_test(refuses_the_corpus),
        cmocka_unit_test(refuses_every_truncation),      cmocka_unit_test(survives_flipped_bytes),
        cmocka_unit_test(reads_unaligned_data),          cmocka_unit_test(reports_failed_allocations),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
