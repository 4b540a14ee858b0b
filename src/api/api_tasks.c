/* api_tasks: multiple-choice tasks. */
#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "base/file.h"
#include "base/json.h"
#include "eval/task.h"

void d2q_task_options_init(d2q_task_options *o)
{
    *o = (d2q_task_options){ 0 };
}

static json_t *task_json(const char *name, const struct task_info *info, const struct task_options *o, const struct task_result *r)
{
    json_t *j = json_pack("{sosIsisfsf}", "task", json_path(name), "n", (json_int_t)r->n, "shots", o->shots, "acc", r->acc, "acc_err", r->acc_err);
    if (!info || info->norm)
        json_object_update_new(j, json_pack("{sfsf}", "acc_norm", r->acc_norm, "acc_norm_err", r->acc_norm_err));
    if (r->interrupted)
        json_object_set_new(j, "interrupted", json_true());
    json_object_update_new(j, json_pack("{sIsf}", "tokens", (json_int_t)r->tokens, "seconds", r->seconds));
    return j;
}

struct run {
    struct model *m;
    struct task_options o;
    struct log log;
    json_t *list;
    bool interrupted;
    double acc, norm; /* sums; norm: acc_norm, or acc where a task has none */
};

static int run_one(struct run *u, const char *name, const char *path, const struct task_info *info, struct err *e)
{
    struct task_result r;
    if (u->interrupted)
        return 0;
    if (task_run(u->m, name, path, &u->o, &u->log, &r, e)) {
        u->interrupted = e->code == ERR_CANCELLED && json_array_size(u->list);
        return u->interrupted ? 0 : -1;
    }
    u->interrupted = r.interrupted;
    u->acc += r.acc;
    u->norm += !info || info->norm ? r.acc_norm : r.acc;
    return json_array_append_new(u->list, task_json(name, info, &u->o, &r)) ? err_nomem(e, name, 256) : 0;
}

static int check_one(struct run *u, const char *name, const char *path, const struct task_info *info, struct err *e)
{
    (void)info;
    return task_check(name, path, &u->o, e);
}

typedef int task_fn(struct run *u, const char *name, const char *path, const struct task_info *info, struct err *e);

/* fn for each of "all", or of names with commas between. */
static int each_named(struct run *u, task_fn *fn, const char *names, const char *dir, struct err *e)
{
    char one[64], path[4096];
    bool all = !strcmp(names, "all");
    for (int i = 0; all && i < task_count; i++) {
        const struct task_info *t = &task_table[i];
        if (!t->seven)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, t->file);
        if (fn(u, t->name, path, t, e))
            return -1;
    }
    for (const char *p = names; !all && *p;) {
        size_t n = strcspn(p, ",");
        snprintf(one, sizeof one, "%.*s", (int)n, p);
        const struct task_info *t = task_find(one);
        if (!t || strcmp(t->name, one)) {
            char known[256] = "";
            for (int i = 0; i < task_count; i++)
                snprintf(known + strlen(known), sizeof known - strlen(known), ", %s", task_table[i].name);
            return err_set(e, ERR_USAGE, "there is no task '%s' (expected all%s)", one, known);
        }
        snprintf(path, sizeof path, "%s/%s", dir, t->file);
        if (fn(u, t->name, path, t, e))
            return -1;
        p += n + (p[n] == ',');
    }
    return 0;
}

static int each_file(struct run *u, task_fn *fn, const char *path, struct err *e)
{
    const struct task_info *t = task_find(path);
    char name[128];
    snprintf(name, sizeof name, "%s", t ? t->name : file_name(path));
    char *dot = strstr(name, ".jsonl");
    if (!t && dot)
        *dot = '\0';
    return fn(u, name, path, t, e);
}

int d2q_tasks(d2q_model *dm, const d2q_task_options *in, char **json, d2q_error *err)
{
    struct reporter rep = { in->log, in->log_ud };
    struct run u = { .m = dm->m, .o = { in->limit, in->shots, NULL }, .log = { api_log, &rep }, .list = json_array() };
    struct outfile items = { .fd = -1 };
    struct err e;
    double t0 = log_now();
    int rc = 0;
    if (in->tasks && !in->data)
        rc = err_set(&e, ERR_USAGE, "tasks by name need the folder of their files");
    if (!rc && in->file) /* all of them before the first takes its time */
        rc = each_file(&u, check_one, in->file, &e);
    if (!rc && in->tasks)
        rc = each_named(&u, check_one, in->tasks, in->data, &e);
    rc = rc || (in->items && outfile_open(u.o.items = &items, in->items, &e));
    if (!rc && in->file)
        rc = each_file(&u, run_one, in->file, &e);
    if (!rc && in->tasks)
        rc = each_named(&u, run_one, in->tasks, in->data, &e);
    rc = rc || (u.o.items && outfile_commit(&items, &e));
    if (rc) {
        outfile_abort(&items);
        json_decref(u.list);
        return api_fail(err, &e);
    }
    double n = (double)json_array_size(u.list);
    json_t *root = json_pack("{soso}", "tasks", u.list, "model", json_path(dm->m->ck->path));
    static const char *const figures[] = { "acc", "acc_norm", "n" };
    for (size_t i = 0; n == 1 && i < sizeof figures / sizeof *figures; i++) /* of the only one, at hand */
        if (json_object_get(json_array_get(u.list, 0), figures[i]))
            json_object_set(root, figures[i], json_object_get(json_array_get(u.list, 0), figures[i]));
    if (n > 1)
        json_object_update_new(root, json_pack("{sfsf}", "acc_average", u.acc / n, "acc_norm_average", u.norm / n));
    if (u.interrupted)
        json_object_set_new(root, "interrupted", json_true());
    api_common(root, t0);
    return api_json(root, json, err);
}
