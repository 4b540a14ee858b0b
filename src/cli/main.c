/* main: d2q COMMAND ... from the table of commands. Knows the library by its public header only. */
#include <stdio.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/guard.h"
#include "cli/manual.h"
#include "cli/progress.h"
#include "cli/show.h"

const struct command command_table[] = {
#define COMMAND(name, operands, help, examples) { { #name, operands, help, examples, cmd_##name##_opts }, cmd_##name },
#include "cli/commands.def"
#undef COMMAND
};

enum { N_COMMANDS = sizeof command_table / sizeof *command_table };
const int command_count = N_COMMANDS;

static int usage(void)
{
    printf("d2q %s: quantizes language models below 4 bits (D2Quant, GPTQ)\n\nusage: d2q COMMAND ...\n\n", d2q_version());
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  %-9s %-24s %s\n", command_table[i].spec.command, command_table[i].spec.operands, command_table[i].spec.help);
    printf("\n  d2q COMMAND --help   a command's options\n  d2q --list           methods, grids, formats, families, types\n"
           "  d2q --man [COMMAND]  a man page (d2q --man | man -l -)\n  d2q --completion bash|zsh|fish\n  d2q --version\n\nMODEL is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf file.\n"
           "Exit status: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted.\n");
    return show_flush();
}

static int list(void)
{
    static const char *const tables[] = { "methods", "grids", "formats", "tasks", "families", "types" };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        json_t *rows = show_parse(d2q_list(tables[i])), *row;
        size_t k;
        if (!rows)
            return EXIT_FAILED;
        printf("%s%s\n", i ? "\n" : "", tables[i]);
        json_array_foreach(rows, k, row)
        {
            printf("  %-10s %s", show_str(row, "name"), show_str(row, "help"));
            if (json_object_get(row, "bpw"))
                printf("%g bits", show_num(row, "bpw"));
            putchar('\n');
        }
        json_decref(rows);
    }
    return show_flush();
}

static int unknown(const char *word)
{
    const char *names[N_COMMANDS + 6] = { "--help", "--version", "--list", "--man", "--completion" }, *near;
    for (int i = 0; i < N_COMMANDS; i++)
        names[i + 5] = command_table[i].spec.command;
    near = opt_nearest(word, names);
    if (near)
        return opt_usage("", "unknown command '%s'; did you mean %s?", word, near);
    return opt_usage("", "unknown command '%s'", word);
}

int main(int argc, char **argv)
{
    static char help[] = "--help", man[] = "--man";
    static char *ask[] = { help, NULL };
    if (argc < 2) {
        opt_usage("", "a command is missing");
        return EXIT_WRONG_USAGE;
    }
    guard_install();
    const char *word = argv[1];
    int asked = !strcmp(word, "help") || !strcmp(word, "--help") || !strcmp(word, "-h");
    if (asked && argc == 2)
        return usage();
    if (!strcmp(word, "--version") || !strcmp(word, "-V")) {
        printf("d2q %s\n", d2q_version());
        return show_flush();
    }
    if (!strcmp(word, "--list"))
        return list();
    if (!strcmp(word, "--completion"))
        return argc == 3 && !completion(argv[2]) ? show_flush()
                                                 : opt_usage("", "--completion: expected one of bash, zsh, fish, found '%s'", argc > 2 ? argv[2] : "");
    if (!strcmp(word, "--man")) {
        if (argc == 2) {
            manual_main();
            return show_flush();
        }
        ask[0] = man;
        asked = 1;
    }
    if (asked)
        word = argv[2];
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(word, command_table[i].spec.command)) {
            return asked ? command_table[i].run(&command_table[i].spec, 1, ask) : command_table[i].run(&command_table[i].spec, argc - 2, argv + 2);
        }
    return unknown(word);
}
