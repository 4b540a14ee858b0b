/* d2q report: a page from what other commands printed with --json. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    const char *out;
};

const struct opt cmd_report_opts[] = {
    { "out", 'o', OPT_STR, offsetof(struct args, out), "FILE.html", NULL, 0, 0, "page to write", NULL },
    { 0 },
};

/* A whole file, or stdin for "-" (free). NULL: an error was shown. */
static char *read_all(const char *path)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    char *text = NULL, part[65536];
    size_t n = 0, k;
    FILE *to = f ? open_memstream(&text, &n) : NULL;
    while (to && (k = fread(part, 1, sizeof part, f)))
        if (fwrite(part, 1, k, to) != k)
            break;
    int bad = !to || ferror(f) || ferror(to);
    if (bad) {
        fputs("d2q: error: ", stderr);
        perror(path);
    }
    if (f && f != stdin)
        fclose(f);
    if (to && fclose(to))
        bad = 1;
    if (!bad)
        return text;
    free(text);
    return NULL;
}

int cmd_report(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_report_run runs[OPT_LIST_MAX + 1];
    char *texts[OPT_LIST_MAX + 1] = { NULL };
    double start = clock_now();
    d2q_error e;
    int n = 0, rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (!a.out)
        return opt_usage(spec->command, "-o FILE.html is missing");
    for (rc = 0; n <= a.c.more.n && !rc; n++) {
        const char *path = n ? a.c.more.v[n - 1] : a.c.model;
        texts[n] = read_all(path);
        runs[n] = (d2q_report_run){ path, texts[n] };
        rc = texts[n] ? 0 : EXIT_FAILED;
    }
    if (!rc && d2q_report(runs, n, a.out, &e))
        rc = show_error(&e);
    for (int i = 0; i < n; i++)
        free(texts[i]);
    if (rc)
        return rc;
    if (a.c.json) {
        json_t *r = json_pack("{sssi}", "path", a.out, "files", n);
        show_common(r, start);
        return show_json(r);
    }
    printf("written      %s\n", a.out);
    return show_flush();
}
