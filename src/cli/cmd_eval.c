/* d2q eval: perplexity, divergence from a reference, multiple-choice tasks. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    d2q_eval_options o;
    d2q_task_options t;
};

const struct opt cmd_eval_opts[] = {
    { "ppl", 0, OPT_STR, offsetof(struct args, o.text), "FILE", NULL, 0, 0, "text to predict", NULL },
    { "protocol", 0, OPT_STR, offsetof(struct args, o.protocol), NULL, "gptq|llama", 0, 0,
      "whole windows as papers do, or as llama-perplexity", "gptq; llama with stored log probabilities" },
    { "ctx", 0, OPT_I64, offsetof(struct args, o.ctx), "N", NULL, 2, 1 << 20, "tokens in a window", "gptq 2048, llama 512" },
    { "chunks", 0, OPT_I64, offsetof(struct args, o.chunks), "N", NULL, 1, 1e9, "windows at most", "all" },
    { "kl", 0, OPT_STR, offsetof(struct args, o.kl), "REFERENCE", NULL, 0, 0,
      "also the divergence from this model, or from its log probabilities as --save-base or llama-perplexity stored them", NULL },
    { "save-base", 0, OPT_STR, offsetof(struct args, o.save_base), "FILE", NULL, 0, 0,
      "store the reference's log probabilities (without --kl: MODEL's)", NULL },
    { "task", 0, OPT_STR, offsetof(struct args, t.file), "FILE.jsonl", NULL, 0, 0, "multiple choice, as lm-evaluation-harness scores it", NULL },
    { "tasks", 0, OPT_STR, offsetof(struct args, t.tasks), "all|NAME,NAME", NULL, 0, 0,
      "the same by name: piqa, hellaswag, arc_easy, arc_challenge, winogrande, rte, openbookqa (all), mmlu; needs --data", NULL },
    { "data", 0, OPT_STR, offsetof(struct args, t.data), "DIR", NULL, 0, 0, "folder of the tasks' files", NULL },
    { "shots", 0, OPT_INT, offsetof(struct args, t.shots), "N", NULL, 0, 5, "examples before each question of mmlu: 0 or 5", "0" },
    { "limit", 0, OPT_I64, offsetof(struct args, t.limit), "N", NULL, 1, 1e9, "items of a task at most", "all" },
    { "items", 0, OPT_STR, offsetof(struct args, t.items), "FILE", NULL, 0, 0, "store every item's log-likelihoods, a JSON line each", NULL },
    { 0 },
};

static void print_kl(const json_t *r)
{
    printf("reference   %.4f +- %.4f, %s\n", show_num(r, "ppl_ref"), show_num(r, "ppl_ref_err"), show_str(r, "reference"));
    printf("ppl ratio   %.5f +- %.5f\n", show_num(r, "ppl_ratio"), show_num(r, "ppl_ratio_err"));
    printf("KL          mean %.6f +- %.6f, median %.6f nats\n", show_num(r, "kl_mean"), show_num(r, "kl_err"),
           show_num(r, "kl_median"));
    printf("            90 %% %.6f, 95 %% %.6f, 99 %% %.6f, 99.9 %% %.6f, max %.6f\n", show_num(r, "kl_p90"),
           show_num(r, "kl_p95"), show_num(r, "kl_p99"), show_num(r, "kl_p999"), show_num(r, "kl_max"));
    printf("same top    %.3f +- %.3f %%\n", 100 * show_num(r, "top1"), 100 * show_num(r, "top1_err"));
    printf("dp          mean %.3f +- %.3f %%, rms %.3f +- %.3f %%, %.3f to %.3f %%\n", 100 * show_num(r, "dp_mean"),
           100 * show_num(r, "dp_err"), 100 * show_num(r, "dp_rms"), 100 * show_num(r, "dp_rms_err"),
           100 * show_num(r, "dp_min"), 100 * show_num(r, "dp_max"));
}

static void print_tasks(const json_t *r)
{
    const json_t *list = json_object_get(r, "tasks"), *t;
    size_t i;
    json_array_foreach(list, i, t) {
        printf("%-14s acc %6.2f +- %.2f %%", show_str(t, "task"), 100 * show_num(t, "acc"), 100 * show_num(t, "acc_err"));
        if (json_object_get(t, "acc_norm"))
            printf("   acc_norm %6.2f +- %.2f %%", 100 * show_num(t, "acc_norm"), 100 * show_num(t, "acc_norm_err"));
        printf("   %.0f items%s%s\n", show_num(t, "n"), show_num(t, "shots") > 0 ? ", 5 shots" : "",
               json_object_get(t, "interrupted") ? ", interrupted: the longest only" : "");
    }
    if (json_object_get(r, "acc_average"))
        printf("average        acc %6.2f %%           acc_norm %6.2f %% (acc where a task has none)\n", 100 * show_num(r, "acc_average"),
               100 * show_num(r, "acc_norm_average"));
}

static void print_ppl(const json_t *r)
{
    printf("perplexity  %.4f +- %.4f\n", show_num(r, "ppl"), show_num(r, "ppl_err"));
    printf("nll         %.6f nats a token\n", show_num(r, "nll"));
    printf("protocol    %s, %.0f windows of %.0f tokens, %.0f scored, text %s\n", show_str(r, "protocol"),
           show_num(r, "windows"), show_num(r, "window"), show_num(r, "tokens"), show_str(r, "text_rule"));
    if (json_object_get(r, "kl_mean"))
        print_kl(r);
    if (json_object_get(r, "saved_base"))
        printf("stored      %s\n", show_str(r, "saved_base"));
}

static int print(const json_t *r)
{
    char time[24], memory[24];
    show_seconds(show_num(r, "seconds"), time, sizeof time);
    show_bytes(show_num(r, "peak_rss_bytes"), memory, sizeof memory);
    if (json_object_get(r, "ppl"))
        print_ppl(r);
    if (json_object_get(r, "tasks"))
        print_tasks(r);
    printf("time        %s, peak memory %s\n", time, memory);
    return show_flush();
}

/* What was asked for, into one object, or what was done of it. *rc: 0, or the exit status after an error was shown. */
static json_t *evaluate(struct args *a, int *rc)
{
    struct progress p;
    d2q_error e;
    char *text = NULL;
    bool window = a->o.text || a->o.kl, tasks = a->t.file || a->t.tasks;
    progress_init(&p, a->c.quiet);
    a->o.log = a->t.log = progress_log;
    a->o.log_ud = a->t.log_ud = &p;
    d2q_model *m = d2q_open(a->c.model, &e);
    json_t *r = NULL;
    *rc = !m || (window && d2q_eval(m, &a->o, &text, &e));
    if (!*rc && window)
        r = show_parse(text);
    bool stop = json_object_get(r, "interrupted");
    if (!*rc && tasks && !stop && !(*rc = d2q_tasks(m, &a->t, &text, &e))) {
        json_t *t = show_parse(text);
        if (r) {
            json_object_del(t, "seconds");
            json_object_update(r, t);
            json_decref(t);
        } else {
            r = t;
        }
    }
    progress_clear(&p);
    d2q_close(m);
    if (*rc && r && e.code == D2Q_ERR_CANCELLED) { /* during the first task; the rest is there */
        json_object_set_new(r, "interrupted", json_true());
        *rc = 0;
    }
    if (!*rc)
        return r;
    bool wrong = tasks && !stop && e.code == D2Q_ERR_USAGE && (r || !window); /* of the tasks' names and numbers */
    *rc = wrong ? opt_usage("eval", "%s", e.message) : show_error(&e); /* with r: of the tasks, after what r holds was done */
    return r;
}

int cmd_eval(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    double start = clock_now();
    d2q_eval_options_init(&a.o);
    d2q_task_options_init(&a.t);
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (!a.o.text && !a.o.kl && !a.t.file && !a.t.tasks)
        return opt_usage(spec->command, "--ppl FILE is missing (or --task, --tasks)");
    if (a.t.tasks && !a.t.data)
        return opt_usage(spec->command, "--tasks needs --data DIR, the folder of their files");
    if (a.o.save_base && !a.o.text && !a.o.kl)
        return opt_usage(spec->command, "--save-base needs a text to predict, --ppl FILE");
    if ((rc = opt_out_file(spec, "save-base", a.o.save_base)) >= 0 || (rc = opt_out_file(spec, "items", a.t.items)) >= 0)
        return rc;
    if (a.t.items && !a.t.file && !a.t.tasks)
        return opt_usage(spec->command, "--items needs --task or --tasks");
    interrupt_catch();
    json_t *r = evaluate(&a, &rc);
    if (!r)
        return rc ? rc : EXIT_FAILED;
    bool stopped = json_object_get(r, "interrupted");
    int shown = show_result(r, start, a.c.json, print);
    if (stopped)
        fprintf(stderr, "d2q: interrupted: the result is of what was done until then\n");
    return rc ? rc : shown ? shown : stopped ? EXIT_INTERRUPTED : EXIT_DONE;
}
