/* op_attention: causal grouped-query attention, one item per (head, tile of queries).
 *
 * An item's scores (tile x keys it can see) lie in its thread's scratch. Keys that no query of the tile sees are
 * skipped; within the tile each row's softmax runs over its own keys and the rest of the row is
 * zeroed, so that both products are plain matrix products. K and V are read in place: heads
 * of a group share them by stride. Few queries (decoding) use dot products instead. */
#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/linalg.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/par.h"

#define QUERIES 64 /* of one item */
#define FEW 4

struct attention_job {
    const struct cpu_kernels *k;
    const float *q, *keys, *values;
    float *out;
    int64_t n, n_past, n_head, n_head_kv, hd, window;
    int64_t tiles, rows, row; /* tiles of queries; scratch of a thread: rows of scores, floats in a row */
    float *scratch;     /* (threads, rows, row) */
};

/* The first key that query t sees. */
static int64_t first_key(const struct attention_job *j, int64_t t)
{
    int64_t first = j->n_past + t + 1 - j->window;
    return j->window > 0 && first > 0 ? first : 0;
}

static void attend_few(const struct attention_job *j, int64_t head, int64_t t, float *scores)
{
    int64_t ldq = j->n_head * j->hd, ldk = j->n_head_kv * j->hd, kv = head / (j->n_head / j->n_head_kv) * j->hd;
    int64_t k0 = first_key(j, t), nk = j->n_past + t + 1 - k0;
    j->k->dots(j->q + t * ldq + head * j->hd, j->keys + k0 * ldk + kv, ldk, nk, j->hd, scores);
    j->k->softmax(scores, nk, 1.0f / sqrtf((float)j->hd));
    j->k->weighted_sum(scores, j->values + k0 * ldk + kv, ldk, nk, j->hd, j->out + t * ldq + head * j->hd);
}

static void attention_item(void *ctx, size_t item, int worker)
{
    const struct attention_job *j = ctx;
    /* The last tiles see the most keys: they go first, so that no thread ends late. */
    int64_t head = (int64_t)item % j->n_head, t0 = (j->tiles - 1 - (int64_t)item / j->n_head) * QUERIES;
    int64_t nq = min_i64(QUERIES, j->n - t0);
    float *scores = j->scratch + worker * j->rows * j->row;
    if (j->n <= FEW && !backend_plain()) {
        for (int64_t t = t0; t < t0 + nq; t++)
            attend_few(j, head, t, scores);
        return;
    }
    int64_t ldq = j->n_head * j->hd, ldk = j->n_head_kv * j->hd, kv = head / (j->n_head / j->n_head_kv) * j->hd;
    int64_t k0 = first_key(j, t0), nk = j->n_past + t0 + nq - k0;
    la_sgemm_tile(0, 1, nq, nk, j->hd, 1.0f, j->q + t0 * ldq + head * j->hd, ldq, j->keys + k0 * ldk + kv, ldk,
                  0.0f, scores, j->row);
    float scale = 1.0f / sqrtf((float)j->hd);
    for (int64_t i = 0; i < nq; i++) {
        float *s = scores + i * j->row;
        int64_t from = first_key(j, t0 + i) - k0, to = j->n_past + t0 + i + 1 - k0;
        memset(s, 0, (size_t)from * sizeof *s);
        j->k->softmax(s + from, to - from, scale);
        memset(s + to, 0, (size_t)(nk - to) * sizeof *s);
    }
    la_sgemm_tile(0, 0, nq, j->hd, nk, 1.0f, scores, j->row, j->values + k0 * ldk + kv, ldk, 0.0f,
                  j->out + t0 * ldq + head * j->hd, ldq);
}

int op_attention(const float *q, const float *k, const float *v, int64_t n, int64_t n_past,
                 int64_t n_head, int64_t n_head_kv, int64_t head_dim, int64_t window, float *out,
                 struct err *e)
{
    if (n <= 0)
        return 0;
    struct attention_job j = { .k = cpu_kernels(), .q = q, .keys = k, .values = v, .out = out, .n = n,
                               .n_past = n_past, .n_head = n_head, .n_head_kv = n_head_kv, .hd = head_dim,
                               .window = window, .tiles = (n + QUERIES - 1) / QUERIES };
    int64_t keys = n_past + n;
    if (window > 0)
        keys = min_i64(keys, window + QUERIES);
    j.row = (keys + 15) / 16 * 16 + 16; /* not a power of two apart */
    j.rows = min_i64(n, QUERIES);
    size_t count = (size_t)(par_threads() * j.rows * j.row);
    j.scratch = mem_alloc(count, sizeof(float));
    if (!j.scratch)
        return err_nomem(e, "attention scores", count * sizeof(float));
    par_for((size_t)(j.tiles * n_head), attention_item, &j);
    mem_free(j.scratch);
    return 0;
}
