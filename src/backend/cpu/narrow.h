/* narrow: C (m, NARROW) += alpha A^T B, the quantizer's product: all inputs' errors of a tile of rows fed to the inputs after them.
 *
 * BLAS copies its operands into packed panels first, and with NARROW columns that copying costs as much as the arithmetic. Here nothing
 * is packed: NARROW_ROWS rows of C stay in registers, one column of A is broadcast from a row as it lies, and DEPTH rows of B stay in the first
 * cache. The rows of A are as many streams as DEPTH, more than a prefetcher follows, so the lines AHEAD are asked for. The including file
 * says what fills its registers: vectors of NARROW_LANES floats, two of them for each of NARROW_ROWS rows. */

#define DEPTH 128
#define AHEAD 64 /* floats */

typedef float vn __attribute__((vector_size(4 * NARROW_LANES)));

INLINE vn load_n(const float *p)
{
    vn v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* c += x */
INLINE void add_n(float *c, vn x)
{
    vn v = load_n(c) + x;
    memcpy(c, &v, sizeof v);
}

/* `rows` rows of C, known when compiled: two vectors of each at a time. */
INLINE void narrow_rows(int rows, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc)
{
    for (int c0 = 0; c0 < NARROW; c0 += 2 * NARROW_LANES) {
        vn x[NARROW_ROWS], y[NARROW_ROWS];
        for (int i = 0; i < rows; i++)
            x[i] = y[i] = (vn){ 0 };
        for (int64_t l = 0; l < k; l++) {
            const float *al = a + l * lda, *bl = b + l * ldb + c0;
            vn bx = load_n(bl), by = load_n(bl + NARROW_LANES);
            __builtin_prefetch(al + AHEAD);
#pragma GCC unroll 12
            for (int i = 0; i < rows; i++) {
                x[i] += al[i] * bx;
                y[i] += al[i] * by;
            }
        }
        for (int i = 0; i < rows; i++) {
            add_n(c + i * ldc + c0, alpha * x[i]);
            add_n(c + i * ldc + c0 + NARROW_LANES, alpha * y[i]);
        }
    }
}

static void narrow(int64_t m, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc)
{
    for (int64_t l = 0; l < k; l += DEPTH, a += DEPTH * lda, b += DEPTH * ldb) {
        int64_t depth = k - l < DEPTH ? k - l : DEPTH, i = 0;
        for (; i + NARROW_ROWS <= m; i += NARROW_ROWS)
            narrow_rows(NARROW_ROWS, depth, alpha, a + i, lda, b, ldb, c + i * ldc, ldc);
        for (; i < m; i++)
            narrow_rows(1, depth, alpha, a + i, lda, b, ldb, c + i * ldc, ldc);
    }
}
