/* op_rows: the operations that work row by row or element by element; kernels of cpu/ over par_for. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/num.h"
#include "base/par.h"

/* Elements in one item: enough to pay for handing it out. */
#define GRAIN 32768

static int64_t rows_per_item(int64_t cols)
{
    return cols >= GRAIN ? 1 : GRAIN / (cols > 0 ? cols : 1);
}

static size_t items(int64_t n, int64_t per_item)
{
    return (size_t)((n + per_item - 1) / per_item);
}

/* What any of these operations needs; unused members are zero. */
struct rows_job {
    const struct cpu_kernels *k;
    int64_t n, dim, step; /* step rows (or elements) an item */
    const float *x, *w;
    float *y, eps;
    const int32_t *ids;
    const struct tensor *table;
    int64_t n_head;
    double *logp;
    int64_t *found;
    struct kl_row *kl;
};

static void embed_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, i1 = min_i64(i0 + j->step, j->n);
    for (int64_t i = i0; i < i1; i++) {
        assert(j->ids[i] >= 0 && j->ids[i] < tensor_rows(j->table));
        tensor_rows_f32(j->table, j->ids[i], 1, j->y + i * j->dim);
    }
}

void op_embed(const struct tensor *table, const int32_t *ids, int64_t n, float *out)
{
    int64_t dim = tensor_cols(table);
    struct rows_job j = { .n = n, .dim = dim, .step = rows_per_item(dim), .ids = ids, .table = table, .y = out };
    par_for(items(n, j.step), embed_item, &j);
}

static void rmsnorm_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, i1 = min_i64(i0 + j->step, j->n);
    for (int64_t i = i0; i < i1; i++)
        j->k->rmsnorm(j->x + i * j->dim, j->w, j->dim, j->eps, j->y + i * j->dim);
}

void op_rmsnorm(const float *x, const float *gain, int64_t n, int64_t dim, float eps, float *y)
{
    struct rows_job j = { .k = cpu_kernels(), .n = n, .dim = dim, .step = rows_per_item(dim), .x = x,
                          .w = gain, .y = y, .eps = eps };
    par_for(items(n, j.step), rmsnorm_item, &j);
}

#define MAX_HALF (OP_HEAD_MAX / 2) /* the angles of a token lie on the stack */

static void rope_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, i1 = min_i64(i0 + j->step, j->n), half = j->dim / 2;
    float c[MAX_HALF], s[MAX_HALF];
    for (int64_t i = i0; i < i1; i++) {
        j->k->rope_angles(j->ids[i], j->w, half, j->eps, c, s);
        j->k->rope(j->y + i * j->n_head * j->dim, j->n_head, j->dim, c, s);
    }
}

void op_rope(float *x, int64_t n, int64_t n_head, int64_t head_dim, const int32_t *pos,
             const float *inv_freq, float attn_scale)
{
    assert(head_dim % 2 == 0 && head_dim / 2 <= MAX_HALF);
    struct rows_job j = { .k = cpu_kernels(), .n = n, .dim = head_dim, .n_head = n_head, .y = x, .ids = pos,
                          .w = inv_freq, .eps = attn_scale, .step = rows_per_item((n_head + 4) * head_dim) };
    par_for(items(n, j.step), rope_item, &j);
}

static void silu_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * GRAIN, n = min_i64(GRAIN, j->n - i0);
    j->k->silu_mul(j->x + i0, j->w + i0, n, j->y + i0);
}

void op_silu_mul(const float *gate, const float *up, int64_t n, float *out)
{
    struct rows_job j = { .k = cpu_kernels(), .n = n, .x = gate, .w = up, .y = out };
    par_for(items(n, GRAIN), silu_item, &j);
}

static void add_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * GRAIN, n = min_i64(GRAIN, j->n - i0);
    j->k->add(j->y + i0, j->x + i0, n);
}

void op_add(float *y, const float *x, int64_t n)
{
    struct rows_job j = { .k = cpu_kernels(), .n = n, .x = x, .y = y };
    par_for(items(n, GRAIN), add_item, &j);
}

/* Natural logarithm of a positive normal number, fdlibm's method: libm's differ between machines in the
 * last digit, and what eval prints should not. */
static double own_log(double x)
{
    int k;
    double f = frexp(x, &k); /* [0.5, 1) */
    if (f < 0.70710678118654752440) {
        f *= 2;
        k--;
    }
    f -= 1;
    static const double lg[] = { 1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
                                 2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
                                 6.666666666666735130e-01 };
    double s = f / (2 + f), z = s * s, r = 0;
    for (int i = 0; i < 7; i++)
        r = (r + lg[i]) * z;
    double hf = 0.5 * f * f;
    return k * 6.93147180369123816490e-01 - ((hf - (s * (hf + r) + k * 1.90821492927058770002e-10)) - f);
}

static void log_prob_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, i1 = min_i64(i0 + j->step, j->n);
    for (int64_t i = i0; i < i1; i++) {
        const float *row = j->x + i * j->dim;
        float max;
        double sum = j->k->sum_exp(row, j->dim, &max);
        assert(j->ids[i] >= 0 && j->ids[i] < j->dim);
        j->logp[i] = (double)row[j->ids[i]] - (double)max - own_log(sum);
    }
}

void op_log_prob(const float *logits, int64_t n, int64_t n_vocab, const int32_t *target, double *logp)
{
    struct rows_job j = { .k = cpu_kernels(), .n = n, .dim = n_vocab, .step = rows_per_item(n_vocab), .x = logits,
                          .ids = target, .logp = logp };
    par_for(items(n, j.step), log_prob_item, &j);
}

/* log p_ref - log p = (a - b) - (lse a - lse b): the subtraction of near logits is exact, so near models are told apart. */
static void kl_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, i1 = min_i64(i0 + j->step, j->n);
    for (int64_t i = i0; i < i1; i++) {
        const float *a = j->x + i * j->dim, *b = j->w + i * j->dim;
        struct kl_row *r = &j->kl[i];
        float max_a, max_b;
        double sum_a = j->k->sum_exp(a, j->dim, &max_a), sum_b = j->k->sum_exp(b, j->dim, &max_b);
        double lse_b = (double)max_b + own_log(sum_b), lse_a = (double)max_a + own_log(sum_a);
        bool logits = j->eps == -INFINITY;
        double offset = logits ? lse_a - lse_b : -lse_b;
        assert(j->ids[i] >= 0 && j->ids[i] < j->dim);
        r->logp = (double)b[j->ids[i]] - lse_b;
        r->logp_ref = (double)a[j->ids[i]] - (logits ? lse_a : 0);
        r->kl = j->k->kl_sum(a, b, j->dim, logits ? max_a : 0, (float)offset, j->eps) / (logits ? sum_a : 1);
        r->top_ref = (int32_t)j->k->find_value(a, j->dim, max_a);
        r->top = (int32_t)j->k->find_value(b, j->dim, max_b);
    }
}

void op_kl(const float *ref, const float *logits, int64_t n, int64_t n_vocab, const int32_t *target, float floor,
           struct kl_row *out)
{
    struct rows_job j = { .k = cpu_kernels(), .n = n, .dim = n_vocab, .step = rows_per_item(n_vocab), .x = ref,
                          .w = logits, .ids = target, .eps = floor, .kl = out };
    par_for(items(n, j.step), kl_item, &j);
}

#define BAD_ITEMS 64

static void find_bad_item(void *ctx, size_t item, int worker)
{
    (void)worker;
    const struct rows_job *j = ctx;
    int64_t i0 = (int64_t)item * j->step, at = j->k->find_bad(j->x + i0, min_i64(j->step, j->n - i0));
    j->found[item] = at < 0 ? -1 : i0 + at;
}

int64_t op_find_bad(const float *x, int64_t n)
{
    int64_t found[BAD_ITEMS], step = (n + BAD_ITEMS - 1) / BAD_ITEMS;
    struct rows_job j = { .k = cpu_kernels(), .n = n, .step = step < GRAIN ? GRAIN : step, .x = x,
                          .found = found };
    size_t count = items(n, j.step);
    par_for(count, find_bad_item, &j);
    for (size_t i = 0; i < count; i++)
        if (found[i] >= 0)
            return found[i];
    return -1;
}
