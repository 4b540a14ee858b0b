/* Logits of ours for given token ids: logits_d2q MODEL IDS OUT, files as in logits_llama.cpp; or, with a fourth argument TENSOR,
 * that tensor as float32 instead. Linked against libd2q_internal.a. */
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "base/file.h"
#include "model/model.h"

static int dump(const struct model *m, const char *name, FILE *f, struct err *e)
{
    struct tensor t;
    if (checkpoint_tensor(m->ck, name, &t, e) <= 0)
        return -1;
    size_t n = (size_t)tensor_count(&t);
    float *p = mem_alloc(n, sizeof *p);
    if (!p)
        return err_nomem(e, name, n * sizeof *p);
    tensor_to_f32(&t, p);
    int rc = fwrite(p, sizeof *p, n, f) == n ? 0 : err_errno(e, "writing");
    mem_free(p);
    return rc;
}

static int logits(const struct model *m, const char *path, FILE *f, struct err *e)
{
    char *ids;
    size_t n;
    struct fwd w;
    if (file_read(path, 1 << 20, &ids, &n, e))
        return -1;
    n /= sizeof(int32_t);
    const struct hparams *hp = &m->hp;
    float *h = mem_alloc(n, (size_t)hp->n_embd * sizeof *h), *out = mem_alloc(n, (size_t)hp->n_vocab * sizeof *out);
    if (!h || !out || fwd_init(&w, hp, (int64_t)n, e) || fwd_embed(m, (const int32_t *)(const void *)ids, (int64_t)n, h, e))
        return -1;
    for (int64_t l = 0; l < hp->n_layer; l++)
        if (fwd_block(m, &m->layers[l], &w, h, (int64_t)n, e))
            return -1;
    if (fwd_logits(m, h, (int64_t)n, w.x, out, e))
        return -1;
    return fwrite(out, (size_t)hp->n_vocab * sizeof *out, n, f) == n ? 0 : err_errno(e, "writing");
}

int main(int argc, char **argv)
{
    struct err e = { 0 };
    struct model *m;
    FILE *f = argc >= 4 ? fopen(argv[3], "wb") : NULL;
    if (!f)
        return 2;
    if (backend_init(&e) || model_open(&m, argv[1], &e) || (argc > 4 ? dump(m, argv[4], f, &e) : logits(m, argv[2], f, &e))) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    model_free(m);
    return fclose(f) != 0;
}
