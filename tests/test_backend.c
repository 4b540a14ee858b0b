/* The operations of backend.h against plain double-precision code, for every usable instruction set, at
 * sizes around lanes and tiles; then the bits: 1, 2 and 7 threads agree, and under generic neither the number
 * of tokens nor the split into prefill and decoding shows. Tolerances stand at each check. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "base/cpu.h"
#include "backend/bench.h"
#include "backend/cpu/kernels.h"
#include "base/mem.h"
#include "base/par.h"
#include "tensor/half.h"

static uint32_t seed = 1;

static uint32_t rnd_u(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed;
}

static float rnd(float scale)
{
    return (float)(int32_t)rnd_u() * 0x1p-31f * scale;
}

static float *rnd_f(int64_t n, float scale)
{
    float *x = mem_alloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rnd(scale);
    return x;
}

static float *empty(int64_t n)
{
    float *x = mem_alloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i <= n; i++)
        x[i] = -7777; /* what must be overwritten; the last one must not */
    return x;
}

static void each_isa(void (*fn)(const char *isa))
{
    for (int i = 0; backend_isa_name(i); i++)
        if (backend_isa_usable(i)) {
            assert_int_equal(backend_force(backend_isa_name(i), NULL), 0);
            assert_string_equal(backend_isa(), backend_isa_name(i));
            seed = 1;
            fn(backend_isa_name(i));
        }
    assert_int_equal(backend_force(NULL, NULL), 0);
}

static void near(double got, double want, double tol, const char *isa, const char *what, int64_t size, int64_t i)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("%s: %s of %lld, element %lld: expected %.9g within %.3g, found %.9g", isa, what,
                 (long long)size, (long long)i, want, tol, got);
}

static const int64_t sizes[] = { 1, 3, 7, 8, 15, 16, 17, 63, 64, 65, 100, 257, 1000, 4099 };
#define N_SIZES ((int)(sizeof sizes / sizeof *sizes))

/* ---- choice -------------------------------------------------------------- */

static void test_choice(void **state)
{
    (void)state;
    struct err e = { 0 };
    assert_string_equal(backend_isa_name(0), "generic");
    assert_true(backend_isa_usable(0));
    assert_int_equal(backend_force("sse9", &e), -1);
    assert_int_equal(e.code, ERR_USAGE);
    assert_non_null(strstr(e.msg, "\"sse9\""));
    assert_non_null(strstr(e.msg, "generic"));
    assert_int_equal(backend_force("generic", NULL), 0);
    assert_string_equal(backend_blas(), "none");
    const char *old = getenv("D2Q_CPU");
    char *keep = old ? mem_strdup(old) : NULL;
    setenv("D2Q_CPU", "altivec", 1);
    assert_int_equal(backend_force(NULL, &e), -1);
    assert_non_null(strstr(e.msg, "altivec"));
    assert_string_equal(backend_isa(), "generic"); /* a failed choice changes nothing */
    setenv("D2Q_CPU", "generic", 1);
    assert_int_equal(backend_force(NULL, &e), 0);
    assert_string_equal(backend_isa(), "generic");
    unsetenv("D2Q_CPU");
    assert_int_equal(backend_force(NULL, &e), 0);
    int last = 0;
    for (int i = 0; backend_isa_name(i); i++)
        last = backend_isa_usable(i) ? i : last;
    assert_string_equal(backend_isa(), backend_isa_name(last));
    if (keep)
        setenv("D2Q_CPU", keep, 1);
    mem_free(keep);
    assert_int_equal(backend_force(NULL, &e), 0);
}

/* ---- kernels --------------------------------------------------------------- */

static void exp_isa(const char *isa)
{
    enum { N = 200003 };
    float *x = empty(N), *y = empty(N);
    for (int64_t i = 0; i < N; i++)
        x[i] = y[i] = -90.0f + 178.0f * (float)i / N;
    cpu_kernels()->exp(y, N);
    for (int64_t i = 0; i < N; i++) {
        double want = x[i] < -87.0f ? 0 : exp((double)x[i]);
        near((double)y[i], want, 2e-7 * want, isa, "exp", N, i);
    }
    assert_true(y[N] == -7777);
    float odd[] = { NAN, -INFINITY, INFINITY, -1e30f, 1e30f, 0.0f, -0.0f, -87.0f, -87.01f };
    cpu_kernels()->exp(odd, 9);
    assert_true(isnan(odd[0]) && odd[1] == 0 && odd[2] > 2e38f && odd[3] == 0 && odd[4] > 2e38f);
    assert_true(odd[5] == 1 && odd[6] == 1 && odd[7] > 0 && odd[8] == 0);
    mem_free(x);
    mem_free(y);
}

static void test_exp(void **state)
{
    (void)state;
    each_isa(exp_isa);
}

static void sums_isa(const char *isa)
{
    const struct cpu_kernels *k = cpu_kernels();
    for (int s = 0; s < N_SIZES; s++) {
        int64_t n = sizes[s], rows = 5, ld = n + 3;
        float *w = rnd_f(rows * ld, 1), *x = rnd_f(n, 1), *out = empty(n > rows ? n : rows);
        k->dots(x, w, ld, rows, n, out);
        for (int64_t i = 0; i < rows; i++) {
            double want = 0, size = 0;
            for (int64_t j = 0; j < n; j++) {
                want += (double)x[j] * (double)w[i * ld + j];
                size += fabs((double)x[j] * (double)w[i * ld + j]);
            }
            near((double)out[i], want, 1e-6 * size, isa, "dots", n, i);
        }
        k->weighted_sum(w, w, ld, rows, n, out);
        for (int64_t j = 0; j < n; j++) {
            double want = 0;
            for (int64_t i = 0; i < rows; i++)
                want += (double)w[i] * (double)w[i * ld + j];
            near((double)out[j], want, 1e-6, isa, "weighted_sum", n, j);
        }
        float *p = rnd_f(n, 20), max;
        memcpy(out, p, (size_t)n * sizeof *p);
        double sum = 0, top = -INFINITY;
        for (int64_t j = 0; j < n; j++)
            top = (double)p[j] > top ? (double)p[j] : top;
        for (int64_t j = 0; j < n; j++)
            sum += exp((double)p[j] - top);
        near(k->sum_exp(p, n, &max), sum, 1e-6 * sum, isa, "sum_exp", n, 0);
        assert_true((double)max == top);
        k->softmax(out, n, 0.5f);
        sum = 0;
        for (int64_t j = 0; j < n; j++)
            sum += exp(0.5 * ((double)p[j] - top));
        for (int64_t j = 0; j < n; j++)
            near((double)out[j], exp(0.5 * ((double)p[j] - top)) / sum, 2e-6 * exp(0.5 * ((double)p[j] - top)) / sum,
                 isa, "softmax", n, j);
        void *all[] = { w, x, out, p };
        for (int i = 0; i < 4; i++)
            mem_free(all[i]);
    }
}

static void test_sums(void **state)
{
    (void)state;
    each_isa(sums_isa);
}

static void halves_isa(const char *isa)
{
    enum { N = 65536 };
    uint16_t *h = mem_alloc(N, 2);
    float *got = empty(N);
    for (int i = 0; i < N; i++)
        h[i] = (uint16_t)i;
    for (int b = 0; b < 2; b++) {
        (b ? cpu_kernels()->bf16_row : cpu_kernels()->f16_row)(h, got, N);
        for (int i = 0; i < N; i++) {
            float want = b ? bf16_to_f32((uint16_t)i) : half_to_f32((uint16_t)i);
            if (isnan(want) ? !isnan(got[i]) : memcmp(&got[i], &want, 4))
                fail_msg("%s: %s %#x: expected %a, found %a", isa, b ? "bf16" : "f16", i, (double)want, (double)got[i]);
        }
    }
    mem_free(h);
    mem_free(got);
}

static void test_halves(void **state)
{
    (void)state;
    each_isa(halves_isa);
}

/* ---- rows -------------------------------------------------------------------- */

static void rmsnorm_isa(const char *isa)
{
    for (int s = 0; s < N_SIZES; s++)
        for (int gained = 0; gained < 2; gained++) {
            int64_t dim = sizes[s], n = 70000 / dim + 1;
            float *x = rnd_f(n * dim, 1), *g = rnd_f(dim, 2), *y = empty(n * dim);
            x[dim / 2] = 24000; /* a massive activation */
            op_rmsnorm(x, gained ? g : NULL, n, dim, 1e-5f, y);
            for (int64_t t = 0; t < n; t++) {
                double sum = 0;
                for (int64_t i = 0; i < dim; i++)
                    sum += (double)x[t * dim + i] * (double)x[t * dim + i];
                double r = 1 / sqrt(sum / (double)dim + (double)1e-5f);
                for (int64_t i = 0; i < dim; i++) {
                    double want = (double)x[t * dim + i] * r * (gained ? (double)g[i] : 1);
                    near((double)y[t * dim + i], want, 2.5e-7 * fabs(want), isa, "rmsnorm", dim, i);
                }
            }
            assert_true(y[n * dim] == -7777);
            op_rmsnorm(x, gained ? g : NULL, n, dim, 1e-5f, x); /* in place */
            assert_memory_equal(x, y, (size_t)(n * dim) * sizeof *x);
            mem_free(x);
            mem_free(g);
            mem_free(y);
        }
}

static void test_rmsnorm(void **state)
{
    (void)state;
    each_isa(rmsnorm_isa);
}

static void rope_isa(const char *isa)
{
    static const int64_t dims[] = { 2, 8, 20, 32, 64, 80, 128, 200 };
    for (int s = 0; s < 8; s++) {
        int64_t hd = dims[s], heads = 3, n = 200, ld = heads * hd;
        float *x = rnd_f(n * ld, 1), *y = empty(n * ld), freq[128];
        int32_t pos[200];
        memcpy(y, x, (size_t)(n * ld) * sizeof *x);
        for (int64_t i = 0; i < hd / 2; i++)
            freq[i] = (float)pow(10000, -2.0 * (double)i / (double)hd);
        for (int t = 0; t < 200; t++)
            pos[t] = t < 100 ? t : (int32_t)(rnd_u() % 1000000);
        op_rope(y, n, heads, hd, pos, freq, 1.25f);
        for (int64_t t = 0; t < n; t++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t i = 0; i < hd / 2; i++) {
                    const float *p = x + t * ld + h * hd + i, *q = y + t * ld + h * hd + i;
                    double a = (double)pos[t] * (double)freq[i], c = 1.25 * cos(a), sn = 1.25 * sin(a);
                    double x0 = (double)p[0], x1 = (double)p[hd / 2];
                    near((double)q[0], x0 * c - x1 * sn, 4e-7, isa, "rope", hd, i);
                    near((double)q[hd / 2], x1 * c + x0 * sn, 4e-7, isa, "rope", hd, i + hd / 2);
                }
        assert_true(y[n * ld] == -7777);
        mem_free(x);
        mem_free(y);
    }
}

static void test_rope(void **state)
{
    (void)state;
    each_isa(rope_isa);
}

static void elementwise_isa(const char *isa)
{
    for (int s = 0; s <= N_SIZES; s++) {
        int64_t n = s < N_SIZES ? sizes[s] : 100001;
        float *g = rnd_f(n, 30), *u = rnd_f(n, 3), *y = empty(n);
        if (n > 4)
            g[0] = -200, g[1] = 200, g[2] = 0, g[3] = -88;
        op_silu_mul(g, u, n, y);
        for (int64_t i = 0; i < n; i++) {
            double want = (double)g[i] / (1 + exp(-(double)g[i])) * (double)u[i];
            near((double)y[i], want, 5e-7 * fabs(want) + 1e-35, isa, "silu_mul", n, i);
        }
        float *keep = rnd_f(n, 1);
        memcpy(keep, y, (size_t)n * sizeof *y);
        op_add(y, u, n);
        for (int64_t i = 0; i < n; i++)
            assert_true(y[i] == keep[i] + u[i]);
        assert_true(y[n] == -7777);
        op_silu_mul(g, u, n, g); /* in place */
        assert_memory_equal(g, keep, (size_t)n * sizeof *g);
        mem_free(g);
        mem_free(u);
        mem_free(y);
        mem_free(keep);
    }
}

static void test_elementwise(void **state)
{
    (void)state;
    each_isa(elementwise_isa);
}

static void log_prob_isa(const char *isa)
{
    for (int s = 0; s <= N_SIZES; s++) {
        int64_t v = s < N_SIZES ? sizes[s] : 49152, n = 5;
        float *x = rnd_f(n * v, 15);
        int32_t target[5];
        double logp[5];
        for (int64_t t = 0; t < n; t++) {
            target[t] = (int32_t)(rnd_u() % (uint32_t)v);
            for (int64_t i = 0; i < v && t == 1; i++)
                x[v + i] += 30000; /* would overflow without the maximum */
        }
        x[2 * v] = -INFINITY;
        target[2] = (int32_t)v - 1;
        op_log_prob(x, n, v, target, logp);
        for (int64_t t = 0; t < n; t++) {
            double max = -INFINITY, sum = 0;
            for (int64_t i = 0; i < v; i++)
                max = fmax(max, (double)x[t * v + i]);
            for (int64_t i = 0; i < v; i++)
                sum += exp((double)x[t * v + i] - max);
            if (isfinite(max))
                near(logp[t], (double)x[t * v + target[t]] - max - log(sum), 5e-7, isa, "log_prob", v, t);
        }
        mem_free(x);
    }
}

static void test_log_prob(void **state)
{
    (void)state;
    each_isa(log_prob_isa);
}

static void find_bad_isa(const char *isa)
{
    (void)isa;
    enum { N = 300000 };
    float *x = rnd_f(N, 1e30f);
    assert_int_equal(op_find_bad(x, N), -1);
    assert_int_equal(op_find_bad(x, 0), -1);
    static const int64_t at[] = { N - 1, 262144, 100001, 1025, 1023, 16, 1, 0 };
    for (int i = 0; i < 8; i++) { /* each before the ones already there */
        x[at[i]] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
        assert_int_equal(op_find_bad(x, N), at[i]);
        assert_int_equal(op_find_bad(x, at[i]), -1);
    }
    mem_free(x);
}

static void test_find_bad(void **state)
{
    (void)state;
    each_isa(find_bad_isa);
}

/* ---- linear --------------------------------------------------------------------- */

/* Random bytes as weights of any stored type; clearing bit 6 of each keeps fp16 and float fields finite and below 2. */
static struct tensor stored(enum dtype type, int64_t rows, int64_t cols, int64_t perm)
{
    int64_t bytes = tensor_bytes(type, rows, cols, "test", NULL);
    assert_true(bytes > 0);
    uint8_t *data = mem_alloc((size_t)bytes, 1);
    for (int64_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(rnd_u() >> 24) & 0xbf;
    return (struct tensor){ .name = "w", .type = type, .n_dims = 2, .dim = { rows, cols, 1, 1 }, .data = data,
                            .size = (size_t)bytes, .perm_dim = perm };
}

static void linear_case(const char *isa, const struct tensor *w, int64_t n, int with_bias, int accumulate)
{
    int64_t cols = tensor_cols(w), rows = tensor_rows(w);
    float *x = rnd_f(n * cols, 1), *y = rnd_f(n * rows, 1), *bias = rnd_f(rows, 1);
    float *y0 = mem_alloc((size_t)(n * rows), 4), *wf = mem_alloc((size_t)(rows * cols), 4);
    memcpy(y0, y, (size_t)(n * rows) * 4);
    y[n * rows] = -7777;
    if (!accumulate)
        y[0] = NAN;
    tensor_rows_f32(w, 0, rows, wf);
    assert_int_equal(op_linear(w, with_bias ? bias : NULL, x, n, y, accumulate, NULL), 0);
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < rows; r++) {
            double want = 0, size = 1;
            for (int64_t i = 0; i < cols; i++) {
                double p = (double)x[t * cols + i] * (double)wf[r * cols + i];
                want += p;
                size += fabs(p);
            }
            want += (with_bias ? (double)bias[r] : 0) + (accumulate ? (double)y0[t * rows + r] : 0);
            near((double)y[t * rows + r], want, 1e-6 * size, isa, dtype_table[w->type].name, n, t * rows + r);
        }
    assert_true(y[n * rows] == -7777);
    void *all[] = { x, y, bias, y0, wf };
    for (int i = 0; i < 5; i++)
        mem_free(all[i]);
}

static void linear_isa(const char *isa)
{
    static const int64_t tokens[] = { 1, 3, 8, 9, 17 };
    for (int type = 0; type < DT_QMAT; type++) {
        int64_t cols = dtype_table[type].block_len == 1 ? 100 : 256;
        for (int c = 0; c < 5; c++) {
            struct tensor w = stored((enum dtype)type, c == 2 ? 256 : 100, cols, c == 2 ? 64 : 0);
            linear_case(isa, &w, tokens[c], c & 1, c >> 1 & 1);
            mem_free((void *)(uintptr_t)w.data);
        }
    }
    for (int type = DT_F32; type <= DT_BF16; type++) { /* data at an odd address */
        struct tensor w = stored((enum dtype)type, 41, 64, 0), v = w;
        uint8_t *odd = mem_alloc(w.size + 1, 1);
        memcpy(odd + 1, w.data, w.size);
        mem_free((void *)(uintptr_t)w.data);
        v.data = odd + 1;
        linear_case(isa, &v, 2, 0, 0);
        linear_case(isa, &v, 20, 0, 0);
        mem_free(odd);
    }
    /* several tiles each way, with remainders; several chunks of unpacked rows */
    static const int64_t shape[][4] = { { DT_F32, 385, 33, 1027 }, { DT_F32, 1, 1, 1 }, { DT_F32, 257, 17, 3 },
                                        { DT_F16, 500, 4096, 11 }, { DT_Q8_0, 193, 64, 513 } };
    for (int s = 0; s < 5; s++) {
        struct tensor w = stored((enum dtype)shape[s][0], shape[s][1], shape[s][2], 0);
        linear_case(isa, &w, shape[s][3], s & 1, !(s & 2));
        mem_free((void *)(uintptr_t)w.data);
    }
}

static void test_linear(void **state)
{
    (void)state;
    each_isa(linear_isa);
}

static void qmat_isa(const char *isa)
{
    static const int bits[] = { 2, 3, 4, 8 };
    for (int b = 0; b < 4; b++)
        for (int64_t n = 2; n < 30; n += 20) {
            struct arena a;
            struct qmat q;
            arena_init(&a);
            assert_int_equal(qmat_init(&q, &a, 50, 100, bits[b], 32, false, NULL), 0);
            for (int64_t i = 0; i < 50; i++) {
                uint8_t codes[100];
                for (int j = 0; j < 100; j++)
                    codes[j] = (uint8_t)((rnd_u() >> 20) & ((1u << bits[b]) - 1));
                qmat_set_codes(&q, i, codes);
                for (int64_t g = 0; g < q.n_groups; g++) {
                    q.scale[i * q.n_groups + g] = half_from_f32(0.01f + 0.001f * (float)(i + g));
                    q.zero[i * q.n_groups + g] = (uint8_t)((rnd_u() >> 20) & ((1u << bits[b]) - 1));
                }
            }
            struct tensor w = { .name = "q", .type = DT_QMAT, .n_dims = 2, .dim = { 50, 100, 1, 1 }, .q = &q };
            linear_case(isa, &w, n, 1, 0);
            arena_release(&a);
        }
}

static void test_qmat(void **state)
{
    (void)state;
    each_isa(qmat_isa);
}

static void embed_isa(const char *isa)
{
    (void)isa;
    struct tensor table = stored(DT_Q8_0, 300, 64, 0);
    int32_t ids[1000];
    float *out = empty(1000 * 64), row[64];
    for (int i = 0; i < 1000; i++)
        ids[i] = (int32_t)(rnd_u() % 300);
    op_embed(&table, ids, 1000, out);
    for (int i = 0; i < 1000; i++) {
        tensor_rows_f32(&table, ids[i], 1, row);
        assert_memory_equal(row, out + i * 64, sizeof row);
    }
    assert_true(out[1000 * 64] == -7777);
    mem_free(out);
    mem_free((void *)(uintptr_t)table.data);
}

static void test_embed(void **state)
{
    (void)state;
    each_isa(embed_isa);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct tensor w = stored(DT_Q8_0, 32, 64, 0);
    float *x = rnd_f(20 * 64, 1), *y = empty(20 * 32);
    for (int64_t n = 2; n <= 20; n += 18) {
        struct err e = { 0 };
        mem_fail_after(1);
        assert_int_equal(op_linear(&w, NULL, x, n, y, 0, &e), -1);
        assert_int_equal(e.code, ERR_MEMORY);
        mem_fail_after(1);
        assert_int_equal(op_attention(x, x, x, n, 0, 2, 2, 16, 0, y, &e), -1);
        assert_int_equal(e.code, ERR_MEMORY);
        mem_fail_after(0);
    }
    mem_free(x);
    mem_free(y);
    mem_free((void *)(uintptr_t)w.data);
}

/* ---- attention --------------------------------------------------------------------- */

struct shape {
    int64_t n, n_past, heads, kv, hd, window;
};

static void attention_case(const char *isa, const struct shape *s)
{
    int64_t keys = s->n_past + s->n, ldq = s->heads * s->hd, ldk = s->kv * s->hd;
    float *q = rnd_f(s->n * ldq, 3), *k = rnd_f(keys * ldk, 3), *v = rnd_f(keys * ldk, 1), *out = empty(s->n * ldq);
    double *p = mem_alloc((size_t)keys, sizeof *p);
    assert_int_equal(op_attention(q, k, v, s->n, s->n_past, s->heads, s->kv, s->hd, s->window, out, NULL), 0);
    for (int64_t t = 0; t < s->n; t++)
        for (int64_t h = 0; h < s->heads; h++) {
            int64_t g = h / (s->heads / s->kv), last = s->n_past + t, first = 0;
            if (s->window > 0 && last - s->window + 1 > 0)
                first = last - s->window + 1;
            double max = -INFINITY, sum = 0;
            for (int64_t i = first; i <= last; i++) {
                p[i] = 0;
                for (int64_t d = 0; d < s->hd; d++)
                    p[i] += (double)q[t * ldq + h * s->hd + d] * (double)k[i * ldk + g * s->hd + d];
                p[i] /= sqrt((double)s->hd);
                max = fmax(max, p[i]);
            }
            for (int64_t i = first; i <= last; i++)
                sum += p[i] = exp(p[i] - max);
            for (int64_t d = 0; d < s->hd; d++) {
                double want = 0;
                for (int64_t i = first; i <= last; i++)
                    want += p[i] / sum * (double)v[i * ldk + g * s->hd + d];
                near((double)out[t * ldq + h * s->hd + d], want, 5e-6, isa, "attention", s->n, t * ldq + h * s->hd + d);
            }
        }
    assert_true(out[s->n * ldq] == -7777);
    void *all[] = { q, k, v, out, p };
    for (int i = 0; i < 5; i++)
        mem_free(all[i]);
}

static void attention_isa(const char *isa)
{
    static const struct shape shapes[] = {
        { 1, 0, 9, 3, 64, 0 },   { 1, 300, 9, 3, 64, 0 },  { 3, 7, 4, 4, 20, 0 },   { 4, 100, 4, 1, 80, 5 },
        { 5, 0, 4, 2, 8, 0 },    { 17, 7, 9, 3, 64, 0 },   { 64, 0, 2, 1, 128, 0 }, { 65, 100, 4, 4, 20, 0 },
        { 257, 0, 3, 1, 16, 0 }, { 130, 33, 4, 2, 20, 1 }, { 130, 33, 4, 2, 20, 50 }, { 300, 0, 2, 2, 64, 100 },
    };
    for (int i = 0; i < 12; i++)
        attention_case(isa, &shapes[i]);
}

static void test_attention(void **state)
{
    (void)state;
    each_isa(attention_isa);
}

/* ---- bits ------------------------------------------------------------------------------ */

enum { BT = 600, BD = 384, BO = 500, B_OUT = BT * BO + 2 * BT * BD };

/* A little of everything into out (B_OUT floats): linear, attention, norm, rope, silu. */
static void bundle(int threads, float *out)
{
    par_set_threads(threads);
    seed = 9;
    float *x = rnd_f(BT * BD, 1), freq[32], *y = out, *a = out + BT * BO, *b = a + BT * BD;
    struct tensor w = stored(DT_Q4_1, BO, BD, 0);
    int32_t pos[BT];
    for (int i = 0; i < 32; i++)
        freq[i] = 1.0f / (float)(1 + i * i);
    for (int i = 0; i < BT; i++)
        pos[i] = i * 3;
    assert_int_equal(op_linear(&w, NULL, x, BT, y, 0, NULL), 0);
    op_rmsnorm(x, NULL, BT, BD, 1e-5f, a);
    op_rope(a, BT, BD / 64, 64, pos, freq, 1);
    assert_int_equal(op_attention(a, x, x, BT, 0, BD / 64, BD / 64, 64, 0, b, NULL), 0);
    op_silu_mul(b, a, BT * BD, a);
    mem_free(x);
    mem_free((void *)(uintptr_t)w.data);
    par_set_threads(0);
}

static void threads_isa(const char *isa)
{
    float *one = empty(B_OUT), *many = empty(B_OUT);
    bundle(1, one);
    for (int t = 2; t <= 7; t += 5) {
        bundle(t, many);
        if (memcmp(one, many, B_OUT * sizeof *one))
            fail_msg("%s: 1 and %d threads differ", isa, t);
    }
    mem_free(one);
    mem_free(many);
}

static void test_threads(void **state)
{
    (void)state;
    each_isa(threads_isa);
}

/* The bits of the generic path are the same on every machine, compiler and optimization level. */
static void test_generic_digest(void **state)
{
    (void)state;
    float *out = empty(B_OUT);
    assert_int_equal(backend_force("generic", NULL), 0);
    bundle(0, out);
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < B_OUT * sizeof *out; i++)
        h = (h ^ ((const uint8_t *)out)[i]) * 0x100000001b3u;
    mem_free(out);
    assert_int_equal(backend_force(NULL, NULL), 0);
    if (h != 0x359a4bb0259452b7u)
        fail_msg("digest of the generic operations: found %#llx", (unsigned long long)h);
}

/* Generic: a token's bits do not depend on which tokens are computed with it. */
static void test_generic_split(void **state)
{
    (void)state;
    enum { N = 70, HD = 32, H = 2, D = H * HD };
    assert_int_equal(backend_force("generic", NULL), 0);
    struct tensor w = stored(DT_Q8_0, 100, D, 0);
    float *x = rnd_f(N * D, 1), *all = empty(N * 100), one[100], *out = empty(N * D), last[D];
    assert_int_equal(op_linear(&w, NULL, x, N, all, 0, NULL), 0);
    assert_int_equal(op_attention(x, x, x, N, 0, H, H, HD, 0, out, NULL), 0);
    for (int64_t t = 0; t < N; t++) {
        assert_int_equal(op_linear(&w, NULL, x + t * D, 1, one, 0, NULL), 0);
        assert_memory_equal(one, all + t * 100, sizeof one);
        assert_int_equal(op_attention(x + t * D, x, x, 1, t, H, H, HD, 0, last, NULL), 0);
        assert_memory_equal(last, out + t * D, sizeof last);
    }
    assert_int_equal(backend_force(NULL, NULL), 0);
    mem_free(x);
    mem_free(all);
    mem_free(out);
    mem_free((void *)(uintptr_t)w.data);
}

/* A processor newer than OpenBLAS must not be served as one of the SSE age; which core the user asked for stands. */
static void test_blas_core(void **state)
{
    (void)state;
    const char *asked = getenv("OPENBLAS_CORETYPE");
    if (!cpu_has_avx2() || (asked && *asked))
        skip();
    assert_int_equal(backend_force(NULL, NULL), 0);
    assert_string_not_equal(backend_blas(), "Prescott");
    assert_string_not_equal(backend_blas(), "Nehalem");
    assert_null(getenv("OPENBLAS_CORETYPE"));
}

static void test_bench(void **state)
{
    (void)state;
    struct bench_linear row = { .n = 16, .n_out = 32, .n_in = 64 };
    struct bench_rest rest = { .n = 16, .n_head = 2, .n_head_kv = 1, .head_dim = 16 };
    assert_int_equal(backend_bench(&row, 1, &rest, 0.001, NULL), 0);
    assert_true(row.blas_all > 0 && row.blas_each > 0 && row.f32 > 0 && row.f16 > 0 && row.q4_1 > 0);
    assert_true(rest.attention_seconds > 0 && rest.exp_per_second > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_exp),       cmocka_unit_test(test_sums),
        cmocka_unit_test(test_halves),      cmocka_unit_test(test_rmsnorm),   cmocka_unit_test(test_rope),
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_log_prob),  cmocka_unit_test(test_find_bad),
        cmocka_unit_test(test_linear),      cmocka_unit_test(test_qmat),      cmocka_unit_test(test_embed),
        cmocka_unit_test(test_no_memory),   cmocka_unit_test(test_attention), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_generic_digest), cmocka_unit_test(test_generic_split), cmocka_unit_test(test_bench),
        cmocka_unit_test(test_blas_core),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
