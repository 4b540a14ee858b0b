/* show: see show.h. */
#include "cli/show.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"

void show_bytes(double bytes, char *out, size_t cap)
{
    static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    int i = 0;
    while (bytes >= 1024 && i < 4) {
        bytes /= 1024;
        i++;
    }
    snprintf(out, cap, "%.*f %s", i > 0, bytes, unit[i]);
}

void show_seconds(double seconds, char *out, size_t cap)
{
    if (seconds < 60) {
        snprintf(out, cap, "%.1f s", seconds);
        return;
    }
    long s = seconds < 1e8 ? (long)(seconds + 0.5) : 100000000;
    if (s < 3600)
        snprintf(out, cap, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(out, cap, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

int show_error(const d2q_error *e)
{
    if (e->code == D2Q_ERR_CANCELLED || interrupted()) {
        fprintf(stderr, "d2q: interrupted\n");
        return EXIT_INTERRUPTED;
    }
    fprintf(stderr, "d2q: error: %s\n", e->message);
    return EXIT_FAILED;
}

json_t *show_parse(char *text)
{
    json_error_t je;
    json_t *o = text ? json_loads(text, JSON_ALLOW_NUL, &je) : NULL;
    if (!o)
        fprintf(stderr, "d2q: error: out of memory: result\n");
    d2q_free(text);
    return o;
}

void show_common(json_t *o, double start)
{
    json_object_set_new(o, "seconds", json_real(clock_now() - start));
    json_object_set_new(o, "peak_rss_bytes", json_integer((json_int_t)d2q_peak_rss()));
    json_object_set_new(o, "version", json_string(d2q_version()));
}

int show_flush(void)
{
    if (!fflush(stdout) && !ferror(stdout))
        return EXIT_DONE;
    perror("d2q: error: stdout");
    return EXIT_FAILED;
}

int show_json(json_t *o)
{
    int rc = json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(o);
    return rc ? EXIT_FAILED : show_flush();
}

int show_result(json_t *r, double start, int as_json, int (*print)(const json_t *r))
{
    if (!r)
        return EXIT_FAILED;
    show_common(r, start);
    if (as_json)
        return show_json(r);
    int rc = print(r);
    json_decref(r);
    return rc;
}

double show_num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

const char *show_str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

void show_loads(const json_t *list, FILE *f)
{
    const json_t *row;
    size_t i;
    json_array_foreach(list, i, row) {
        bool ok = json_is_true(json_object_get(row, "loads"));
        const char *condition = show_str(row, "condition"), *how = show_str(row, "how");
        fprintf(f, "%s%s", ok ? "loads in     " : "not in       ", show_str(row, "runtime"));
        if (*condition)
            fprintf(f, ": %s", condition);
        if (ok)
            fprintf(f, "; %s%s", how, json_is_true(json_object_get(row, "run_here")) ? "" : " [from source, not run]");
        fputc('\n', f);
    }
}

static bool plain_word(const char *s)
{
    return *s && s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%")] == '\0';
}

char *show_command(const char *command, int argc, char **argv)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fprintf(f, "d2q %s", command);
    for (int i = 0; i < argc; i++) {
        fputc(' ', f);
        if (plain_word(argv[i])) {
            fputs(argv[i], f);
            continue;
        }
        fputc('\'', f);
        for (const char *p = argv[i]; *p; p++)
            fputs(*p == '\'' ? "'\\''" : (char[2]){ *p, 0 }, f);
        fputc('\'', f);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
