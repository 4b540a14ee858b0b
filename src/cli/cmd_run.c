/* d2q run: a model continues a text. stdout gets the continuation as it comes, nothing else. */
#include <stdint.h>
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    d2q_generate_options o;
};

const struct opt cmd_run_opts[] = {
    { "prompt", 'p', OPT_STR, offsetof(struct args, o.prompt), "PROMPT", NULL, 0, 0, "text to continue", NULL },
    { "n", 'n', OPT_I64, offsetof(struct args, o.max_new), "N", NULL, 0, 1 << 20, "new tokens at most", NULL },
    { "temp", 0, OPT_NUM, offsetof(struct args, o.temp), "T", NULL, 0, 100, "temperature; 0: always the likeliest token", NULL },
    { "top-k", 0, OPT_INT, offsetof(struct args, o.top_k), "K", NULL, 0, 1e9, "sample from the K likeliest; 0: all", NULL },
    { "top-p", 0, OPT_NUM, offsetof(struct args, o.top_p), "P", NULL, 0, 1, "sample from the likeliest that hold this share", NULL },
    { "seed", 0, OPT_U64, offsetof(struct args, o.seed), "N", NULL, 0, 9007199254740992.0, "of the random numbers", NULL },
    { 0 },
};

static int emit_text(void *ud, const char *bytes, size_t n)
{
    (void)ud;
    fwrite(bytes, 1, n, stdout);
    fflush(stdout);
    return interrupted() || ferror(stdout);
}

static int emit_nothing(void *ud, const char *bytes, size_t n)
{
    (void)ud;
    (void)bytes;
    (void)n;
    return interrupted();
}

static int finish(struct args *a, char *text, double start)
{
    json_t *r = show_parse(text);
    if (!r)
        return EXIT_FAILED;
    if (a->c.json) {
        show_common(r, start);
        return show_json(r);
    }
    putchar('\n');
    double n = show_num(r, "new_tokens"), s = show_num(r, "decode_seconds");
    if (!a->c.quiet)
        fprintf(stderr, "%.0f tokens in, %.2f s; %.0f out, %.1f tokens/s%s\n", show_num(r, "prompt_tokens"),
                show_num(r, "prefill_seconds"), n, s > 0 ? n / s : 0,
                json_is_true(json_object_get(r, "ended")) ? ", ended by the model" : "");
    json_decref(r);
    return show_flush();
}

int cmd_run(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    d2q_generate_options_init(&a.o);
    a.o.prompt = NULL;
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (!a.o.prompt)
        return opt_usage(spec->command, "-p PROMPT is missing");
    a.o.emit = a.c.json ? emit_nothing : emit_text;
    interrupt_catch();
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_generate(m, &a.o, &text, &e);
    d2q_close(m);
    if (rc)
        return show_error(&e);
    rc = interrupted();
    if (!rc)
        return finish(&a, text, start);
    d2q_free(text);
    e.code = D2Q_ERR_CANCELLED;
    putchar('\n');
    return show_error(&e);
}
