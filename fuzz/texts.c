/* texts: targets for what is read as text, and for stored predictions. */
#include <string.h>

#include "eval/choice.h"
#include "eval/kl_base.h"
#include "eval/task.h"
#include "fuzz.h"
#include "model/tokenizer_impl.h"
#include "quant/quant.h"

void fuzz_encode(const struct tokenizer *t, const char *s, size_t n)
{
    struct token_list ids = { 0 };
    struct err e = { 0 };
    char *text = NULL;
    size_t len = 0;
    if (tokenizer_encode(t, s, n, true, true, &ids, &e)) {
        fuzz_failed(&e);
    } else {
        for (size_t i = 0; i < ids.n; i++)
            FUZZ_CHECK(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_n_vocab(t));
        FUZZ_CHECK(!tokenizer_decode(t, ids.ids, ids.n, true, &text, &len, &e));
        fuzz_touch(text, len + 1);
    }
    mem_free(text);
    mem_free(ids.ids);
}

/* Section x is the text that is encoded. */
void fuzz_tokenizer(const uint8_t *data, size_t n)
{
    struct checkpoint c = { .container = CONTAINER_HF, .path = (char[]){ VFS_DIR } };
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    const uint8_t *text = (const uint8_t *)"The cat, 12 \xc3\xa9t\xc3\xa9s";
    size_t n_text = 19;
    vfs_put_sections(data, n);
    vfs_section('x', &text, &n_text);
    if (tokenizer_load(&t, &c, &e)) {
        fuzz_failed(&e);
        return;
    }
    fuzz_encode(t, (const char *)text, n_text < 4096 ? n_text : 4096);
    pre_name(t);
    struct gguf_writer w;
    gguf_writer_init(&w);
    if (tokenizer_write_gguf(t, &c, tokenizer_n_vocab(t), &w, NULL, &e))
        fuzz_failed(&e);
    gguf_writer_release(&w);
    tokenizer_free(t);
}

/* ---- a model that is only a tokenizer ------------------------------------------- */

/* Bytes, two merges, no regex: made once, kept for the process. */
static struct model *texts_model(void)
{
    static struct checkpoint c = { .container = CONTAINER_HF };
    static struct model m = { .ck = &c };
    static char json[8192], path[] = VFS_DIR;
    if (m.tok)
        return &m;
    size_t at = (size_t)snprintf(json, sizeof json, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int b = 0; b < 256; b++) {
        char s[2];
        size_t k = byte_char((uint8_t)b, s);
        at += (size_t)snprintf(json + at, sizeof json - at, "\"%s%.*s\":%d,", *s == '"' || *s == '\\' ? "\\" : "", (int)k, s, b);
    }
    snprintf(json + at, sizeof json - at, "\"th\":256,\"the\":257},\"merges\":[\"t h\",\"th e\"]},"
             "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}}");
    struct err e = { 0 };
    c.path = path;
    vfs_put(VFS_DIR "/tokenizer.json", json, strlen(json));
    if (tokenizer_load(&m.tok, &c, &e))
        fprintf(stderr, "%s\n", e.msg);
    FUZZ_CHECK(m.tok);
    vfs_clear();
    return &m;
}

void fuzz_messages(const uint8_t *data, size_t n)
{
    struct calib c;
    struct err e = { 0 };
    struct model *m = texts_model();
    vfs_put(VFS_DIR "/items.jsonl", data, n);
    if (calib_from_file(&c, m, VFS_DIR "/items.jsonl", 4, 8, 1, &e)) {
        fuzz_failed(&e);
        return;
    }
    FUZZ_CHECK(c.n >= 1 && c.n <= 4 && calib_tokens(&c) >= 2);
    for (int64_t i = 0; i < calib_tokens(&c); i++)
        FUZZ_CHECK(c.ids[i] >= 0 && c.ids[i] < 258);
    calib_release(&c);
}

/* In place of running a model. */
int __wrap_choice_score(const struct model *m, const struct question *q, int64_t n, const struct log *log, const char *step,
                        struct err *e);
int __wrap_choice_score(const struct model *m, const struct question *q, int64_t n, const struct log *log, const char *step,
                        struct err *e)
{
    (void)m, (void)log, (void)step, (void)e;
    for (int64_t i = 0; i < n; i++) {
        FUZZ_CHECK(q[i].n_ctx > 0 && q[i].n > 0);
        fuzz_touch(q[i].ctx, (size_t)q[i].n_ctx * sizeof *q[i].ctx);
        for (int64_t k = 0; k < q[i].n; k++) {
            FUZZ_CHECK(q[i].start[k + 1] > q[i].start[k]);
            q[i].logp[k] = -(double)(q[i].start[k + 1] - q[i].start[k]);
        }
        fuzz_touch(q[i].ids, (size_t)q[i].start[q[i].n] * sizeof *q[i].ids);
    }
    return 0;
}

/* With a section f it is MMLU, whose examples stand there; else a task of the plain kind. */
void fuzz_task(const uint8_t *data, size_t n)
{
    struct task_options o = { .limit = 0 };
    struct task_result r;
    struct err e = { 0 };
    const uint8_t *shots;
    size_t n_shots;
    struct model *m = texts_model();
    vfs_put(VFS_DIR "/items.jsonl", data, n);
    vfs_put_sections(data, n);
    bool mmlu = vfs_section('f', &shots, &n_shots);
    o.shots = mmlu ? 5 : 0;
    if (task_run(m, mmlu ? "mmlu" : "piqa", VFS_DIR "/items.jsonl", &o, NULL, &r, &e)) {
        fuzz_failed(&e);
        return;
    }
    FUZZ_CHECK(r.n > 0 && r.acc >= 0 && r.acc <= 1 && r.acc_norm >= 0 && r.acc_norm <= 1 && r.tokens >= r.n);
}

void fuzz_kl(const uint8_t *data, size_t n)
{
    struct kl_base b;
    struct err e = { 0 };
    float out[512];
    vfs_put("/v.kl", data, n);
    bool is = kl_base_is("/v.kl");
    if (kl_base_open(&b, "/v.kl", &e)) {
        fuzz_failed(&e);
        return;
    }
    FUZZ_CHECK(is);
    for (int64_t i = 0; i < b.n * b.window; i++)
        FUZZ_CHECK(b.tokens[i] >= 0 && b.tokens[i] < b.n_vocab);
    for (int64_t i = 0; i < b.n && b.n_vocab <= 512; i++)
        for (int64_t r = 0; r < b.rows; r++) {
            if (kl_base_rows(&b, i, r, 1, out, &e))
                fuzz_failed(&e);
            else
                for (int64_t k = 0; k < b.n_vocab; k++)
                    FUZZ_CHECK(out[k] <= 0.02f && out[k] >= -1.1e4f);
        }
    kl_base_release(&b);
}
