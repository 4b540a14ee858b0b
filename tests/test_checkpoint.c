/* checkpoint: folders with and without an index, side files, and GPTQ linears against weights computed by
 * tools/golden_hf.py with the classic packers. GPTQ weights are compared bit for bit (one float32 product each). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/checkpoint.h"
#include "scratch.h"
#include "tensor/half.h"

#define FIXTURES "tests/fixtures/hf/"

static struct checkpoint *open_ok(const char *path)
{
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    if (checkpoint_open(&c, path, &e))
        fail_msg("%s", e.msg);
    return c;
}

static void opens_shards(void **state)
{
    (void)state;
    struct checkpoint *c = open_ok(FIXTURES "sharded/");
    struct tensor t;
    struct err e = { 0 };
    assert_string_equal(c->path, FIXTURES "sharded");
    assert_int_equal(c->container, CONTAINER_HF);
    assert_int_equal(c->n_shards, 2);
    assert_int_equal(c->n_entries, 3);
    assert_int_equal(c->data_bytes, 72);
    assert_int_equal(json_integer_value(json_object_get(c->generation_config, "eos_token_id")), 2);
    assert_null(c->quant_config);
    const char *names[3] = { "z.weight", "a.weight", "m.weight" };
    for (int k = 0; k < 3; k++) {
        float f[6];
        assert_int_equal(checkpoint_tensor(c, names[k], &t, &e), 1);
        assert_int_equal(tensor_expect(&t, 2, 3, &e), 0);
        tensor_to_f32(&t, f);
        for (int i = 0; i < 6; i++)
            assert_true(f[i] == (float)(10 * k + i));
    }
    assert_int_equal(checkpoint_tensor(c, "not.listed", &t, &e), 0);
    assert_int_equal(checkpoint_tensor(c, "absent", &t, &e), 0);
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(checkpoint_file(c, "config.json", &text, &n, &e), 1);
    assert_int_equal(strlen(text), n);
    assert_non_null(strstr(text, "llama"));
    mem_free(text);
    assert_int_equal(checkpoint_file(c, "tokenizer.json", &text, &n, &e), 0);
    checkpoint_free(c);
}

static void opens_any_single_file(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    struct tensor t;
    struct err e = { 0 };
    scratch_write(scratch_path(dir, "config.json"), "{}", 2);
    scratch_safetensors(scratch_path(dir, "gptq_model-4bit-128g.safetensors"),
                        "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                        "\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[4,8]}}", -1, 8, -1);
    struct checkpoint *c = open_ok(dir);
    assert_int_equal(checkpoint_tensor(c, "a", &t, &e), 1);
    assert_int_equal(t.type, DT_F16);
    assert_int_equal(checkpoint_tensor(c, "b", &t, &e), -1);
    assert_non_null(strstr(e.msg, "tensor b: expected type F32, F16 or BF16, found I32"));
    assert_non_null(checkpoint_entry(c, "b"));
    checkpoint_free(c);
    scratch_remove(dir);
}

/* ---- GPTQ ----------------------------------------------------------------- */

static void check_linear(const struct checkpoint *c, const char *prefix, bool permuted)
{
    struct arena a;
    struct qmat q;
    struct tensor t;
    struct err e = { 0 };
    char name[64];
    arena_init(&a);
    if (checkpoint_gptq(c, prefix, 32, 64, &a, &q, &e) != 1)
        fail_msg("%s", e.msg);
    assert_int_equal(q.n_groups, 2);
    assert_int_equal(q.g_idx != NULL, permuted);
    assert_false(q.sym);
    snprintf(name, sizeof name, "expect.%s", prefix);
    assert_int_equal(checkpoint_tensor(c, name, &t, &e), 1);
    float got[64];
    for (int64_t i = 0; i < 32; i++) {
        qmat_row_f32(&q, i, got);
        const float *want = (const float *)t.data + i * 64;
        for (int j = 0; j < 64; j++)
            if (got[j] != want[j])
                fail_msg("%s %s [%lld][%d]: expected %g, found %g", c->path, prefix, (long long)i, j, (double)want[j],
                         (double)got[j]);
    }
    arena_release(&a);
}

static void reads_gptq(void **state)
{
    (void)state;
    const int bits[] = { 2, 3, 4, 8 };
    char path[128];
    for (int v2 = 0; v2 < 2; v2++)
        for (int b = 0; b < 4; b++) {
            snprintf(path, sizeof path, FIXTURES "gptq%s_%d", v2 ? "_v2" : "", bits[b]);
            struct checkpoint *c = open_ok(path);
            check_linear(c, "a", false);
            check_linear(c, "b", true);
            struct qmat q;
            struct arena a;
            struct err e = { 0 };
            arena_init(&a);
            assert_int_equal(checkpoint_gptq(c, "expect", 32, 64, &a, &q, &e), 0);
            assert_int_equal(checkpoint_gptq(c, "a", 32, 65, &a, &q, &e), -1);
            assert_non_null(strstr(e.msg, "a."));
            arena_release(&a);
            checkpoint_free(c);
        }
}

/* A tiny linear, 4 inputs x 32 outputs, 8 bits, one group, made by hand: what of it is wrong is said by name. */
#define Q(dtype, shape) "\"l.qweight\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[0,128]},"
#define Z "\"l.qzeros\":{\"dtype\":\"I32\",\"shape\":[1,8],\"data_offsets\":[128,160]},"
#define S "\"l.scales\":{\"dtype\":\"F16\",\"shape\":[1,32],\"data_offsets\":[160,224]}"
#define TAIL ",\"pad\":{\"dtype\":\"U8\",\"shape\":[256],\"data_offsets\":[224,480]}"
#define GOOD "{" Q("I32", "1,32") Z S TAIL "}"
#define G_IDX ",\"l.g_idx\":{\"dtype\":\"I32\",\"shape\":[4],\"data_offsets\":[224,240]}"
#define CONF(x) "{\"quantization_config\":" x "}"
#define BASE "\"bits\":8,\"group_size\":-1"

static const struct {
    const char *name, *config, *header, *want; /* want NULL: accepted */
    size_t data;
} gptq_corpus[] = {
    { "good", CONF("{" BASE "}"), GOOD, NULL, 480 },
    { "good, v2", CONF("{" BASE ",\"checkpoint_format\":\"gptq_v2\"}"), GOOD, NULL, 480 },
    { "legacy format key", CONF("{" BASE ",\"format\":\"gptq_v2\"}"), GOOD, NULL, 480 },
    { "group larger than the input", CONF("{\"bits\":8,\"group_size\":128}"), GOOD, NULL, 480 },
    { "dynamic of another module", CONF("{" BASE ",\"dynamic\":{\"+:x\":{\"bits\":4},\"-:l\":{}}}"), GOOD, NULL, 480 },
    { "dynamic that applies", CONF("{\"bits\":4,\"group_size\":-1,\"dynamic\":{\"+:^l$\":{\"bits\":8}}}"), GOOD, NULL, 480 },
    { "dynamic, bits disagree", CONF("{" BASE ",\"dynamic\":{\"l\":{\"bits\":4}}}"), GOOD, "l.qzeros", 480 },
    { "dynamic, bad pattern", CONF("{" BASE ",\"dynamic\":{\"+:(\":{\"bits\":4}}}"), GOOD, "pattern \"(\"", 480 },
    { "dynamic, endless pattern", CONF("{" BASE ",\"dynamic\":{\"(l*)*(l*)*(l*)*x\":{}}}"), GOOD, NULL, 480 },
    { "dynamic no object", CONF("{" BASE ",\"dynamic\":[]}"), GOOD, "\"dynamic\"", 480 },
    { "no config", "{}", GOOD, "no quantization_config", 480 },
    { "config null", CONF("null"), GOOD, "no quantization_config", 480 },
    { "bits missing", CONF("{\"group_size\":-1}"), GOOD, "\"bits\"", 480 },
    { "bits a string", CONF("{\"bits\":\"8\",\"group_size\":-1}"), GOOD, "\"bits\"", 480 },
    { "bits 5", CONF("{\"bits\":5,\"group_size\":-1}"), GOOD, "bits 2, 3, 4 or 8, found 5", 480 },
    { "bits huge", CONF("{\"bits\":4294967304,\"group_size\":-1}"), GOOD, "found 4294967304", 480 },
    { "group missing", CONF("{\"bits\":8}"), GOOD, "\"group_size\"", 480 },
    { "group 0", CONF("{\"bits\":8,\"group_size\":0}"), GOOD, "group_size -1", 480 },
    { "group -2", CONF("{\"bits\":8,\"group_size\":-2}"), GOOD, "group_size -1", 480 },
    { "group huge", CONF("{\"bits\":8,\"group_size\":4294967424}"), GOOD, "group_size -1", 480 },
    { "sym a number", CONF("{" BASE ",\"sym\":1}"), GOOD, "\"sym\"", 480 },
    { "another method", CONF("{" BASE ",\"quant_method\":\"awq\"}"), GOOD, "found \"awq\"", 480 },
    { "another format", CONF("{" BASE ",\"checkpoint_format\":\"marlin\"}"), GOOD, "found \"marlin\"", 480 },
    { "qweight of another type", CONF("{" BASE "}"), "{" Q("F32", "1,32") Z S TAIL "}", "found F32", 480 },
    { "qweight transposed", CONF("{" BASE "}"), "{" Q("I32", "32,1") Z S TAIL "}", "found I32 of 2 [32, 1]", 480 },
    { "qweight flat", CONF("{" BASE "}"), "{" Q("I32", "32") Z S TAIL "}", "found I32 of 1", 480 },
    { "scales missing", CONF("{" BASE "}"), "{" Q("I32", "1,32") Z "\"x\":{\"dtype\":\"U8\",\"shape\":[320],\"data_offsets\":[160,480]}}", "l.scales is missing", 480 },
    { "g_idx missing", CONF("{" BASE ",\"desc_act\":true}"), GOOD, "l.g_idx is missing", 480 },
    { "g_idx out of range", CONF("{" BASE "}"), "{" Q("I32", "1,32") Z S G_IDX "}", "expected groups 0..0", 240 },
};

static void refuses_bad_gptq(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    for (size_t i = 0; i < sizeof gptq_corpus / sizeof *gptq_corpus; i++) {
        struct arena a;
        struct qmat q;
        struct err e = { 0 };
        scratch_write(scratch_path(dir, "config.json"), gptq_corpus[i].config, strlen(gptq_corpus[i].config));
        scratch_safetensors(scratch_path(dir, "model.safetensors"), gptq_corpus[i].header, -1, gptq_corpus[i].data, -1);
        struct checkpoint *c = open_ok(dir);
        arena_init(&a);
        int rc = checkpoint_gptq(c, "l", 32, 4, &a, &q, &e);
        if (rc != (gptq_corpus[i].want ? -1 : 1))
            fail_msg("%s: returned %d (%s)", gptq_corpus[i].name, rc, e.msg);
        if (gptq_corpus[i].want && (!strstr(e.msg, gptq_corpus[i].want) || !strstr(e.msg, dir)))
            fail_msg("%s: expected \"%s\", found \"%s\"", gptq_corpus[i].name, gptq_corpus[i].want, e.msg);
        arena_release(&a);
        checkpoint_free(c);
    }
    scratch_remove(dir);
}

/* scales in F32: taken where fp16 can hold them, refused by name where not, or not finite. */
static void scales_must_fit_fp16(void **state)
{
    (void)state;
    static const struct { float v; const char *want; } cases[] = {
        { 0.5f, NULL }, { -65504.0f, NULL }, { 5.9604645e-8f, NULL }, { 0.1f, "not representable in fp16" },
        { 1e-9f, "not representable" }, { 70000.0f, "not representable" }, { __builtin_inff(), "not finite" },
        { __builtin_nanf(""), "not representable" },
    };
    const char *dir = scratch_dir();
    const char *config = CONF("{" BASE "}");
    const int64_t dq[2] = { 1, 32 }, dz[2] = { 1, 8 };
    scratch_write(scratch_path(dir, "config.json"), config, strlen(config));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t words[32] = { 0 };
        float scales[32] = { 0 };
        struct st_writer w;
        struct outfile o;
        struct arena a;
        struct qmat q;
        struct err e = { 0 };
        scales[7] = cases[i].v;
        st_writer_init(&w);
        arena_init(&a);
        assert_int_equal(st_writer_tensor(&w, "l.qweight", ST_I32, 2, dq, &e), 0);
        assert_int_equal(st_writer_tensor(&w, "l.qzeros", ST_I32, 2, dz, &e), 0);
        assert_int_equal(st_writer_tensor(&w, "l.scales", ST_F32, 2, dq, &e), 0);
        assert_int_equal(outfile_open(&o, scratch_path(dir, "model.safetensors"), &e), 0);
        assert_int_equal(st_writer_begin(&w, &o, &e), 0);
        assert_int_equal(st_writer_data(&w, &o, words, sizeof words, &e), 0);
        assert_int_equal(st_writer_data(&w, &o, words, 32, &e), 0);
        assert_int_equal(st_writer_data(&w, &o, scales, sizeof scales, &e), 0);
        assert_int_equal(st_writer_end(&w, &e), 0);
        assert_int_equal(outfile_commit(&o, &e), 0);
        struct checkpoint *c = open_ok(dir);
        int rc = checkpoint_gptq(c, "l", 32, 4, &a, &q, &e);
        if (cases[i].want) {
            assert_int_equal(rc, -1);
            if (!strstr(e.msg, cases[i].want) || !strstr(e.msg, "l.scales"))
                fail_msg("%g: %s", (double)cases[i].v, e.msg);
        } else {
            assert_int_equal(rc, 1);
            assert_true(half_to_f32(q.scale[7]) == cases[i].v);
            assert_int_equal(q.zero[0], 1); /* v1: 0 + 1 */
        }
        checkpoint_free(c);
        arena_release(&a);
        st_writer_release(&w);
    }
    scratch_remove(dir);
}

/* ---- folders that lie --------------------------------------------------------- */

#define INDEX "model.safetensors.index.json"
#define MAP(x) "{\"weight_map\":" x "}"

/* A folder holds config.json = {} and s.safetensors with tensor "a", unless the row says otherwise. */
static const struct {
    const char *name, *file, *text, *want;
} folders[] = {
    { "config.json missing", "config.json", NULL, "expected config.json" },
    { "config.json empty", "config.json", "", "config.json: not valid JSON" },
    { "config.json cut", "config.json", "{\"hidden_size\": 5", "config.json: not valid JSON" },
    { "config.json an array", "config.json", "[{}]", "config.json: expected a JSON object" },
    { "config.json a string", "config.json", "\"x\"", "config.json: " },
    { "config.json key twice", "config.json", "{\"a\":1,\"a\":2}", "duplicate" },
    { "config.json not UTF-8", "config.json", "{\"a\":\"\xff\"}", "config.json: not valid JSON" },
    { "config.json with NaN", "config.json", "{\"a\":NaN}", "config.json: not valid JSON" },
    { "quantization_config a list", "config.json", "{\"quantization_config\":[]}", "\"quantization_config\"" },
    { "generation_config.json broken", "generation_config.json", "{", "generation_config.json: not valid JSON" },
    { "quantize_config.json broken", "quantize_config.json", "[]", "quantize_config.json: expected a JSON object" },
    { "index no JSON", INDEX, "hello", "index.json: not valid JSON" },
    { "index an array", INDEX, "[]", "index.json: expected a JSON object" },
    { "index without a map", INDEX, "{}", "\"weight_map\"" },
    { "map a list", INDEX, MAP("[\"a\"]"), "\"weight_map\"" },
    { "shard a number", INDEX, MAP("{\"a\":1}"), "tensor a to be a string" },
    { "shard empty", INDEX, MAP("{\"a\":\"\"}"), "plain name" },
    { "shard .", INDEX, MAP("{\"a\":\".\"}"), "plain name" },
    { "shard ..", INDEX, MAP("{\"a\":\"..\"}"), "plain name" },
    { "shard above", INDEX, MAP("{\"a\":\"../s.safetensors\"}"), "plain name" },
    { "shard below", INDEX, MAP("{\"a\":\"x/../s.safetensors\"}"), "plain name" },
    { "shard absolute", INDEX, MAP("{\"a\":\"/etc/passwd\"}"), "plain name" },
    { "shard with a backslash", INDEX, MAP("{\"a\":\"..\\\\s.safetensors\"}"), "plain name" },
    { "shard with NUL", INDEX, MAP("{\"a\":\"s.safetensors\\u0000\"}"), "index.json: not valid JSON" },
    { "shard missing", INDEX, MAP("{\"a\":\"t.safetensors\"}"), "t.safetensors: cannot open" },
    { "shard no safetensors", INDEX, MAP("{\"a\":\"config.json\"}"), "config.json: " },
    { "tensor in no shard", INDEX, MAP("{\"a\":\"s.safetensors\",\"b\":\"s.safetensors\"}"), "tensor b is missing" },
    { "tensor twice", INDEX, MAP("{\"a\":\"s.safetensors\",\"a\":\"s.safetensors\"}"), "duplicate" },
    { "no weights", "s.safetensors", NULL, "found neither" },
    { "weights broken", "model.safetensors", "PK\3\4 no safetensors", "model.safetensors: header length" },
    { "weights a pointer of git-lfs", "model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "header length" },
};

static void refuses_bad_folders(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        const char *dir = scratch_dir(), *path = scratch_path(dir, folders[i].file);
        struct checkpoint *c = NULL;
        struct err e = { 0 };
        scratch_write(scratch_path(dir, "config.json"), "{}", 2);
        scratch_safetensors(scratch_path(dir, "s.safetensors"),
                            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, -1);
        if (folders[i].text)
            scratch_write(path, folders[i].text, strlen(folders[i].text));
        else
            unlink(path);
        if (checkpoint_open(&c, dir, &e) == 0)
            fail_msg("%s: was accepted", folders[i].name);
        if (!strstr(e.msg, folders[i].want) || !strstr(e.msg, dir))
            fail_msg("%s: expected \"%s\", found \"%s\"", folders[i].name, folders[i].want, e.msg);
        assert_null(c);
        scratch_remove(dir);
    }
}

static void refuses_other_paths(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *text = scratch_path(dir, "x.txt"), *gguf = scratch_path(dir, "x.gguf");
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    scratch_write(text, "hello", 5);
    scratch_write(gguf, "hello, this is no model", 23);
    assert_int_equal(checkpoint_open(&c, scratch_path(dir, "absent"), &e), -1);
    assert_non_null(strstr(e.msg, "no such file or folder"));
    assert_int_equal(checkpoint_open(&c, text, &e), -1);
    assert_non_null(strstr(e.msg, "expected a Hugging Face folder or a GGUF file"));
    assert_int_equal(checkpoint_open(&c, gguf, &e), -1); /* the name says GGUF: its reader's error */
    if (!strstr(e.msg, "GGUF"))
        fail_msg("%s", e.msg);
    assert_int_equal(checkpoint_open(&c, "", &e), -1);
    scratch_remove(dir);
}

/* A shard that is a folder, a fifo or a link out: links are how the Hub's cache is built, so they are followed. */
static void follows_links_only_to_files(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    char command[4096];
    snprintf(command, sizeof command, "cp " FIXTURES "dtypes.safetensors %s/real", dir);
    assert_int_equal(system(command), 0);
    scratch_write(scratch_path(dir, "config.json"), "{}", 2);
    assert_int_equal(symlink("real", scratch_path(dir, "model.safetensors")), 0);
    c = open_ok(dir);
    assert_int_equal(c->n_entries, 10);
    checkpoint_free(c);
    assert_int_equal(unlink(scratch_path(dir, "model.safetensors")), 0);
    assert_int_equal(mkdir(scratch_path(dir, "model.safetensors"), 0700), 0);
    assert_int_equal(checkpoint_open(&c, dir, &e), -1);
    assert_non_null(strstr(e.msg, "regular file"));
    scratch_remove(dir);
}

static void reports_failed_allocations(void **state)
{
    (void)state;
    struct checkpoint *c = NULL;
    struct err e = { 0 };
    long n = 1;
    for (; n < 1000; n++) {
        mem_fail_after(n);
        int rc = checkpoint_open(&c, FIXTURES "sharded", &e);
        mem_fail_after(0);
        if (rc == 0)
            break;
        assert_int_equal(e.code, ERR_MEMORY);
    }
    assert_in_range(n, 10, 999);
    checkpoint_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_shards),         cmocka_unit_test(opens_any_single_file),
        cmocka_unit_test(reads_gptq),           cmocka_unit_test(refuses_bad_gptq),
        cmocka_unit_test(scales_must_fit_fp16), cmocka_unit_test(refuses_bad_folders),
        cmocka_unit_test(refuses_other_paths),  cmocka_unit_test(follows_links_only_to_files),
        cmocka_unit_test(reports_failed_allocations),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
