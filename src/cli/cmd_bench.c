/* d2q bench: how fast a model runs here; our matrix products beside OpenBLAS's on its shapes, in one run. */
#include <stdint.h>
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    d2q_bench_options o;
};

const struct opt cmd_bench_opts[] = {
    { "seconds", 0, OPT_NUM, offsetof(struct args, o.seconds), "S", NULL, 0, 600, "time for each matrix product; 0: none", NULL },
    { "prefill", 0, OPT_I64, offsetof(struct args, o.prefill), "N", NULL, 0, 1 << 20, "tokens of a prompt", NULL },
    { "decode", 0, OPT_I64, offsetof(struct args, o.decode), "N", NULL, 0, 1 << 20, "new tokens", NULL },
    { "rounds", 0, OPT_I64, offsetof(struct args, o.rounds), "N", NULL, 1, 1000, "the best of so many counts", NULL },
    { 0 },
};

static void print_speed(const json_t *r, const char *what)
{
    const json_t *s = json_object_get(r, what);
    if (s)
        printf("%-8s %5.0f tokens %9.1f tokens/s\n", what, show_num(s, "tokens"), show_num(s, "per_second"));
}

/* What decoding reads of its weights, beside what copying reads and writes. */
static void print_memory(const json_t *r)
{
    double copy = show_num(r, "copy_bytes_per_second");
    const json_t *s = json_object_get(r, "decode");
    if (copy <= 0)
        return;
    printf("memory   copy %.1f GB/s", 1e-9 * copy);
    if (s) {
        double read = show_num(s, "bytes") * show_num(s, "per_second");
        printf("; decode reads %.1f GB/s (%.0f%%)", 1e-9 * read, 100 * read / copy);
    }
    putchar('\n');
}

static int print(const json_t *r)
{
    const json_t *rows = json_object_get(r, "gflops"), *row;
    size_t i;
    printf("%s kernels, OpenBLAS %s, %.0f threads\n", show_str(r, "isa"), show_str(r, "blas"), show_num(r, "threads"));
    print_speed(r, "prefill");
    print_speed(r, "decode");
    print_memory(r);
    if (!rows)
        return show_flush();
    printf("\nGFLOP/s (share of cblas_sgemm with its own threads)\n\n");
    printf("%6s %7s %7s %9s %16s %16s %16s\n", "tokens", "out", "in", "sgemm", "f32", "f16", "q4_1");
    json_array_foreach(rows, i, row)
    {
        static const char *const types[] = { "f32", "f16", "q4_1" };
        double blas = show_num(row, "sgemm_all");
        printf("%6.0f %7.0f %7.0f %9.1f", show_num(row, "n"), show_num(row, "n_out"), show_num(row, "n_in"), blas);
        for (int k = 0; k < 3; k++)
            printf(" %9.1f (%3.0f%%)", show_num(row, types[k]), blas > 0 ? 100 * show_num(row, types[k]) / blas : 0);
        putchar('\n');
    }
    printf("\nattention over 1024 tokens %.4f s, exp %.3g elements/s a thread\n", show_num(r, "attention_seconds"),
           show_num(r, "exp_per_second"));
    return show_flush();
}

int cmd_bench(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    d2q_bench_options_init(&a.o);
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_bench(m, &a.o, &text, &e);
    d2q_close(m);
    if (rc)
        return show_error(&e);
    return show_result(show_parse(text), start, a.c.json, print);
}
