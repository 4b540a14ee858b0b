/* opt: see opt.h. Numbers are read strictly: the whole word, in range, or it is an error that says what is allowed. */
#include "cli/opt.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/manual.h"
#include "d2quant.h"


static const struct opt common_opts[] = {
    { "threads", 0, OPT_INT, offsetof(struct common, threads), "N", NULL, 1, 1024, "threads to use", "all cores" },
    { "quiet", 'q', OPT_FLAG, offsetof(struct common, quiet), NULL, NULL, 0, 0, "no progress on stderr", NULL },
    { "json", 0, OPT_FLAG, offsetof(struct common, json), NULL, NULL, 0, 0, "the result as one JSON object on stdout", NULL },
    { "help", 'h', OPT_FLAG, offsetof(struct common, help), NULL, NULL, 0, 0, "this text", NULL },
    { 0 },
};

int opt_usage(const char *command, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "d2q%s%s: error: ", *command ? " " : "", command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\ntry: d2q %s%s--help\n", command, *command ? " " : "");
    va_end(ap);
    return EXIT_WRONG_USAGE;
}

int opt_out_file(const struct opt_spec *s, const char *name, const char *path)
{
    char dir[4096];
    struct stat st;
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (!path)
        return -1;
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        return opt_usage(s->command, "--%s %s: exists and is no file; it is not replaced", name, path);
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".");
    return access(dir, W_OK) ? opt_usage(s->command, "--%s %s: %s", name, path, strerror(errno)) : -1;
}

/* ---- choices ------------------------------------------------------------------- */

/* "a|b|c", with a table of the library spelled out. */
static void expand_choices(const char *choices, char *out, size_t cap)
{
    out[0] = '\0';
    if (choices[0] != '@') {
        snprintf(out, cap, "%s", choices);
        return;
    }
    char *text = d2q_list(choices + 1);
    json_t *rows = text ? json_loads(text, 0, NULL) : NULL, *row;
    size_t i, n = 0;
    json_array_foreach(rows, i, row)
    {
        const char *name = json_string_value(json_object_get(row, "name"));
        int k = snprintf(out + n, cap - n, "%s%s", n ? "|" : "", name ? name : "");
        n = (size_t)k < cap - n ? n + (size_t)k : n;
    }
    json_decref(rows);
    d2q_free(text);
}

static int is_choice(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; n && *p;) {
        size_t k = strcspn(p, "|");
        if (k == n && !memcmp(p, word, n))
            return 1;
        p += k + (p[k] == '|');
    }
    return 0;
}

/* "one of a, b, c" */
static void one_of(const char *list, char *out, size_t cap)
{
    size_t n = (size_t)snprintf(out, cap, "one of ");
    for (; *list && n + 3 < cap; list++) {
        out[n++] = *list == '|' ? ',' : *list;
        if (*list == '|')
            out[n++] = ' ';
    }
    out[n] = '\0';
}

/* ---- suggestions --------------------------------------------------------------- */

/* Letters to add, drop, change or swap with the next. */
static size_t distance(const char *a, const char *b)
{
    size_t row[3][64], n = strlen(b), m = strlen(a);
    if (m >= 64 || n >= 64)
        return 99;
    for (size_t j = 0; j <= n; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= m; i++) {
        size_t *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = last[j] < now[j - 1] ? last[j] + 1 : now[j - 1] + 1, change = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = change < best ? change : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[m % 3][n];
}

const char *opt_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    size_t least = strlen(word) < 5 ? 2 : 3; /* must be below */
    for (; *names; names++) {
        size_t n = strlen(word), d = distance(word, *names);
        if (n >= 3 && !strncmp(word, *names, n))
            d = 1; /* an abbreviation */
        if (d < least && d < n) { /* a letter in common */
            least = d;
            best = *names;
        }
    }
    return best;
}

/* ---- values -------------------------------------------------------------------- */

static int read_int(const char *s, int64_t *v)
{
    char *end;
    errno = 0;
    long long x = strtoll(s, &end, 10);
    *v = x;
    return !isdigit((unsigned char)s[s[0] == '-']) || *end || errno;
}

static int read_num(const char *s, const char *stop, double *v)
{
    char *end;
    errno = 0;
    *v = strtod(s, &end);
    unsigned char first = (unsigned char)s[s[0] == '-'];
    return (!isdigit(first) && first != '.') || end != stop || errno || strpbrk(s, "xXnN");
}

static int wrong(const struct opt_spec *s, const struct opt *o, const char *value, const char *expected)
{
    return opt_usage(s->command, "--%s: expected %s, found '%s'", o->name, expected, value);
}

/* The same, with the choice of the list (cut up here) that may have been meant. */
static int wrong_choice(const struct opt_spec *s, const struct opt *o, const char *value, const char *expected, char *list)
{
    const char *names[OPT_VALUE_MAX / 2 + 1], *near;
    int n = 0;
    for (char *p = strtok(list, "|"); p; p = strtok(NULL, "|"))
        names[n++] = p;
    names[n] = NULL;
    if ((near = opt_nearest(value, names)))
        return opt_usage(s->command, "--%s: expected %s, found '%s'; did you mean %s?", o->name, expected, value, near);
    return wrong(s, o, value, expected);
}

static int store_integer(const struct opt_spec *s, const struct opt *o, const char *value, char *at)
{
    char range[96];
    int64_t v;
    snprintf(range, sizeof range, "a whole number from %.0f to %.0f", o->min, o->max);
    if (read_int(value, &v) || (double)v < o->min || (double)v > o->max)
        return wrong(s, o, value, range);
    if (o->type == OPT_INT)
        *(int *)(void *)at = (int)v;
    else if (o->type == OPT_I64)
        *(int64_t *)(void *)at = v;
    else
        *(uint64_t *)(void *)at = (uint64_t)v;
    return -1;
}

/* "500MiB", "4GB", "4G" (1e9), "1000000" */
static int store_size(const struct opt_spec *s, const struct opt *o, const char *value, uint64_t *at)
{
    static const struct { const char *name; double factor; } units[] = {
        { "", 1 }, { "B", 1 }, { "KB", 1e3 }, { "MB", 1e6 }, { "GB", 1e9 }, { "TB", 1e12 }, { "K", 1e3 }, { "M", 1e6 }, { "G", 1e9 },
        { "KiB", 1024 }, { "MiB", 1048576 }, { "GiB", 1073741824 }, { "TiB", 1099511627776 },
    };
    const char *unit = value + strspn(value, "0123456789.");
    double num;
    if (unit > value && !read_num(value, unit, &num))
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (!strcmp(unit, units[i].name) && num * units[i].factor >= 1 && num * units[i].factor < 9e18) {
                *at = (uint64_t)(num * units[i].factor);
                return -1;
            }
    return wrong(s, o, value, "a size such as 500MiB or 4GB");
}

static int store_pair(const struct opt_spec *s, const struct opt *o, const char *value, double *at)
{
    char expected[96];
    const char *comma = strchr(value, ',');
    snprintf(expected, sizeof expected, "off or two numbers from %g to %g, as 0.5,0.5", o->min, o->max);
    if (!strcmp(value, "off")) {
        at[0] = at[1] = 0;
        return -1;
    }
    if (!comma || read_num(value, comma, &at[0]) || read_num(comma + 1, value + strlen(value), &at[1]))
        return wrong(s, o, value, expected);
    for (int i = 0; i < 2; i++)
        if (!(at[i] >= o->min && at[i] <= o->max))
            return wrong(s, o, value, expected);
    return -1;
}

/* -1 stored, else the exit status. */
static int store(const struct opt_spec *s, const struct opt *o, const char *value, void *args)
{
    char *at = (char *)args + o->offset, list[OPT_VALUE_MAX], expected[2 * OPT_VALUE_MAX];
    if (o->choices) {
        expand_choices(o->choices, list, sizeof list);
        if (!is_choice(list, value)) {
            one_of(list, expected, sizeof expected);
            return wrong_choice(s, o, value, expected, list);
        }
    }
    double num;
    struct opt_list *many;
    switch (o->type) {
    case OPT_FLAG:
        *(int *)(void *)at = 1;
        return -1;
    case OPT_INT:
    case OPT_I64:
    case OPT_U64:
        return store_integer(s, o, value, at);
    case OPT_NUM:
        snprintf(expected, sizeof expected, "a number from %g to %g", o->min, o->max);
        if (read_num(value, value + strlen(value), &num) || !(num >= o->min && num <= o->max))
            return wrong(s, o, value, expected);
        *(double *)(void *)at = num;
        return -1;
    case OPT_STR:
        if (!*value && !o->choices && strcmp(o->arg, "PROMPT")) /* an unset variable of the shell's */
            return wrong(s, o, value, o->arg);
        *(const char **)(void *)at = value;
        return -1;
    case OPT_ONOFF:
        if (strcmp(value, "on") && strcmp(value, "off"))
            return wrong(s, o, value, "on or off");
        *(int *)(void *)at = !strcmp(value, "on");
        return -1;
    case OPT_PAIR:
        return store_pair(s, o, value, (double *)(void *)at);
    case OPT_SIZE:
        return store_size(s, o, value, (uint64_t *)(void *)at);
    case OPT_STRS:
        many = (struct opt_list *)(void *)at;
        if (many->n == OPT_LIST_MAX)
            return opt_usage(s->command, "--%s: given more than %d times", o->name, OPT_LIST_MAX);
        many->v[many->n++] = value;
        return -1;
    }
    return -1;
}

/* ---- parsing ------------------------------------------------------------------- */

int opt_all(const struct opt_spec *s, const struct opt *out[OPT_MAX])
{
    int n = 0;
    for (const struct opt *o = s->opts; o->name && n < OPT_MAX; o++)
        out[n++] = o;
    for (const struct opt *o = common_opts; o->name && n < OPT_MAX; o++)
        out[n++] = o;
    return n;
}

static int unknown(const struct opt_spec *s, const char *word, const struct opt **opts, int n)
{
    const char *names[OPT_MAX + 1], *near;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    const char *bare = name + strspn(name, "-");
    for (int i = 0; i < n; i++)
        names[i] = opts[i]->name;
    names[n] = NULL;
    near = opt_nearest(bare, names);
    if (near)
        return opt_usage(s->command, "unknown option '%s'; did you mean --%s?", name, near);
    return opt_usage(s->command, "unknown option '%s'", name);
}

static const struct opt *find(const char *word, const struct opt **opts, int n, const char **value)
{
    *value = NULL;
    if (word[1] != '-') {
        for (int i = 0; i < n; i++)
            if (opts[i]->letter && opts[i]->letter == word[1] && !word[2])
                return opts[i];
        return NULL;
    }
    size_t k = strcspn(word + 2, "=");
    for (int i = 0; i < n; i++)
        if (strlen(opts[i]->name) == k && !memcmp(opts[i]->name, word + 2, k)) {
            *value = word[2 + k] ? word + 3 + k : NULL;
            return opts[i];
        }
    return NULL;
}

/* Of the first operand's name: up to a space or "...". */
static int operand_length(const char *operands)
{
    const char *dots = strstr(operands, "...");
    int n = (int)strcspn(operands, " ");
    return dots && dots - operands < n ? (int)(dots - operands) : n;
}

int opt_parse(const struct opt_spec *s, int argc, char **argv, void *args)
{
    const struct opt *opts[OPT_MAX];
    struct common *c = args;
    struct common before = *c;
    int n = opt_all(s, opts), rc, plain = 0, operand = operand_length(s->operands);
    for (int i = 0; i < argc; i++) /* help comes before any complaint */
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            opt_help(s, args);
            return EXIT_DONE;
        } else if (!strcmp(argv[i], "--man")) {
            manual_command(s, args);
            return EXIT_DONE;
        }
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i], *value;
        if (!plain && !strcmp(word, "--")) {
            plain = 1;
            continue;
        }
        if (plain || word[0] != '-' || !word[1]) {
            if (c->model && strstr(s->operands, "...") && c->more.n < OPT_LIST_MAX) {
                c->more.v[c->more.n++] = word;
                continue;
            }
            if (c->model)
                return opt_usage(s->command, "one %.*s is expected, found '%s' after '%s'", operand, s->operands, word, c->model);
            c->model = word;
            continue;
        }
        const struct opt *o = find(word, opts, n, &value);
        if (!o)
            return unknown(s, word, opts, n);
        if (o->type == OPT_FLAG && value)
            return opt_usage(s->command, "--%s takes no value, found '%s'", o->name, value);
        if (o->type != OPT_FLAG && !value && !(value = argv[++i]))
            return opt_usage(s->command, "--%s needs a value", o->name);
        if ((rc = store(s, o, value, args)) >= 0)
            return rc;
    }
    if (!c->model)
        return opt_usage(s->command, "%.*s is missing", operand, s->operands);
    if (c->threads != before.threads)
        d2q_set_threads(c->threads);
    return -1;
}

/* ---- help ---------------------------------------------------------------------- */

void opt_default(const struct opt *o, const void *args, char *out, size_t cap)
{
    const char *at = (const char *)args + o->offset;
    const char *text;
    double v[2];
    out[0] = '\0';
    if (o->preset || o->type == OPT_FLAG || o->type == OPT_STRS) {
        snprintf(out, cap, "%s", o->preset ? o->preset : "");
        return;
    }
    switch (o->type) {
    case OPT_STR:
        text = *(const char *const *)(const void *)at;
        snprintf(out, cap, "%s", text ? text : "");
        break;
    case OPT_INT:
        snprintf(out, cap, "%d", *(const int *)(const void *)at);
        break;
    case OPT_ONOFF:
        snprintf(out, cap, "%s", *(const int *)(const void *)at ? "on" : "off");
        break;
    case OPT_I64:
    case OPT_U64:
        snprintf(out, cap, "%lld", (long long)*(const int64_t *)(const void *)at);
        break;
    case OPT_PAIR:
        memcpy(v, at, sizeof v);
        snprintf(out, cap, "%g,%g", v[0], v[1]);
        break;
    default:
        memcpy(v, at, sizeof *v);
        snprintf(out, cap, "%g", v[0]);
    }
}

void opt_value(const struct opt *o, char *out, size_t cap)
{
    out[0] = '\0';
    if (o->type == OPT_ONOFF)
        snprintf(out, cap, "on|off");
    else if (o->arg)
        snprintf(out, cap, "%s", o->arg);
    else if (o->choices)
        expand_choices(o->choices, out, cap);
}

static void help_examples(const char *text)
{
    printf("\nexamples:\n");
    while (*text) {
        size_t n = strcspn(text, "\n");
        printf("  %.*s\n", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

void opt_help(const struct opt_spec *s, const void *args)
{
    const struct opt *opts[OPT_MAX];
    int n = opt_all(s, opts);
    printf("usage: d2q %s %s [options]\n%s.\n\noptions:\n", s->command, s->operands, s->help);
    for (int i = 0; i < n; i++) {
        const struct opt *o = opts[i];
        char left[OPT_VALUE_MAX + 64], value[OPT_VALUE_MAX], preset[128];
        opt_value(o, value, sizeof value);
        snprintf(left, sizeof left, "%c%c%s--%s %s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                 o->letter ? ", " : "  ", o->name, value);
        opt_default(o, args, preset, sizeof preset);
        printf("  %-33s ", left);
        if (strlen(left) > 33)
            printf("\n  %33s ", "");
        printf("%s", o->help);
        if (preset[0])
            printf(" (default %s)", preset);
        putchar('\n');
    }
    help_examples(s->examples);
}
