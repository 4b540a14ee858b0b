/* api_report: the page about runs. */
#include <string.h>

#include "api/api.h"
#include "base/file.h"
#include "report/report.h"

/* Adds the objects of one input, which stand one behind another. */
static int add_runs(json_t *runs, const d2q_report_run *in, struct err *e)
{
    const char *p = in->json + strspn(in->json, " \t\r\n");
    if (!*p)
        return err_set(e, ERR_FORMAT, "%s: expected the JSON of d2q quantize, eval or compare, found nothing", in->name);
    while (*p) {
        json_error_t je;
        json_t *o = json_loads(p, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &je);
        if (!o)
            return err_set(e, ERR_FORMAT, "%s: byte %lld: expected a JSON object: %s", in->name, (long long)(p - in->json) + je.position,
                           je.text);
        if (report_kind(o) == REPORT_NONE) {
            json_decref(o);
            return err_set(e, ERR_FORMAT, "%s: byte %lld: expected what d2q quantize, eval or compare print with --json, found another object",
                           in->name, (long long)(p - in->json));
        }
        if (json_array_append_new(runs, o))
            return err_nomem(e, in->name, strlen(p));
        p += je.position;
        p += strspn(p, " \t\r\n");
    }
    return 0;
}

static int write_page(const struct text *t, const char *path, struct err *e)
{
    struct outfile out;
    if (outfile_open(&out, path, e))
        return -1;
    if (!outfile_write(&out, t->p, t->n, e))
        return outfile_commit(&out, e);
    outfile_abort(&out);
    return -1;
}

int d2q_report(const d2q_report_run *in, int n, const char *path, d2q_error *err)
{
    struct err e;
    struct text t = { 0 };
    json_t *runs = json_array();
    int rc = runs ? 0 : err_nomem(&e, "report", 64);
    for (int i = 0; i < n && !rc; i++)
        rc = add_runs(runs, &in[i], &e);
    rc = rc || report_page(runs, &t, &e) || write_page(&t, path, &e);
    json_decref(runs);
    text_release(&t);
    return rc ? api_fail(err, &e) : 0;
}
