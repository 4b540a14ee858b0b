/* One plain matrix product for the type T under the name GEMM (both defined by the including file).
 *
 * Blocks of 4 x 8 elements of C stay in registers; B comes from a packed panel on the stack. Each element of C is
 * summed in order over k within blocks of KC, whatever its place. */
#define MR 4
#define NR 8
#define KC 256

static void GEMM(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T *a,
                 int64_t lda, const T *b, int64_t ldb, T beta, T *c, int64_t ldc)
{
    T panel[KC * NR];
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
    for (int64_t j0 = 0; j0 < n; j0 += NR) {
        int64_t nj = n - j0 < NR ? n - j0 : NR;
        for (int64_t k0 = 0; k0 < k; k0 += KC) {
            int64_t nk = k - k0 < KC ? k - k0 : KC;
            for (int64_t p = 0; p < nk; p++)
                for (int64_t j = 0; j < NR; j++)
                    panel[p * NR + j] = j >= nj ? 0 : trans_b ? b[(j0 + j) * ldb + k0 + p] : b[(k0 + p) * ldb + j0 + j];
            for (int64_t i0 = 0; i0 < m; i0 += MR) {
                int64_t ni = m - i0 < MR ? m - i0 : MR;
                const T *row[MR];
                T acc[MR][NR] = { { 0 } };
                for (int64_t i = 0; i < MR; i++) /* rows past the end repeat the last one */
                    row[i] = a + (i0 + (i < ni ? i : ni - 1)) * (trans_a ? 1 : lda) + k0 * (trans_a ? lda : 1);
                int64_t step = trans_a ? lda : 1;
                for (int64_t p = 0; p < nk; p++)
                    for (int i = 0; i < MR; i++)
                        for (int j = 0; j < NR; j++)
                            acc[i][j] += row[i][p * step] * panel[p * NR + j];
                for (int64_t i = 0; i < ni; i++)
                    for (int64_t j = 0; j < nj; j++)
                        c[(i0 + i) * ldc + j0 + j] += alpha * acc[i][j];
            }
        }
    }
}

#undef MR
#undef NR
#undef KC
