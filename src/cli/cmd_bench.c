/* d2q bench: our matrix products beside OpenBLAS's, on the shapes of a model, in one run. */
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    double seconds;
};

const struct opt cmd_bench_opts[] = {
    { "seconds", 0, OPT_NUM, offsetof(struct args, seconds), "S", NULL, 0.01, 600, "time for each figure", NULL },
    { 0 },
};

static int print(const json_t *r)
{
    const json_t *rows = json_object_get(r, "gflops"), *row;
    size_t i;
    printf("%s kernels, OpenBLAS %s, %.0f threads; GFLOP/s (share of cblas_sgemm with its own threads)\n\n", show_str(r, "isa"),
           show_str(r, "blas"), show_num(r, "threads"));
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
    struct args a = { .seconds = 0.5 };
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_bench(m, a.seconds, &text, &e);
    d2q_close(m);
    if (rc)
        return show_error(&e);
    json_t *r = show_parse(text);
    if (!r)
        return EXIT_FAILED;
    show_common(r, start);
    if (a.c.json)
        return show_json(r);
    rc = print(r);
    json_decref(r);
    return rc;
}
