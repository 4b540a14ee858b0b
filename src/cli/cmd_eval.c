/* d2q eval: perplexity. */
#include <stdint.h>
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    d2q_eval_options o;
};

const struct opt cmd_eval_opts[] = {
    { "ppl", 0, OPT_STR, offsetof(struct args, o.text), "FILE", NULL, 0, 0, "text to predict", NULL },
    { "protocol", 0, OPT_STR, offsetof(struct args, o.protocol), NULL, "gptq|llama", 0, 0,
      "whole windows as papers do, or as llama-perplexity", NULL },
    { "ctx", 0, OPT_I64, offsetof(struct args, o.ctx), "N", NULL, 2, 1 << 20, "tokens in a window", "gptq 2048, llama 512" },
    { "chunks", 0, OPT_I64, offsetof(struct args, o.chunks), "N", NULL, 1, 1e9, "windows at most", "all" },
    { 0 },
};

static int print(const json_t *r)
{
    char time[24], memory[24];
    show_seconds(show_num(r, "seconds"), time, sizeof time);
    show_bytes(show_num(r, "peak_rss_bytes"), memory, sizeof memory);
    printf("perplexity  %.4f +- %.4f\n", show_num(r, "ppl"), show_num(r, "ppl_err"));
    printf("nll         %.6f nats a token\n", show_num(r, "nll"));
    printf("protocol    %s, %.0f windows of %.0f tokens, %.0f scored, text %s\n", show_str(r, "protocol"),
           show_num(r, "windows"), show_num(r, "window"), show_num(r, "tokens"), show_str(r, "text_rule"));
    printf("time        %s, peak memory %s\n", time, memory);
    return show_flush();
}

int cmd_eval(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    struct progress p;
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    d2q_eval_options_init(&a.o);
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (!a.o.text)
        return opt_usage(spec->command, "--ppl FILE is missing");
    progress_init(&p, a.c.quiet);
    a.o.log = progress_log;
    a.o.log_ud = &p;
    interrupt_catch();
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_eval(m, &a.o, &text, &e);
    progress_clear(&p);
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
