/* test_interrupt: long work that is cancelled, by the callback at a known step and by SIGINT in a real run: what is done is there and right,
 * nothing half made stays, and the line on a terminal says step, share, rate, time left and memory. */
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "base/mem.h"
#include "d2quant.h"
#include "scratch.h"

#define LLAMA "tests/fixtures/models/llama"
#define TEXT "tests/fixtures/models/text.txt"

static const char *dir;
static d2q_model *model;
static d2q_error err;

/* ---- by the callback ---------------------------------------------------------------------- */

/* Cancels at the first step whose text begins with `step` once it has done `at`. */
struct stop {
    const char *step;
    double at;
    int seen;
};

static int stop_at(void *ud, int kind, const char *text, double done, double total)
{
    struct stop *s = ud;
    (void)total;
    if (kind == D2Q_LOG_PROGRESS && !strncmp(text, s->step, strlen(s->step)) && done >= s->at)
        s->seen = 1;
    return s->seen;
}

static json_t *take(char *text)
{
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    d2q_free(text);
    return j;
}

static double num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* Stopped within the third window, the figures are those of two. */
static void test_eval(void **state)
{
    static const char *const steps[] = { "perplexity", "divergence" };
    (void)state;
    for (int k = 0; k < 2; k++) {
        char *text = NULL, base[256];
        struct stop s = { steps[k], 2.5, 0 };
        d2q_eval_options o;
        d2q_eval_options_init(&o);
        o.text = TEXT;
        o.ctx = 32;
        o.kl = k ? "tests/fixtures/models/llama3" : NULL;
        o.protocol = "llama";
        o.chunks = 2;
        assert_int_equal(d2q_eval(model, &o, &text, &err), 0);
        json_t *want = take(text);
        assert_null(json_object_get(want, "interrupted"));
        snprintf(base, sizeof base, "%s", scratch_path(dir, "base"));
        o.chunks = 0;
        o.save_base = base;
        o.log = stop_at;
        o.log_ud = &s;
        assert_int_equal(d2q_eval(model, &o, &text, &err), 0);
        json_t *got = take(text);
        assert_true(json_is_true(json_object_get(got, "interrupted")));
        assert_true(num(got, "windows") == 2 && num(want, "windows") == 2);
        assert_true(num(got, "ppl") == num(want, "ppl") && num(got, "ppl") > 1);
        assert_true(num(got, "tokens") == num(want, "tokens"));
        assert_true(num(got, "kl_mean") == num(want, "kl_mean") && (!k || num(got, "kl_mean") > 0));
        assert_null(json_object_get(got, "saved_base"));
        assert_false(file_exists(base));
        json_decref(want);
        json_decref(got);
        s = (struct stop){ steps[k], 0.5, 0 };
        assert_int_equal(d2q_eval(model, &o, &text, &err), -1);
        assert_int_equal(err.code, D2Q_ERR_CANCELLED);
        s = (struct stop){ "none", 0, 0 };
        o.chunks = 3;
        assert_int_equal(d2q_eval(model, &o, &text, &err), 0);
        got = take(text);
        assert_null(json_object_get(got, "interrupted"));
        assert_true(file_exists(base));
        json_decref(got);
        unlink(base);
    }
}

/* n items of different lengths. */
static void write_task(const char *name, int n)
{
    FILE *f = fopen(scratch_path(dir, name), "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        fprintf(f, "{\"id\":\"%d\",\"context\":\"The lighthouse", i);
        for (int k = 0; k < i % 17; k++)
            fputs(" was built", f);
        fprintf(f, "\",\"choices\":[\" by the people\",\" in winter %d\"],\"gold\":%d}\n", i, i % 2);
    }
    assert_int_equal(fclose(f), 0);
}

/* Log-likelihoods by id, as the file of items has them. */
static json_t *items(const char *path)
{
    json_t *all = json_object();
    char line[512];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *o = json_loads(line, 0, NULL);
        json_object_set(all, json_string_value(json_object_get(o, "id")), o);
        json_decref(o);
    }
    fclose(f);
    return all;
}

static json_t *run_tasks(const char *path, struct stop *s, json_t **done)
{
    char *text = NULL, file[256];
    d2q_task_options o;
    d2q_task_options_init(&o);
    snprintf(file, sizeof file, "%s", scratch_path(dir, "items"));
    o.file = path;
    o.items = file;
    o.log = stop_at;
    o.log_ud = s;
    if (d2q_tasks(model, &o, &text, &err))
        return NULL;
    *done = items(file);
    return take(text);
}

static void test_tasks(void **state)
{
    enum { N = 400 };
    char path[256];
    json_t *whole, *part, *v;
    const char *id;
    (void)state;
    write_task("mine.jsonl", N);
    snprintf(path, sizeof path, "%s", scratch_path(dir, "mine.jsonl"));
    struct stop s = { "none", 0, 0 };
    json_t *r = run_tasks(path, &s, &whole);
    assert_int_equal(json_object_size(whole), N);
    double rows = num(json_array_get(json_object_get(r, "tasks"), 0), "tokens");
    assert_true(rows > 4000); /* several batches */
    json_decref(r);
    s = (struct stop){ "mine", rows / 2, 0 };
    r = run_tasks(path, &s, &part);
    const json_t *t = json_array_get(json_object_get(r, "tasks"), 0);
    assert_true(json_is_true(json_object_get(r, "interrupted")) && json_is_true(json_object_get(t, "interrupted")));
    size_t n = json_object_size(part), right = 0;
    assert_true(n > 50 && n < N - 50 && num(t, "n") == (double)n);
    json_object_foreach(part, id, v) { /* the same as in the whole run, and acc is theirs */
        assert_true(json_equal(v, json_object_get(whole, id)));
        right += json_equal(json_object_get(v, "choice"), json_object_get(v, "gold"));
    }
    double off = num(t, "acc") - (double)right / (double)n;
    assert_true(off < 1e-9 && off > -1e-9);
    json_decref(r);
    json_decref(whole);
    json_decref(part);
    s = (struct stop){ "mine", 0, 0 };
    assert_null(run_tasks(path, &s, &part));
    assert_int_equal(err.code, D2Q_ERR_CANCELLED);
}

/* Work that has no part to give: it ends with D2Q_ERR_CANCELLED at each of its steps, and leaves no file. */
static void test_nothing_stays(void **state)
{
    static const struct {
        const char *step, *calib;
        int tune, choose;
    } rows[] = { { "block 2/2", TEXT, 0, 0 }, { "tuning", TEXT, 3, 0 }, { "calibration text", "self", 0, 0 }, { "measuring types", TEXT, 0, 1 } };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct stop s = { rows[i].step, 0, 0 };
        char *text = NULL;
        d2q_quantize_options q;
        d2q_quantize_options_init(&q);
        q.calib = rows[i].calib;
        q.group = 32;
        q.nsamples = 8;
        q.seqlen = 48;
        q.tune = rows[i].tune;
        q.log = stop_at;
        q.log_ud = &s;
        d2q_model *m = d2q_open(LLAMA, &err);
        assert_non_null(m);
        int rc = rows[i].choose ? d2q_choose_types(m, &q, 0, 4, &text, &err) : d2q_quantize(m, &q, &text, &err);
        if (rc != -1 || err.code != D2Q_ERR_CANCELLED || !s.seen)
            fail_msg("%s: status %d, code %d, %s", rows[i].step, rc, err.code, s.seen ? "seen" : "not seen");
        d2q_close(m);
    }
    static const char *const formats[] = { "hf", "gguf" };
    for (int i = 0; i < 2; i++) {
        struct stop s = { "writing", 0, 0 };
        char *text = NULL, path[256];
        snprintf(path, sizeof path, "%s", scratch_path(dir, i ? "stop.gguf" : "stop"));
        d2q_export_options x = { .log = stop_at, .log_ud = &s };
        assert_int_equal(d2q_export(model, formats[i], path, &x, &text, &err), -1);
        assert_int_equal(err.code, D2Q_ERR_CANCELLED);
        assert_false(file_exists(path));
    }
}

/* ---- by SIGINT ------------------------------------------------------------------------------ */

struct shown {
    int status;
    char *out;        /* stdout */
    char tty[1 << 16]; /* what the terminal got */
};
static struct shown last;
static unsigned short columns; /* of the terminal; 0: not known */

/* Has the terminal shown `until`; "%": at least 1 %, when some windows are done? */
static int shows(const char *tty, const char *until)
{
    if (strcmp(until, "%"))
        return strstr(tty, until) != NULL;
    for (const char *p = tty; (p = strstr(p, " %  ")); p++) {
        const char *digit = p;
        while (digit > tty && digit[-1] >= '0' && digit[-1] <= '9')
            digit--;
        if (atoi(digit) >= 1)
            return 1;
    }
    return 0;
}

/* Runs d2q with a terminal as stderr, sends SIGINT once the terminal shows `until` (NULL: never). */
static void run(const char *until, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void run(const char *until, const char *fmt, ...)
{
    char args[2048], cmd[4096];
    const char *build = getenv("D2Q_BUILD");
    int master, slave, rc = 0;
    size_t n = 0, size;
    ssize_t k;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(args, sizeof args, fmt, ap);
    va_end(ap);
    snprintf(cmd, sizeof cmd, "exec %s/d2q %s >%s/stdout </dev/null", build ? build : "build", args, dir);
    struct winsize w = { .ws_row = 24, .ws_col = columns };
    assert_int_equal(openpty(&master, &slave, NULL, NULL, &w), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(slave, STDERR_FILENO);
        close(master);
        execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(127);
    }
    close(slave);
    assert_true(pid > 0);
    while (n + 1 < sizeof last.tty && (k = read(master, last.tty + n, sizeof last.tty - 1 - n)) > 0) {
        n += (size_t)k;
        last.tty[n] = '\0';
        if (until && shows(last.tty, until)) {
            kill(pid, SIGINT);
            until = NULL;
        }
        if (n > sizeof last.tty / 2) { /* a long story: its end counts */
            memmove(last.tty, last.tty + n / 2, n - n / 2 + 1);
            n -= n / 2;
        }
    }
    last.tty[n] = '\0';
    close(master);
    assert_int_equal(waitpid(pid, &rc, 0), pid);
    last.status = WIFEXITED(rc) ? WEXITSTATUS(rc) : 128 + WTERMSIG(rc);
    mem_free(last.out);
    assert_int_equal(file_read(scratch_path(dir, "stdout"), 1 << 24, &last.out, &size, NULL), 0);
}

static void expect(int status, const char *shown)
{
    if (last.status != status || !strstr(last.tty, shown))
        fail_msg("status %d (expected %d), expected \"%s\" in: %.400s", last.status, status, shown, last.tty);
}

static json_t *stopped(void)
{
    json_t *j = json_loads(last.out, 0, NULL);
    if (!j)
        fail_msg("stdout is no JSON: %.300s; the terminal: %.300s", last.out, last.tty);
    assert_true(json_is_true(json_object_get(j, "interrupted")));
    return j;
}

/* Long enough that no machine is through with it before the terminal first shows how far it is. */
static void write_long_text(void)
{
    char *text;
    size_t n;
    assert_int_equal(file_read(TEXT, 1 << 20, &text, &n, NULL), 0);
    FILE *f = fopen(scratch_path(dir, "long.txt"), "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fwrite(text, 1, n, f);
    assert_int_equal(fclose(f), 0);
    mem_free(text);
}

static void test_sigint_eval(void **state)
{
    (void)state;
    run("%", "eval " LLAMA " --ppl %s/long.txt --ctx 64 --json", dir);
    expect(130, "d2q: interrupted: the result is of what was done until then");
    static const char *const parts[] = { "\r\033[Kperplexity", " % ", "windows/s", " left", "peak " };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        expect(130, parts[i]);
    json_t *j = stopped();
    assert_true(num(j, "windows") >= 1 && num(j, "ppl") > 1);
    json_decref(j);
    run("%", "compare " LLAMA " " LLAMA " --ppl %s/long.txt --ctx 64 --json", dir);
    expect(130, "llama: perplexity");
    j = stopped();
    assert_int_equal(json_array_size(json_object_get(j, "models")), 1);
    assert_true(num(json_array_get(json_object_get(j, "models"), 0), "ppl") > 1);
    json_decref(j);
    write_task("piqa_validation.jsonl", 8000);
    run("%", "eval " LLAMA " --tasks piqa --data %s --json", dir);
    expect(130, "tokens/s");
    j = stopped();
    assert_true(num(json_array_get(json_object_get(j, "tasks"), 0), "n") > 0);
    json_decref(j);
    run("%", "eval " LLAMA " --tasks piqa --data %s", dir);
    if (!strstr(last.out, "interrupted: the longest only"))
        fail_msg("stdout: %s", last.out);
    columns = 30; /* the redrawn line is no longer than a row */
    run("%", "eval " LLAMA " --ppl %s/long.txt --ctx 64", dir);
    columns = 0;
    const char *drawn = strstr(last.tty, "\r\033[Kperplexity");
    assert_non_null(drawn);
    assert_int_equal(strcspn(drawn + 4, "\r\n"), 29);
    run(NULL, "eval " LLAMA " --ppl " TEXT " --ctx 64 --quiet");
    assert_int_equal(last.status, 0);
    assert_string_equal(last.tty, "");
}

/* Stopped in the second block, the same command goes on behind the first. */
static void test_sigint_quantize(void **state)
{
    char args[512];
    (void)state;
    snprintf(args, sizeof args, "quantize " LLAMA " -o %s/out --group 32 --nsamples 256 --seqlen 256 --calib %s/long.txt --json", dir, dir);
    run("block 2/2", "%s", args);
    expect(130, "d2q: interrupted");
    expect(130, "out.d2q-work: the same command goes on");
    expect(130, "blocks/s");
    assert_string_equal(last.out, "");
    assert_false(file_exists(scratch_path(dir, "out")));
    run(NULL, "%s", args);
    expect(0, "");
    json_t *j = json_loads(last.out, 0, NULL);
    assert_true(num(j, "resumed_blocks") == 1);
    json_decref(j);
    assert_true(file_exists(scratch_path(dir, "out")) && !file_exists(scratch_path(dir, "out.d2q-work")));
}

static int setup(void **state)
{
    (void)state;
    dir = scratch_dir();
    model = d2q_open(LLAMA, &err);
    write_long_text();
    return model ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[512];
    (void)state;
    d2q_close(model);
    mem_free(last.out);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eval),        cmocka_unit_test(test_tasks),           cmocka_unit_test(test_nothing_stays),
        cmocka_unit_test(test_sigint_eval), cmocka_unit_test(test_sigint_quantize),
    };
    return cmocka_run_group_tests_name("interrupt", tests, setup, teardown);
}
