/* Divergence: against a plain double-precision computation from both models' logits, and the file of log probabilities against
 * what its format says; broken files are refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "eval/kl.h"
#include "quant/quant.h"
#include "scratch.h"

#define MODELS "tests/fixtures/models/"
enum { CTX = 48, LONG = 300 }; /* LONG: more than are scored at once */

static struct model *open_model(int bits)
{
    struct model *m;
    struct err e;
    if (model_open(&m, MODELS "llama", &e))
        fail_msg("%s", e.msg);
    if (bits) {
        struct quant_options o;
        struct quant_result r;
        assert_int_equal(quant_options_init(&o, "rtn", "default", &e), 0);
        o.bits = bits;
        o.group = 32;
        assert_int_equal(quantize_model(m, &o, NULL, NULL, NULL, NULL, &r, &e), 0);
        quant_result_release(&r);
    }
    return m;
}

static char *read_text(size_t *n)
{
    char *text;
    struct err e;
    assert_int_equal(file_read(MODELS "text.txt", 1 << 20, &text, n, &e), 0);
    return text;
}

/* Over the windows: of KL, of the change of the right token's probability, of nll the mean; the error of ln(ppl ratio). */
struct truth {
    double kl, top1, nll, dp, ratio_err;
};

static struct truth reference(const struct model *m, const struct model *ref, const char *text, size_t n_text, enum eval_protocol protocol,
                              int64_t ctx)
{
    struct truth r = { 0 };
    double d1 = 0, d2 = 0; /* of the difference of log probabilities */
    struct windows w;
    struct pass a, b;
    struct err e;
    int64_t n_vocab = m->hp.n_vocab, count = 0, same = 0;
    assert_int_equal(windows_init(&w, m, text, n_text, protocol, RULE_AUTO, ctx, 0, &e), 0);
    assert_int_equal(pass_init(&a, ref, ctx, &e) | pass_init(&b, m, ctx, &e), 0);
    int32_t ids[LONG];
    for (int64_t i = 0; i < w.n; i++) {
        windows_get(&w, i, ids);
        assert_int_equal(pass_run(&a, ref, ids, NULL, &e) | pass_run(&b, m, ids, NULL, &e), 0);
        for (int64_t t = w.first; t < ctx; t++) {
            assert_int_equal(pass_logits(&a, ref, t - 1, 1, &e) | pass_logits(&b, m, t - 1, 1, &e), 0);
            double za = 0, zb = 0;
            int64_t ta = 0, tb = 0;
            for (int64_t v = 0; v < n_vocab; v++) {
                za += exp(a.logits[v]);
                zb += exp(b.logits[v]);
                ta = a.logits[v] > a.logits[ta] ? v : ta;
                tb = b.logits[v] > b.logits[tb] ? v : tb;
            }
            for (int64_t v = 0; v < n_vocab; v++)
                r.kl += exp(a.logits[v]) / za * (((double)a.logits[v] - log(za)) - ((double)b.logits[v] - log(zb)));
            double la = (double)a.logits[ids[t]] - log(za), lb = (double)b.logits[ids[t]] - log(zb);
            r.nll -= lb;
            r.dp += exp(lb) - exp(la);
            d1 += la - lb;
            d2 += (la - lb) * (la - lb);
            same += ta == tb;
            count++;
        }
    }
    double n = (double)count;
    r.kl /= n;
    r.nll /= n;
    r.dp /= n;
    r.ratio_err = sqrt((d2 / n - d1 / n * d1 / n) / (n - 1));
    r.top1 = (double)same / n;
    pass_release(&a);
    pass_release(&b);
    windows_release(&w);
    return r;
}

static void run_kl(const struct model *m, const struct kl_options *o, const char *text, size_t n, struct eval_result *r, struct kl_result *k)
{
    struct err e = { 0 };
    if (eval_kl(m, text, n, o, NULL, r, k, &e))
        fail_msg("%s", e.msg);
}

static void against_a_model(void **state)
{
    (void)state;
    struct model *ref = open_model(0), *m = open_model(3);
    size_t n;
    char *text = read_text(&n);
    for (int p = 0; p < 4; p++) {
        struct kl_options o = { .ref = ref };
        struct eval_result r, alone;
        struct kl_result k;
        struct err e = { 0 };
        eval_options_init(&o.e);
        o.e.protocol = p % 2 ? PROTOCOL_LLAMA : PROTOCOL_GPTQ;
        o.e.ctx = p / 2 ? LONG : CTX;
        struct truth t = reference(m, ref, text, n, o.e.protocol, o.e.ctx);
        run_kl(m, &o, text, n, &r, &k);
        assert_true(t.kl > 0.1 && fabs(k.kl.mean - t.kl) < 1e-6 * t.kl);
        assert_true(k.top1 == t.top1 && t.top1 < 1);
        assert_true(fabs(r.nll - t.nll) < 1e-6 * t.nll);
        assert_true(fabs(k.dp.mean - t.dp) < 1e-6 && fabs(k.ln_ratio_err - t.ratio_err) < 1e-5);
        assert_int_equal(eval_perplexity(m, text, n, &o.e, NULL, &alone, &e), 0);
        assert_true(fabs(alone.nll - t.nll) < 1e-6 * t.nll);
        assert_true(k.kl.min <= k.kl.median && k.kl.median <= k.kl.p90 && k.kl.p90 <= k.kl.p99 && k.kl.p99 <= k.kl.max);
        run_kl(ref, &o, text, n, &r, &k); /* of itself */
        assert_true(k.kl.max == 0 && k.top1 == 1 && k.dp_rms == 0 && k.ln_ratio == 0);
    }
    mem_free(text);
    model_free(m);
    model_free(ref);
}

/* 16 bits over a range of 16: each log p is off by at most 1.3e-4, so the mean KL by no more. */
static void through_a_file(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "base");
    struct model *ref = open_model(0), *m = open_model(3);
    struct kl_base b;
    struct err e;
    struct eval_result r, r2;
    struct kl_result k, k2;
    size_t n;
    char *text = read_text(&n);
    struct kl_options o = { .ref = ref, .save = path };
    eval_options_init(&o.e);
    o.e.protocol = PROTOCOL_LLAMA;
    o.e.ctx = CTX;
    run_kl(m, &o, text, n, &r, &k);
    assert_true(kl_base_is(path));
    assert_int_equal(kl_base_open(&b, path, &e), 0);
    assert_int_equal(b.n, r.n_windows);
    struct kl_options from = { .base = &b };
    eval_options_init(&from.e);
    from.e.protocol = PROTOCOL_LLAMA;
    run_kl(m, &from, NULL, 0, &r2, &k2);
    assert_true(r2.tokens == r.tokens && r2.nll == r.nll);
    assert_true(fabs(k2.kl.mean - k.kl.mean) < 1.3e-4 && fabs(k2.nll_ref - k.nll_ref) < 1.3e-4);
    struct tokenizer *tok = m->tok;
    m->tok = NULL;
    assert_int_equal(eval_kl(m, NULL, 0, &from, NULL, &r2, &k2, &e), -1); /* did a start token stand before the stored ones? */
    assert_non_null(strstr(e.msg, "has no tokenizer"));
    m->tok = tok;
    run_kl(m, &from, text, n, &r2, &k2);
    assert_int_equal(eval_kl(m, text + 5, n - 5, &from, NULL, &r2, &k2, &e), -1); /* another text */
    from.e.protocol = PROTOCOL_GPTQ;
    assert_int_equal(eval_kl(m, NULL, 0, &from, NULL, &r2, &k2, &e), -1); /* all of a window needs the text */
    assert_non_null(strstr(e.msg, "protocol llama"));
    kl_base_release(&b);
    /* by protocol gptq every token is scored, the second halves are compared */
    from.e.rule = RULE_AS_IS;
    struct eval_options whole = from.e;
    whole.save = path;
    whole.ctx = CTX;
    assert_int_equal(eval_perplexity(ref, text, n, &whole, NULL, &r, &e), 0);
    assert_int_equal(kl_base_open(&b, path, &e), 0);
    assert_int_equal(b.n, r.n_windows);
    whole.save = NULL;
    run_kl(m, &from, text, n, &r2, &k2);
    assert_int_equal(eval_perplexity(m, text, n, &whole, NULL, &r, &e), 0);
    assert_true(r2.tokens == r.tokens && fabs(r2.nll - r.nll) < 1e-12 && fabs(r2.ppl_err / r.ppl_err - 1) < 1e-9);
    assert_int_equal(k2.tokens, r.n_windows * (CTX - CTX / 2 - 1));
    kl_base_release(&b);
    o.e.protocol = PROTOCOL_LLAMA; /* text as it is, no BOS: the same windows */
    o.save = NULL;
    struct kl_result k3;
    run_kl(m, &o, text, n, &r, &k3);
    assert_true(fabs(k3.kl.mean - k2.kl.mean) < 1.3e-4);
    o.save = path;
    o.e.protocol = PROTOCOL_GPTQ;
    assert_int_equal(eval_kl(m, text, n, &o, NULL, &r, &k, &e), -1); /* cannot be stored */
    mem_free(text);
    model_free(m);
    model_free(ref);
    scratch_remove(dir);
}

static void broken_files(void **state)
{
    (void)state;
    const char *dir = scratch_dir(), *path = scratch_path(dir, "base"), *bad = scratch_path(dir, "bad");
    struct model *ref = open_model(0);
    struct eval_result r;
    struct eval_options o;
    struct err e;
    size_t n, len;
    char *text = read_text(&n), *file;
    eval_options_init(&o);
    o.protocol = PROTOCOL_LLAMA;
    o.ctx = CTX;
    o.max_windows = 2;
    o.save = path;
    assert_int_equal(eval_perplexity(ref, text, n, &o, NULL, &r, &e), 0);
    assert_int_equal(file_read(path, 1 << 26, &file, &len, &e), 0);
    struct kl_base b;
    for (size_t cut = 0; cut < len; cut += cut < 64 ? 1 : len / 9) {
        scratch_write(bad, file, cut);
        assert_int_equal(kl_base_open(&b, bad, &e), -1);
    }
    static const int32_t values[] = { -1, 0, 1, 3, 1 << 30, INT32_MAX };
    for (int field = 8; field <= 20; field += 4) /* window, vocabulary, windows, the first token */
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            if (field == 20 && values[v] >= 0 && values[v] < ref->hp.n_vocab)
                continue;
            char *copy = malloc(len);
            memcpy(copy, file, len);
            memcpy(copy + field, &values[v], 4);
            scratch_write(bad, copy, len);
            if (!kl_base_open(&b, bad, &e))
                fail_msg("field at %d = %d was taken", field, values[v]);
            free(copy);
        }
    float nan_scale = NAN;
    memcpy(file + 20 + 2 * CTX * 4, &nan_scale, 4);
    scratch_write(bad, file, len);
    assert_int_equal(kl_base_open(&b, bad, &e), 0);
    float *row = malloc((size_t)ref->hp.n_vocab * sizeof *row);
    assert_int_equal(kl_base_rows(&b, 0, 0, 1, row, &e), -1);
    assert_non_null(strstr(e.msg, "are not of log probabilities"));
    free(row);
    kl_base_release(&b);
    mem_free(file);
    mem_free(text);
    model_free(ref);
    scratch_remove(dir);
}

int main(void)
{
    struct err e;
    if (backend_init(&e))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_a_model),
        cmocka_unit_test(through_a_file),
        cmocka_unit_test(broken_files),
    };
    return cmocka_run_group_tests_name("kl", tests, NULL, NULL);
}
