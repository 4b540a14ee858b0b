#include "quant/rotate.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/par.h"
#include "base/rng.h"
#include "tensor/half.h"

/* ---- orthogonal matrices --------------------------------------------------- */

static bool is_prime(int64_t q)
{
    for (int64_t p = 2; p * p <= q; p++)
        if (q % p == 0)
            return false;
    return q > 2;
}

/* The quadratic character of x modulo the prime q: 1, -1, or 0 at 0. */
static int character(int64_t x, int64_t q)
{
    x = ((x % q) + q) % q;
    for (int64_t y = 1; y <= q / 2; y++)
        if (y * y % q == x)
            return 1;
    return x ? -1 : 0;
}

/* Paley's conference matrix of order q + 1, entry (i, j): 0 on the diagonal, else 1 or -1. */
static int paley(int64_t i, int64_t j, int64_t q)
{
    if (i == j)
        return 0;
    if (!i || !j)
        return i && q % 4 == 3 ? -1 : 1;
    return character(j - i, q);
}

static bool has_hadamard(int64_t k)
{
    return k == 1 || (k % 4 == 0 && (is_prime(k - 1) || (is_prime(k / 2 - 1) && (k / 2 - 1) % 4 == 1)));
}

/* Order k with has_hadamard(k): entries 1 and -1. */
static int hadamard(int64_t i, int64_t j, int64_t k)
{
    if (k == 1)
        return 1;
    if ((k - 1) % 4 == 3 && is_prime(k - 1)) /* I + S, S skew */
        return i == j ? 1 : paley(i, j, k - 1);
    int64_t q = k / 2 - 1; /* S x [1 1; 1 -1] + I x [1 -1; -1 -1], S symmetric */
    int s = paley(i / 2, j / 2, q), both = i % 2 && j % 2;
    return s ? (both ? -s : s) : (i % 2 || j % 2 ? -1 : 1);
}

/* Rows of a (k, k) made orthonormal; random rows are independent with certainty enough for a Gram-Schmidt done twice. */
static void random_orthogonal(double *a, int64_t k, struct rng *rng)
{
    for (int64_t i = 0; i < k * k; i++)
        a[i] = rng_uniform(rng) - 0.5;
    for (int64_t i = 0; i < k; i++)
        for (int pass = 0; pass < 2; pass++) {
            double norm = 0;
            for (int64_t p = 0; p < i; p++) {
                double dot = 0;
                for (int64_t j = 0; j < k; j++)
                    dot += a[i * k + j] * a[p * k + j];
                for (int64_t j = 0; j < k; j++)
                    a[i * k + j] -= dot * a[p * k + j];
            }
            for (int64_t j = 0; j < k; j++)
                norm += a[i * k + j] * a[i * k + j];
            for (int64_t j = 0; j < k; j++)
                a[i * k + j] /= sqrt(norm);
        }
}

int rotation_init(struct rotation *r, int64_t n, uint64_t seed, struct arena *arena, struct err *e)
{
    struct rng rng;
    rng_init(&rng, seed, 0);
    r->n = r->k = n;
    while (r->k % 2 == 0)
        r->k /= 2;
    int64_t odd = r->k;
    while (r->k < n && !has_hadamard(r->k))
        r->k *= 2;
    bool known = has_hadamard(r->k);
    if (!known)
        r->k = odd;
    r->a = arena_alloc(arena, (size_t)(r->k * r->k), sizeof *r->a);
    r->sign = arena_alloc(arena, (size_t)n, sizeof *r->sign);
    if (!r->a || !r->sign)
        return err_nomem(e, "rotation", (size_t)(r->k * r->k + n) * sizeof *r->a);
    for (int64_t i = 0; i < n; i++)
        r->sign[i] = rng_next(&rng) >> 63 ? -1 : 1;
    if (!known)
        random_orthogonal(r->a, r->k, &rng);
    for (int64_t i = 0; known && i < r->k; i++)
        for (int64_t j = 0; j < r->k; j++)
            r->a[i * r->k + j] = hadamard(i, j, r->k) / sqrt((double)r->k);
    return 0;
}

void rotation_apply(const struct rotation *r, double *x, double *scratch)
{
    int64_t n = r->n, k = r->k, m = n / k; /* x as (k, m): A over rows, the fast transform over columns */
    double norm = 1 / sqrt((double)m);
    for (int64_t i = 0; i < n; i++)
        x[i] *= r->sign[i] * norm;
    for (int64_t half = 1; half < m; half *= 2)
        for (int64_t i = 0; i < n; i += 2 * half)
            for (int64_t j = i; j < i + half; j++) {
                double a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
    if (k == 1)
        return;
    memset(scratch, 0, (size_t)n * sizeof *scratch);
    for (int64_t i = 0; i < k; i++)
        for (int64_t o = 0; o < k; o++)
            for (int64_t j = 0; j < m; j++)
                scratch[o * m + j] += x[i * m + j] * r->a[i * k + o];
    memcpy(x, scratch, (size_t)n * sizeof *x);
}

/* ---- matrices ---------------------------------------------------------------- */

/* Vectors of r->n values in w, `stride` apart within and times gain, replaced by their product with Q. */
struct rotate_job {
    const struct rotation *r;
    const struct tensor *src; /* rows taken from here, or NULL: in place */
    float *w;
    const float *gain;        /* (r->n) or NULL */
    int64_t per, outer, inner, stride; /* vector i begins at (i / per) * outer + (i % per) * inner */
    uint16_t *half;           /* fp16 results go here instead */
    atomic_int failed;
};

static void rotate_item(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct rotate_job *j = ctx;
    int64_t n = j->r->n;
    double *x = mem_alloc((size_t)(3 * n), sizeof *x);
    if (!x) {
        atomic_store(&j->failed, 1);
        return;
    }
    float *row = (float *)(void *)(x + 2 * n); /* the last third of the block, as floats */
    float *w = j->src ? row : j->w + (int64_t)i / j->per * j->outer + (int64_t)i % j->per * j->inner;
    int64_t stride = j->src ? 1 : j->stride;
    if (j->src)
        tensor_rows_f32(j->src, (int64_t)i, 1, row);
    for (int64_t c = 0; c < n; c++)
        x[c] = (double)w[c * stride] * (j->gain ? j->gain[c] : 1);
    rotation_apply(j->r, x, x + n);
    for (int64_t c = 0; c < n; c++)
        if (j->half)
            j->half[(int64_t)i * n + c] = half_from_f32((float)x[c]);
        else if (j->src)
            j->w[(int64_t)i * n + c] = (float)x[c];
        else
            w[c * stride] = (float)x[c];
    mem_free(x);
}

static int rotate(struct rotate_job *j, int64_t n, struct err *e)
{
    par_for((size_t)n, rotate_item, j);
    return atomic_load(&j->failed) ? err_nomem(e, "rotation", (size_t)j->r->n * 24) : 0;
}

static int rotate_rows(const struct rotation *r, struct tensor *w, const float *gain, struct err *e)
{
    struct rotate_job j = { .r = r, .w = (float *)(uintptr_t)w->data, .gain = gain, .per = 1, .outer = r->n, .stride = 1 };
    return rotate(&j, tensor_rows(w) * tensor_cols(w) / r->n, e);
}

/* Runs of r->n rows, column by column: W (n_out, n_in) becomes diag(Q^T, Q^T ...) W. */
static int rotate_columns(const struct rotation *r, struct tensor *w, struct err *e)
{
    int64_t d = tensor_cols(w);
    struct rotate_job j = { .r = r, .w = (float *)(uintptr_t)w->data, .per = d, .outer = r->n * d, .inner = 1, .stride = d };
    return rotate(&j, tensor_rows(w) / r->n * d, e);
}

static int rotate_bias(const struct rotation *r, const float **b, int64_t n, struct arena *arena, struct err *e)
{
    if (!*b)
        return 0;
    float *p = arena_alloc(arena, (size_t)n, sizeof *p);
    if (!p)
        return err_nomem(e, "rotated bias", (size_t)n * sizeof *p);
    memcpy(p, *b, (size_t)n * sizeof *p);
    *b = p;
    struct rotate_job j = { .r = r, .w = p, .per = 1, .outer = r->n, .stride = 1 };
    return rotate(&j, n / r->n, e);
}

int rotator_layer(const struct rotator *t, const struct model *m, int64_t index, struct layer *l, struct arena *arena,
                  struct err *e)
{
    struct linear *lin = l->lin;
    for (int r = ROLE_Q; r <= ROLE_V; r++)
        if (rotate_rows(&t->res, &lin[r].w, t->gain[2 * index], e))
            return -1;
    for (int r = ROLE_GATE; r <= ROLE_UP; r++)
        if (rotate_rows(&t->res, &lin[r].w, t->gain[2 * index + 1], e))
            return -1;
    return rotate_columns(&t->head, &lin[ROLE_V].w, e) ||
           rotate_bias(&t->head, &lin[ROLE_V].b, m->hp.n_head_kv * m->hp.head_dim, arena, e) ||
           rotate_rows(&t->head, &lin[ROLE_O].w, NULL, e) || rotate_columns(&t->res, &lin[ROLE_O].w, e) ||
           rotate_bias(&t->res, &lin[ROLE_O].b, m->hp.n_embd, arena, e) ||
           rotate_columns(&t->res, &lin[ROLE_DOWN].w, e) ||
           rotate_bias(&t->res, &lin[ROLE_DOWN].b, m->hp.n_embd, arena, e) ? -1 : 0;
}

static int rotate_table(const struct rotation *r, struct model *m, struct tensor *t, const char *name, const float *gain,
                        enum dtype type, struct err *e)
{
    int64_t rows = tensor_rows(t), d = tensor_cols(t);
    size_t n = (size_t)(rows * d), width = type == DT_F16 ? sizeof(uint16_t) : sizeof(float);
    void *p = arena_alloc(&m->arena, n, width);
    if (!p)
        return err_nomem(e, t->name, n * width);
    struct rotate_job j = { .r = r, .src = t, .w = p, .gain = gain, .per = 1, .half = type == DT_F16 ? p : NULL };
    if (rotate(&j, rows, e))
        return -1;
    struct tensor out = tensor_f32(name, p, rows, d);
    out.type = type;
    out.size = n * width;
    *t = out;
    return 0;
}

int rotator_init(struct rotator *t, struct model *m, enum dtype type, uint64_t seed, struct err *e)
{
    const struct hparams *hp = &m->hp;
    memset(t, 0, sizeof *t);
    arena_init(&t->arena);
    t->gain = arena_alloc(&t->arena, (size_t)(2 * hp->n_layer), sizeof *t->gain);
    float *ones = arena_alloc(&m->arena, (size_t)hp->n_embd, sizeof *ones);
    if (!t->gain || !ones)
        return err_nomem(e, "rotation", (size_t)(2 * hp->n_layer) * sizeof *t->gain);
    if (rotation_init(&t->res, hp->n_embd, seed, &t->arena, e) ||
        rotation_init(&t->head, hp->head_dim, seed + 1, &t->arena, e) ||
        rotate_table(&t->res, m, &m->lm_head, "lm_head.weight", m->out_norm, type, e) ||
        rotate_table(&t->res, m, &m->tok_embd, m->tok_embd.name, NULL, type, e))
        return -1;
    m->hp.tied = false;
    for (int64_t i = 0; i < hp->n_embd; i++)
        ones[i] = 1;
    m->out_norm = ones;
    for (int64_t i = 0; i < hp->n_layer; i++) {
        t->gain[2 * i] = m->layers[i].attn_norm;
        t->gain[2 * i + 1] = m->layers[i].ffn_norm;
        m->layers[i].attn_norm = m->layers[i].ffn_norm = ones;
    }
    return 0;
}

void rotator_release(struct rotator *t)
{
    arena_release(&t->arena);
    memset(t, 0, sizeof *t);
}
