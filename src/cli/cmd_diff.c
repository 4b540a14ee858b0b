/* d2q diff: how far two models' tensors are apart. */
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
};

const struct opt cmd_diff_opts[] = { { 0 } };

static int print(const json_t *r)
{
    const json_t *list = json_object_get(r, "tensors"), *t;
    size_t i;
    printf("%-44s %-14s %-14s %12s %12s\n", "tensor", "first", "second", "|a-b|/|a|", "largest");
    json_array_foreach(list, i, t) {
        printf("%-44s %-14s %-14s ", show_str(t, "name"), show_str(t, "type_a"), show_str(t, "type_b"));
        if (json_is_null(json_object_get(t, "rel")))
            printf("%25s\n", "values not finite");
        else
            printf("%12.4e %12.4e\n", show_num(t, "rel"), show_num(t, "max_abs"));
    }
    printf("%.0f of %zu tensors differ\n", show_num(r, "differ"), json_array_size(list));
    return show_flush();
}

int cmd_diff(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (a.c.more.n != 1)
        return opt_usage(spec->command, "two models are expected, found %d", 1 + a.c.more.n);
    d2q_model *x = d2q_open(a.c.model, &e), *y = x ? d2q_open(a.c.more.v[0], &e) : NULL;
    rc = !y || d2q_diff(x, y, &text, &e);
    d2q_close(x);
    d2q_close(y);
    if (rc)
        return show_error(&e);
    return show_result(show_parse(text), start, a.c.json, print);
}
