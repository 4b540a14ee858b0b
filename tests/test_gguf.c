/* gguf: what the PyPI package writes is read with every value; a corpus of files that lie, each refused with a message that
 * names the file; every truncation; seeded bit flips (for the sanitizers); what our writer writes is read back and is
 * the same bytes each time. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fcntl.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/checkpoint.h"
#include "io/gguf.h"
#include "scratch.h"

#define FIXTURES "tests/fixtures/gguf/"

static const char *dir;

static int setup(void **state)
{
    (void)state;
    dir = scratch_dir();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(dir);
    return 0;
}

/* ---- files byte by byte ------------------------------------------------------- */

struct bytes {
    uint8_t p[8192];
    size_t n;
};

static void put(struct bytes *b, uint64_t v, size_t n)
{
    assert_true(b->n + n <= sizeof b->p);
    for (size_t i = 0; i < n; i++)
        b->p[b->n++] = i < 8 ? (uint8_t)(v >> (8 * i)) : 0;
}

static void put_raw(struct bytes *b, const char *s, size_t n)
{
    assert_true(b->n + n <= sizeof b->p);
    memcpy(b->p + b->n, s, n);
    b->n += n;
}

static void put_str(struct bytes *b, const char *s)
{
    put(b, strlen(s), 8);
    put_raw(b, s, strlen(s));
}

static void head(struct bytes *b, uint64_t n_tensors, uint64_t n_kv)
{
    b->n = 0;
    put_raw(b, "GGUF", 4);
    put(b, 3, 4);
    put(b, n_tensors, 8);
    put(b, n_kv, 8);
}

static void kv_u32(struct bytes *b, const char *key, uint32_t v)
{
    put_str(b, key);
    put(b, GGUF_U32, 4);
    put(b, v, 4);
}

static void kv_array(struct bytes *b, const char *key, uint32_t elem, uint64_t n)
{
    put_str(b, key);
    put(b, GGUF_ARRAY, 4);
    put(b, elem, 4);
    put(b, n, 8);
}

static void info(struct bytes *b, const char *name, int n_dims, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    put_str(b, name);
    put(b, (uint64_t)n_dims, 4);
    for (int i = 0; i < n_dims && i < 8; i++)
        put(b, ne[i], 8);
    put(b, type, 4);
    put(b, offset, 8);
}

/* A one-dimensional F32 tensor. */
static void info1(struct bytes *b, const char *name, uint64_t n, uint64_t offset)
{
    info(b, name, 1, &n, 0, offset);
}

static void data(struct bytes *b, size_t n)
{
    while (b->n % 32)
        put(b, 0, 1);
    for (size_t i = 0; i < n; i++)
        put(b, 0, 1);
}

/* ---- good files ---------------------------------------------------------------- */

static void open_ok(struct gguf *g, const char *path)
{
    struct err e = { 0 };
    if (gguf_open(g, path, &e))
        fail_msg("%s", e.msg);
}

static void check_keys(const struct gguf *g)
{
    static const struct { const char *key; int64_t v; } ints[] = {
        { "t.u8", 200 }, { "t.i8", -100 }, { "t.u16", 60000 }, { "t.i16", -30000 }, { "t.u32", 4000000000 },
        { "t.i32", -2000000000 }, { "t.u64", (int64_t)1 << 40 }, { "t.i64", -((int64_t)1 << 40) }, { "t.bool", 1 },
    };
    struct err e = { 0 };
    struct gguf_str s;
    struct gguf_iter it;
    int64_t v = 77;
    double f;
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        assert_int_equal(gguf_int(g, ints[i].key, &v, &e), 1);
        assert_true(v == ints[i].v);
        assert_int_equal(gguf_float(g, ints[i].key, &f, &e), 1);
        assert_true(f == (double)ints[i].v);
    }
    assert_true(gguf_float(g, "t.f32", &f, &e) == 1 && f == 1.5);
    assert_true(gguf_float(g, "t.f64", &f, &e) == 1 && f == 1e300);
    assert_true(gguf_string(g, "t.string", &s, &e) == 1 && s.n == 6 && !memcmp(s.p, "na\xc3\xafve", 6));
    assert_int_equal(gguf_iter_init(&it, g, "t.strings", GGUF_STRING, &e), 1);
    assert_int_equal(it.kv->n, 4);
    static const char *const want[] = { "a", "bc", "", "d" };
    for (int i = 0; i < 4; i++) {
        s = gguf_iter_str(&it);
        assert_true(s.n == strlen(want[i]) && !memcmp(s.p, want[i], s.n));
    }
    assert_int_equal(gguf_iter_init(&it, g, "t.ints", GGUF_I32, &e), 1);
    assert_true(gguf_iter_int(&it) == 1 && gguf_iter_int(&it) == -2 && gguf_iter_int(&it) == 3);
    assert_int_equal(gguf_iter_init(&it, g, "t.floats", GGUF_F32, &e), 1);
    assert_true(gguf_iter_float(&it) == 0.5 && gguf_iter_float(&it) == -0.25);
    /* absent is 0 and touches nothing; the wrong type is an error that names key, expected, found */
    v = 5;
    assert_int_equal(gguf_int(g, "t.none", &v, &e), 0);
    assert_true(v == 5);
    assert_int_equal(gguf_int(g, "t.f32", &v, &e), -1);
    assert_string_equal(e.msg, "key t.f32: expected an integer, found f32");
    assert_int_equal(gguf_float(g, "t.string", &f, &e), -1);
    assert_int_equal(gguf_string(g, "t.u8", &s, &e), -1);
    assert_int_equal(gguf_iter_init(&it, g, "t.ints", GGUF_STRING, &e), -1);
    assert_int_equal(gguf_iter_init(&it, g, "t.strings", GGUF_I32, &e), -1);
    assert_int_equal(gguf_iter_init(&it, g, "t.u8", GGUF_I32, &e), -1);
}

static void reads_every_type(void **state)
{
    (void)state;
    struct gguf g;
    char *text;
    size_t n;
    struct err e = { 0 };
    for (int version = 2; version <= 3; version++) { /* one layout, two numbers */
        assert_int_equal(file_read(FIXTURES "keys.gguf", 1 << 20, &text, &n, &e), 0);
        text[4] = (char)version;
        scratch_write(scratch_path(dir, "v.gguf"), text, n);
        mem_free(text);
        open_ok(&g, scratch_path(dir, "v.gguf"));
        assert_int_equal(g.version, version);
        check_keys(&g);
        assert_int_equal(g.n_tensors, 2);
        assert_string_equal(g.tensors[0].name, "a");
        assert_true(g.tensors[0].n_dims == 2 && g.tensors[0].dim[0] == 2 && g.tensors[0].dim[1] == 3);
        float f[6];
        tensor_to_f32(&g.tensors[0], f);
        for (int i = 0; i < 6; i++)
            assert_true(f[i] == (float)i);
        assert_true(g.tensors[1].type == DT_F16 && g.tensors[1].n_dims == 1 && g.tensors[1].dim[0] == 4);
        tensor_to_f32(&g.tensors[1], f);
        assert_true(f[0] == 1 && f[3] == 4);
        gguf_release(&g);
    }
}

static void reads_split_files(void **state)
{
    (void)state;
    struct gguf g;
    open_ok(&g, FIXTURES "split-00001-of-00003.gguf");
    check_keys(&g);
    assert_int_equal(g.n_maps, 3);
    assert_int_equal(g.n_tensors, 5);
    for (int i = 0; i < 5; i++) {
        float f[8];
        char name[8];
        snprintf(name, sizeof name, "t%d", i);
        assert_string_equal(g.tensors[i].name, name);
        tensor_to_f32(&g.tensors[i], f);
        assert_true(f[0] == (float)i && f[7] == (float)i);
    }
    gguf_release(&g);
}

/* Odd, but sound: no keys, no tensors, zero dimensions, types we lack. */
static void accepts_what_is_odd(void **state)
{
    (void)state;
    struct bytes b;
    struct gguf g;
    const char *path = scratch_path(dir, "odd.gguf");
    const uint64_t zero[2] = { 0, 5 }, iq[1] = { 256 };
    head(&b, 0, 0);
    scratch_write(path, b.p, b.n);
    open_ok(&g, path);
    gguf_release(&g);
    head(&b, 4, 1);
    kv_array(&b, "empty", GGUF_STRING, 0);
    info(&b, "zero", 2, zero, 0, 0);
    info1(&b, "one", 8, 0);
    info1(&b, "two", 4, 32);
    info(&b, "iq2_xxs", 1, iq, 16, 64);
    data(&b, 64);
    scratch_write(path, b.p, b.n);
    open_ok(&g, path);
    assert_int_equal(tensor_count(&g.tensors[0]), 0);
    assert_ptr_equal(g.tensors[1].data, g.tensors[0].data);
    assert_int_equal(g.tensors[3].type, DT_COUNT);
    assert_int_equal(g.ggml_type[3], 16);
    gguf_release(&g);
    struct checkpoint *c;
    struct tensor t;
    struct err e = { 0 };
    assert_int_equal(checkpoint_open(&c, path, &e), 0);
    assert_int_equal(checkpoint_tensor(c, "one", &t, &e), 1);
    assert_int_equal(checkpoint_tensor(c, "none", &t, &e), 0);
    assert_int_equal(checkpoint_tensor(c, "iq2_xxs", &t, &e), -1);
    assert_non_null(strstr(e.msg, "odd.gguf: tensor iq2_xxs: ggml type 16 is not supported"));
    checkpoint_free(c);
}

/* ---- bad files ------------------------------------------------------------------- */

static void refuses_path(const char *what, const char *path, const char *want)
{
    struct gguf g;
    struct err e = { 0 };
    if (!gguf_open(&g, path, &e))
        fail_msg("%s: accepted, expected \"%s\"", what, want);
    const char *slash = strrchr(path, '/');
    char stem[64];
    snprintf(stem, sizeof stem, "%.*s", (int)strcspn(slash + 1, "-."), slash + 1); /* of whichever part it is */
    if (!strstr(e.msg, want) || !strstr(e.msg, stem) || !strstr(e.msg, ".gguf"))
        fail_msg("%s: expected \"%s\", found \"%s\"", what, want, e.msg);
}

static void refuses(const char *what, const struct bytes *b, const char *want)
{
    const char *path = scratch_path(dir, "bad.gguf");
    scratch_write(path, b->p, b->n);
    refuses_path(what, path, want);
}

static void refuses_bad_headers(void **state)
{
    (void)state;
    struct bytes b;
    static const struct { const char *what, *magic; uint32_t version; const char *want; } cases[] = {
        { "bad magic", "GGML", 3, "not a GGUF file" },    { "magic reversed", "FUGG", 3, "not a GGUF file" },
        { "version 0", "GGUF", 0, "not supported" },      { "version 1", "GGUF", 1, "version 1 is not supported" },
        { "version 99", "GGUF", 99, "version 99" },       { "version 4", "GGUF", 4, "version 4" },
        { "big endian", "GGUF", 0x03000000, "big-endian" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        head(&b, 0, 0);
        memcpy(b.p, cases[i].magic, 4);
        for (int k = 0; k < 4; k++)
            b.p[4 + k] = (uint8_t)(cases[i].version >> (8 * k));
        refuses(cases[i].what, &b, cases[i].want);
    }
    b.n = 0;
    refuses("empty file", &b, "bad.gguf");
    head(&b, 0, 1000000000);
    refuses("n_kv 1e9", &b, "claims 1000000000 keys");
    head(&b, 1000000000, 0);
    refuses("n_tensors 1e9", &b, "1000000000 tensors");
    head(&b, UINT64_MAX, UINT64_MAX);
    refuses("all counts 2^64-1", &b, "too many for");
    head(&b, 0, 3);
    kv_u32(&b, "a", 1);
    kv_u32(&b, "b", 1);
    refuses("fewer keys than said", &b, "bad.gguf");
}

static void refuses_bad_keys(void **state)
{
    (void)state;
    struct bytes b;
    head(&b, 0, 1);
    put(&b, (uint64_t)1 << 40, 8);
    put(&b, 0, 16);
    refuses("huge key", &b, "string of 1099511627776 bytes");
    head(&b, 0, 1);
    put(&b, UINT64_MAX - 7, 8);
    put(&b, 0, 16);
    refuses("key length that wraps", &b, "bytes at byte");
    head(&b, 0, 1);
    kv_u32(&b, "", 1);
    refuses("empty key", &b, "without NUL");
    head(&b, 0, 1);
    put(&b, 3, 8);
    put_raw(&b, "a\0b", 3);
    put(&b, GGUF_U32, 4);
    put(&b, 1, 4);
    refuses("key with NUL", &b, "without NUL, found 3");
    char big[1100];
    memset(big, 'k', sizeof big);
    big[1025] = 0;
    head(&b, 0, 1);
    kv_u32(&b, big, 1);
    refuses("key of 1025 bytes", &b, "found 1025");
    head(&b, 0, 2);
    kv_u32(&b, "a", 1);
    kv_u32(&b, "a", 1);
    refuses("duplicate key", &b, "key a appears twice");
    head(&b, 0, 1);
    put_str(&b, "a");
    put(&b, 13, 4);
    put(&b, 0, 8);
    refuses("value type 13", &b, "key a: unknown value type 13");
    head(&b, 0, 1);
    put_str(&b, "a");
    put(&b, GGUF_STRING, 4);
    put(&b, 1000, 8);
    put_raw(&b, "short", 5);
    refuses("string value too long", &b, "string of 1000 bytes");
    head(&b, 0, 1);
    put_str(&b, "a");
    put(&b, GGUF_U64, 4);
    put(&b, 1, 4);
    refuses("value cut off", &b, "key a: 1 values of type u64, only 4 bytes left");
}

static void refuses_bad_arrays(void **state)
{
    (void)state;
    struct bytes b;
    head(&b, 0, 1);
    kv_array(&b, "a", GGUF_ARRAY, 1);
    put(&b, GGUF_U8, 4);
    put(&b, 0, 8);
    refuses("nested array", &b, "key a: array of type 9 is not supported");
    head(&b, 0, 1);
    kv_array(&b, "a", 77, 1);
    put(&b, 0, 8);
    refuses("array of unknown type", &b, "array of type 77");
    head(&b, 0, 1);
    kv_array(&b, "a", GGUF_U32, 5);
    put(&b, 0, 16);
    refuses("array one too long", &b, "key a: 5 values of type u32, only 16 bytes left");
    head(&b, 0, 1);
    kv_array(&b, "a", GGUF_U64, (uint64_t)1 << 61);
    put(&b, 0, 16);
    refuses("array size that wraps", &b, "values of type u64");
    head(&b, 0, 1);
    kv_array(&b, "a", GGUF_STRING, (uint64_t)1 << 60);
    put(&b, 0, 16);
    refuses("array of 2^60 strings", &b, "key a: 1152921504606846976 strings");
    head(&b, 0, 1);
    kv_array(&b, "a", GGUF_STRING, 2);
    put_str(&b, "ok");
    put(&b, 1 << 20, 8);
    refuses("second string lies", &b, "key a, string 1");
}

static void refuses_bad_tensors(void **state)
{
    (void)state;
    struct bytes b;
    const uint64_t wrap[4] = { (uint64_t)1 << 32, (uint64_t)1 << 32, 4, 1 }, top[2] = { (uint64_t)1 << 63, 1 };
    const uint64_t bytes[2] = { (uint64_t)1 << 62, 1 }, odd[2] = { 33, 2 }, k[2] = { 128, 2 }, five[8] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    const uint64_t hidden[3] = { 0, (uint64_t)1 << 40, (uint64_t)1 << 40 };
    head(&b, 1, 0);
    put(&b, 1 << 30, 8);
    put(&b, 0, 64);
    refuses("huge tensor name", &b, "string of 1073741824 bytes");
    head(&b, 1, 0);
    put(&b, 3, 8);
    put_raw(&b, "a\0b", 3);
    put(&b, 0, 64);
    refuses("tensor name with NUL", &b, "tensor name");
    head(&b, 1, 0);
    info(&b, "a", 0, NULL, 0, 0);
    data(&b, 32);
    refuses("no dimensions", &b, "tensor a: expected 1 to 4 dimensions, found 0");
    head(&b, 1, 0);
    info(&b, "a", 5, five, 0, 0);
    data(&b, 32);
    refuses("five dimensions", &b, "found 5");
    head(&b, 1, 0);
    put_str(&b, "a");
    put(&b, 0xffffffff, 4);
    put(&b, 0, 64);
    refuses("2^32-1 dimensions", &b, "found 4294967295");
    head(&b, 1, 0);
    info(&b, "a", 4, wrap, 0, 0);
    refuses("dimensions overflow", &b, "tensor a: its dimensions overflow");
    head(&b, 1, 0);
    info(&b, "a", 2, top, 0, 0);
    refuses("dimension 2^63", &b, "overflow");
    head(&b, 1, 0);
    info(&b, "a", 2, bytes, 0, 0);
    refuses("bytes overflow", &b, "tensor a: shape");
    head(&b, 1, 0);
    info(&b, "a", 2, odd, 2, 0);
    data(&b, 64);
    refuses("33 wide q4_0", &b, "tensor a: rows of 33 elements, expected a multiple of 32");
    head(&b, 1, 0);
    info(&b, "a", 2, k, 10, 0);
    data(&b, 256);
    refuses("128 wide q2_k", &b, "multiple of 256");
    head(&b, 1, 0);
    info1(&b, "a", 9, 0);
    data(&b, 32);
    refuses("data cut off", &b, "tensor a: 36 bytes at offset 0, but the data section has 32");
    head(&b, 1, 0);
    info1(&b, "a", 8, 32);
    data(&b, 32);
    refuses("offset past the end", &b, "at offset 32");
    head(&b, 1, 0);
    info1(&b, "a", 8, UINT64_MAX - 31);
    data(&b, 32);
    refuses("offset that wraps", &b, "but the data section has 32");
    head(&b, 1, 0);
    info1(&b, "a", 1, 4);
    data(&b, 32);
    refuses("offset not aligned", &b, "no multiple of the alignment 32");
    head(&b, 1, 0);
    info1(&b, "a", 1, 0);
    refuses("no data section", &b, "but the data section has 0");
    head(&b, 2, 0);
    info1(&b, "a", 1, 0);
    info1(&b, "a", 1, 0);
    data(&b, 32);
    refuses("duplicate tensor", &b, "tensor a appears twice");
    head(&b, 1, 0);
    info(&b, "a", 3, hidden, 0, 1 << 20);
    data(&b, 32);
    refuses("zero dimension, offset outside", &b, "tensor a");
    head(&b, 1, 1);
    kv_u32(&b, "a", 0);
    put_str(&b, "half a tensor");
    put(&b, 1, 4);
    put(&b, 0, 8);
    refuses("tensor entry cut off", &b, "bad.gguf");
}

static void refuses_bad_alignment(void **state)
{
    (void)state;
    static const uint32_t bad[] = { 0, 1, 4, 24, 33, 131072, 0x80000000 };
    struct bytes b;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        head(&b, 0, 1);
        kv_u32(&b, "general.alignment", bad[i]);
        refuses("alignment", &b, "general.alignment: expected a power of two");
    }
    head(&b, 0, 1);
    put_str(&b, "general.alignment");
    put(&b, GGUF_STRING, 4);
    put_str(&b, "32");
    refuses("alignment a string", &b, "key general.alignment: expected an integer, found string");
}

/* Parts are made from the fixture's; key `what` of part `part` gets another value. */
static void split_with(int part, const char *key, uint16_t v, int n_parts)
{
    for (int i = 1; i <= n_parts; i++) {
        char name[64], *text;
        size_t n;
        struct err e = { 0 };
        snprintf(name, sizeof name, FIXTURES "split-%05d-of-00003.gguf", i);
        assert_int_equal(file_read(name, 1 << 20, &text, &n, &e), 0);
        char *at = key && i == part ? memmem(text, n, key, strlen(key)) : NULL;
        if (key && i == part) {
            assert_non_null(at);
            at[strlen(key) + 4] = (char)v; /* after the type */
            at[strlen(key) + 5] = (char)(v >> 8);
        }
        snprintf(name, sizeof name, "bad-%05d-of-00003.gguf", i);
        scratch_write(scratch_path(dir, name), text, n);
        mem_free(text);
    }
}

static void refuses_bad_splits(void **state)
{
    (void)state;
    char first[4096]; /* scratch_path's ring is short */
    snprintf(first, sizeof first, "%s/bad-00001-of-00003.gguf", dir);
    split_with(0, NULL, 0, 2);
    refuses_path("part missing", first, "bad-00003-of-00003.gguf");
    split_with(0, NULL, 0, 3);
    refuses_path("second part opened", scratch_path(dir, "bad-00002-of-00003.gguf"), "split.no 1 of split.count 3");
    split_with(1, "split.count", 4, 3);
    refuses_path("count 4 under the name of 3", first, "expected a name ending in -00001-of-00004.gguf");
    split_with(1, "split.count", 60000, 3);
    refuses_path("count 60000", first, "split.count 60000");
    split_with(2, "split.count", 2, 3);
    refuses_path("part says another count", first, "bad-00002-of-00003.gguf: expected split.no 1 and split.count 3, found 1 and 2");
    split_with(3, "split.no", 1, 3);
    refuses_path("part says another number", first, "expected split.no 2 and split.count 3, found 1 and 3");
    split_with(1, "split.tensors.count", 6, 3);
    refuses_path("tensor count", first, "split.tensors.count says 6, its 3 parts hold 5");
    split_with(0, NULL, 0, 3);
    char *text;
    size_t n;
    struct err e = { 0 };
    assert_int_equal(file_read(FIXTURES "split-00002-of-00003.gguf", 1 << 20, &text, &n, &e), 0);
    scratch_write(scratch_path(dir, "bad-00002-of-00003.gguf"), text, n - 8);
    refuses_path("part cut off", first, "bad-00002-of-00003.gguf: tensor t3");
    char *name = memmem(text, n, "t3", 2);
    assert_non_null(name);
    name[1] = '1';
    scratch_write(scratch_path(dir, "bad-00002-of-00003.gguf"), text, n);
    refuses_path("tensor in two parts", first, "tensor t1 appears twice");
    scratch_write(scratch_path(dir, "bad-00002-of-00003.gguf"), "junk", 4);
    refuses_path("part no GGUF", first, "bad-00002-of-00003.gguf");
    mem_free(text);
    struct bytes b;
    head(&b, 0, 1);
    kv_u32(&b, "split.count", 2);
    refuses("split under a plain name", &b, "expected a name ending in");
    head(&b, 0, 1);
    put_str(&b, "split.count");
    put(&b, GGUF_F32, 4);
    put(&b, 0, 4);
    refuses("split.count a float", &b, "key split.count: expected an integer, found f32");
}

/* Everything a reader may touch is touched: for the sanitizers. */
static double walk(const struct gguf *g)
{
    double sum = 0;
    for (uint64_t i = 0; i < g->n_kv; i++) {
        const struct gguf_kv *kv = &g->kv[i];
        struct gguf_iter it;
        struct gguf_str s;
        int64_t v;
        double f;
        sum += (double)strlen(kv->key);
        if (gguf_int(g, kv->key, &v, NULL) == 1)
            sum += (double)(v & 7);
        if (gguf_float(g, kv->key, &f, NULL) == 1 && isfinite(f))
            sum += f > 0;
        if (gguf_string(g, kv->key, &s, NULL) == 1)
            for (size_t k = 0; k < s.n; k++)
                sum += s.p[k] & 1;
        if (gguf_iter_init(&it, g, kv->key, GGUF_STRING, NULL) == 1)
            for (uint64_t k = 0; k < it.kv->n; k++) {
                s = gguf_iter_str(&it);
                sum += s.n ? s.p[s.n - 1] & 1 : 0;
            }
        if (gguf_iter_init(&it, g, kv->key, GGUF_I32, NULL) == 1)
            for (uint64_t k = 0; k < it.kv->n; k++)
                sum += (double)(gguf_iter_int(&it) & 1);
        if (gguf_iter_init(&it, g, kv->key, GGUF_F32, NULL) == 1)
            for (uint64_t k = 0; k < it.kv->n; k++)
                sum += gguf_iter_float(&it) > 0;
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct tensor *t = &g->tensors[i];
        float f[4096];
        for (size_t k = 0; k < t->size; k++)
            sum += ((const uint8_t *)t->data)[k] & 1;
        if (t->type != DT_COUNT && tensor_count(t) <= 4096)
            tensor_to_f32(t, f);
    }
    return sum;
}

/* The fixture under another name, open for changes in place: creating thousands of files is slow. */
static int working_copy(const char *path, char **text, size_t *n)
{
    struct err e = { 0 };
    assert_int_equal(file_read(FIXTURES "keys.gguf", 1 << 20, text, n, &e), 0);
    scratch_write(path, *text, *n);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    return fd;
}

static void every_truncation(void **state)
{
    (void)state;
    const char *path = scratch_path(dir, "cut.gguf");
    char *text;
    size_t n;
    struct err e = { 0 };
    struct gguf g;
    int fd = working_copy(path, &text, &n);
    size_t shortest = n; /* that opens: the file ends in padding that nothing needs */
    for (size_t len = n; len-- > 0;) {
        assert_int_equal(ftruncate(fd, (off_t)len), 0);
        if (gguf_open(&g, path, &e)) {
            if (!strstr(e.msg, "cut.gguf"))
                fail_msg("%zu bytes: the message does not name the file: %s", len, e.msg);
            continue;
        }
        if (shortest != len + 1)
            fail_msg("%zu bytes open, but %zu do not", len, len + 1);
        shortest = len;
        walk(&g);
        gguf_release(&g);
    }
    assert_int_equal(shortest, n - 24); /* the last tensor has 8 bytes, padded to 32 */
    close(fd);
    mem_free(text);
}

static void random_flips(void **state)
{
    (void)state;
    const char *path = scratch_path(dir, "flip.gguf");
    char *text;
    size_t n;
    struct err e = { 0 };
    struct gguf g;
    uint64_t x = 20260711;
    int opened = 0, refused = 0;
    int fd = working_copy(path, &text, &n);
    char *copy = malloc(n);
    assert_non_null(copy);
    for (int round = 0; round < 6000; round++) {
        memcpy(copy, text, n);
        for (int k = 0; k <= round % 4; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(x >> 33) % n;
            copy[at] = round % 8 < 4 ? (char)(copy[at] ^ (1 << (x >> 20 & 7))) : (char)(x >> 12);
        }
        assert_int_equal(pwrite(fd, copy, n, 0), n);
        if (gguf_open(&g, path, &e)) {
            refused++;
            assert_non_null(strstr(e.msg, "flip.gguf"));
            continue;
        }
        opened++;
        walk(&g);
        gguf_release(&g);
    }
    assert_true(opened > 500 && refused > 500);
    close(fd);
    free(copy);
    mem_free(text);
}

/* ---- the writer -------------------------------------------------------------------- */

static void fill(struct gguf_writer *w, const struct gguf *from)
{
    struct err e = { 0 };
    static const int32_t types[] = { 1, -3, 6 };
    static const struct gguf_str strings[] = { { "x", 1 }, { "", 0 }, { "a b", 3 } };
    static const float scores[] = { 0.5f, -1e10f };
    static const uint8_t bools[] = { 1, 0, 1 };
    static const uint16_t u16[] = { 1, 65535 };
    static const uint64_t u64[] = { UINT64_MAX };
    const int64_t one[1] = { 5 }, two[2] = { 3, 64 }, three[3] = { 2, 2, 4 }, none[2] = { 0, 7 };
    gguf_writer_init(w);
    int rc = gguf_put_string(w, "general.architecture", "test", 4, &e) || gguf_put_int(w, "u8", GGUF_U8, 255, &e) ||
             gguf_put_int(w, "i8", GGUF_I8, -128, &e) || gguf_put_int(w, "u32", GGUF_U32, UINT32_MAX, &e) ||
             gguf_put_int(w, "i64", GGUF_I64, INT64_MIN, &e) || gguf_put_int(w, "bool", GGUF_BOOL, 1, &e) ||
             gguf_put_float(w, "eps", 1e-5, &e) || gguf_put_array(w, "types", GGUF_I32, types, 3, &e) ||
             gguf_put_array(w, "strings", GGUF_STRING, strings, 3, &e) || gguf_put_array(w, "scores", GGUF_F32, scores, 2, &e) ||
             gguf_put_array(w, "bools", GGUF_BOOL, bools, 3, &e) || gguf_put_array(w, "u16", GGUF_U16, u16, 2, &e) ||
             gguf_put_array(w, "u64", GGUF_U64, u64, 1, &e) || gguf_put_array(w, "none", GGUF_STRING, NULL, 0, &e);
    for (uint64_t i = 0; i < from->n_kv && !rc; i++)
        if (strcmp(from->kv[i].key, "general.architecture"))
            rc = gguf_put_kv(w, &from->kv[i], &e);
    rc = rc || gguf_writer_tensor(w, "v", DT_F32, 1, one, &e) || gguf_writer_tensor(w, "empty", DT_F32, 2, none, &e) ||
         gguf_writer_tensor(w, "q", DT_Q2_0, 2, two, &e) || gguf_writer_tensor(w, "h", DT_F16, 3, three, &e);
    if (rc)
        fail_msg("%s", e.msg);
}

static uint8_t value_at(uint64_t i)
{
    return (uint8_t)(i * 7 + i / 256);
}

static void write_one(const char *path, const struct gguf *from, size_t piece)
{
    struct gguf_writer w;
    struct outfile out;
    struct err e = { 0 };
    fill(&w, from);
    uint64_t total = gguf_writer_bytes(&w), at = 0;
    int rc = outfile_open(&out, path, &e) || gguf_writer_begin(&w, &out, &e);
    for (uint64_t i = 0; i < w.n_tensors && !rc; i++)
        for (size_t done = 0; done < w.tensors[i].size && !rc;) {
            uint8_t buf[64];
            size_t n = w.tensors[i].size - done < piece ? w.tensors[i].size - done : piece;
            for (size_t k = 0; k < n; k++)
                buf[k] = value_at(at++);
            rc = gguf_writer_data(&w, &out, buf, n, &e);
            done += n;
        }
    rc = rc || gguf_writer_end(&w, &out, &e);
    assert_true(rc || out.pos == total);
    rc = rc || outfile_commit(&out, &e);
    if (rc)
        fail_msg("%s", e.msg);
    gguf_writer_release(&w);
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    struct gguf from, g;
    struct err e = { 0 };
    char *a, *b;
    size_t na, nb;
    int64_t v;
    double f;
    struct gguf_iter it;
    struct gguf_str s;
    open_ok(&from, FIXTURES "keys.gguf");
    write_one(scratch_path(dir, "w1.gguf"), &from, 64);
    write_one(scratch_path(dir, "w2.gguf"), &from, 3);
    assert_int_equal(file_read(scratch_path(dir, "w1.gguf"), 1 << 20, &a, &na, &e), 0);
    assert_int_equal(file_read(scratch_path(dir, "w2.gguf"), 1 << 20, &b, &nb, &e), 0);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    mem_free(a);
    mem_free(b);
    open_ok(&g, scratch_path(dir, "w1.gguf"));
    check_keys(&g);
    assert_true(gguf_int(&g, "u8", &v, &e) == 1 && v == 255);
    assert_true(gguf_int(&g, "i8", &v, &e) == 1 && v == -128);
    assert_true(gguf_int(&g, "u32", &v, &e) == 1 && v == UINT32_MAX);
    assert_true(gguf_int(&g, "i64", &v, &e) == 1 && v == INT64_MIN);
    assert_true(gguf_int(&g, "bool", &v, &e) == 1 && v == 1);
    assert_true(gguf_float(&g, "eps", &f, &e) == 1 && f == (double)1e-5f);
    assert_int_equal(gguf_iter_init(&it, &g, "types", GGUF_I32, &e), 1);
    assert_true(gguf_iter_int(&it) == 1 && gguf_iter_int(&it) == -3 && gguf_iter_int(&it) == 6);
    assert_int_equal(gguf_iter_init(&it, &g, "strings", GGUF_STRING, &e), 1);
    s = gguf_iter_str(&it);
    assert_true(s.n == 1 && s.p[0] == 'x');
    assert_true(gguf_iter_str(&it).n == 0 && gguf_iter_str(&it).n == 3);
    assert_int_equal(gguf_iter_init(&it, &g, "scores", GGUF_F32, &e), 1);
    assert_true(gguf_iter_float(&it) == 0.5 && gguf_iter_float(&it) == (double)-1e10f);
    assert_int_equal(gguf_iter_init(&it, &g, "u16", GGUF_I32, &e), 1);
    assert_true(gguf_iter_int(&it) == 1 && gguf_iter_int(&it) == 65535);
    assert_int_equal(g.n_tensors, 4);
    uint64_t at = 0;
    for (uint64_t i = 0; i < 4; i++)
        for (size_t k = 0; k < g.tensors[i].size; k++)
            assert_int_equal(((const uint8_t *)g.tensors[i].data)[k], value_at(at++));
    assert_true(g.tensors[2].type == DT_Q2_0 && g.tensors[2].dim[0] == 3 && g.tensors[2].dim[1] == 64);
    assert_true(g.tensors[3].n_dims == 3 && g.tensors[3].dim[0] == 2 && g.tensors[3].dim[2] == 4);
    gguf_release(&g);
    gguf_release(&from);
}

static void writer_refuses(void **state)
{
    (void)state;
    struct gguf_writer w;
    struct outfile out;
    struct err e = { 0 };
    const int64_t dim[2] = { 2, 4 }, odd[2] = { 2, 33 };
    gguf_writer_init(&w);
    assert_int_equal(gguf_put_int(&w, "a", GGUF_U8, 1, &e), 0);
    assert_int_equal(gguf_put_int(&w, "a", GGUF_U8, 1, &e), -1);
    assert_string_equal(e.msg, "GGUF key a is put twice");
    assert_int_equal(gguf_put_int(&w, "b", GGUF_U8, 256, &e), -1);
    assert_int_equal(gguf_put_int(&w, "b", GGUF_I8, -129, &e), -1);
    assert_int_equal(gguf_put_int(&w, "b", GGUF_U64, -1, &e), -1);
    assert_int_equal(gguf_put_int(&w, "b", GGUF_F32, 1, &e), -1);
    assert_int_equal(gguf_put_int(&w, "", GGUF_U8, 1, &e), -1);
    assert_int_equal(gguf_put_int(&w, "general.alignment", GGUF_U32, 64, &e), -1);
    assert_int_equal(gguf_put_array(&w, "c", GGUF_ARRAY, NULL, 0, &e), -1);
    assert_int_equal(gguf_writer_tensor(&w, "t", DT_F32, 2, dim, &e), 0);
    assert_int_equal(gguf_writer_tensor(&w, "t", DT_F32, 2, dim, &e), -1);
    assert_int_equal(gguf_writer_tensor(&w, "u", DT_Q4_0, 2, odd, &e), -1);
    assert_int_equal(gguf_writer_tensor(&w, "u", DT_QMAT, 2, dim, &e), -1);
    assert_int_equal(outfile_open(&out, scratch_path(dir, "w.gguf"), &e), 0);
    assert_int_equal(gguf_writer_begin(&w, &out, &e), 0);
    assert_int_equal(gguf_writer_data(&w, &out, dim, 16, &e), 0);
    assert_int_equal(gguf_writer_end(&w, &out, &e), -1);
    assert_non_null(strstr(e.msg, "w.gguf: tensor t has 16 of 32 bytes"));
    assert_int_equal(gguf_writer_data(&w, &out, dim, 16, &e), 0);
    assert_int_equal(gguf_writer_data(&w, &out, dim, 1, &e), -1);
    assert_int_equal(gguf_writer_end(&w, &out, &e), 0);
    outfile_abort(&out);
    gguf_writer_release(&w);
}

static void survives_failed_allocations(void **state)
{
    (void)state;
    struct gguf g;
    struct err e = { 0 };
    long n = 1;
    for (; n < 500; n++) {
        mem_fail_after(n);
        int rc = gguf_open(&g, FIXTURES "split-00001-of-00003.gguf", &e);
        mem_fail_after(0);
        if (!rc)
            break;
        assert_int_equal(e.code, ERR_MEMORY);
    }
    assert_in_range(n, 3, 499);
    gguf_release(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_type),
        cmocka_unit_test(reads_split_files),
        cmocka_unit_test(accepts_what_is_odd),
        cmocka_unit_test(refuses_bad_headers),
        cmocka_unit_test(refuses_bad_keys),
        cmocka_unit_test(refuses_bad_arrays),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(refuses_bad_alignment),
        cmocka_unit_test(refuses_bad_splits),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(random_flips),
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(writer_refuses),
        cmocka_unit_test(survives_failed_allocations),
    };
    return cmocka_run_group_tests_name("gguf", tests, setup, teardown);
}
