/* manual: see manual.h. */
#include "cli/manual.h"

#include <stdio.h>
#include <string.h>

#include "cli/cmd.h"
#include "d2quant.h"

/* Text as roff shows it: backslashes, hyphens that are to stay such, and no line that begins a request. */
static void roff(const char *s)
{
    if (*s == '.' || *s == '\'')
        fputs("\\&", stdout);
    for (; *s; s++) {
        if (*s == '\\')
            fputs("\\e", stdout);
        else if (*s == '-')
            fputs("\\-", stdout);
        else if (*s == '\'')
            fputs("\\(aq", stdout);
        else if (*s == '~')
            fputs("\\(ti", stdout);
        else if (*s == '^')
            fputs("\\(ha", stdout);
        else
            putchar(*s);
    }
}

static void header(const char *name, const char *help)
{
    printf(".TH %s 1 \"\" \"d2q %s\" \"User Commands\"\n.SH NAME\n", name, d2q_version());
    roff(name);
    fputs(" \\- ", stdout);
    roff(help);
    fputs("\n.SH SYNOPSIS\n", stdout);
}

static void exit_status(void)
{
    fputs(".SH EXIT STATUS\n0 done, 1 the work failed, 2 wrong usage, 130 interrupted.\n"
          "Results go to standard output, everything else to standard error.\n", stdout);
}

static void option(const struct opt *o, const void *args)
{
    char value[OPT_VALUE_MAX], preset[128];
    opt_value(o, value, sizeof value);
    opt_default(o, args, preset, sizeof preset);
    fputs(".TP\n", stdout);
    if (o->letter)
        printf("\\fB\\-%c\\fR, ", o->letter);
    fputs("\\fB\\-\\-", stdout);
    roff(o->name);
    fputs("\\fR", stdout);
    if (*value) {
        fputs(" \\fI", stdout);
        roff(value);
        fputs("\\fR", stdout);
    }
    putchar('\n');
    roff(o->help);
    if (*preset) {
        fputs(" (default ", stdout);
        roff(preset);
        putchar(')');
    }
    fputs(".\n", stdout);
}

/* Lines of "# text" and of commands. */
static void examples(const char *text)
{
    fputs(".SH EXAMPLES\n", stdout);
    for (int first = 1, said = 0; *text; first = 0) {
        size_t n = strcspn(text, "\n");
        char line[512];
        snprintf(line, sizeof line, "%.*s", (int)n, text);
        if (!first && !said)
            fputs(".PP\n", stdout);
        said = line[0] == '#';
        if (said) {
            roff(line + 2);
            fputs(":\n", stdout);
        } else {
            fputs(".RS\n.nf\n", stdout);
            roff(line);
            fputs("\n.fi\n.RE\n", stdout);
        }
        text += n + (text[n] == '\n');
    }
}

void manual_command(const struct opt_spec *s, const void *args)
{
    const struct opt *opts[OPT_MAX];
    char name[64];
    int n = opt_all(s, opts);
    snprintf(name, sizeof name, "d2q-%s", s->command);
    header(name, s->help);
    printf(".B d2q %s\n", s->command);
    roff(s->operands);
    fputs("\n.RI [ options ]\n.SH OPTIONS\n", stdout);
    for (int i = 0; i < n; i++)
        option(opts[i], args);
    examples(s->examples);
    exit_status();
    fputs(".SH SEE ALSO\n.BR d2q (1)\n", stdout);
}

void manual_main(void)
{
    header("d2q", "quantizes the weights of large language models below 4 bits");
    fputs(".B d2q\n.I command\n\\&...\n.SH DESCRIPTION\nD2Quant, GPTQ and round-to-nearest at 4, 3 and 2 bits; measures what that cost, and writes files "
          "that other programs load.\nA\n.I MODEL\nis a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf file.\n"
          ".SH COMMANDS\n", stdout);
    for (int i = 0; i < command_count; i++) {
        const struct opt_spec *s = &command_table[i].spec;
        printf(".TP\n.B d2q %s\n", s->command);
        roff(s->help);
        printf(";\n.BR d2q\\-%s (1).\n", s->command);
    }
    fputs(".SH OPTIONS\n.TP\n.B \\-\\-help\nthe commands; after a command, its options.\n.TP\n.B \\-\\-version\nthe version.\n"
          ".TP\n.B \\-\\-list\nmethods, grids, formats, tasks, families and types.\n"
          ".TP\n.BR \\-\\-man \" [\\fIcommand\\fR]\"\nthis page, or a command's, as roff.\n"
          ".TP\n.BR \\-\\-completion \" bash|zsh|fish\"\na script that completes commands, options and their values.\n"
          ".SH ENVIRONMENT\n.TP\n.B D2Q_CPU\ngeneric, avx2, avx512 or neon: forces the instruction set.\n", stdout);
    exit_status();
    fputs(".SH EXAMPLES\n.RS\n.nf\nd2q quantize MODEL \\-o OUT \\-\\-bits 3 \\-\\-group 64 \\-\\-calib text.txt\nd2q eval OUT \\-\\-ppl wiki.test.raw\n"
          "d2q run OUT \\-p \\(aqThe capital of France is\\(aq\n.fi\n.RE\n.SH SEE ALSO\n", stdout);
    for (int i = 0; i < command_count; i++)
        printf(".BR d2q\\-%s (1)%s\n", command_table[i].spec.command, i + 1 < command_count ? "," : "");
}
