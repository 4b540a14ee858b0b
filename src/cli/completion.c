/* completion: scripts for three shells. What a value can be follows from the option's type: one of its choices, a file, or neither. */
#include <stdio.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/manual.h"

enum value { VALUE_NONE, VALUE_WORDS, VALUE_FILE, VALUE_OTHER };

/* words: its choices with spaces between. */
static enum value value_of(const struct opt *o, char words[OPT_VALUE_MAX])
{
    words[0] = '\0';
    if (o->type == OPT_FLAG)
        return VALUE_NONE;
    if (o->type == OPT_ONOFF || o->choices) {
        opt_value(o, words, OPT_VALUE_MAX);
        for (char *p = words; *p; p++)
            *p = *p == '|' ? ' ' : *p;
        return VALUE_WORDS;
    }
    return o->type == OPT_STR ? VALUE_FILE : VALUE_OTHER;
}

/* s between single quotes; specials get a backslash. */
static void quoted(const char *s, const char *specials)
{
    for (; *s; s++) {
        if (*s == '\'')
            fputs("'\\'", stdout);
        else if (strchr(specials, *s))
            putchar('\\');
        putchar(*s);
    }
}

/* ---- bash -------------------------------------------------------------------------------- */

static void bash_command(const struct opt_spec *s)
{
    const struct opt *opts[OPT_MAX];
    char words[OPT_VALUE_MAX];
    int n = opt_all(s, opts);
    for (int i = 0; i < n; i++) {
        const struct opt *o = opts[i];
        enum value v = value_of(o, words);
        if (v == VALUE_NONE)
            continue;
        printf("    %s,--%s", s->command, o->name);
        if (o->letter)
            printf("|%s,-%c", s->command, o->letter);
        if (v == VALUE_WORDS)
            printf(") COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", words);
        else
            printf(v == VALUE_FILE ? ") COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n" : ") compopt +o default; return ;;\n");
    }
}

static void bash(void)
{
    fputs("# bash completion of d2q; made by d2q --completion bash\n"
          "_d2q() {\n    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}\n"
          "    COMPREPLY=()\n"
          "    if [ \"$cur\" = = ]; then cur=; elif [ \"$prev\" = = ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi # --name=value\n"
          "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W '", stdout);
    for (int i = 0; i < command_count; i++)
        printf("%s ", command_table[i].spec.command);
    fputs("help --help --version --list --man --completion' -- \"$cur\"))\n        return\n    fi\n    case $command,$prev in\n", stdout);
    for (int i = 0; i < command_count; i++)
        bash_command(&command_table[i].spec);
    fputs("    --completion,--completion) COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\")); return ;;\n"
          "    --man,--man|help,help) COMPREPLY=($(compgen -W '", stdout);
    for (int i = 0; i < command_count; i++)
        printf("%s%s", i ? " " : "", command_table[i].spec.command);
    fputs("' -- \"$cur\")); return ;;\n    esac\n    case $cur in -*) ;; *) return ;; esac\n    case $command in\n", stdout);
    for (int i = 0; i < command_count; i++) {
        const struct opt *opts[OPT_MAX];
        int n = opt_all(&command_table[i].spec, opts);
        printf("    %s) COMPREPLY=($(compgen -W '", command_table[i].spec.command);
        for (int k = 0; k < n; k++)
            printf("%s--%s", k ? " " : "", opts[k]->name);
        fputs("' -- \"$cur\")) ;;\n", stdout);
    }
    fputs("    esac\n}\ncomplete -o default -o filenames -F _d2q d2q\n", stdout);
}

/* ---- zsh --------------------------------------------------------------------------------- */

static void zsh_option(const struct opt *o)
{
    char words[OPT_VALUE_MAX];
    enum value v = value_of(o, words);
    const char *many = o->type == OPT_STRS ? "*" : "";
    if (o->letter && !*many)
        printf("      '(-%c --%s)'{-%c,--%s%s}'[", o->letter, o->name, o->letter, o->name, v == VALUE_NONE ? "" : "=");
    else
        printf("      '%s--%s%s[", many, o->name, v == VALUE_NONE ? "" : "=");
    quoted(o->help, "[]\\");
    putchar(']');
    if (v != VALUE_NONE) {
        putchar(':');
        quoted(o->arg ? o->arg : o->name, ":[]\\");
        printf(v == VALUE_WORDS ? ":(%s)" : v == VALUE_FILE ? ":_files%.0s" : ":%.0s", words);
    }
    fputs("' \\\n", stdout);
}

static void zsh(void)
{
    fputs("#compdef d2q\n# made by d2q --completion zsh\n_d2q() {\n  local -a commands=(\n", stdout);
    for (int i = 0; i < command_count; i++) {
        printf("    '%s:", command_table[i].spec.command);
        quoted(command_table[i].spec.help, "\\");
        fputs("'\n", stdout);
    }
    fputs("  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    _values option --help --version --list --man --completion\n"
          "    return\n  fi\n  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n", stdout);
    for (int i = 0; i < command_count; i++) {
        const struct opt *opts[OPT_MAX];
        int n = opt_all(&command_table[i].spec, opts);
        printf("    %s) _arguments -s \\\n", command_table[i].spec.command);
        for (int k = 0; k < n; k++)
            zsh_option(opts[k]);
        fputs("      '*:model:_files' ;;\n", stdout);
    }
    fputs("    --completion) _values shell bash zsh fish ;;\n    help|--man) _describe command commands ;;\n  esac\n}\n"
          "if [ \"$funcstack[1]\" = _d2q ]; then _d2q \"$@\"; else compdef _d2q d2q; fi\n", stdout);
}

/* ---- fish -------------------------------------------------------------------------------- */

static void fish(void)
{
    fputs("# fish completion of d2q; made by d2q --completion fish\n", stdout);
    for (int i = 0; i < command_count; i++) {
        printf("complete -c d2q -n __fish_use_subcommand -f -a %s -d '", command_table[i].spec.command);
        quoted(command_table[i].spec.help, "\\");
        fputs("'\n", stdout);
    }
    fputs("complete -c d2q -n __fish_use_subcommand -f -l help -l version -l list\n", stdout);
    fputs("complete -c d2q -n __fish_use_subcommand -x -l completion -a 'bash zsh fish'\n", stdout);
    for (int i = 0; i < command_count; i++) {
        const struct opt *opts[OPT_MAX];
        int n = opt_all(&command_table[i].spec, opts);
        for (int k = 0; k < n; k++) {
            char words[OPT_VALUE_MAX];
            enum value v = value_of(opts[k], words);
            printf("complete -c d2q -n '__fish_seen_subcommand_from %s' -l %s", command_table[i].spec.command, opts[k]->name);
            if (opts[k]->letter)
                printf(" -s %c", opts[k]->letter);
            fputs(v == VALUE_NONE ? "" : v == VALUE_FILE ? " -r -F" : " -x", stdout);
            if (v == VALUE_WORDS)
                printf(" -a '%s'", words);
            fputs(" -d '", stdout);
            quoted(opts[k]->help, "\\");
            fputs("'\n", stdout);
        }
    }
}

int completion(const char *shell)
{
    static const struct {
        const char *name;
        void (*write)(void);
    } shells[] = { { "bash", bash }, { "zsh", zsh }, { "fish", fish } };
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++)
        if (!strcmp(shells[i].name, shell)) {
            shells[i].write();
            return 0;
        }
    return -1;
}
