/* Files made to harm: each is refused with a message that says why, in a child that may use MEMORY more bytes and SECONDS of
 * processor time. (test_safetensors, test_gguf, test_checkpoint have the many ways of being merely wrong; fuzz/ looks for
 * others.) */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "eval/kl_base.h"
#include "eval/task.h"
#include "model/family.h"
#include "quant/quant.h"
#include "scratch.h"

#define MEMORY (256ull << 20)
#define SECONDS 5

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

/* ---- the child ---------------------------------------------------------------- */

typedef int (*open_fn)(const char *path, struct err *e);

static void limit(int what, uint64_t n)
{
    struct rlimit l = { n, n };
    if (setrlimit(what, &l))
        _exit(3);
}

/* Private writable memory that this process has now: what RLIMIT_DATA counts. */
static uint64_t data_now(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmData: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

/* Waits; the child must have ended by itself, refused, and for the reason given. */
static void check_refused(const char *path, open_fn open, const char *expected)
{
    int fd[2], status = 0;
    struct err e = { 0 };
    assert_int_equal(pipe(fd), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
#ifndef __SANITIZE_ADDRESS__
        limit(RLIMIT_DATA, data_now() + MEMORY);
#endif
        limit(RLIMIT_CPU, SECONDS);
        alarm(20 * SECONDS); /* should it wait for something */
        int rc = open(path, &e);
        _exit(write(fd[1], &e, sizeof e) == (ssize_t)sizeof e ? rc != 0 : 3);
    }
    close(fd[1]);
    ssize_t got = read(fd[0], &e, sizeof e);
    close(fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status))
        fail_msg("%s: ended by signal %d, expected \"%s\"", path, WTERMSIG(status), expected);
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_int_equal(got, sizeof e);
    if (e.code == ERR_MEMORY || !strstr(e.msg, expected))
        fail_msg("expected \"%s\", found \"%s\"", expected, e.msg);
}

static int open_st(const char *path, struct err *e)
{
    struct st_file f;
    return st_open(&f, path, e);
}

static int open_checkpoint(const char *path, struct err *e)
{
    struct checkpoint *c;
    return checkpoint_open(&c, path, e);
}

static int open_tokenizer(const char *path, struct err *e)
{
    struct checkpoint *c;
    struct tokenizer *t;
    struct token_list ids = { 0 };
    char text[4001];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '!';
    return checkpoint_open(&c, path, e) || tokenizer_load(&t, c, e) || tokenizer_encode(t, text, sizeof text, true, true, &ids, e);
}

static int open_kl(const char *path, struct err *e)
{
    struct kl_base b;
    return kl_base_open(&b, path, e);
}

static struct model *fixture(void)
{
    struct model *m = NULL;
    struct err e = { 0 };
    if (model_open(&m, "tests/fixtures/models/llama", &e))
        fail_msg("%s", e.msg);
    return m;
}

static int open_calib(const char *path, struct err *e)
{
    struct calib c;
    return calib_from_file(&c, fixture(), path, 4, 16, 1, e);
}

static int open_task(const char *path, struct err *e)
{
    struct task_options o = { .limit = 0 };
    struct task_result r;
    return task_run(fixture(), "piqa", path, &o, NULL, &r, e);
}

/* ---- bytes ---------------------------------------------------------------------- */

struct bytes {
    uint8_t *p;
    size_t n, cap;
};

static void put(struct bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        assert_non_null(b->p);
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_u32(struct bytes *b, uint32_t v)
{
    put(b, &v, sizeof v);
}

static void put_u64(struct bytes *b, uint64_t v)
{
    put(b, &v, sizeof v);
}

static void put_str(struct bytes *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

/* n times text */
static void put_many(struct bytes *b, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        put(b, text, strlen(text));
}

static void gguf_head(struct bytes *b, uint64_t n_tensors, uint64_t n_kv)
{
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_kv);
}

static void gguf_tensor(struct bytes *b, const char *name, int n, const uint64_t *ne, uint64_t offset)
{
    put_str(b, name);
    put_u32(b, (uint32_t)n);
    for (int i = 0; i < n; i++)
        put_u64(b, ne[i]);
    put_u32(b, 0); /* F32 */
    put_u64(b, offset);
}

static void gguf_key_str(struct bytes *b, const char *key, const char *v)
{
    put_str(b, key);
    put_u32(b, GGUF_STRING);
    put_str(b, v);
}

static void gguf_key_array(struct bytes *b, const char *key, uint32_t type, uint64_t n)
{
    put_str(b, key);
    put_u32(b, GGUF_ARRAY);
    put_u32(b, type);
    put_u64(b, n);
}

/* The file as name in dir, with a hole up to size when that is more; the bytes are given back. */
static const char *store(const char *name, struct bytes *b, uint64_t size)
{
    const char *path = scratch_path(dir, name);
    scratch_write(path, b->p, b->n);
    if (size > b->n && truncate(path, (off_t)size))
        fail_msg("%s: cannot make a hole", path);
    free(b->p);
    *b = (struct bytes){ 0 };
    return path;
}

static const char *store_text(const char *name, const char *text)
{
    const char *path = scratch_path(dir, name);
    scratch_write(path, text, strlen(text));
    return path;
}

static const char *store_header(const char *name, const char *json, size_t n_data)
{
    const char *path = scratch_path(dir, name);
    scratch_safetensors(path, json, -1, n_data, -1);
    return path;
}

/* ---- sizes that overflow ----------------------------------------------------------- */

static void sizes_safetensors(void **state)
{
    (void)state;
    check_refused(store_header("a.safetensors", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0),
                  open_st, "shape is too large");
    /* no product of all, but of some */
    check_refused(store_header("a.safetensors", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0),
                  open_st, "shape is too large");
    check_refused(store_header("a.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[9223372036854775804,9223372036854775807]}}", 8),
                  open_st, "but the file has only 8 bytes of data");
    const char *path = scratch_path(dir, "b.safetensors");
    scratch_safetensors(path, "{}", INT64_MAX, 0, -1);
    check_refused(path, open_st, "header length is 9223372036854775807");
}

static void sizes_gguf(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    const uint64_t wide[] = { 1ull << 32, 1ull << 32 }, hidden[] = { 4, 0, 1ull << 62, 1ull << 62 }, big[] = { 1ull << 60 };
    gguf_head(&b, 1, 0);
    gguf_tensor(&b, "a", 2, wide, 0);
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "its dimensions overflow");
    gguf_head(&b, 1, 0);
    gguf_tensor(&b, "a", 4, hidden, 0);
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "its dimensions overflow");
    gguf_head(&b, 1, 0);
    gguf_tensor(&b, "a", 1, big, 0);
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "but the data section has");
    gguf_head(&b, 1, 0);
    gguf_tensor(&b, "a", 1, (const uint64_t[]){ 4 }, UINT64_MAX - 31);
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "but the data section has");
    gguf_head(&b, 0, 1);
    put_str(&b, "key");
    put_u32(&b, GGUF_STRING);
    put_u64(&b, UINT64_MAX);
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "string of 18446744073709551615 bytes");
    gguf_head(&b, 0, 1);
    gguf_key_array(&b, "key", GGUF_U64, 1ull << 61); /* 2^64 bytes */
    check_refused(store("a.gguf", &b, 256), open_checkpoint, "2305843009213693952 values");
}

static void sizes_kl(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    put(&b, "_logits_", 8);
    put_u32(&b, INT32_MAX);
    put_u32(&b, INT32_MAX);
    put_u32(&b, INT32_MAX);
    check_refused(store("a.kl", &b, 256), open_kl, "are no possible size");
    put(&b, "_logits_", 8);
    put_u32(&b, 0x80000000u);
    put_u32(&b, 8);
    put_u32(&b, 1);
    check_refused(store("a.kl", &b, 256), open_kl, "window is -2147483648");
}

/* ---- two for one --------------------------------------------------------------------- */

static void overlap(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    check_refused(store_header("a.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
                               "\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[4,12]}}", 12), open_st, "tensors a and b overlap");
    const uint64_t ne[] = { 16 };
    gguf_head(&b, 3, 0);
    gguf_tensor(&b, "a", 1, ne, 64);
    gguf_tensor(&b, "b", 1, ne, 0);
    gguf_tensor(&b, "c", 1, ne, 32);
    check_refused(store("a.gguf", &b, 512), open_checkpoint, "tensors b and c overlap");
}

/* ---- numbers without end --------------------------------------------------------------- */

/* Headers that claim 10^9 of something, in files with holes that could hold as many. */
static void billions(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    gguf_head(&b, 1000000000, 0);
    check_refused(store("tensors.gguf", &b, 40ull << 30), open_checkpoint, "header claims 0 keys and 1000000000 tensors");
    gguf_head(&b, 0, 1000000000);
    check_refused(store("keys.gguf", &b, 40ull << 30), open_checkpoint, "header claims 1000000000 keys");
    gguf_head(&b, 0, 1);
    gguf_key_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 1000000000); /* of no bytes */
    check_refused(store("strings.gguf", &b, 40ull << 30), open_checkpoint, "1000000000 strings");
    put_u64(&b, 1ull << 40);
    check_refused(store("header.safetensors", &b, 1ull << 41), open_st, "header length is 1099511627776");
    scratch_write(scratch_path(dir, "config.json"), "{}", 2);
    if (truncate(scratch_path(dir, "config.json"), (off_t)1 << 40))
        fail();
    check_refused(dir, open_checkpoint, "file has 1099511627776 bytes, expected at most");
}

/* Little text, much memory: an empty array of three bytes takes more than a hundred. */
static void json_bombs(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    put_u64(&b, 60000006);
    put_many(&b, "{\"a\":[", 1);
    put_many(&b, "[],", 20000000);
    check_refused(store("bomb.safetensors", &b, 0), open_st, "so many values that they would take more than 1024 MiB");
    put_u64(&b, 60000000);
    put_many(&b, "{", 1);
    for (int i = 0; i < 5000000; i++)
        put_many(&b, "\"a\":{},", 1);
    check_refused(store("bomb.safetensors", &b, 60000008), open_st, "so many values that they would take more than 1024 MiB");
}

static void nested(struct bytes *b, const char *before)
{
    put_many(b, before, 1);
    put_many(b, "[", 1000000);
}

static void deep_json(void **state)
{
    (void)state;
    static const char deep[] = "nested deeper than 64 levels";
    struct bytes b = { 0 };
    put_u64(&b, 1000005);
    nested(&b, "{\"a\":");
    check_refused(store("deep.safetensors", &b, 0), open_st, deep);
    nested(&b, "{\"text\":");
    check_refused(store("deep.jsonl", &b, 0), open_task, deep);
    put_many(&b, "{\"text\":\"x\"}\n", 1);
    nested(&b, "{\"messages\":");
    check_refused(store("deep.jsonl", &b, 0), open_calib, deep);
    store_text("config.json", "{}");
    nested(&b, "{\"weight_map\":");
    store("model.safetensors.index.json", &b, 0);
    check_refused(dir, open_checkpoint, deep);
    store_header("model.safetensors", "{}", 0);
    nested(&b, "{\"model\":");
    store("tokenizer.json", &b, 0);
    check_refused(dir, open_tokenizer, deep);
    nested(&b, "{\"rope_scaling\":");
    store("config.json", &b, 0);
    check_refused(dir, open_checkpoint, deep);
}

/* ---- other people's files --------------------------------------------------------------- */

static void traversal(void **state)
{
    (void)state;
    static const char *const name[] = { "../../etc/passwd", "/etc/passwd", "..", "sub/../../x", "..\\\\x", ".hidden", "" };
    char text[256];
    store_text("config.json", "{}");
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", name[i]);
        store_text("model.safetensors.index.json", text);
        check_refused(dir, open_checkpoint, "expected the plain name of a file in the folder");
    }
}

static void make_link(const char *target, const char *name)
{
    unlink(name);
    if (symlink(target, name))
        fail_msg("%s: cannot link", name);
}

/* A link out of the folder is refused, whatever it points to; within it, and into the Hub's blobs, it is followed. */
static void links(void **state)
{
    (void)state;
    char snapshot[600], path[700];
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    snprintf(path, sizeof path, "%s/blobs", dir);
    assert_int_equal(mkdir(path, 0777), 0);
    snprintf(path, sizeof path, "%s/snapshots", dir);
    assert_int_equal(mkdir(path, 0777), 0);
    snprintf(snapshot, sizeof snapshot, "%s/snapshots/1", dir);
    assert_int_equal(mkdir(snapshot, 0777), 0);
    store_text("blobs/c", "{}");
    store_header("blobs/m", "{}", 0);
    store_header("snapshots/1/real.safetensors", "{}", 0);
    store_text("outside", "{}");
    snprintf(path, sizeof path, "%s/config.json", snapshot);
    make_link("../../blobs/c", path);
    snprintf(path, sizeof path, "%s/model.safetensors", snapshot);
    make_link("../../blobs/m", path);
    if (checkpoint_open(&c, snapshot, &e))
        fail_msg("%s", e.msg);
    checkpoint_free(c);
    make_link("real.safetensors", path);
    if (checkpoint_open(&c, snapshot, &e))
        fail_msg("%s", e.msg);
    checkpoint_free(c);
    make_link("/etc/hostname", path);
    check_refused(snapshot, open_checkpoint, "outside of its folder");
    make_link("real.safetensors", path);
    snprintf(path, sizeof path, "%s/config.json", snapshot);
    make_link("../../outside", path);
    check_refused(snapshot, open_checkpoint, "outside of its folder");
    make_link("../../blobs/c", path);
    snprintf(path, sizeof path, "%s/tokenizer.json", snapshot);
    make_link("/etc/hostname", path);
    check_refused(snapshot, open_tokenizer, "outside of its folder");
}

/* What is no file is not waited for. */
static void pipes(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(scratch_path(dir, "pipe.gguf"), 0666), 0);
    check_refused(scratch_path(dir, "pipe.gguf"), open_checkpoint, "expected a regular file");
    assert_int_equal(mkfifo(scratch_path(dir, "pipe"), 0666), 0);
    check_refused(scratch_path(dir, "pipe"), open_checkpoint, "found another kind of file");
    check_refused(scratch_path(dir, "pipe"), open_kl, "expected a regular file");
    assert_int_equal(mkfifo(scratch_path(dir, "config.json"), 0666), 0);
    check_refused(dir, open_checkpoint, "expected a regular file");
}

/* ---- much work for little ----------------------------------------------------------------- */

/* A tokenizer.json whose pre-tokenizer is this regex. */
static void store_regex(const char *regex)
{
    char text[600];
    snprintf(text, sizeof text, "{\"model\":{\"vocab\":{\"a\":0,\"!\":1},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
             "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false}]}}", regex);
    store_text("tokenizer.json", text);
}

static void regexes(void **state)
{
    (void)state;
    store_text("config.json", "{}");
    store_header("model.safetensors", "{}", 0);
    store_regex("(a+)+$");
    check_refused(dir, open_tokenizer, "pre-tokenizer regex failed on this text");
    store_regex("((((a{1000}){1000}){1000}){1000})");
    check_refused(dir, open_tokenizer, "pre-tokenizer regex");
    store_regex("(?=(?1))a(?(DEFINE)(aaa\\\\K))"); /* begins after its end */
    check_refused(dir, open_tokenizer, "matches backwards");
}

/* A merge that makes an added token far beyond the model's rows: its score has no place. An eos_token_id that is one number ends text. */
static void far_merge(void **state)
{
    (void)state;
    struct checkpoint *c;
    struct tokenizer *t;
    struct gguf_writer w;
    struct err e = { 0 };
    store_text("config.json", "{\"eos_token_id\": 60000}");
    store_header("model.safetensors", "{}", 0);
    store_text("tokenizer_config.json", "{\"eos_token\": \"c\"}");
    store_text("tokenizer.json", "{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[\"a b\"]},\"added_tokens\":[{\"id\":60000,\"content\":\"ab\"}],"
               "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}}");
    if (checkpoint_open(&c, dir, &e) || tokenizer_load(&t, c, &e))
        fail_msg("%s", e.msg);
    assert_true(tokenizer_is_eog(t, 2) && tokenizer_is_eog(t, 60000) && !tokenizer_is_eog(t, 1));
    gguf_writer_init(&w);
    assert_int_equal(tokenizer_write_gguf(t, c, 3, &w, NULL, &e), 0);
    gguf_writer_release(&w);
    tokenizer_free(t);
    checkpoint_free(c);
}

static void long_tokens(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    enum { LONG = 1 << 20 };
    gguf_head(&b, 0, 3);
    gguf_key_str(&b, "tokenizer.ggml.model", "llama");
    gguf_key_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 3);
    put_u64(&b, LONG); /* each cut of it a look-up of two long halves */
    put_many(&b, "a", LONG);
    put_str(&b, "b");
    put_str(&b, "c");
    gguf_key_array(&b, "tokenizer.ggml.scores", GGUF_F32, 3);
    for (int i = 0; i < 3; i++)
        put_u32(&b, 0);
    check_refused(store("long.gguf", &b, 0), open_tokenizer, "token 0 has 1048576 bytes");
}

/* Added tokens are sorted by length: not by moving each past all before it. Refused at last for the missing merges. */
static void many_added(void **state)
{
    (void)state;
    struct bytes b = { 0 };
    enum { HALF = 100000 };
    char name[32];
    gguf_head(&b, 0, 4);
    gguf_key_str(&b, "tokenizer.ggml.model", "gpt2");
    gguf_key_str(&b, "tokenizer.ggml.pre", "gpt-2");
    gguf_key_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 2 * HALF);
    for (int i = 0; i < 2 * HALF; i++) {
        snprintf(name, sizeof name, "%s%06d", i < HALF ? "" : "x", i);
        put_str(&b, name);
    }
    gguf_key_array(&b, "tokenizer.ggml.token_type", GGUF_I32, 2 * HALF);
    for (int i = 0; i < 2 * HALF; i++)
        put_u32(&b, 4);
    check_refused(store("added.gguf", &b, 0), open_tokenizer, "tokenizer.ggml.merges is missing");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(sizes_safetensors), TEST(sizes_gguf), TEST(sizes_kl),    TEST(overlap), TEST(billions),    TEST(json_bombs),
        TEST(deep_json),         TEST(traversal),  TEST(links),       TEST(pipes),   TEST(regexes),     TEST(far_merge),   TEST(long_tokens),
        TEST(many_added),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
