#include "report/html.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void html_text(struct text *t, const char *s)
{
    for (const char *p = s ? s : ""; *p;) {
        unsigned char c = (unsigned char)*p;
        size_t plain = strcspn(p, "&<>\"'\x7f\xef");
        for (size_t i = 0; i < plain; i++)
            if ((unsigned char)p[i] < ' ' && !strchr("\t\n\r", p[i]))
                plain = i;
        if (plain) {
            text_add(t, "%.*s", (int)plain, p);
            p += plain;
            continue;
        }
        if (c == 0xef && p[1] && p[2]) { /* U+F000 to U+FFFF; FFFE and FFFF are no characters */
            bool none = (unsigned char)p[1] == 0xbf && (unsigned char)p[2] >= 0xbe;
            text_add(t, "%.3s", none ? "\xef\xbf\xbd" : p);
            p += 3;
            continue;
        }
        text_add(t, "%s", c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : c == '\'' ? "&#39;"
                                                                                                     : "\xef\xbf\xbd");
        p++;
    }
}

void html_tag(struct text *t, const char *tag, const char *s)
{
    text_add(t, "<%s>", tag);
    html_text(t, s);
    text_add(t, "</%.*s>", (int)strcspn(tag, " "), tag);
}

void html_pair(struct text *t, const char *name, const char *value)
{
    text_add(t, "<tr>");
    html_tag(t, "th", name);
    html_tag(t, "td", value);
    text_add(t, "</tr>\n");
}

void html_pair_f(struct text *t, const char *name, const char *fmt, ...)
{
    char value[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(value, sizeof value, fmt, ap);
    va_end(ap);
    html_pair(t, name, value);
}

void html_bar(struct text *t, const char *label, const char *value, const double *part, int n)
{
    text_add(t, "<div class=\"bar\"><span>");
    html_text(t, label);
    text_add(t, "</span><b>");
    html_text(t, value);
    text_add(t, "</b><div>");
    for (int i = 0; i < n; i++)
        if (part[i] > 0)
            text_add(t, "<i class=\"c%d\" style=\"width:%.3f%%\"></i>", i + 1, 100 * (part[i] < 1 ? part[i] : 1));
    text_add(t, "</div></div>\n");
}

void html_legend(struct text *t, const char *const *name, int n)
{
    text_add(t, "<p class=\"legend\">");
    for (int i = 0; i < n; i++) {
        text_add(t, "<span><i class=\"c%d\"></i>", i + 1);
        html_text(t, name[i]);
        text_add(t, "</span> ");
    }
    text_add(t, "</p>\n");
}

void html_bytes(double bytes, char *out, size_t cap)
{
    static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    int i = 0;
    while (bytes >= 1024 && i < 4) {
        bytes /= 1024;
        i++;
    }
    snprintf(out, cap, "%.*f %s", i > 0, bytes, unit[i]);
}

void html_seconds(double seconds, char *out, size_t cap)
{
    long s = seconds > 0 && seconds < 1e8 ? (long)(seconds + 0.5) : 0;
    if (seconds < 60)
        snprintf(out, cap, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(out, cap, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(out, cap, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

double html_num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

const char *html_str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

const char *html_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}
