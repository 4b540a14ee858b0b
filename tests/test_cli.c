/* test_cli: the program as a user runs it, on tiny models: usage, exit status, JSON, files, interruption. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "base/mem.h"
#include "scratch.h"

#define LLAMA "tests/fixtures/models/llama"
#define TIED "tests/fixtures/models/llama3"
#define TEXT "tests/fixtures/models/text.txt"
#define SMALL " --group 32 --nsamples 4 --seqlen 48 --calib " TEXT " "

static const char *dir; /* scratch */

struct output {
    int status;
    char *out, *err;
};

static struct output last;

/* Runs `d2q <args>` through the shell; %s in fmt may name the scratch folder. */
static const struct output *d2q(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const struct output *d2q(const char *fmt, ...)
{
    char args[2048], cmd[4096];
    const char *build = getenv("D2Q_BUILD");
    size_t n;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(args, sizeof args, fmt, ap);
    va_end(ap);
    mem_free(last.out);
    mem_free(last.err);
    snprintf(cmd, sizeof cmd, "%s/d2q %s >%s/stdout 2>%s/stderr </dev/null", build ? build : "build", args, dir, dir);
    int rc = system(cmd);
    last.status = WIFEXITED(rc) ? WEXITSTATUS(rc) : 128 + WTERMSIG(rc);
    assert_int_equal(file_read(scratch_path(dir, "stdout"), 1 << 24, &last.out, &n, NULL), 0);
    assert_int_equal(file_read(scratch_path(dir, "stderr"), 1 << 24, &last.err, &n, NULL), 0);
    return &last;
}

/* The end of a long text: cmocka cuts messages, their last line break too. */
static const char *tail(const char *s)
{
    size_t n = strlen(s);
    return n > 400 ? s + n - 400 : s;
}

static void expect_status(const struct output *o, int status)
{
    if (o->status != status)
        fail_msg("exit status %d, expected %d; stderr: %s", o->status, status, tail(o->err));
}

static void expect_text(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("expected \"%s\" in: %s", part, tail(text));
}

/* stdout as one JSON object with the given keys. */
static json_t *json_of(const struct output *o, const char *const *keys)
{
    json_error_t je;
    expect_status(o, 0);
    json_t *j = json_loads(o->out, 0, &je); /* refuses anything after the object */
    if (!json_is_object(j))
        fail_msg("stdout is not one JSON object (%s): %s", je.text, tail(o->out));
    for (; keys && *keys; keys++)
        if (!json_object_get(j, *keys))
            fail_msg("key %s is missing in %s", *keys, tail(o->out));
    return j;
}

static const char *const quantize_keys[] = { "bpw", "bytes", "tensors", "seconds", "peak_rss_bytes", "version", NULL };
static const char *const eval_keys[] = { "ppl", "nll", "tokens", "window", "protocol", "text_rule",
                                         "seconds", "peak_rss_bytes", "version", NULL };

/* ---- usage --------------------------------------------------------------------------- */

static void test_help(void **state)
{
    static const char *const commands[] = { "quantize", "eval", "run", "convert", "inspect", "compare", "diff", "report", "bench" };
    (void)state;
    expect_status(d2q("--help"), 0);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        expect_text(last.out, commands[i]);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        expect_status(d2q("%s --help", commands[i]), 0);
        expect_text(last.out, "usage: d2q ");
        expect_text(last.out, "--json");
        expect_text(last.out, "examples:");
        assert_string_equal(last.err, "");
        char *first = mem_strdup(last.out);
        expect_status(d2q("help %s", commands[i]), 0);
        assert_string_equal(last.out, first);
        mem_free(first);
    }
    expect_status(d2q("--version"), 0);
    expect_text(last.out, "d2q " D2Q_VERSION);
    expect_status(d2q("--list"), 0);
    expect_text(last.out, "d2quant");
    expect_text(last.out, "qwen3");
}

static void test_wrong_usage(void **state)
{
    static const struct {
        const char *args, *says;
    } rows[] = {
        { "", "a command is missing" },
        { "quantise", "did you mean quantize?" },
        { "frobnicate", "unknown command 'frobnicate'" },
        { "--lsit", "did you mean --list?" },
        { "--completion tcsh", "expected one of bash, zsh, fish, found 'tcsh'" },
        { "--man quantise", "did you mean quantize?" },
        { "report -o x", "RUN.json is missing" },
        { "quantize", "MODEL is missing" },
        { "quantize " LLAMA, "-o OUT is missing" },
        { "quantize " LLAMA " other -o x", "one MODEL is expected" },
        { "quantize " LLAMA " -o x --bits 5", "--bits: expected one of 2, 3, 4, found '5'" },
        { "quantize " LLAMA " -o x --bits 3x", "found '3x'" },
        { "quantize " LLAMA " -o x --bits 7", "--bits: expected one of 2, 3, 4, found '7'\n" }, /* near nothing */
        { "quantize " LLAMA " -o x --bits=", "found ''" },
        { "quantize " LLAMA " -o x --bits", "--bits needs a value" },
        { "quantize " LLAMA " -o x --group -3", "--group: expected a whole number from 0" },
        { "quantize " LLAMA " -o x --group 1e2", "found '1e2'" },
        { "quantize " LLAMA " -o x --damp nan", "--damp: expected a number from 0 to 1" },
        { "quantize " LLAMA " -o x --damp 0x1", "--damp: expected a number from 0 to 1" },
        { "quantize " LLAMA " -o x --method gtpq", "--method: expected one of d2quant, gptq, gptaq, boa, rtn, found 'gtpq'; did you mean gptq?" },
        { "quantize " LLAMA " -o x --format ggml", "--format: expected one of gptq, gptq_v1, ct, hf, gguf" },
        { "quantize " LLAMA " -o x --format hf --format hf", "--format hf is given twice" },
        { "quantize " LLAMA " -o x --target-bpw 3", "name one .gguf file" },
        { "quantize " LLAMA " -o x.gguf --target-bpw 3 --target-size 1MB", "exclude each other" },
        { "quantize " LLAMA " -o x.gguf --keep lm_head=sym", "lm_head: expected a type of GGUF" },
        { "quantize " LLAMA " -o x --rotate tied", "--rotate: expected one of auto, off, hadamard" },
        { "quantize " LLAMA " -o x.gguf --method rtn --target-size 1KB --calib " TEXT, "vocabulary alone take" },
        { "quantize " LLAMA " -o x --propagate 0.5", "--propagate: expected off or two numbers" },
        { "quantize " LLAMA " -o x --tune 1 --tune-lr 0", "tune-lr: expected a number above 0" },
        { "quantize " LLAMA " -o x --propagate 0.5,9", "--propagate: expected off or two numbers" },
        { "quantize " LLAMA " -o x --dsq yes", "--dsq: expected on or off" },
        { "quantize " LLAMA " -o x --nsamples 0", "--nsamples: expected a whole number from 1" },
        { "quantize " LLAMA " -o x.gguf --format gguf --format hf", "names one GGUF file, --format hf asks for more" },
        { "quantize " LLAMA " -o x --method gptq --dsq on", "dsq and dac belong to method d2quant" },
        { "quantize " LLAMA " -o x --dac on --dac-target block", "expected propagate off and no tuning" },
        { "quantize " LLAMA " -o x --bit 3", "did you mean --bits?" },
        { "quantize " LLAMA " -o x --grop=64", "did you mean --group?" },
        { "quantize " LLAMA " -o x --json=yes", "--json takes no value" },
        { "quantize " LLAMA " -o x --threads 0", "--threads: expected a whole number from 1" },
        { "quantize " LLAMA " -o x --method rtn --propagate 0.5,0.5", "method rtn has no calibration text" },
        { "quantize " LLAMA " -o x --method rtn --order act", "method rtn has no calibration text" },
        { "quantize " LLAMA " -o x --method gptq --recipe paper", "recipe paper belongs to method d2quant" },
        { "quantize " LLAMA " -o x --method rtn --keep no_such*=f16", "keep no_such*: no matrix of this model" },
        { "quantize " LLAMA " -o x --method rtn --work x/work", "--work x/work: lies in OUT" },
        { "quantize " LLAMA " -o x --method rtn --report tests", "--report tests: exists and is no file" },
        { "quantize " LLAMA " -o '' --method rtn", "--out: expected OUT, found ''" },
        { "quantize " LLAMA " -o x --device gpu", "--device: expected one of cpu" },
        { "convert " LLAMA " -o x.gguf --format hf", "names one GGUF file, --format hf is a folder" },
        { "eval " LLAMA " --ppl " TEXT " --save-base tests", "--save-base tests: exists and is no file" },
        { "eval " LLAMA, "--ppl FILE is missing" },
        { "eval " LLAMA " --ppl " TEXT " --protocol perplexity", "--protocol: expected one of gptq, llama" },
        { "eval " LLAMA " --ppl " TEXT " --ctx 1", "--ctx: expected a whole number from 2" },
        { "eval " LLAMA " --task x.jsonl --save-base y", "--save-base needs a text" },
        { "eval " LLAMA " --ppl " TEXT " --items y", "--items needs --task" },
        { "run " LLAMA, "-p PROMPT is missing" },
        { "run " LLAMA " -p x --temp -1", "--temp: expected a number from 0" },
        { "run " LLAMA " -p x -k 3", "unknown option '-k'" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct output *o = d2q("%s", rows[i].args);
        if (o->status != 2 || *o->out || strncmp(o->err, "d2q", 3) || !strstr(o->err, rows[i].says))
            fail_msg("d2q %s: status %d, stderr: %s", rows[i].args, o->status, tail(o->err));
    }
}

/* The work fails: status 1, nothing on stdout, one line on stderr that names the file. */
static void test_failures(void **state)
{
    static const struct {
        const char *args, *says;
    } rows[] = {
        { "inspect /no/such/model", "/no/such/model" },
        { "eval " LLAMA " --ppl /no/such/text", "/no/such/text" },
        { "eval /no/such/model --ppl " TEXT " --json", "/no/such/model" },
        { "run tests/run -p x", "tests/run" },
        { "quantize " LLAMA " -o /proc/nowhere/x --method rtn -q", "/proc/nowhere/x" },
        { "quantize " LLAMA " -o x --calib /no/such/text -q", "/no/such/text" },
        { "quantize tests/fixtures/models/qwen2 -o x -q --dac on", "--dac off" },
        { "inspect " LLAMA " --tensor nothing", "nothing" },
        { "eval tests/fixtures/models/qwen2 --ppl " TEXT " --protocol gptq --ctx 3 --save-base x", "x: holds windows of 4 tokens or more, found 3" },
        { "quantize " LLAMA " -o tests/. --method rtn -q", "'tests/.': expected the name of a file or folder" },
        { "quantize " LLAMA " -o README.md --method rtn -q", "README.md: exists, but cannot be replaced by a folder" },
        { "quantize " LLAMA " -o /no/such/x --format gguf --format hf --method rtn -q", "/no/such/x: cannot be written" },
        { "quantize " LLAMA " -o x --keep lm_head=f32 -q", "format gptq: lm_head: floats are stored as f16" },
        { "quantize " LLAMA " -o x --format ct --grid sym --group 32 --keep *.1.mlp.down_proj=bf16 -q", "floats are stored as f16" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct output *o = d2q("%s", rows[i].args);
        if (o->status != 1 || *o->out || strncmp(o->err, "d2q: error: ", 12) || !strstr(o->err, rows[i].says) ||
            strchr(o->err, '\n') != o->err + strlen(o->err) - 1)
            fail_msg("d2q %s: status %d, stderr: %s", rows[i].args, o->status, tail(o->err));
    }
}

/* ---- quantizing ------------------------------------------------------------------------ */

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static void test_quantize_json(void **state)
{
    static const char *const methods[] = { "d2quant", "d2quant --recipe paper", "gptq", "gptaq", "boa", "rtn",
                                          "gptq --rotate hadamard" };
    static const char *const tensor_keys[] = { "name", "type", "bpw", "err", "err_target", "damp", "seconds" };
    (void)state;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        json_t *j = json_of(d2q("quantize " LLAMA " -o %s/out --bits=3 --json --method %s" SMALL, dir, methods[i]), quantize_keys);
        const json_t *tensors = json_object_get(j, "tensors");
        assert_int_equal(json_array_size(tensors), 14); /* 2 blocks of 7 */
        for (size_t t = 0; t < 14; t++)
            for (size_t k = 0; k < sizeof tensor_keys / sizeof *tensor_keys; k++)
                assert_non_null(json_object_get(json_array_get(tensors, t), tensor_keys[k]));
        /* 3 bits, and 19 for scale and zero in each group of 32 */
        assert_true(number(j, "bpw") > 3.5 && number(j, "bpw") < 3.8);
        json_decref(j);
        static const char *const files[] = { "config.json", "quantize_config.json", "generation_config.json", "model.safetensors",
                                             "tokenizer.json", "tokenizer_config.json" };
        for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
            char name[64];
            snprintf(name, sizeof name, "out/%s", files[k]);
            if (!file_exists(scratch_path(dir, name)))
                fail_msg("%s: %s was not written", methods[i], files[k]);
        }
    }
}

/* --report, and the same page from what was printed, but for its quality section. */
static void test_report(void **state)
{
    char *text;
    size_t n;
    (void)state;
    expect_status(d2q("quantize " LLAMA " -o %s/rep --bits 3 --json --report %s/a.html --histogram model.layers.1.mlp.gate_proj.weight" SMALL, dir, dir), 0);
    scratch_write(scratch_path(dir, "run.json"), last.out, strlen(last.out));
    expect_status(d2q("eval %s/rep --ppl " TEXT " --ctx 64 --json", dir), 0);
    scratch_write(scratch_path(dir, "eval.json"), last.out, strlen(last.out));
    expect_status(d2q("report %s/run.json %s/eval.json -o %s/b.html", dir, dir, dir), 0);
    expect_text(last.out, "written");
    assert_int_equal(file_read(scratch_path(dir, "a.html"), 1 << 22, &text, &n, NULL), 0);
    expect_text(text, "--histogram model.layers.1.mlp.gate_proj.weight");
    expect_text(text, "<code>model.layers.1.mlp.gate_proj.weight</code>");
    expect_text(text, "Nothing was measured");
    expect_text(text, "SHA-256");
    mem_free(text);
    assert_int_equal(file_read(scratch_path(dir, "b.html"), 1 << 22, &text, &n, NULL), 0);
    expect_text(text, "<th class=\"n\">perplexity</th>");
    mem_free(text);
    expect_status(d2q("report - -o %s/c.html --json", dir), 1); /* the test's stdin is empty */
    expect_text(last.err, "found nothing");
    expect_status(d2q("report %s/none.json -o %s/c.html", dir, dir), 1);
    expect_text(last.err, "none.json: No such file");
    expect_status(d2q("report %s/run.json", dir), 2);
    expect_status(d2q("quantize " LLAMA " -o %s/rep2 --method rtn --report %s/nowhere/a.html", dir, dir), 2); /* before the work */
    expect_text(last.err, "nowhere/a.html: No such file");
    assert_false(file_exists(scratch_path(dir, "rep2")));
    expect_status(d2q("report -o %s/c.html", dir), 2);
    expect_status(d2q("quantize " LLAMA " -o %s/rep --histogram model.layers.9.mlp.up_proj.weight" SMALL, dir), 2);
    expect_text(last.err, "expected a matrix such as model.layers.0.mlp.down_proj.weight");
    assert_false(file_exists(scratch_path(dir, "c.html")));
}

static void test_bytes(void **state)
{
    (void)state;
    char name[64];
    struct stat st;
    double sum = 0;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/out --method rtn --json", dir), quantize_keys);
    static const char *const files[] = { "config.json", "quantize_config.json", "generation_config.json", "model.safetensors",
                                         "tokenizer.json", "tokenizer_config.json", "checksums.json" };
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        snprintf(name, sizeof name, "out/%s", files[k]);
        assert_int_equal(stat(scratch_path(dir, name), &st), 0);
        sum += (double)st.st_size;
    }
    assert_true(number(j, "bytes") == sum);
    json_decref(j);
}

/* OUT is a folder of folders, each loads, and all say the same: the codes are one and the rest was rounded once. */
static void test_formats(void **state)
{
    static const char *const formats[] = { "gptq", "gptq_v1", "hf" };
    double ppl[3];
    (void)state;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/all --format gptq --format gptq_v1 --format=hf --json" SMALL, dir), quantize_keys);
    assert_int_equal(json_array_size(json_object_get(j, "outputs")), 3);
    json_decref(j);
    for (int i = 0; i < 3; i++) {
        j = json_of(d2q("eval %s/all/%s --ppl " TEXT " --ctx 64 --json", dir, formats[i]), eval_keys);
        ppl[i] = number(j, "ppl");
        json_decref(j);
    }
    assert_true(ppl[0] > 1 && ppl[0] == ppl[1] && ppl[1] == ppl[2]);
}

/* One GGUF file, alone or among others: the same codes, the same figure as the float folder made of them. */
static void test_gguf(void **state)
{
    static const char *const paths[] = { "one.gguf", "some/model.gguf", "some/hf", "some/gptq" };
    static const char grid[] = SMALL "--bits 3 --grid sym --rotate off --json"; /* as a lone GGUF file is */
    double ppl[4];
    (void)state;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/one.gguf%s", dir, grid), quantize_keys);
    const json_t *out = json_array_get(json_object_get(j, "outputs"), 0);
    assert_string_equal(json_string_value(json_object_get(out, "format")), "gguf");
    json_decref(j);
    j = json_of(d2q("quantize " LLAMA " -o %s/some --format gguf --format hf --format gptq%s", dir, grid), quantize_keys);
    json_decref(j);
    for (int i = 0; i < 4; i++) {
        j = json_of(d2q("eval %s/%s --ppl " TEXT " --ctx 64 --json", dir, paths[i]), eval_keys);
        ppl[i] = number(j, "ppl");
        json_decref(j);
    }
    assert_true(ppl[1] > 1 && ppl[1] == ppl[2] && ppl[2] == ppl[3]);
    assert_true(ppl[0] > 1 && ppl[0] < 1.02 * ppl[1] && ppl[0] > 0.98 * ppl[1]); /* its vectors were not rounded to halves */
    expect_status(d2q("quantize " LLAMA " -o %s/no.gguf" SMALL "--grid asym --group 16", dir), 1);
    expect_text(last.err, "2 bits, group 16, zero points 0 to 3, rows of 64: no type of GGUF holds that exactly");
    assert_false(file_exists(scratch_path(dir, "no.gguf")));
}

/* GPTQ to GGUF, compressed-tensors and back: the codes stay, so the model says the same to the last digit. */
static void test_convert(void **state)
{
    static const char *const keys[] = { "format", "path", "bytes", "loads", "seconds", "peak_rss_bytes", "version", NULL };
    static const char *const steps[][2] = { { "conv/gptq", "conv.gguf" }, { "conv/gptq", "conv_ct --format ct" }, { "conv_ct", "conv2.gguf" } };
    (void)state;
    json_decref(json_of(d2q("quantize " LLAMA " -o %s/conv --format gptq --format hf --bits 3 --grid sym --json" SMALL, dir), quantize_keys));
    json_t *j = json_of(d2q("eval %s/conv/hf --ppl " TEXT " --ctx 64 --json", dir), eval_keys);
    double want = number(j, "ppl");
    json_decref(j);
    for (int i = 0; i < 3; i++) {
        j = json_of(d2q("convert %s/%s -o %s/%s --json", dir, steps[i][0], dir, steps[i][1]), keys);
        assert_true(json_array_size(json_object_get(j, "loads")) > 0);
        json_t *e = json_of(d2q("eval %s --ppl " TEXT " --ctx 64 --json", json_string_value(json_object_get(j, "path"))), eval_keys);
        assert_true(number(e, "ppl") == want);
        json_decref(e);
        json_decref(j);
    }
    expect_status(d2q("convert %s/conv/hf -o %s/no", dir, dir), 1);
    expect_text(last.err, "no quantized matrix");
    expect_status(d2q("quantize %s/conv/gptq -o %s/no", dir, dir), 2);
    expect_text(last.err, "already quantized");
    expect_status(d2q("convert %s/conv/gptq -o %s/split.gguf", dir, dir), 0); /* would be taken for the parts that follow */
    j = json_of(d2q("convert %s/conv/gptq -o %s/split.gguf --shard-size 50KB --json", dir, dir), keys);
    assert_non_null(strstr(json_string_value(json_object_get(j, "path")), "/split-00001-of-0000"));
    json_t *s = json_of(d2q("eval %s --ppl " TEXT " --ctx 64 --json", json_string_value(json_object_get(j, "path"))), eval_keys);
    assert_true(number(s, "ppl") == want);
    assert_false(file_exists(scratch_path(dir, "split.gguf")));
    json_decref(s);
    json_decref(j);
    expect_status(d2q("convert %s/conv/gptq", dir), 2);
    expect_status(d2q("convert %s/conv/gptq -o %s/x --shard-size 3potatoes", dir, dir), 2);
    expect_text(last.err, "a size such as 500MiB or 4GB");
    expect_status(d2q("convert %s/conv/gptq -o %s/shards --format gptq --shard-size 50KB", dir, dir), 0);
    assert_true(file_exists(scratch_path(dir, "shards/model.safetensors.index.json")));
    j = json_of(d2q("eval %s/shards --ppl " TEXT " --ctx 64 --json", dir), eval_keys);
    assert_true(number(j, "ppl") == want);
    json_decref(j);
}

/* A configuration that counts fewer layers than the file holds. */
static void test_more_layers(void **state)
{
    (void)state;
    expect_status(d2q("convert " LLAMA " -o %s/few --format hf", dir), 0);
    assert_null(strstr(last.err, "more layers"));
    const char *path = scratch_path(dir, "few/config.json");
    json_t *config = json_load_file(path, 0, NULL);
    assert_int_equal(json_object_set_new(config, "num_hidden_layers", json_integer(1)), 0);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
    expect_status(d2q("convert %s/few -o %s/few.gguf", dir, dir), 0);
    expect_text(last.err, "/few: has more layers than the 1 of its configuration; they are left out");
    expect_status(d2q("quantize %s/few -o %s/fewer --method rtn --bits 3 --group 32", dir, dir), 0);
    expect_text(last.err, "more layers than the 1");
    assert_null(strstr(strstr(last.err, "more layers") + 1, "more layers")); /* once */
}

/* What is printed of bits is what lies in the file; matrices that vLLM makes one of must be alike. */
static void test_bits_and_likeness(void **state)
{
    (void)state;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/wide.gguf --bits 3 --group 32 --method rtn --json", dir), NULL);
    assert_true(number(j, "bpw") == 4.5 && number(json_array_get(json_object_get(j, "outputs"), 0), "bpw") == 4.5); /* q4_0 */
    json_decref(j);
    expect_text(last.err, "they take 4.50 bits a weight there instead of 3.59");
    j = json_of(d2q("inspect %s/wide.gguf --json", dir), NULL);
    assert_true(number(j, "bpw") == 4.5);
    json_decref(j);
    expect_status(d2q("quantize " LLAMA " -o %s/unlike --bits 4 --group 32 --method rtn --keep '*.0.*.v_proj.weight=f16'", dir), 0);
    expect_text(last.out, "not in       vLLM before 2026 (gptq_gemm): q, k, v and gate, up");
    expect_text(last.out, "not in       vLLM (Humming): q, k, v and gate, up");
    expect_text(last.out, "loads in     transformers + GPTQModel");
    expect_status(d2q("inspect %s/unlike --tensor model.layers.0.self_attn.v_proj.weight", dir), 0);
    expect_text(last.out, "16.000 bits"); /* the name with .weight was heeded */
    expect_status(d2q("inspect %s/unlike --tensor model.layers.1.self_attn.v_proj.weight", dir), 0);
    expect_text(last.out, "int4 g32 asym");
    char *config;
    size_t n;
    assert_int_equal(file_read(scratch_path(dir, "unlike/config.json"), 1 << 20, &config, &n, NULL), 0); /* for optimum */
    expect_text(config, "\"model.layers.1.self_attn.v_proj\"");
    assert_null(strstr(config, "\"model.layers.0.self_attn.v_proj\""));
    mem_free(config);
    expect_status(d2q("quantize " LLAMA " -o %s/mixed --bits 4 --group 32 --method rtn --keep '*.down_proj=sym'", dir), 0);
    expect_text(last.out, "not in       transformers + GPTQModel: one grid for all");
    expect_status(d2q("quantize " LLAMA " -o %s/rows --format gptq_v1 --group 0 --method rtn", dir), 0);
    expect_text(last.out, "loads in     transformers + GPTQModel: by transformers alone");
    expect_text(last.out, "not in       vLLM (Humming): groups, not whole rows");
    expect_status(d2q("quantize " LLAMA " -o %s/v1 --format gptq_v1 --group 32 --method rtn", dir), 0);
    expect_text(last.out, "not in       vLLM (Humming): it takes v1's zero points");
}

/* The card says how to make it again and what from; the list of runtimes says what is so. */
static void test_card_and_loads(void **state)
{
    char *text;
    size_t n;
    struct err e;
    (void)state;
    expect_status(d2q("quantize " LLAMA " -o %s/card.gguf --grid q4_0 --keep 'model.embed_tokens=q8_0' --method rtn", dir), 0);
    expect_text(last.out, "loads in     llama.cpp: any since 2023");
    expect_text(last.err, "plan: 14 matrices (14 q4_0)");
    assert_int_equal(file_read(scratch_path(dir, "card.md"), 1 << 20, &text, &n, &e), 0);
    expect_text(text, "--keep model.embed_tokens=q8_0 --method rtn");
    expect_text(text, "base_model: \"llama\"");
    expect_text(text, "| weights | `model.safetensors` | `");
    expect_text(text, "| grid | `q4_0` |");
    mem_free(text);
    json_t *j = json_of(d2q("inspect %s/card.gguf --json", dir), NULL);
    const json_t *first = json_array_get(json_object_get(j, "tensors"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "type")), "q8_0");
    json_decref(j);
    expect_status(d2q("quantize " LLAMA " -o %s/card2 --bits 2 --dry-run" SMALL, dir), 0);
    expect_text(last.out, "not in       vLLM (Marlin): 4 or 8 bits only");
    expect_text(last.out, "[from source, not run]");
    for (int bits = 2; bits <= 4; bits++) { /* only at 3 bits did the packing change */
        expect_status(d2q("quantize " LLAMA " -o %s/card2 --format ct --grid sym --bits %d --dry-run" SMALL, dir, bits), 0);
        assert_int_equal(strstr(last.out, "3 bits: compressed-tensors 0.18 or later") != NULL, bits == 3);
    }
    expect_status(d2q("quantize " LLAMA " -o %s/card3 --keep lm_head --dry-run", dir), 2);
    expect_text(last.err, "expected PATTERN=TYPE");
    expect_status(d2q("quantize " LLAMA " -o %s/card3 --keep 'lm_head=q6_k' --method rtn", dir), 1);
    expect_text(last.err, "embeddings and head are stored as f16");
}

static void test_dry_run(void **state)
{
    static const char *const keys[] = { "tensors", "bpw", "bytes", "peak_bytes", "estimated_seconds", "disk_bytes",
                                        "seconds", "peak_rss_bytes", "version", NULL };
    (void)state;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/dry --dry-run --json --bits 2" SMALL, dir), keys);
    assert_int_equal(json_array_size(json_object_get(j, "tensors")), 14);
    json_decref(j);
    assert_false(file_exists(scratch_path(dir, "dry")));
    expect_status(d2q("quantize " LLAMA " --dry-run"), 0);
    expect_text(last.out, "plan: 14 matrices");
}

/* A size for the whole file, whichever name the tied head goes by and when it becomes a matrix of its own. */
static void test_target_size_tied(void **state)
{
    static const char *const args[] = { "", "--keep lm_head=q8_0", "--keep model.embed_tokens=q8_0", "--rotate hadamard",
                                        "--rotate hadamard --keep lm_head=q8_0", "--group 32 --keep '*.down_proj=asym'", "--dac on" };
    (void)state;
    for (size_t i = 0; i < sizeof args / sizeof *args; i++) {
        json_t *j = json_of(d2q("quantize " TIED " -o %s/tied.gguf --target-size 75000 --json --nsamples 4 --seqlen 48 --calib " TEXT " %s", dir, args[i]), NULL);
        double bytes = number(j, "bytes");
        if (!(bytes > 70000 && bytes <= 75000))
            fail_msg("%s: %.0f bytes", args[i], bytes);
        json_decref(j);
    }
}

/* What is given and has no say. */
static void test_unused_options_are_told(void **state)
{
    static const struct {
        const char *args, *warning;
    } runs[] = {
        { "--method rtn --damp 0.5", "damp and sinks change nothing" },
        { "--method rtn --sinks keep", "damp and sinks change nothing" },
        { "--method rtn --search hessian", "search hessian is mse" },
        { "--method rtn --search mse", NULL },
        { "--tune-lr 0.01 --nsamples 2 --seqlen 32 --calib " TEXT, "tune-lr changes nothing without tune" },
        { "--dac-target block --nsamples 2 --seqlen 32 --calib " TEXT, "dac-target changes nothing without dac" },
        { "--target-bpw 4 --bits 3 --nsamples 1 --seqlen 32 --calib " TEXT, "--bits changes nothing" },
        { "--target-bpw 4 --group 32 --nsamples 1 --seqlen 32 --calib " TEXT, "--group changes nothing" },
        { "--target-bpw 4 --grid q4_0 --keep lm_head=f16 --nsamples 1 --seqlen 32 --calib " TEXT, "--grid changes nothing" },
        { "--target-bpw 4 --bits 3 --group 32 --keep '*.0.*.down_proj=asym' --nsamples 1 --seqlen 32 --calib " TEXT, NULL },
    };
    (void)state;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        json_t *j = json_of(d2q("quantize " LLAMA " -o %s/told.gguf --json %s", dir, runs[i].args), NULL);
        if (runs[i].warning ? !strstr(last.err, runs[i].warning) : strstr(last.err, "nothing") != NULL)
            fail_msg("%s: %s", runs[i].args, last.err);
        assert_string_not_equal(json_string_value(json_object_get(json_object_get(j, "options"), "search")), i < 4 ? "hessian" : "mse");
        json_decref(j);
    }
}

/* Fewer tokens than the head is measured by. */
static void test_target_size_of_few_tokens(void **state)
{
    (void)state;
    json_t *j = json_of(d2q("quantize " LLAMA " -o %s/few.gguf --target-size 150000 --json --nsamples 1 --seqlen 32 --calib " TEXT, dir), NULL);
    assert_true(number(j, "bytes") <= 150000);
    json_decref(j);
}

/* What is allowed and hardly meant is said. */
static void test_plan_notes(void **state)
{
    static const struct {
        const char *args, *note;
    } runs[] = {
        { "-o x.gguf --bits 3 --group 32", "they take 4.50 bits a weight there instead of 3.59" },
        { "-o x.gguf --bits 2 --group 64 --grid signfree", NULL },
        { "-o x --bits 2 --grid portable", "note: 2 bits: a symmetric grid (portable)" },
        { "-o x --bits 3 --grid sym", NULL },
        { "-o x --bits 2", NULL },
    };
    (void)state;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        expect_status(d2q("quantize " LLAMA " --method rtn --dry-run %s", runs[i].args), 0);
        if (runs[i].note)
            expect_text(last.out, runs[i].note);
        else
            assert_null(strstr(last.out, "note:"));
    }
}

/* The default recipe rotates where that takes no bytes; --rotate decides otherwise. */
static void test_rotate_auto(void **state)
{
    static const struct {
        const char *model, *out, *args, *expected;
    } runs[] = {
        { LLAMA, "r", "", "hadamard" },
        { TIED, "r", "", "off" },                             /* the file would grow by a head */
        { LLAMA, "r.gguf", "--bits 2 --grid sym", "off" },    /* tables stay as the source has them */
        { LLAMA, "r", "--format gptq --format gguf --bits 2 --grid sym", "hadamard" },
        { LLAMA, "r", "--recipe paper --drop-corrections", "off" },
        { LLAMA, "r", "--method gptq", "off" },
        { LLAMA, "r", "--rotate off", "off" },
        { TIED, "r", "--rotate hadamard", "hadamard" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        json_t *j = json_of(d2q("quantize %s -o %s/%s --dry-run --json" SMALL "%s", runs[i].model, dir, runs[i].out, runs[i].args), NULL);
        assert_string_equal(json_string_value(json_object_get(json_object_get(j, "options"), "rotate")), runs[i].expected);
        json_decref(j);
    }
}

static void test_threads(void **state)
{
    (void)state;
    static const int threads[] = { 1, 2, 7 };
    char *first = NULL, *text, name[64];
    size_t n_first = 0, n;
    for (int i = 0; i < 3; i++) {
        expect_status(d2q("quantize " LLAMA " -o %s/t%d -q --calib self --nsamples 4 --seqlen 48 --group 32 --threads %d", dir, i,
                          threads[i]), 0);
        snprintf(name, sizeof name, "t%d/model.safetensors", i);
        assert_int_equal(file_read(scratch_path(dir, name), 1 << 24, &text, &n, NULL), 0);
        if (!first) {
            first = text;
            n_first = n;
            continue;
        }
        if (n != n_first || memcmp(text, first, n))
            fail_msg("%d threads: model.safetensors differs from that of %d", threads[i], threads[0]);
        mem_free(text);
    }
    mem_free(first);
}

static void test_calib(void **state)
{
    (void)state;
    static const char text[] = "{\"text\": \"The lighthouse was built by the people of the town.\"}\n"
                               "{\"messages\": [{\"role\": \"user\", \"content\": \"Who kept the light in winter?\"},"
                               " {\"role\": \"assistant\", \"content\": \"The people of the town, three nights each.\"}]}\n";
    scratch_write(scratch_path(dir, "chat.jsonl"), text, sizeof text - 1);
    expect_status(d2q("quantize " LLAMA " -o %s/out --method gptq -q --calib %s/chat.jsonl --nsamples 8 --seqlen 16", dir, dir), 0);
    expect_text(last.err, "were asked for"); /* fewer tokens: said, and gone on */
    static const char broken[] = "{\"text\": \"fine\"}\n{\"text\": 7}\n";
    scratch_write(scratch_path(dir, "broken.jsonl"), broken, sizeof broken - 1);
    expect_status(d2q("quantize " LLAMA " -o %s/out2 --method gptq -q --calib %s/broken.jsonl", dir, dir), 1);
    expect_text(last.err, "line 2");
    assert_false(file_exists(scratch_path(dir, "out2")));
    static const char both[] = "quantize " LLAMA " -o %s/out3 -q --json --calib " TEXT " --group 32 --nsamples 4 --seqlen 48 --self-samples 3";
    expect_status(d2q(both, dir), 0);
    expect_text(last.out, "\"calib_tokens\":336");
    expect_text(last.out, "\"self_samples\":3");
    expect_status(d2q("quantize " LLAMA " -o %s/out4 --self-samples 3", dir), 2);
    expect_text(last.err, "self-samples");
}

static void test_quiet(void **state)
{
    (void)state;
    expect_status(d2q("quantize " LLAMA " -o %s/out -q --method gptq" SMALL, dir), 0);
    assert_string_equal(last.err, "");
    expect_status(d2q("quantize " LLAMA " -o %s/out --method gptq" SMALL, dir), 0);
    expect_text(last.err, "model.layers.1.mlp.down_proj.weight");
    assert_null(strchr(last.err, '\r')); /* plain lines when stderr is no terminal */
    expect_text(last.out, "loads in");
    expect_text(last.out, "bits/weight");
    expect_text(last.out, "peak memory");
}

/* ---- measuring and running ------------------------------------------------------------- */

static void test_eval_json(void **state)
{
    (void)state;
    json_t *j = json_of(d2q("eval " LLAMA " --ppl " TEXT " --ctx 64 --chunks 2 --json"), eval_keys);
    assert_string_equal(json_string_value(json_object_get(j, "protocol")), "gptq");
    assert_true(number(j, "tokens") == 2 * 63 && number(j, "window") == 64);
    json_decref(j);
    j = json_of(d2q("eval " LLAMA " --ppl=" TEXT " --protocol llama --ctx=64 --json"), eval_keys);
    assert_string_equal(json_string_value(json_object_get(j, "protocol")), "llama");
    json_decref(j);
}

/* Side by side: the first model is the reference; a table, JSON, CSV. Tensor by tensor: what differs and how far. */
static void test_compare(void **state)
{
    (void)state;
    expect_status(d2q("quantize " LLAMA " -o %s/cmp.gguf --method rtn --grid q4_0 -q", dir), 0);
    json_t *j = json_of(d2q("compare " LLAMA " %s/cmp.gguf --ppl " TEXT " --ctx 64 --speed --json -q", dir), NULL);
    const json_t *m = json_object_get(j, "models"), *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    assert_int_equal(json_array_size(m), 2);
    assert_null(json_object_get(a, "kl_mean"));
    assert_true(number(a, "prefill") > 0 && number(b, "decode") > 0);
    assert_true(number(b, "kl_mean") > 0 && number(b, "bpw") == 4.5 && number(a, "bytes") > number(b, "bytes"));
    json_t *alone = json_of(d2q("eval %s/cmp.gguf --ppl " TEXT " --ctx 64 --kl " LLAMA " --json -q", dir), NULL);
    assert_true(number(alone, "kl_mean") == number(b, "kl_mean") && number(alone, "ppl") == number(b, "ppl"));
    json_decref(alone);
    json_decref(j);
    const struct output *o = d2q("compare " LLAMA " %s/cmp.gguf --csv -q", dir);
    expect_status(o, 0);
    assert_int_equal(strncmp(o->out, "model,bytes,bpw\n\"" LLAMA "\",", strlen(LLAMA) + 19), 0);
    expect_status(d2q("compare " LLAMA " /no/such/model --csv -q"), 1); /* what was done before is shown */
    expect_text(last.out, "\"" LLAMA "\",");
    expect_text(last.err, "/no/such/model");
    expect_status(d2q("quantize " LLAMA " -o %s/\xe9.gguf --method rtn --grid q4_0 -q", dir), 0); /* a path that is not UTF-8 */
    j = json_of(d2q("inspect %s/\xe9.gguf --json", dir), NULL);
    assert_non_null(strstr(json_string_value(json_object_get(j, "path")), "/\xef\xbf\xbd.gguf"));
    json_decref(j);
    expect_status(d2q("verify %s/\xe9.gguf", dir), 0);
    j = json_of(d2q("diff " LLAMA " %s/cmp.gguf --json", dir), NULL);
    assert_int_equal(number(j, "differ"), 14); /* the matrices of both blocks */
    json_decref(j);
    j = json_of(d2q("diff " LLAMA " " LLAMA " --json"), NULL);
    assert_int_equal(number(j, "differ"), 0);
    json_decref(j);
    expect_status(d2q("diff " LLAMA), 2);
    expect_status(d2q("diff " LLAMA " tests/fixtures/models/qwen3"), 1);
    expect_status(d2q("compare " LLAMA " %s/nothing -q", dir), 1);
}

static void put_file(const char *name, const char *text)
{
    scratch_write(scratch_path(dir, name), text, strlen(text));
}

/* By name, by file, as text and as JSON: the same numbers, and the average of them. */
static void test_tasks(void **state)
{
    (void)state;
    put_file("piqa_validation.jsonl", "{\"id\":\"p-0\",\"context\":\"Question: a b\\nAnswer:\",\"choices\":[\" the\",\" the the the\"],\"gold\":0}\n"
             "{\"id\":\"p-1\",\"context\":\"The sea\",\"choices\":[\" is wide.\",\" xyz\"],\"gold\":1}\n");
    put_file("winogrande_xl_validation.jsonl", "{\"id\":\"w-0\",\"contexts\":[\"The cat\",\"A dog\"],\"continuation\":\" ran.\",\"gold\":1}\n");
    put_file("mmlu_test.jsonl", "{\"id\":\"law-0\",\"context\":\"Which?\\nAnswer:\",\"choices\":[\" A\",\" B\",\" C\",\" D\"],\"gold\":2}\n");
    put_file("mmlu_fewshot.jsonl", "{\"subject\":\"law\",\"description\":\"Of law.\\n\\n\",\"fewshot\":\"x\\nAnswer: A\\n\\n\"}\n");
    json_t *j = json_of(d2q("eval " LLAMA " --tasks mmlu --shots 5 --data %s --json", dir), NULL);
    assert_int_equal(d2q("eval " LLAMA " --tasks piqa,winogrande --shots 5 --data %s", dir)->status, 2); /* only mmlu has examples */
    json_decref(j);
    j = json_of(d2q("eval " LLAMA " --tasks piqa,winogrande --data %s --items %s/items.jsonl --json", dir, dir), NULL);
    const json_t *list = json_object_get(j, "tasks"), *piqa = json_array_get(list, 0), *wino = json_array_get(list, 1);
    assert_int_equal(json_array_size(list), 2);
    assert_true(number(piqa, "n") == 2 && number(wino, "n") == 1);
    assert_null(json_object_get(wino, "acc_norm"));
    assert_true(number(j, "acc_average") == (number(piqa, "acc") + number(wino, "acc")) / 2);
    json_t *one = json_of(d2q("eval " LLAMA " --task %s/piqa_validation.jsonl --limit 1 --json", dir), NULL);
    assert_true(number(json_array_get(json_object_get(one, "tasks"), 0), "n") == 1);
    assert_true(number(one, "n") == 1 && json_object_get(one, "acc") && json_object_get(one, "acc_norm")); /* of one task, at hand */
    assert_null(json_object_get(j, "acc"));
    json_decref(one);
    json_decref(j);
    char *items;
    size_t n;
    assert_int_equal(file_read(scratch_path(dir, "items.jsonl"), 1 << 20, &items, &n, NULL), 0);
    expect_text(items, "\"id\":\"p-1\",\"gold\":1");
    expect_text(items, "\"id\":\"w-0\"");
    mem_free(items);
    /* what is missing is missed before the first task; perplexity that was done is shown in any case */
    expect_status(d2q("eval " LLAMA " --ppl " TEXT " --ctx 64 --tasks piqa,rte --data %s", dir), 1);
    expect_text(last.err, "rte_validation.jsonl");
    expect_text(last.out, "perplexity  ");
    assert_null(strstr(last.out, "piqa"));
    expect_status(d2q("eval " LLAMA " --tasks mmlu --shots 3 --data %s", dir), 2);
    expect_text(last.err, "shots: expected 0 or 5, found 3");
    const struct output *o = d2q("eval " LLAMA " --tasks piqa,winogrande --data %s", dir);
    expect_status(o, 0);
    expect_text(o->out, "piqa           acc ");
    expect_text(o->out, "average        acc ");
    o = d2q("eval " LLAMA " --tasks chess --data %s", dir);
    expect_status(o, 2);
    expect_text(o->err, "there is no task 'chess'");
    expect_status(d2q("eval " LLAMA " --tasks all --data %s", dir), 1); /* some of the files are missing */
    expect_status(d2q("eval " LLAMA " --tasks piqa --data %s --items /no/such/folder/items", dir), 2);
    put_file("hellaswag_validation.jsonl", "{\"id\":");
    expect_status(d2q("eval " LLAMA " --tasks piqa,hellaswag --data %s --items %s/items.jsonl", dir, dir), 1); /* the items there were stay */
    assert_int_equal(file_read(scratch_path(dir, "items.jsonl"), 1 << 20, &items, &n, NULL), 0);
    expect_text(items, "\"id\":\"w-0\"");
    mem_free(items);
    assert_false(file_exists(scratch_path(dir, "items.jsonl.tmp")));
    expect_status(d2q("eval " LLAMA " --tasks piqa"), 2);
    expect_status(d2q("eval " LLAMA), 2);
}

static void test_bench(void **state)
{
    (void)state;
    json_t *j = json_of(d2q("bench " LLAMA " --seconds 0 --prefill 16 --decode 4 --rounds 1 --json"), NULL);
    assert_true(number(json_object_get(j, "prefill"), "tokens") == 16 && number(json_object_get(j, "decode"), "per_second") > 0);
    json_decref(j);
    const struct output *o = d2q("bench " LLAMA " --seconds 0.001 --prefill 16 --decode 4 --rounds 1");
    expect_status(o, 0);
    expect_text(o->out, "prefill     16 tokens");
    expect_text(o->out, "GFLOP/s");
    expect_text(o->out, "attention over 1024 tokens");
    expect_status(d2q("bench %s/nothing", dir), 1);
}

static void test_run_text(void **state)
{
    static const char *const keys[] = { "text", "new_tokens", "seconds", "peak_rss_bytes", "version", NULL };
    (void)state;
    json_t *j = json_of(d2q("run " LLAMA " -p 'The lighthouse' -n 12 --json"), keys);
    const char *text = json_string_value(json_object_get(j, "text"));
    expect_status(d2q("run " LLAMA " --prompt='The lighthouse' -n 12 -q"), 0);
    size_t same = 0; /* up to the first character that is not UTF-8, U+FFFD in the JSON */
    while (text[same] && strncmp(text + same, "\xef\xbf\xbd", 3))
        same++;
    assert_true(same > 4);
    assert_memory_equal(last.out, text, same);
    assert_string_equal(last.err, "");
    json_decref(j);
    expect_status(d2q("run " LLAMA " -p -x -n 0 -q"), 0);
    assert_string_equal(last.out, "\n");
}

static void test_inspect(void **state)
{
    static const char *const keys[] = { "family", "n_layer", "tensors", "bytes", "seconds", "peak_rss_bytes", "version", NULL };
    (void)state;
    json_t *j = json_of(d2q("inspect " LLAMA " --json"), keys);
    assert_true(number(j, "n_layer") == 2);
    json_decref(j);
    expect_status(d2q("inspect " LLAMA " --tensor model.layers.1.mlp.up_proj.weight"), 0);
    expect_status(d2q("inspect " LLAMA ".gguf --tensor model.layers.1.mlp.up_proj.weight"), 0); /* as blk.1.ffn_up.weight */
    expect_text(last.out, "blk.1.ffn_up.weight ");
    expect_status(d2q("inspect " LLAMA ".gguf --tensor blk.0.attn_norm.weight"), 0);
    expect_text(last.out, "32.000 bits");
    expect_text(last.out, "rms");
}

/* ---- interruption ---------------------------------------------------------------------- */

static void test_interrupt(void **state)
{
    (void)state;
    const char *build = getenv("D2Q_BUILD");
    char cmd[1024];
    snprintf(cmd, sizeof cmd, "mkdir %s/stop; exec %s/d2q quantize " LLAMA " -o %s/stop/out --nsamples 4096 --seqlen 2048 "
             "--calib self 2>%s/stderr >%s/stdout", dir, build ? build : "build", dir, dir, dir);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    nanosleep(&(struct timespec){ .tv_sec = 1, .tv_nsec = 500000000 }, NULL);
    int rc = 0;
    kill(pid, SIGINT);
    assert_int_equal(waitpid(pid, &rc, 0), pid);
    assert_true(WIFEXITED(rc));
    assert_int_equal(WEXITSTATUS(rc), 130);
    assert_int_equal(rmdir(scratch_path(dir, "stop")), 0); /* it is empty: nothing was left */
    expect_status(d2q("--version"), 0);
}

static int setup(void **state)
{
    (void)state;
    dir = scratch_dir();
    return 0;
}

static int teardown(void **state)
{
    char cmd[1024];
    (void)state;
    mem_free(last.out);
    mem_free(last.err);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_wrong_usage),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_quantize_json), cmocka_unit_test(test_report),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_convert), cmocka_unit_test(test_more_layers),
        cmocka_unit_test(test_bits_and_likeness),
        cmocka_unit_test(test_card_and_loads),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_target_size_tied),
        cmocka_unit_test(test_target_size_of_few_tokens), cmocka_unit_test(test_unused_options_are_told),
        cmocka_unit_test(test_plan_notes),
        cmocka_unit_test(test_rotate_auto),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_calib),
        cmocka_unit_test(test_quiet),
        cmocka_unit_test(test_eval_json),
        cmocka_unit_test(test_compare),
        cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_run_text),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_interrupt),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
