/* d2q verify: is a written model still whole? */
#include <stdbool.h>
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
};

const struct opt cmd_verify_opts[] = { { 0 } };

static int print(const json_t *r)
{
    const json_t *list = json_object_get(r, "failures"), *f;
    char bytes[24];
    size_t i;
    json_array_foreach(list, i, f)
        printf("%s: %s\n", *show_str(f, "tensor") ? show_str(f, "tensor") : "model", show_str(f, "why"));
    show_bytes(show_num(r, "bytes"), bytes, sizeof bytes);
    printf("%s: %.0f tensors, %s: ", show_str(r, "path"), show_num(r, "tensors"), bytes);
    if (json_is_true(json_object_get(r, "has_checksums")))
        printf("%.0f checksums of tensors, %.0f of files compared, ", show_num(r, "checksums"), show_num(r, "files"));
    else
        printf("no checksums there, only structure and values checked, ");
    if (json_array_size(list))
        printf("%zu failures\n", json_array_size(list));
    else
        printf("whole\n");
    return show_flush();
}

int cmd_verify(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    struct progress p;
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    interrupt_catch();
    progress_init(&p, a.c.quiet);
    rc = d2q_verify(a.c.model, progress_log, &p, &text, &e);
    progress_clear(&p);
    if (rc)
        return show_error(&e);
    json_t *r = show_parse(text);
    bool whole = !json_array_size(json_object_get(r, "failures"));
    rc = show_result(r, start, a.c.json, print);
    return rc || whole ? rc : EXIT_FAILED;
}
