/* See packed_check.h. Rows of random codes and factors are laid out tightly in exact allocations, so that AddressSanitizer sees a
 * load past the end. */
#include "packed_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tensor/half.h"

static uint32_t seed = 1;

static uint32_t rnd_u(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static float rnd(void)
{
    return (float)rnd_u() * 0x1p-23f - 1;
}

/* Where the 16-bit factors of a block stand: -1 ends. */
static void fix_factors(enum dtype t, uint8_t *b, int block_bytes)
{
    int at[2] = { -1, -1 };
    switch (t) {
    case DT_Q4_1: case DT_Q4_K: case DT_Q5_K: at[0] = 0, at[1] = 2; break;
    case DT_Q2_K: at[0] = 80, at[1] = 82; break;
    case DT_Q3_K: case DT_Q6_K: case DT_TQ2_0: at[0] = block_bytes - 2; break;
    default: at[0] = 0;
    }
    for (int i = 0; i < 2 && at[i] >= 0; i++) {
        uint16_t h = half_from_f32(rnd() * 0.1f);
        memcpy(b + at[i], &h, 2);
    }
}

#define ROWS 6

static int compare(const struct packed_kernels *k, const struct packed_kernels *generic, const struct tensor *w, const char *what)
{
    int64_t n = tensor_cols(w), chunks = (n + 63) / 64;
    float *x = mem_alloc((size_t)n, sizeof *x), *row = mem_alloc((size_t)n, sizeof *row);
    struct packed_chunk *c = mem_alloc((size_t)chunks, sizeof *c), *own = mem_alloc((size_t)chunks, sizeof *c);
    int bad = 0;
    for (int64_t j = 0; j < n; j++)
        x[j] = rnd() * (j % 97 == 5 ? 300.0f : 1.0f); /* outliers, as real activations have */
    for (int64_t j = 0; j < n && j < 32; j++)
        x[j] = n % 3 ? x[j] : 0; /* a block of zeros */
    memset(own, 0x55, (size_t)chunks * sizeof *c);
    generic->quantize(x, n, c);
    k->quantize(x, n, own);
    for (int64_t j = 0; j < 64 * chunks; j++) {
        const struct packed_chunk *a = c + j / 64, *b = own + j / 64;
        if (abs(a->q[j % 64] - b->q[j % 64]) > 1 || a->d[j % 64 / 4] != b->d[j % 64 / 4] ||
            fabsf(b->s[j % 64 / 4] - b->d[j % 64 / 4] * (float)(b->q[j % 64 / 4 * 4] + b->q[j % 64 / 4 * 4 + 1] +
                                                          b->q[j % 64 / 4 * 4 + 2] + b->q[j % 64 / 4 * 4 + 3])) > 0)
            bad++;
        if (j < n && fabsf(b->d[j % 64 / 4] * (float)b->q[j % 64] - x[j]) > 0.5001f * b->d[j % 64 / 4])
            bad++;
    }
    if (bad)
        printf("%s %s of %lld: %d activations rounded wrongly\n", k->name, what, (long long)n, bad);
    bool floats = w->type == DT_F16 || w->type == DT_BF16;
    for (int64_t r0 = 0; r0 < ROWS; r0 += PACKED_ROWS) {
        struct packed_rows r;
        float got[PACKED_ROWS], want[PACKED_ROWS];
        packed_take(w, r0, &r);
        packed_find(k, w)(&r, c, x, got);
        packed_find(generic, w)(&r, c, x, want);
        for (int i = 0; i < PACKED_ROWS; i++) {
            double exact = 0, sum = 0, bound = 0, variance = 0;
            tensor_rows_f32(w, r0 + i < ROWS ? r0 + i : ROWS - 1, 1, row);
            for (int64_t j = 0; j < n; j++) {
                exact += (double)row[j] * (double)x[j];
                sum += fabs((double)row[j] * (double)x[j]);
                double step = (double)row[j] * (double)c[j / 64].d[j % 64 / 4];
                bound += fabs(step) * 0.5001;
                variance += step * step / 12; /* of a rounding error spread evenly over a step */
            }
            bound = fmin(bound, 6 * sqrt(variance));
            /* a code + b cancels: the terms are up to 2^8 times as large as the weight; float rounding of either sum */
            double slack = 1e-5 * sum + 1e-4 * bound + 1e-6;
            if (!(fabs((double)got[i] - (double)want[i]) <= slack) ||
                !(fabs((double)want[i] - exact) <= (floats ? 0 : bound) + slack)) {
                printf("%s %s of %lld, row %d: double %.9g within %.3g, generic %.9g, found %.9g\n", k->name, what, (long long)n,
                       (int)r0 + i, exact, bound, (double)want[i], (double)got[i]);
                bad++;
            }
        }
    }
    mem_free(x), mem_free(row), mem_free(c), mem_free(own);
    return bad;
}

/* Many tokens at once against the same ones alone. */
static int compare_many(const struct packed_kernels *k, const struct tensor *w, const char *what)
{
    enum { N = 11 };
    int64_t n = tensor_cols(w);
    float *x = mem_alloc((size_t)(N * n), sizeof *x), *row = mem_alloc((size_t)n, sizeof *row), bias[ROWS], many[N * ROWS], one[ROWS];
    int bad = 0;
    for (int64_t j = 0; j < N * n; j++)
        x[j] = rnd() * (j % 97 == 5 ? 300.0f : 1.0f);
    for (int i = 0; i < ROWS; i++)
        bias[i] = rnd();
    for (int i = 0; i < N * ROWS; i++)
        many[i] = 0;
    struct linear_part p = { w, bias, many, 1, NULL }, q = { w, bias, one, 0, NULL };
    if (op_linear_packed(&p, 1, x, N, NULL))
        bad++;
    for (int t = 0; t < N; t++) {
        double size = 0, top = 0;
        if (op_linear_packed(&q, 1, x + t * n, 1, NULL))
            bad++;
        for (int64_t j = 0; j < n; j++)
            size += fabs((double)x[t * n + j]);
        for (int i = 0; i < ROWS; i++) {
            tensor_rows_f32(w, i, 1, row);
            for (int64_t j = 0; j < n; j++)
                top = fabs((double)row[j]) > top ? fabs((double)row[j]) : top;
        }
        for (int i = 0; i < ROWS; i++) /* float sums in another order */
            if (!(fabs((double)many[t * ROWS + i] - (double)one[i]) <= 1e-6 * top * size + 1e-5)) {
                printf("%s %s of %lld: token %d row %d alone %.9g, of many %.9g\n", k->name, what, (long long)n, t, i, (double)one[i],
                       (double)many[t * ROWS + i]);
                bad++;
            }
    }
    mem_free(x), mem_free(row);
    return bad;
}

/* Repacked rows against the generic kernel, which compare() has checked. */
static int compare_lanes(const struct packed_kernels *k, const struct packed_kernels *generic, const struct tensor *w, const char *what)
{
    int64_t n = tensor_cols(w), chunks = (n + 63) / 64;
    float *x = mem_alloc((size_t)n, sizeof *x), *row = mem_alloc((size_t)n, sizeof *row), got[PACKED_TILE], want[PACKED_ROWS];
    struct packed_chunk *c = mem_alloc((size_t)chunks, sizeof *c);
    uint8_t *tiles = packed_lanes_make(k, w);
    int bad = !tiles;
    for (int64_t j = 0; j < n; j++)
        x[j] = rnd() * (j % 97 == 5 ? 300.0f : 1.0f);
    k->quantize(x, n, c);
    if (tiles)
        k->lanes[w->type]->rows(tiles, n, c, got);
    for (int64_t i = 0; i < ROWS && tiles; i++) {
        struct packed_rows r;
        double size = 0;
        packed_take(w, i, &r);
        packed_find(generic, w)(&r, c, x, want);
        tensor_rows_f32(w, i, 1, row);
        for (int64_t j = 0; j < n; j++)
            size += fabs((double)row[j] * (double)x[j]) + 0.01 * fabs((double)row[j]) * (double)c[j / 64].d[j % 64 / 4];
        if (!(fabs((double)got[i] - (double)want[0]) <= 1e-5 * size + 1e-6)) {
            printf("%s %s of %lld, repacked row %d: generic %.9g, found %.9g\n", k->name, what, (long long)n, (int)i, (double)want[0],
                   (double)got[i]);
            bad++;
        }
    }
    mem_free(x), mem_free(row), mem_free(c), mem_free(tiles);
    return bad;
}

static int check_type(const struct packed_kernels *k, const struct packed_kernels *generic, enum dtype t, int64_t n)
{
    const struct dtype_info *d = &dtype_table[t];
    size_t size = (size_t)(ROWS * n / d->block_len * d->block_bytes);
    uint8_t *data = mem_alloc(size, 1);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)rnd_u();
    if (d->block_len == 1)
        for (size_t i = 0; i < size; i += 2) {
            uint16_t h = t == DT_F16 ? half_from_f32(rnd()) : bf16_from_f32(rnd());
            memcpy(data + i, &h, 2);
        }
    else
        for (size_t i = 0; i < size; i += (size_t)d->block_bytes)
            fix_factors(t, data + i, d->block_bytes);
    struct tensor w = { .name = "w", .type = t, .n_dims = 2, .dim = { ROWS, n, 1, 1 }, .data = data, .size = size };
    int bad = compare(k, generic, &w, d->name);
    if (packed_find_unpack(k, &w))
        bad += compare_many(k, &w, d->name);
    if (k->lanes && k->lanes[t])
        bad += compare_lanes(k, generic, &w, d->name);
    mem_free(data);
    return bad;
}

static int check_qmat(const struct packed_kernels *k, const struct packed_kernels *generic, int bits, int group, int64_t n)
{
    struct arena a;
    struct qmat q;
    uint8_t codes[4096];
    char what[32];
    arena_init(&a);
    if (n > 4096 || qmat_init(&q, &a, ROWS, n, bits, group, false, NULL))
        return 1;
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t j = 0; j < n; j++)
            codes[j] = (uint8_t)(rnd_u() & ((1u << bits) - 1));
        qmat_set_codes(&q, r, codes);
        for (int64_t g = 0; g < q.n_groups; g++) {
            q.scale[r * q.n_groups + g] = half_from_f32(rnd() * 0.1f);
            q.zero[r * q.n_groups + g] = (uint8_t)(rnd_u() % ((1u << bits) + 1));
        }
    }
    struct tensor w = { .name = "w", .type = DT_QMAT, .n_dims = 2, .dim = { ROWS, n, 1, 1 }, .q = &q };
    snprintf(what, sizeof what, "int%d g%d", bits, group);
    int bad = packed_find(k, &w) ? compare(k, generic, &w, what) : 1;
    if (k->gemm)
        bad += compare_many(k, &w, what);
    arena_release(&a);
    return bad;
}

int packed_check(const struct packed_kernels *k, const struct packed_kernels *generic)
{
    static const int64_t sizes[] = { 1, 7, 16, 31, 32, 33, 63, 64, 65, 96, 100, 128, 192, 256, 320, 512, 576, 768, 800, 1000, 1536 };
    static const int group[] = { 16, 32, 64, 128, 192, 1 << 20 };
    int bad = 0, ran = 0;
    for (int s = 0; s < (int)(sizeof sizes / sizeof *sizes); s++) {
        for (int t = 0; t < DT_QMAT; t++) {
            if (!generic->type[t] != !k->type[t])
                bad++;
            if (generic->type[t] && sizes[s] % dtype_table[t].block_len == 0) {
                bad += check_type(k, generic, (enum dtype)t, sizes[s]);
                ran++;
            }
        }
        for (int bits = 2; bits <= 4; bits++)
            for (int g = 0; g < 6; g++, ran++)
                bad += check_qmat(k, generic, bits, group[g], sizes[s]);
    }
    printf("# %s: %d products, %d failures\n", k->name, ran, bad);
    return bad || ran < 300;
}
