/* test_numbers: what doc/design.md says of weights and statistics that no solver likes, on whole runs of a tiny model: a clear refusal, or the
 * fallback that the user chose, told in the log and in the table. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "quant/block.h"
#include "quant/work.h"
#include "scratch.h"
#include "tensor/half.h"

#define MODEL "tests/fixtures/models/llama"

struct run_of {
    struct model *m;
    struct quant_options o;
    struct quant_result res;
    struct err e;
    int rc, warnings;
    int64_t done; /* blocks taken over from the work folder */
    char warning[512]; /* the last */
};

static int on_log(void *ud, enum log_kind kind, const char *text, double done, double total)
{
    struct run_of *r = ud;
    (void)done;
    (void)total;
    if (kind == LOG_WARN) {
        r->warnings++;
        snprintf(r->warning, sizeof r->warning, "%s", text);
    }
    return 0;
}

static void begin(struct run_of *r, const char *method)
{
    memset(r, 0, sizeof *r);
    if (model_open(&r->m, MODEL, &r->e) || quant_options_init(&r->o, method, "default", &r->e))
        fail_msg("%s", r->e.msg);
    r->o.bits = 2;
    r->o.group = 32;
    r->o.kept = DT_F32;
}

/* A copy of the matrix that may be written to. */
static float *own(struct run_of *r, int64_t layer, enum role role)
{
    struct tensor *t = &r->m->layers[layer].lin[role].w;
    float *w = arena_alloc(&r->m->arena, (size_t)tensor_count(t), sizeof *w);
    assert_non_null(w);
    tensor_to_f32(t, w);
    *t = tensor_f32(t->name, w, tensor_rows(t), tensor_cols(t));
    return w;
}

static float *own_vector(struct run_of *r, const float **v, int64_t n)
{
    float *p = arena_alloc(&r->m->arena, (size_t)n, sizeof *p);
    assert_non_null(p);
    memcpy(p, *v, (size_t)n * sizeof *p);
    *v = p;
    return p;
}

static void go_in(struct run_of *r, int64_t sequences, int64_t length, const char *dir)
{
    int32_t ids[2048];
    struct calib c;
    struct log log = { on_log, r };
    uint64_t x = 5;
    for (int i = 0; i < 2048; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % (uint64_t)r->m->hp.n_vocab);
    }
    assert_int_equal(calib_from_tokens(&c, ids, sequences * length, sequences, length, 1, &r->e), 0);
    struct work w = { .lock = -1 };
    if (dir) {
        json_t *recipe = work_recipe(r->m, &r->o, &c, NULL, "test");
        if (work_open(&w, dir, false, recipe, &r->e))
            fail_msg("%s", r->e.msg);
        json_decref(recipe);
    }
    r->rc = quantize_resumable(r->m, &r->o, &c, dir ? &w : NULL, &log, NULL, NULL, &r->res, &r->e);
    r->done = w.done;
    work_close(&w);
    calib_release(&c);
}

static void go(struct run_of *r, int64_t sequences, int64_t length)
{
    go_in(r, sequences, length, NULL);
}

static void end(struct run_of *r)
{
    quant_result_release(&r->res);
    model_free(r->m);
}

static const struct quant_tensor *told(const struct run_of *r, int64_t layer, enum role role)
{
    return &r->res.tensors[layer * ROLE_COUNT + role];
}

/* Every value of every matrix and all that is told of it is a number; *fallbacks of them. */
static int assert_sound(const struct run_of *r)
{
    int fallbacks = 0;
    if (r->rc)
        fail_msg("%s", r->e.msg);
    for (int64_t i = 0; i < r->m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *t = &r->m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        float *w = mem_alloc((size_t)tensor_count(t), sizeof *w);
        tensor_to_f32(t, w);
        for (int64_t k = 0; k < tensor_count(t); k++)
            assert_true(isfinite(w[k]));
        mem_free(w);
        assert_true(isfinite(r->res.tensors[i].err) && isfinite(r->res.tensors[i].err_target));
        fallbacks += r->res.tensors[i].fallback[0] != 0;
    }
    assert_true(r->warnings >= fallbacks); /* never silently */
    return fallbacks;
}

/* No number at all: refused before the first block, whatever the rule. */
static void test_not_a_number(void **state)
{
    (void)state;
    for (int where = 0; where < 5; where++)
        for (int rule = 0; rule < 3; rule++) {
            struct run_of r;
            begin(&r, rule ? "d2quant" : "rtn");
            r.o.on_failure = (enum quant_failure)rule;
            int64_t last = r.m->hp.n_layer - 1, d = r.m->hp.n_embd;
            const char *name = "model.layers.1.mlp.up_proj.weight";
            if (where < 2)
                own(&r, last, ROLE_UP)[3 * d + 5] = where ? INFINITY : NAN;
            else if (where == 2)
                own_vector(&r, &r.m->layers[last].ffn_norm, d)[7] = NAN, name = "norm after attention";
            else if (where == 3)
                own_vector(&r, &r.m->out_norm, d)[7] = -INFINITY, name = "last norm";
            else {
                float *w = arena_alloc(&r.m->arena, (size_t)tensor_count(&r.m->tok_embd), sizeof *w);
                tensor_to_f32(&r.m->tok_embd, w);
                w[11] = NAN;
                r.m->tok_embd = tensor_f32("model.embed_tokens.weight", w, r.m->hp.n_vocab, d);
                name = "model.embed_tokens.weight";
            }
            go(&r, 4, 48);
            assert_int_equal(r.rc, -1);
            assert_int_equal(r.e.code, ERR_NUMERIC);
            if (!strstr(r.e.msg, name) || !strstr(r.e.msg, "NaN or Inf"))
                fail_msg("%s", r.e.msg);
            assert_int_equal(r.res.n_tensors, 0);
            end(&r);
        }
}

/* Beyond what fp16 scales reach: stop names it, rtn cannot do it either, keep needs F32. */
static void test_huge_weight(void **state)
{
    (void)state;
    for (int rule = 0; rule < 3; rule++)
        for (int half = 0; half < 2; half++) {
            struct run_of r;
            begin(&r, "d2quant");
            r.o.on_failure = (enum quant_failure)rule;
            r.o.kept = half ? DT_F16 : DT_F32;
            own(&r, 0, ROLE_O)[70] = 1e6f;
            go(&r, 4, 48);
            if (rule == FAILURE_KEEP && !half) {
                assert_int_equal(assert_sound(&r), 1);
                assert_string_equal(told(&r, 0, ROLE_O)->fallback, "keep");
                assert_string_equal(told(&r, 0, ROLE_O)->type, "f32");
                assert_non_null(strstr(r.warning, "model.layers.0.self_attn.o_proj.weight: kept in f32"));
            } else {
                assert_int_equal(r.rc, -1);
                assert_int_equal(r.e.code, ERR_NUMERIC);
                assert_non_null(strstr(r.e.msg, "model.layers.0.self_attn.o_proj.weight"));
                assert_non_null(strstr(r.e.msg, "beyond the range of fp16"));
            }
            end(&r);
        }
    struct run_of r; /* what is only rounded to fp16, not quantized */
    begin(&r, "rtn");
    r.o.kept = DT_F16;
    own_vector(&r, &r.m->layers[1].attn_norm, r.m->hp.n_embd)[3] = 70000;
    go(&r, 1, 16);
    assert_int_equal(r.rc, -1);
    assert_non_null(strstr(r.e.msg, "beyond the range of fp16"));
    end(&r);
}

/* Finite inputs whose squares are not: no Hessian for gate and up, which matters not if they are to stay floats. */
static void test_statistics_overflow(void **state)
{
    (void)state;
    for (int rule = 0; rule < 4; rule++) {
        struct run_of r;
        begin(&r, "gptq");
        r.o.sinks = SINKS_KEEP;
        r.o.on_failure = rule < 3 ? (enum quant_failure)rule : FAILURE_STOP;
        if (rule == 3)
            assert_int_equal(quant_keep_add(&r.o, "model.layers.0.mlp.[gu]*=f32", &r.e), 0);
        int64_t d = r.m->hp.n_embd;
        own_vector(&r, &r.m->layers[0].ffn_norm, d)[9] = 3e19f;
        for (int role = ROLE_GATE; role <= ROLE_UP; role++) {
            float *w = own(&r, 0, (enum role)role);
            for (int64_t i = 0; i < r.m->hp.n_ff; i++)
                w[i * d + 9] = 0;
        }
        go(&r, 4, 48);
        if (rule == 3) {
            assert_int_equal(assert_sound(&r), 0);
            assert_string_equal(told(&r, 0, ROLE_UP)->type, "f32");
        } else if (rule == FAILURE_STOP) {
            assert_int_equal(r.rc, -1);
            assert_int_equal(r.e.code, ERR_NUMERIC);
            assert_non_null(strstr(r.e.msg, "gate_proj"));
            assert_non_null(strstr(r.e.msg, "statistics"));
        } else if (!r.rc) { /* a column of zeros times a scale is not always zero: rounding may leave the run without numbers */
            assert_int_equal(assert_sound(&r), 2);
            assert_string_equal(told(&r, 0, ROLE_GATE)->fallback, rule == FAILURE_RTN ? "rtn" : "keep");
            assert_string_equal(told(&r, 0, ROLE_UP)->fallback, rule == FAILURE_RTN ? "rtn" : "keep");
        } else {
            assert_int_equal(rule, FAILURE_RTN);
            assert_non_null(strstr(r.e.msg, "NaN or Inf in its output"));
        }
        end(&r);
    }
}

/* Inputs that are always 0, and inputs that are always equal. */
static void test_dead_and_duplicate(void **state)
{
    (void)state;
    for (int method = 0; method < METHOD_COUNT; method++) {
        struct run_of r;
        begin(&r, method_table[method].name);
        int64_t d = r.m->hp.n_embd;
        float *gate = own(&r, 0, ROLE_GATE), *up = own(&r, 0, ROLE_UP);
        for (int64_t j = 0; j < d; j++) {
            for (int64_t i = 0; i < 5; i++)
                gate[i * d + j] = 0; /* silu(0) = 0 */
            gate[7 * d + j] = gate[6 * d + j];
            up[7 * d + j] = up[6 * d + j];
        }
        go(&r, 6, 48);
        assert_int_equal(assert_sound(&r), 0);
        if (method_table[method].needs_calib) {
            assert_int_equal(told(&r, 0, ROLE_DOWN)->dead, 5);
            assert_int_equal(told(&r, 0, ROLE_UP)->dead, 0);
            const struct tensor *t = &r.m->layers[0].lin[ROLE_DOWN].w;
            float *w = mem_alloc((size_t)tensor_count(t), sizeof *w);
            tensor_to_f32(t, w);
            for (int64_t i = 0; i < tensor_rows(t); i++)
                for (int64_t j = 0; j < 5; j++)
                    assert_true(fabsf(w[i * tensor_cols(t) + j]) < 1e-3f);
            mem_free(w);
        }
        end(&r);
    }
}

static void test_odd_rows(void **state)
{
    (void)state;
    for (int method = 0; method < METHOD_COUNT; method++)
        for (int grid = 0; grid < 3; grid++) {
            static const enum grid_id grids[] = { GRID_asym, GRID_sym, GRID_q2_0 };
            struct run_of r;
            begin(&r, method_table[method].name);
            r.o.grid = grids[grid];
            r.o.bits = 2;
            r.o.alpha = r.o.beta = 0; /* propagated error moves the target of a zero row */
            int64_t d = r.m->hp.n_embd;
            float *w = own(&r, 1, ROLE_GATE);
            for (int64_t j = 0; j < d; j++) {
                w[0 * d + j] = 0;
                w[1 * d + j] = 0.25f;       /* constant groups */
                w[2 * d + j] = 1e-40f;      /* denormal in float, nothing in fp16 */
                w[3 * d + j] = j == 5 ? 6e4f : 0; /* as large as fp16 allows */
                w[4 * d + j] = 1e-7f;       /* below the smallest scale */
            }
            go(&r, 4, 48);
            assert_int_equal(assert_sound(&r), 0);
            float row[256];
            const struct tensor *t = &r.m->layers[1].lin[ROLE_GATE].w;
            tensor_rows_f32(t, 0, 1, row);
            for (int64_t j = 0; j < d; j++)
                assert_true(row[j] == 0);
            tensor_rows_f32(t, 1, 1, row);
            for (int64_t j = 0; method == METHOD_rtn && j < d; j++)
                assert_true(fabsf(row[j] - 0.25f) < 0.13f);
            tensor_rows_f32(t, 2, 1, row);
            for (int64_t j = 0; j < d; j++)
                assert_true(fabsf(row[j]) < 1e-3f);
            end(&r);
        }
}

/* Fewer tokens than inputs, down to two, without any damping of the user's: told, raised, done. */
static void test_few_tokens(void **state)
{
    (void)state;
    for (int method = 0; method < METHOD_COUNT; method++)
        for (int64_t n = 2; n <= 20; n += 9)
            for (int damped = 0; damped < 2; damped++) {
                struct run_of r;
                begin(&r, method_table[method].name);
                if (!damped)
                    r.o.damp = r.o.prop_damp = r.o.shrink = 0;
                go(&r, 1, n);
                assert_int_equal(assert_sound(&r), 0);
                assert_true(r.warnings > 0 || !method_table[method].needs_calib);
                for (int64_t i = 0; i < r.res.n_tensors && method_table[method].needs_calib; i++)
                    assert_true(r.res.tensors[i].damp > 0 || method == METHOD_boa);
                end(&r);
            }
}

/* up_proj's scales near the end of fp16: s^c has no room. */
static void test_merged_scales(void **state)
{
    (void)state;
    for (int rule = 0; rule < 3; rule++)
        for (int grid = 0; grid < 2; grid++) {
            struct run_of r;
            int fell;
            begin(&r, "d2quant");
            r.o.grid = grid ? GRID_q2_0 : GRID_sym;
            r.o.on_failure = (enum quant_failure)rule;
            r.o.alpha = r.o.beta = 0;
            int64_t n = r.m->hp.n_ff * r.m->hp.n_embd;
            float *w = own(&r, 0, ROLE_UP);
            for (int64_t i = 0; i < n; i++)
                w[i] = w[i] < 0 ? -6e4f : 6e4f;
            go(&r, 4, 48);
            if (r.rc) {
                assert_int_equal(rule, FAILURE_STOP);
                if (!strstr(r.e.msg, "down_proj"))
                    fail_msg("%s", r.e.msg);
                assert_non_null(strstr(r.e.msg, "merged scale leaves the range of fp16"));
                fell = 1;
            } else {
                int k = assert_sound(&r);
                assert_true(k == 0 || told(&r, 0, ROLE_DOWN)->fallback[0]);
                assert_true(k == 0 || r.res.blocks[0].dsq_gain[STAGE_DOWN] == 0);
                fell = k > 0;
            }
            assert_int_equal(fell, !grid); /* by q2_0 down becomes q4_0, and up has room for its s^c */
            end(&r);
        }
}

/* Gains near the end of fp16: s^c of gate and up has no room. They fall back together, the norm as it was. */
static void test_merged_gains(void **state)
{
    (void)state;
    for (int rule = 0; rule < 3; rule++) {
        struct run_of r;
        begin(&r, "d2quant");
        r.o.dsq_norms = true;
        r.o.kept = DT_F16;
        r.o.on_failure = (enum quant_failure)rule;
        int64_t d = r.m->hp.n_embd;
        float *gain = own_vector(&r, &r.m->layers[0].ffn_norm, d);
        for (int64_t j = 0; j < d; j++)
            gain[j] = 65472;
        for (enum role role = ROLE_GATE; role <= ROLE_UP; role++) { /* channels of unequal size: s^c is not 1 */
            float *w = own(&r, 0, role);
            for (int64_t i = 0; i < r.m->hp.n_ff * d; i++)
                w[i] *= i % d % 5 ? 1 : 6;
        }
        r.o.alpha = r.o.beta = 0;
        go(&r, 4, 48);
        if (rule == FAILURE_STOP) {
            assert_int_equal(r.rc, -1);
            if (!strstr(r.e.msg, "gate_proj"))
                fail_msg("%s", r.e.msg);
            assert_non_null(strstr(r.e.msg, "merged norm gain leaves the range of fp16"));
        } else {
            assert_int_equal(assert_sound(&r), 2);
            assert_true(told(&r, 0, ROLE_GATE)->fallback[0] && told(&r, 0, ROLE_UP)->fallback[0]);
            assert_true(r.res.blocks[0].dsq_gain[STAGE_QKV] > 0 && r.res.blocks[0].dsq_gain[STAGE_GATE_UP] == 0);
            for (int64_t j = 0; j < d; j++)
                assert_true(r.m->layers[0].ffn_norm[j] == 65472);
        }
        end(&r);
    }
}

/* The rule is no part of the recipe: a run that one bad matrix stopped goes on under another. */
static void test_another_rule(void **state)
{
    (void)state;
    static const enum quant_failure rules[] = { FAILURE_STOP, FAILURE_KEEP, FAILURE_KEEP, FAILURE_RTN };
    const char *dir = scratch_dir(), *work = scratch_path(dir, "work");
    for (int i = 0; i < 4; i++) {
        struct run_of r;
        begin(&r, "d2quant");
        r.o.on_failure = rules[i];
        own(&r, 1, ROLE_O)[70] = 1e6f;
        go_in(&r, 4, 48, work);
        assert_int_equal(r.done, i == 0 ? 0 : i == 1 ? 1 : i == 2 ? 2 : 0);
        if (i == 0)
            assert_non_null(strstr(r.e.msg, "model.layers.1.self_attn.o_proj.weight (--on-failure stop; rtn or keep go on)"));
        else if (i == 3)
            assert_non_null(strstr(r.e.msg, "fell back by --on-failure keep there"));
        else
            assert_string_equal(told(&r, 1, ROLE_O)->fallback, "keep");
        assert_int_equal(r.rc, i == 1 || i == 2 ? 0 : -1);
        end(&r);
    }
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_not_a_number), cmocka_unit_test(test_huge_weight), cmocka_unit_test(test_statistics_overflow),
        cmocka_unit_test(test_dead_and_duplicate), cmocka_unit_test(test_odd_rows), cmocka_unit_test(test_few_tokens),
        cmocka_unit_test(test_merged_scales), cmocka_unit_test(test_merged_gains), cmocka_unit_test(test_another_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
