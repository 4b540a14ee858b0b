#include "backend/bench.h"

#include <cblas.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/par.h"

struct bench {
    struct arena arena;
    int64_t n, n_out, n_in;
    float *x, *y, *y2;
    struct tensor w[3]; /* f32, f16, q4_1 */
    const struct bench_rest *rest;
    int32_t *pos;
    float *inv_freq;
};

/* Repeatable values in (-1, 1). */
static void fill(float *x, int64_t n)
{
    uint32_t s = 12345;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
}

/* Stored weights of any value: what matters is the work of unpacking them. */
static void fill_blocks(uint8_t *p, size_t bytes, int block_bytes, int n_halves)
{
    uint32_t s = 777;
    for (size_t i = 0; i < bytes; i++) {
        s = s * 1664525u + 1013904223u;
        p[i] = (uint8_t)(s >> 24);
    }
    for (size_t b = 0; b + (size_t)block_bytes <= bytes; b += (size_t)block_bytes)
        for (int h = 0; h < n_halves; h++)
            p[b + 2 * (size_t)h + 1] = 0x24; /* fp16 of about 0.02 */
}

static int linear_setup(struct bench *b, struct err *e)
{
    static const enum dtype types[3] = { DT_F32, DT_F16, DT_Q4_1 };
    b->x = arena_alloc(&b->arena, (size_t)(b->n * b->n_in), sizeof(float));
    b->y = arena_alloc(&b->arena, (size_t)(b->n * b->n_out), sizeof(float));
    if (!b->x || !b->y)
        return err_nomem(e, "bench activations", (size_t)(b->n * (b->n_in + b->n_out)) * sizeof(float));
    fill(b->x, b->n * b->n_in);
    for (int t = 0; t < 3; t++) {
        const struct dtype_info *d = &dtype_table[types[t]];
        int64_t bytes = tensor_bytes(types[t], b->n_out, b->n_in, "bench weights", e);
        if (bytes < 0)
            return -1;
        uint8_t *data = arena_alloc(&b->arena, (size_t)bytes, 1);
        if (!data)
            return err_nomem(e, "bench weights", (size_t)bytes);
        if (types[t] == DT_F32)
            fill((float *)(void *)data, b->n_out * b->n_in);
        else
            fill_blocks(data, (size_t)bytes, d->block_bytes, types[t] == DT_F16 ? 1 : 2);
        b->w[t] = (struct tensor){ .name = "bench", .type = types[t], .n_dims = 2,
                                   .dim = { b->n_out, b->n_in, 1, 1 }, .data = data, .size = (size_t)bytes };
    }
    return 0;
}

static void blas(const struct bench *b, int64_t t0, int64_t n)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)b->n_out, (int)b->n_in, 1.0f,
                b->x + t0 * b->n_in, (int)b->n_in, b->w[0].data, (int)b->n_in, 0.0f, b->y + t0 * b->n_out,
                (int)b->n_out);
}

static void blas_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct bench *b = ctx;
    int64_t t = par_threads(), from = b->n * (int64_t)i / t, to = b->n * ((int64_t)i + 1) / t;
    blas(b, from, to - from);
}

enum { RUN_BLAS_ALL, RUN_BLAS_EACH, RUN_F32, RUN_F16, RUN_Q4_1, N_LINEAR };
enum { RUN_ATTENTION, RUN_EXP, RUN_RMSNORM, RUN_ROPE, RUN_SILU, N_REST };

static int run_linear(struct bench *b, int what, struct err *e)
{
    if (what == RUN_BLAS_ALL) {
        openblas_set_num_threads(par_threads());
        blas(b, 0, b->n);
        openblas_set_num_threads(1);
        return 0;
    }
    if (what == RUN_BLAS_EACH) {
        par_for((size_t)par_threads(), blas_item, b);
        return 0;
    }
    return op_linear(&b->w[what - RUN_F32], NULL, b->x, b->n, b->y, 0, e);
}

static int run_rest(struct bench *b, int what, struct err *e)
{
    const struct bench_rest *r = b->rest;
    int64_t dim = r->n_head * r->head_dim, ldkv = r->n_head_kv * r->head_dim, ffn = 3 * r->n * dim;
    switch (what) {
    case RUN_ATTENTION:
        return op_attention(b->x, b->x, b->x + r->n * ldkv, r->n, 0, r->n_head, r->n_head_kv, r->head_dim, 0, b->y, e);
    case RUN_EXP: /* results stay in range: exp(exp(..)) saturates at the clamp */
        cpu_kernels()->exp(b->y2, r->n);
        return 0;
    case RUN_RMSNORM:
        op_rmsnorm(b->x, b->x, r->n, dim, 1e-5f, b->y);
        return 0;
    case RUN_ROPE:
        op_rope(b->y, r->n, r->n_head, r->head_dim, b->pos, b->inv_freq, 1.0f);
        return 0;
    default:
        op_silu_mul(b->x, b->x, ffn, b->y);
        return 0;
    }
}

/* Best time of each of the runs [from, to), in turn, until they had `seconds` each (three rounds at least).
 * Idle threads of OpenBLAS and OpenMP spin for a while: each group starts after they have gone to sleep. */
static int best_of(struct bench *b, int (*run)(struct bench *, int, struct err *), int from, int to,
                   double seconds, double *best, struct err *e)
{
    nanosleep(&(struct timespec){ .tv_nsec = 60000000 }, NULL);
    double start = log_now();
    for (int round = 0; round < 3 || log_now() - start < (to - from) * seconds; round++)
        for (int i = from; i < to; i++) {
            double t = log_now();
            if (run(b, i, e))
                return -1;
            t = log_now() - t;
            if (round == 0 || t < best[i])
                best[i] = t;
        }
    return 0;
}

static int bench_one(struct bench_linear *l, double seconds, struct err *e)
{
    struct bench b = { .n = l->n, .n_out = l->n_out, .n_in = l->n_in };
    double t[N_LINEAR];
    arena_init(&b.arena);
    int rc = linear_setup(&b, e) || best_of(&b, run_linear, RUN_BLAS_ALL, RUN_BLAS_EACH, seconds, t, e) ||
             best_of(&b, run_linear, RUN_BLAS_EACH, N_LINEAR, seconds, t, e) ? -1 : 0;
    arena_release(&b.arena);
    if (rc)
        return -1;
    double work = 2e-9 * (double)l->n * (double)l->n_out * (double)l->n_in;
    l->blas_all = work / t[RUN_BLAS_ALL];
    l->blas_each = work / t[RUN_BLAS_EACH];
    l->f32 = work / t[RUN_F32];
    l->f16 = work / t[RUN_F16];
    l->q4_1 = work / t[RUN_Q4_1];
    return 0;
}

static int rest_setup(struct bench *b, struct err *e)
{
    const struct bench_rest *r = b->rest;
    int64_t count = 3 * r->n * r->n_head * r->head_dim;
    b->x = arena_alloc(&b->arena, (size_t)count, sizeof(float));
    b->y = arena_alloc(&b->arena, (size_t)count, sizeof(float));
    b->y2 = arena_zalloc(&b->arena, (size_t)r->n, sizeof(float));
    b->pos = arena_alloc(&b->arena, (size_t)r->n, sizeof(int32_t));
    b->inv_freq = arena_alloc(&b->arena, (size_t)r->head_dim, sizeof(float));
    if (!b->x || !b->y || !b->y2 || !b->pos || !b->inv_freq)
        return err_nomem(e, "bench activations", (size_t)count * 2 * sizeof(float));
    fill(b->x, count);
    fill(b->y, count);
    for (int64_t i = 0; i < r->n; i++)
        b->pos[i] = (int32_t)i;
    for (int64_t i = 0; i < r->head_dim / 2; i++)
        b->inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / (double)r->head_dim);
    return 0;
}

static int bench_rest_of(struct bench_rest *r, double seconds, struct err *e)
{
    struct bench b = { .rest = r };
    double t[N_REST];
    arena_init(&b.arena);
    int rc = rest_setup(&b, e) || best_of(&b, run_rest, 0, N_REST, seconds, t, e) ? -1 : 0;
    arena_release(&b.arena);
    if (rc)
        return -1;
    r->attention_seconds = t[RUN_ATTENTION];
    r->exp_per_second = (double)r->n / t[RUN_EXP];
    r->rmsnorm_seconds = t[RUN_RMSNORM];
    r->rope_seconds = t[RUN_ROPE];
    r->silu_seconds = t[RUN_SILU];
    return 0;
}

int backend_bench(struct bench_linear *rows, int n_rows, struct bench_rest *rest, double seconds,
                  struct err *e)
{
    if (backend_init(e))
        return -1;
    for (int i = 0; i < n_rows; i++)
        if (bench_one(&rows[i], seconds, e))
            return -1;
    return rest ? bench_rest_of(rest, seconds, e) : 0;
}

/* ---- memory -------------------------------------------------------------------- */

#define COPY_BYTES ((size_t)128 << 20) /* of a thread: more than a cache holds */

struct copy {
    uint8_t *from, *to;
};

static void copy_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    const struct copy *c = ctx;
    memcpy(c->to + i * COPY_BYTES, c->from + i * COPY_BYTES, COPY_BYTES);
}

double backend_bench_copy(struct err *e)
{
    size_t n = (size_t)par_threads();
    struct copy c = { mem_alloc(n, COPY_BYTES), mem_alloc(n, COPY_BYTES) };
    double best = 0;
    int rc = c.from && c.to ? 0 : err_nomem(e, "buffers to copy", 2 * n * COPY_BYTES);
    if (!rc) {
        memset(c.from, 1, n * COPY_BYTES);
        memset(c.to, 2, n * COPY_BYTES);
    }
    for (int round = 0; round < 5 && !rc; round++) {
        double t = log_now();
        par_for(n, copy_item, &c);
        t = 2.0 * (double)(n * COPY_BYTES) / (log_now() - t);
        best = t > best ? t : best;
    }
    mem_free(c.from);
    mem_free(c.to);
    return rc ? -1 : best;
}
