#include "base/json.h"

#include <string.h>

#include "base/mem.h"

/* What jansson and malloc take for each, by the character that announces it. */
static size_t price(char c)
{
    switch (c) {
    case '{': return 240;
    case '[': return 130;
    case ':': return 80; /* a key */
    case ',': return 64; /* a value */
    default: return 1;
    }
}

/* Where the string that begins at i ends. */
static size_t string_end(const char *text, size_t n, size_t i)
{
    for (i++; i < n && text[i] != '"'; i++)
        i += text[i] == '\\';
    return i;
}

static int check_size(const char *text, size_t n, struct err *e)
{
    size_t depth = 0, bytes = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (c == '"') {
            size_t end = string_end(text, n, i);
            bytes += end - i;
            i = end;
            continue;
        }
        bytes += price(c);
        if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && depth)
            depth--;
        if (depth > JSON_DEPTH)
            return err_set(e, ERR_FORMAT, "JSON nested deeper than %d levels (byte %zu)", JSON_DEPTH, i);
        if (bytes > JSON_MEMORY)
            return err_set(e, ERR_FORMAT, "JSON of so many values that they would take more than %zu MiB of memory (byte %zu "
                           "of %zu)", JSON_MEMORY >> 20, i, n);
    }
    return 0;
}

/* A copy of the text whose integers of more than 18 digits are reals: ...dd becomes ...e2, as long as before. */
static char *huge_as_reals(const char *text, size_t n)
{
    char *t = mem_alloc(n + 1, 1);
    if (!t)
        return NULL;
    memcpy(t, text, n);
    t[n] = 0;
    for (size_t i = 0; i < n;) {
        size_t digits = strspn(t + i, "-0123456789"), whole = strspn(t + i, "+-.eE0123456789");
        if (digits == whole && digits > 18)
            memcpy(t + i + digits - 2, "e2", 2);
        i = t[i] == '"' ? string_end(t, n, i) + 1 : i + (whole ? whole : 1);
    }
    return t;
}

int json_from_text(const char *text, size_t n, json_t **out, struct err *e)
{
    json_error_t je;
    *out = NULL;
    if (check_size(text, n, e))
        return -1;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    if (!*out && json_error_code(&je) == json_error_numeric_overflow) {
        char *t = huge_as_reals(text, n);
        if (!t)
            return err_nomem(e, "JSON", n);
        *out = json_loadb(t, n, JSON_REJECT_DUPLICATES, &je);
        mem_free(t);
    }
    return *out ? 0 : err_set(e, ERR_FORMAT, "not valid JSON: %s (line %d, byte %d)", je.text, je.line, je.position);
}

json_t *json_bytes(const char *s, size_t n)
{
    json_t *j = json_stringn(s, n);
    if (j)
        return j;
    char *p = mem_alloc(3 * n + 1, 1);
    size_t k = 0;
    for (size_t i = 0; p && i < n;) {
        size_t len = 1;
        while (len < 5 && i + len <= n && !(j = json_stringn(s + i, len)))
            len++;
        if (j) {
            memcpy(p + k, s + i, len);
            k += len;
            i += len;
            json_decref(j);
            j = NULL;
        } else {
            memcpy(p + k, "\xef\xbf\xbd", 3);
            k += 3;
            i++;
        }
    }
    j = p ? json_stringn(p, k) : NULL;
    mem_free(p);
    return j;
}

json_t *json_path(const char *path)
{
    return json_bytes(path, strlen(path));
}
