/* test_digest: under D2Q_CPU=generic a run gives the same bits on every machine, compiler and optimization level. The expected digests are of
 * codes, scales, zeros, blocks and biases; a change of method changes them, and then the new ones (printed) go here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <nettle/sha2.h>

#include "backend/backend.h"
#include "base/digest.h"
#include "quant/quant.h"

static const struct {
    const char *model, *method, *recipe;
    enum grid_id grid;
    int bits, rotate, tune;
    const char *digest;
} runs[] = {
    { "llama", "rtn", "default", GRID_asym, 3, 0, 0, "7e506a4fefe6bb4a7e7f98f20373f3eb952e9d52ad55b808130c7eb448bd3829" },
    { "llama", "gptq", "default", GRID_asym, 3, 0, 0, "73b52650e85ed21734a3d38a6ee822913a636512119bcaca59786ef3a2dcd1ee" },
    { "qwen2", "gptq", "default", GRID_sym, 4, 0, 0, "885768a89329ea224483e86e3468db8799fd16e5e2eed6f69a0c8d06d4cd0429" },
    { "llama", "gptaq", "default", GRID_asym, 2, 0, 0, "8f7984a24a391d9e2a71345993f3fb0084138622d9b17822f5d87813c4bdd2a1" },
    { "llama", "boa", "default", GRID_asym, 2, 0, 0, "2cbaa7c1b60640b0e3157ccd0a87e4326325452b473a4f722f304a420eda733f" },
    { "llama", "d2quant", "default", GRID_asym, 2, 0, 0, "ddcfe6439594fb59a6641221cd20febac314017b7e3be53eb0a213bde4858ff1" },
    { "qwen3", "d2quant", "default", GRID_q2_0, 2, 0, 0, "a266d4d0b74b96eabaf3bdb02c304da59f39a1eeb1a91e3531b1f4bdf88a8ce6" },
    { "llama", "d2quant", "paper", GRID_asym, 3, 0, 0, "dc43f8c5e820d2b8a98bfaeb964b72d999db86dcda79cd5f1e8403dc83d66ef5" },
    { "llama", "d2quant", "default", GRID_q2_k, 2, 1, 0, "d8e62f3485b9a3997dfcd6faa55969eb117b36b1df60c8c3309a7a3e6ea137d4" },
    { "llama.gguf", "d2quant", "default", GRID_asym, 2, 0, 1, "9ae267da6c2597925e90cb282aa459884893ea018db73480bf202e70a890828f" },
};

static void add(struct sha256_ctx *c, const void *p, size_t n)
{
    if (p)
        sha256_update(c, n, p);
}

static void digest(const struct model *m, char hex[65])
{
    struct sha256_ctx c;
    sha256_init(&c);
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct linear *l = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT];
        const struct qmat *q = l->w.q;
        if (l->w.type == DT_QMAT) {
            add(&c, q->codes, (size_t)(q->n_out * q->row_words) * 4);
            add(&c, q->scale, (size_t)(q->n_out * q->n_groups) * 2);
            add(&c, q->zero, (size_t)(q->n_out * q->n_groups));
        } else {
            add(&c, l->w.data, l->w.size);
        }
        add(&c, l->b, (size_t)tensor_rows(&l->w) * sizeof(float));
    }
    digest_hex(&c, hex);
}

static void test_one_digest_everywhere(void **state)
{
    (void)state;
    int wrong = 0;
    assert_string_equal(backend_isa(), "generic");
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct model *m = NULL;
        struct quant_options o;
        struct quant_result res;
        struct calib c;
        struct err e = { 0 };
        char path[256], hex[65];
        snprintf(path, sizeof path, "tests/fixtures/models/%s", runs[i].model);
        int32_t ids[288];
        uint64_t x = 3;
        if (model_open(&m, path, &e) || quant_options_init(&o, runs[i].method, runs[i].recipe, &e))
            fail_msg("%s", e.msg);
        for (int k = 0; k < 288; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            ids[k] = (int32_t)((x >> 33) % (uint64_t)m->hp.n_vocab);
        }
        assert_int_equal(calib_from_tokens(&c, ids, 288, 6, 48, 1, &e), 0);
        o.grid = runs[i].grid;
        o.bits = runs[i].bits;
        o.group = 32;
        o.rotate = runs[i].rotate;
        o.tune = runs[i].tune;
        o.kept = DT_F32;
        if (quantize_model(m, &o, &c, NULL, NULL, NULL, &res, &e))
            fail_msg("%s", e.msg);
        digest(m, hex);
        if (strcmp(hex, runs[i].digest)) {
            print_message("# %s %s %s: expected %s, found %s\n", runs[i].model, runs[i].method, runs[i].recipe, runs[i].digest, hex);
            wrong++;
        }
        calib_release(&c);
        quant_result_release(&res);
        model_free(m);
    }
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_one_digest_everywhere) };
    if (setenv("D2Q_CPU", "generic", 1))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
