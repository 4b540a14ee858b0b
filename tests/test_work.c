/* test_work: a run that is stopped after any block and goes on leaves the same bytes as one that was not; a folder of another
 * run, model or calibration is refused, and a damaged file costs its work, never a wrong result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "quant/work.h"
#include "scratch.h"

#define MODELS "tests/fixtures/models/"
#define OPTIONS_SIZE 144 /* of struct quant_options without keep */

static struct model *open_model(const char *path)
{
    struct model *m = NULL;
    struct err e = { 0 };
    if (model_open(&m, path, &e))
        fail_msg("%s", e.msg);
    return m;
}

static void make_calib(struct calib *c, const struct model *m, uint64_t x)
{
    int32_t ids[2048];
    struct err e;
    for (int i = 0; i < 2048; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % (uint64_t)m->hp.n_vocab);
    }
    assert_int_equal(calib_from_tokens(c, ids, 2048, 6, 48, 1, &e), 0);
}

static struct quant_options options(const char *method, const char *recipe)
{
    struct quant_options o;
    struct err e;
    assert_int_equal(quant_options_init(&o, method, recipe, &e), 0);
    o.bits = 2;
    o.group = 40;
    o.dsq_norms = o.dsq_o = o.dsq;
    return o;
}

/* Stops at the first report of block `stop`, or of what follows the last. */
struct stopper {
    int64_t stop;
    int infos, warnings;
};

static int on_log(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    struct stopper *s = ud;
    (void)total;
    s->infos += kind == LOG_INFO;
    s->warnings += kind == LOG_WARN;
    return kind == LOG_PROGRESS && s->stop >= 0 && (strncmp(text, "block ", 6) || done >= (double)(s->stop * 4));
}

struct outcome {
    int rc;
    int64_t done; /* blocks taken over */
    struct stopper log;
    struct err e;
    struct model *m;
    struct quant_result res;
};

static void run(struct outcome *out, const char *path, const struct quant_options *o, uint64_t text, const char *dir, bool fresh,
                int64_t stop)
{
    struct work w = { .lock = -1 };
    struct calib c;
    memset(out, 0, sizeof *out);
    out->log.stop = stop;
    struct log log = { on_log, &out->log };
    out->m = open_model(path);
    make_calib(&c, out->m, text);
    bool calib = method_table[o->method].needs_calib;
    if (dir) {
        json_t *recipe = work_recipe(out->m, o, calib ? &c : NULL, NULL, "test");
        out->rc = work_open(&w, dir, fresh, recipe, &out->e);
        json_decref(recipe);
    }
    if (!out->rc)
        out->rc = quantize_resumable(out->m, o, calib ? &c : NULL, dir ? &w : NULL, &log, NULL, NULL, &out->res, &out->e);
    out->done = w.done;
    work_close(&w);
    calib_release(&c);
}

static void drop(struct outcome *o)
{
    quant_result_release(&o->res);
    model_free(o->m);
}

static void assert_same_floats(const float *a, const float *b, int64_t n)
{
    assert_int_equal(a != NULL, b != NULL);
    if (a)
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
}

/* Every matrix, bias and norm, and what was recorded, but for times. */
static void assert_same(const struct outcome *x, const struct outcome *y)
{
    const struct hparams *hp = &x->m->hp;
    for (int64_t i = 0; i < hp->n_layer; i++) {
        const struct layer *l = &x->m->layers[i], *k = &y->m->layers[i];
        assert_same_floats(l->attn_norm, k->attn_norm, hp->n_embd);
        assert_same_floats(l->ffn_norm, k->ffn_norm, hp->n_embd);
        for (int r = 0; r < ROLE_COUNT; r++) {
            const struct tensor *a = &l->lin[r].w, *b = &k->lin[r].w;
            assert_int_equal(a->type, b->type);
            if (a->type == DT_QMAT) {
                const struct qmat *p = a->q, *q = b->q;
                assert_true(p->bits == q->bits && p->group == q->group && p->sym == q->sym && !p->g_idx == !q->g_idx);
                assert_memory_equal(p->codes, q->codes, (size_t)(p->n_out * p->row_words) * 4);
                assert_memory_equal(p->scale, q->scale, (size_t)(p->n_out * p->n_groups) * 2);
                assert_memory_equal(p->zero, q->zero, (size_t)(p->n_out * p->n_groups));
                if (p->g_idx)
                    assert_memory_equal(p->g_idx, q->g_idx, (size_t)p->n_in * 4);
            } else {
                assert_int_equal(a->size, b->size);
                assert_memory_equal(a->data, b->data, a->size);
            }
            assert_same_floats(l->lin[r].b, k->lin[r].b, tensor_rows(a));
        }
    }
    assert_same_floats(x->m->out_norm, y->m->out_norm, hp->n_embd);
    assert_int_equal(x->res.n_tensors, y->res.n_tensors);
    for (int64_t i = 0; i < x->res.n_tensors; i++) {
        const struct quant_tensor *a = &x->res.tensors[i], *b = &y->res.tensors[i];
        assert_string_equal(a->name, b->name);
        assert_string_equal(a->type, b->type);
        assert_true(a->n_out == b->n_out && a->n_in == b->n_in && a->bpw == b->bpw && a->err == b->err && a->damp == b->damp &&
                    a->err_target == b->err_target);
    }
    assert_memory_equal(x->res.blocks, y->res.blocks, (size_t)hp->n_layer * sizeof *x->res.blocks);
    assert_true(x->res.bpw == y->res.bpw && x->res.tune_after == y->res.tune_after);
}

/* Stopped after every number of blocks, of every method, with everything that changes a block after its inputs were seen. */
static void test_same_bytes(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    static const char *const models[] = { "llama", "llama_bias", "qwen2.gguf", "qwen3" };
    for (size_t k = 0; k < 4; k++)
        for (int v = 0; v < 6; v++) {
            static const char *const names[] = { "rtn", "gptq", "d2quant", "d2quant", "d2quant", "d2quant" };
            struct quant_options o = options(names[v], v == 3 ? "paper" : "default");
            struct outcome whole, part, rest;
            struct err e;
            char path[256];
            snprintf(path, sizeof path, MODELS "%s", models[k]);
            const char *work = scratch_path(dir, "work");
            o.spill = v % 2; /* where things lie changes nothing, nor who goes on */
            if (v == 1)
                o.group = 4096; /* wider than any matrix */
            if (v == 4) { /* blocks of a type, and a matrix that stays float */
                o.grid = GRID_q2_k;
                assert_int_equal(quant_keep_add(&o, "*.o_proj=f16", &e), 0);
                o.kept = DT_F32;
            } else if (v == 5) {
                o.tune = 1;
                o.dac = DAC_FLOAT;
                o.dac_accept = false;
                o.order = ORDER_ACT;
            }
            run(&whole, path, &o, 9, NULL, false, -1);
            assert_int_equal(whole.rc, 0);
            for (int64_t stop = 0; stop <= whole.m->hp.n_layer; stop++) {
                if (stop == whole.m->hp.n_layer && v != 5)
                    continue; /* only tuning reports after the last block */
                run(&part, path, &o, 9, work, false, stop);
                assert_int_equal(part.rc, -1);
                assert_int_equal(part.e.code, ERR_CANCELLED);
                drop(&part);
                o.spill = !o.spill;
                run(&rest, path, &o, 9, work, false, -1);
                if (rest.rc)
                    fail_msg("%s %s: %s", models[k], names[v], rest.e.msg);
                assert_int_equal(rest.done, stop);
                assert_same(&whole, &rest);
                drop(&rest);
                run(&rest, path, &o, 9, work, false, -1); /* nothing left to do */
                assert_int_equal(rest.done, whole.m->hp.n_layer);
                assert_same(&whole, &rest);
                drop(&rest);
                assert_int_equal(work_remove(work, &e), 0);
                assert_false(file_exists(work));
            }
            drop(&whole);
        }
    scratch_remove(dir);
}

static void test_refused(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *work = scratch_path(dir, "work");
    struct quant_options o = options("d2quant", "default"), other = o;
    struct outcome r;
    run(&r, MODELS "llama", &o, 9, work, false, 1);
    assert_int_equal(r.rc, -1);
    drop(&r);
    other.bits = 3;
    other.sweeps = 4;
    run(&r, MODELS "llama", &other, 9, work, false, -1);
    assert_int_equal(r.rc, -1);
    assert_int_equal(r.e.code, ERR_USAGE);
    assert_non_null(strstr(r.e.msg, "options.bits: 2 there, 3 now"));
    assert_non_null(strstr(r.e.msg, "options.sweeps: 1 there, 4 now"));
    assert_null(strstr(r.e.msg, "options.damp"));
    drop(&r);
    run(&r, MODELS "llama", &o, 10, work, false, -1);
    assert_int_equal(r.e.code, ERR_USAGE);
    assert_non_null(strstr(r.e.msg, "calibration.sha256"));
    drop(&r);
    run(&r, MODELS "llama3", &o, 9, work, false, -1);
    assert_int_equal(r.e.code, ERR_USAGE);
    assert_non_null(strstr(r.e.msg, "model:"));
    drop(&r);
    run(&r, MODELS "llama", &o, 9, work, false, -1); /* what was refused took nothing away */
    assert_int_equal(r.rc, 0);
    assert_int_equal(r.done, 1);
    drop(&r);
    run(&r, MODELS "llama", &other, 9, work, true, -1);
    assert_int_equal(r.rc, 0);
    assert_int_equal(r.done, 0);
    drop(&r);
    scratch_remove(dir);
}

/* Of another version of the folder, or with a setting that this program does not know: refused, both shown. */
static void test_versions(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *work = scratch_path(dir, "work");
    struct quant_options o = options("gptq", "default");
    struct outcome r;
    struct err e;
    char *text, path[512];
    size_t n;
    run(&r, MODELS "llama", &o, 9, work, false, 1);
    drop(&r);
    snprintf(path, sizeof path, "%s/recipe.json", work);
    assert_int_equal(file_read(path, 1 << 20, &text, &n, &e), 0);
    json_t *recipe = json_loads(text, 0, NULL);
    mem_free(text);
    assert_non_null(recipe);
    json_object_set_new(recipe, "work_version", json_integer(1));
    json_object_set_new(json_object_get(recipe, "options"), "strange", json_true());
    assert_int_equal(json_dump_file(recipe, path, 0), 0);
    json_decref(recipe);
    run(&r, MODELS "llama", &o, 9, work, false, -1);
    assert_int_equal(r.e.code, ERR_USAGE);
    assert_non_null(strstr(r.e.msg, "work_version: 1 there, "));
    assert_non_null(strstr(r.e.msg, "options.strange: true there, nothing now"));
    drop(&r);
    run(&r, MODELS "llama", &o, 9, work, true, -1);
    assert_int_equal(r.rc, 0);
    drop(&r);
    scratch_remove(dir);
}

/* A user's own files under our names: refused, --fresh or not, and all is as it was, also when the folder is to be removed. */
static void test_foreign_files(void **state)
{
    (void)state;
    static const char *const names[] = { "recipe.json", "state.bin", "calib.bin", "block-0007.bin" };
    static const char *const texts[] = { "{", "{\"a\": 1}", "[]" };
    struct quant_options o = options("gptq", "default");
    struct model *m = open_model(MODELS "llama");
    json_t *recipe = work_recipe(m, &o, NULL, NULL, "test");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int k = 0; k < 3; k++) {
            const char *dir = scratch_dir();
            struct work w;
            struct err e = { 0 };
            char *text;
            size_t n;
            scratch_write(scratch_path(dir, names[i]), texts[k], strlen(texts[k]));
            scratch_write(scratch_path(dir, "state.bin.tmp-77"), "x", 1);
            if (k == 1)
                scratch_write(scratch_path(dir, "lock"), "", 0); /* programs leave such ones */
            assert_int_equal(work_open(&w, dir, k == 2, recipe, &e), -1);
            assert_non_null(strstr(e.msg, names[i]));
            assert_non_null(strstr(e.msg, i ? "no run left it there" : "is not the recipe of a run"));
            assert_int_equal(work_remove(dir, &e), -1);
            assert_int_equal(file_read(scratch_path(dir, names[i]), 100, &text, &n, &e), 0);
            assert_int_equal(n, strlen(texts[k]));
            assert_memory_equal(text, texts[k], n);
            mem_free(text);
            assert_true(file_exists(scratch_path(dir, "state.bin.tmp-77")));
            assert_int_equal(file_exists(scratch_path(dir, "lock")), k == 1);
            scratch_remove(dir);
        }
    json_decref(recipe);
    model_free(m);
}

/* One byte of each file changed, or its end cut off. */
static void test_damage(void **state)
{
    (void)state;
    static const char *const names[] = { "block-00000.bin", "state.bin" };
    const char *dir = scratch_dir(), *work = scratch_path(dir, "work");
    struct quant_options o = options("d2quant", "default");
    struct outcome whole, r;
    run(&whole, MODELS "llama", &o, 9, NULL, false, -1);
    assert_int_equal(whole.rc, 0);
    for (int k = 0; k < 2; k++)
        for (int how = 0; how < 4; how++) {
            char *text, path[512];
            size_t n;
            struct err e;
            run(&r, MODELS "llama", &o, 9, work, true, 1);
            drop(&r);
            snprintf(path, sizeof path, "%s/%s", work, names[k]);
            assert_int_equal(file_read(path, 1 << 24, &text, &n, &e), 0);
            if (how < 3)
                text[how == 0 ? 3 : how == 1 ? n / 2 : n - 1] ^= 1;
            scratch_write(path, text, how < 3 ? n : n / 2);
            mem_free(text);
            run(&r, MODELS "llama", &o, 9, work, false, -1);
            assert_int_equal(r.rc, 0);
            assert_int_equal(r.done, 0);
            assert_int_equal(r.log.warnings, 1);
            assert_same(&whole, &r);
            drop(&r);
        }
    drop(&whole);
    scratch_remove(dir);
}

/* Two runs never share a folder; files of others in it stay. */
static void test_folder(void **state)
{
    (void)state;
    const char *dir = scratch_dir();
    struct model *m = open_model(MODELS "llama");
    struct quant_options o = options("rtn", "default");
    struct work a, b;
    struct err e = { 0 };
    json_t *recipe = work_recipe(m, &o, NULL, NULL, "test");
    scratch_write(scratch_path(dir, "mine.txt"), "x", 1);
    scratch_write(scratch_path(dir, "state.bin.tmp-77"), "x", 1);
    assert_int_equal(work_open(&a, dir, true, recipe, &e), 0);
    assert_false(file_exists(scratch_path(dir, "state.bin.tmp-77")));
    assert_int_equal(work_open(&b, dir, false, recipe, &e), -1);
    assert_non_null(strstr(e.msg, "in use by another run"));
    work_close(&b);
    assert_int_equal(work_remove(dir, &e), 0); /* not while a is in it */
    assert_true(file_exists(scratch_path(dir, "recipe.json")) && file_exists(scratch_path(dir, "lock")));
    work_close(&a);
    assert_false(file_exists(scratch_path(dir, "recipe.json"))); /* no work was done */
    assert_int_equal(work_open(&b, dir, false, recipe, &e), 0);
    int32_t ids[3] = { 1, 2, 3 }, *back;
    size_t n;
    assert_int_equal(work_tokens_load(&b, &back, &n, &e), 0);
    assert_int_equal(work_tokens_save(&b, ids, 3, &e), 0);
    assert_int_equal(work_tokens_load(&b, &back, &n, &e), 1);
    assert_int_equal(n, 3);
    assert_memory_equal(back, ids, sizeof ids);
    mem_free(back);
    work_close(&b);
    assert_int_equal(work_remove(dir, &e), 0);
    assert_true(file_exists(scratch_path(dir, "mine.txt")));
    assert_false(file_exists(scratch_path(dir, "recipe.json")));
    json_decref(recipe);
    model_free(m);
    scratch_remove(dir);
}

/* A new option decides the result: it belongs into work_recipe. Then correct the size here. */
static void test_recipe_is_complete(void **state)
{
    (void)state;
    assert_int_equal(sizeof(struct quant_options) - sizeof((struct quant_options *)0)->keep, OPTIONS_SIZE);
}

/* A work folder of other options is refused: each of them counts, but the two that say how to go on. */
static void test_every_option_counts(void **state)
{
    (void)state;
    struct model *m;
    struct err e;
    const struct quant_options plain = options("d2quant", "default");
    assert_int_equal(model_open(&m, MODELS "llama", &e), 0);
    json_t *before = work_recipe(m, &plain, NULL, NULL, "v");
#define COUNTS(change)                                             \
    do {                                                           \
        struct quant_options o = plain;                            \
        o.change;                                                  \
        json_t *after = work_recipe(m, &o, NULL, NULL, "v");       \
        if (json_equal(before, after))                             \
            fail_msg("%s: not in the recipe of the work", #change); \
        json_decref(after);                                        \
    } while (0)
    COUNTS(method = METHOD_gptq);
    COUNTS(grid = GRID_sym);
    COUNTS(bits++);
    COUNTS(group = 16);
    COUNTS(zero_min++);
    COUNTS(dsq = !plain.dsq);
    COUNTS(dac = DAC_FLOAT);
    COUNTS(dsq_norms = !plain.dsq_norms);
    COUNTS(dsq_o = !plain.dsq_o);
    COUNTS(dac_accept = !plain.dac_accept);
    COUNTS(dac = DAC_BLOCK);
    COUNTS(alpha += 0.25);
    COUNTS(beta += 0.25);
    COUNTS(rotate = !plain.rotate);
    COUNTS(prop_damp += 0.25);
    COUNTS(order = ORDER_ACT);
    COUNTS(search = SEARCH_MINMAX);
    COUNTS(sweeps++);
    COUNTS(damp += 0.25);
    COUNTS(shrink += 0.25);
    COUNTS(sinks = SINKS_SKIP);
    COUNTS(dsq_init = DSQ_ONES);
    COUNTS(dsq_weighted = !plain.dsq_weighted);
    COUNTS(dsq_rounds++);
    COUNTS(tune++);
    COUNTS(tune_lr += 0.01);
    COUNTS(kept = plain.kept == DT_F16 ? DT_F32 : DT_F16);
    COUNTS(kept_packed = !plain.kept_packed);
    json_decref(before);
    struct quant_options o = plain;
    assert_int_equal(quant_keep_add(&o, "*.down_proj=q8_0", &e), 0);
    before = work_recipe(m, &o, NULL, NULL, "v");
    o.keep[0].grid = GRID_sym;
    json_t *after = work_recipe(m, &o, NULL, NULL, "v");
    assert_false(json_equal(before, after));
    json_decref(before);
    json_decref(after);
    model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_refused), cmocka_unit_test(test_damage), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_folder),     cmocka_unit_test(test_foreign_files), cmocka_unit_test(test_recipe_is_complete),
        cmocka_unit_test(test_every_option_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
