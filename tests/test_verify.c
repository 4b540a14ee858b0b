/* test_verify: a written model is whole, and any byte of it that changes is found and the tensor or file named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "d2quant.h"
#include "export/verify.h"
#include "scratch.h"

#define MODEL "tests/fixtures/models/llama"

static void write_model(const char *format, const char *path, uint64_t shard_bytes)
{
    d2q_error e;
    char *json = NULL;
    d2q_quantize_options q;
    d2q_export_options x = { .shard_bytes = shard_bytes };
    d2q_quantize_options_init(&q);
    q.method = "rtn";
    q.bits = 4;
    q.group = 32;
    q.grid = "sym";
    q.kept_f32 = !strcmp(format, "hf") ? 1 : !strcmp(format, "gguf") ? 2 : 0;
    d2q_model *m = d2q_open(MODEL, &e);
    assert_non_null(m);
    if (d2q_quantize(m, &q, &json, &e))
        fail_msg("%s", e.message);
    d2q_free(json);
    if (d2q_export(m, format, path, &x, &json, &e))
        fail_msg("%s", e.message);
    d2q_free(json);
    d2q_close(m);
}

/* The report; *failures of it. Released by the caller. */
static json_t *verify(const char *path, size_t *failures)
{
    json_t *r = NULL;
    struct err e;
    if (verify_model(path, NULL, &r, &e))
        fail_msg("%s", e.msg);
    *failures = json_array_size(json_object_get(r, "failures"));
    return r;
}

static const char *failed(const json_t *r, size_t i, const char *key)
{
    const char *s = json_string_value(json_object_get(json_array_get(json_object_get(r, "failures"), i), key));
    return s ? s : "";
}

static void assert_whole(const char *path, int64_t files)
{
    size_t n;
    json_t *r = verify(path, &n);
    if (n)
        fail_msg("%s: %s", failed(r, 0, "tensor"), failed(r, 0, "why"));
    assert_true(json_is_true(json_object_get(r, "has_checksums")));
    assert_int_equal(json_integer_value(json_object_get(r, "checksums")), json_integer_value(json_object_get(r, "tensors")));
    assert_int_equal(json_integer_value(json_object_get(r, "files")), files);
    json_decref(r);
}

/* Changes one bit of byte `at`. */
static void flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int c = fgetc(f);
    assert_true(c != EOF && !fseek(f, at, SEEK_SET) && fputc(c ^ 1, f) != EOF && !fclose(f));
}

/* Each tensor in turn loses a bit: it alone is named. */
static void flip_each(const char *path)
{
    struct checkpoint *c;
    struct err e;
    assert_int_equal(checkpoint_open(&c, path, &e), 0);
    bool gguf = c->container == CONTAINER_GGUF;
    size_t total = gguf ? (size_t)c->gguf.n_tensors : c->n_entries;
    for (size_t i = 0; i < total; i++) {
        const char *name = gguf ? c->gguf.tensors[i].name : c->entries[i].name;
        const uint8_t *data = gguf ? c->gguf.tensors[i].data : c->entries[i].data;
        size_t size = gguf ? c->gguf.tensors[i].size : c->entries[i].size, n;
        const struct file_map *map = NULL;
        for (int k = 0; k < c->n_shards + c->gguf.n_maps; k++) {
            const struct file_map *m = gguf ? &c->gguf.maps[k] : &c->shards[k].map;
            map = data >= m->data && data < m->data + m->size ? m : map;
        }
        assert_non_null(map);
        long at = data - map->data + (long)(size / 2);
        flip(map->path, at);
        json_t *r = verify(path, &n);
        if (strstr(name, "g_idx") || strstr(name, "weight_shape")) /* no model without it: named twice */
            assert_true(n == 1 || (n == 2 && !*failed(r, 1, "tensor")));
        else
            assert_int_equal(n, 1);
        assert_string_equal(failed(r, 0, "tensor"), name);
        assert_non_null(strstr(failed(r, 0, "why"), "changed after writing"));
        json_decref(r);
        flip(map->path, at);
    }
    checkpoint_free(c);
}

static void test_folders(void **state)
{
    (void)state;
    static const char *const formats[] = { "gptq", "ct", "hf" };
    const char *dir = scratch_dir();
    for (size_t i = 0; i < 3; i++)
        for (int split = 0; split < 2; split++) {
            char out[512], path[600], extra[600];
            size_t n;
            snprintf(out, sizeof out, "%s/%s%d", dir, formats[i], split);
            write_model(formats[i], out, split ? 60000 : 0);
            assert_whole(out, (i == 0 ? 5 : 4) + split);
            flip_each(out);
            assert_whole(out, (i == 0 ? 5 : 4) + split);
            snprintf(path, sizeof path, "%s/generation_config.json", out);
            snprintf(extra, sizeof extra, "%s/chat_template.jinja", out);
            scratch_write(extra, "{{ 1 }}", 7);
            json_t *r = verify(out, &n);
            assert_int_equal(n, 1);
            assert_string_equal(failed(r, 0, "tensor"), "chat_template.jinja");
            json_decref(r);
            unlink(extra);
            scratch_write(path, "{}", 2);
            r = verify(out, &n);
            assert_int_equal(n, 1);
            assert_string_equal(failed(r, 0, "tensor"), "generation_config.json");
            json_decref(r);
            unlink(path);
            r = verify(out, &n);
            assert_int_equal(n, 1);
            assert_string_equal(failed(r, 0, "tensor"), "generation_config.json");
            json_decref(r);
        }
    scratch_remove(dir);
}

static void test_gguf(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *out = scratch_path(dir, "a.gguf");
    write_model("gguf", out, 0);
    assert_whole(out, 0);
    flip_each(out);
    write_model("gguf", scratch_path(dir, "b.gguf"), 60000);
    assert_whole(scratch_path(dir, "b-00001-of-00003.gguf"), 0);
    flip_each(scratch_path(dir, "b-00001-of-00003.gguf"));
    scratch_remove(dir);
}

/* Without checksums structure and values are left; a list that is none is refused. */
static void test_without(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    char path[512], sums[600];
    struct err e = { 0 };
    json_t *r = NULL;
    size_t n;
    snprintf(path, sizeof path, "%s/x", dir);
    snprintf(sums, sizeof sums, "%s/checksums.json", path);
    write_model("hf", path, 0);
    unlink(sums);
    r = verify(path, &n);
    assert_int_equal(n, 0);
    assert_true(json_is_false(json_object_get(r, "has_checksums")));
    json_decref(r);
    struct checkpoint *c;
    assert_int_equal(checkpoint_open(&c, path, &e), 0);
    const struct st_entry *en = checkpoint_entry(c, "model.layers.1.mlp.up_proj.weight");
    long at = (const uint8_t *)en->data - c->shards[0].map.data;
    checkpoint_free(c);
    FILE *f = fopen(scratch_path(path, "model.safetensors"), "r+b");
    const uint8_t nan[4] = { 0, 0, 0xc0, 0x7f };
    assert_true(f && !fseek(f, at + 4 * 1000, SEEK_SET) && fwrite(nan, 1, 4, f) == 4 && !fclose(f));
    r = verify(path, &n);
    assert_true(n >= 1);
    assert_string_equal(failed(r, 0, "tensor"), "model.layers.1.mlp.up_proj.weight");
    assert_non_null(strstr(failed(r, 0, "why"), "not finite"));
    json_decref(r);
    static const char *const bad[] = { "[]", "{", "{\"tensors\": {}, \"files\": 1}" };
    for (size_t i = 0; i < 3; i++) {
        scratch_write(sums, bad[i], strlen(bad[i]));
        assert_int_equal(verify_model(path, NULL, &r, &e), -1);
        assert_non_null(strstr(e.msg, "checksums.json"));
    }
    const char *lost = "{\"tensors\": {\"gone\": \"00\"}, \"files\": {\"../x\": \"00\", \"config.json\": 1}}";
    scratch_write(sums, lost, strlen(lost));
    r = verify(path, &n);
    assert_true(n >= 4);
    json_decref(r);
    scratch_remove(dir);
}

/* Two runs write the same list. */
static void test_same(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    char *a, *b, p[512], q[512];
    size_t n, k;
    struct err e;
    snprintf(p, sizeof p, "%s/a", dir);
    snprintf(q, sizeof q, "%s/b", dir);
    write_model("gptq", p, 0);
    write_model("gptq", q, 0);
    assert_int_equal(file_read(scratch_path(p, "checksums.json"), 1 << 20, &a, &n, &e), 0);
    assert_int_equal(file_read(scratch_path(q, "checksums.json"), 1 << 20, &b, &k, &e), 0);
    assert_string_equal(a, b);
    mem_free(a);
    mem_free(b);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_without),
        cmocka_unit_test(test_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
