/* d2q inspect: what a model consists of. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    const char *tensor;
};

const struct opt cmd_inspect_opts[] = {
    { "tensor", 0, OPT_STR, offsetof(struct args, tensor), "NAME", NULL, 0, 0, "one tensor, with its figures; a matrix also by its name in Hugging Face folders", NULL },
    { 0 },
};

static void print_tensor(const json_t *t)
{
    const json_t *shape = json_object_get(t, "shape");
    char dims[64] = "";
    for (size_t i = 0; i < json_array_size(shape); i++) {
        size_t n = strlen(dims);
        snprintf(dims + n, sizeof dims - n, "%s%lld", i ? " x " : "", (long long)json_integer_value(json_array_get(shape, i)));
    }
    printf("%-44s %-14s %-16s %.3f bits\n", show_str(t, "name"), show_str(t, "type"), dims, show_num(t, "bpw"));
    if (json_object_get(t, "min"))
        printf("  min %g  max %g  mean %g  rms %g  not finite %.0f\n", show_num(t, "min"), show_num(t, "max"),
               show_num(t, "mean"), sqrt(show_num(t, "mean_square")), show_num(t, "not_finite"));
}

static int print_list(const json_t *r)
{
    const json_t *list = json_object_get(r, "tensors"), *t;
    size_t i;
    json_array_foreach(list, i, t) print_tensor(t);
    return show_flush();
}

static int print(const json_t *r)
{
    char size[24];
    show_bytes(show_num(r, "bytes"), size, sizeof size);
    printf("%s: %s, %.1f M parameters, %s, %.3f bits a weight in the blocks\n", show_str(r, "path"), show_str(r, "family"),
           show_num(r, "parameters") / 1e6, size, show_num(r, "bpw"));
    printf("layers %.0f, width %.0f, heads %.0f (%.0f for keys) of %.0f, feed-forward %.0f, vocabulary %.0f%s, context %.0f\n\n",
           show_num(r, "n_layer"), show_num(r, "n_embd"), show_num(r, "n_head"), show_num(r, "n_head_kv"), show_num(r, "head_dim"),
           show_num(r, "n_ff"), show_num(r, "n_vocab"), json_is_true(json_object_get(r, "tied")) ? " (tied)" : "", show_num(r, "n_ctx"));
    return print_list(r);
}

int cmd_inspect(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_inspect(m, a.tensor, &text, &e);
    d2q_close(m);
    if (rc)
        return show_error(&e);
    return show_result(show_parse(text), start, a.c.json, a.tensor ? print_list : print);
}
