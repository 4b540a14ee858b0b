/* d2q quantize: plan, quantize, write. What can be refused is refused before the work: options, what the format carries,
 * room on the disk. */
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cli/cmd.h"
#include "cli/guard.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    const char *out;
    struct opt_list formats, keep;
    int profile, dry_run, bits, group; /* bits, group: the defaults */
    uint64_t target_size;
    double target_bpw;
    json_t *mix;        /* what d2q_choose_types answered; q.keep points into it */
    const char **mix_keep;
    const char *work;   /* as given */
    const char *report, *device; /* device: there is one so far */
    char work_dir[4096];
    d2q_quantize_options q;
    d2q_export_options x;
};

#define AT(member) offsetof(struct args, member)
const struct opt cmd_quantize_opts[] = {
    { "out", 'o', OPT_STR, AT(out), "OUT", NULL, 0, 0, "folder, or .gguf file, to write", NULL },
    { "method", 0, OPT_STR, AT(q.method), NULL, "@methods", 0, 0, "how codes are found", NULL },
    { "recipe", 0, OPT_STR, AT(q.recipe), NULL, "default|paper", 0, 0, "d2quant: what measures best, or the paper alone", NULL },
    { "bits", 0, OPT_INT, AT(q.bits), NULL, "2|3|4", 2, 4, "bits of a code", "2" },
    { "group", 0, OPT_INT, AT(q.group), "N", NULL, 0, 1 << 24, "inputs that share a scale; 0: a whole row", "128" },
    { "grid", 0, OPT_STR, AT(q.grid), NULL, "@grids", 0, 0, "what values there are; a type of GGUF settles bits and group",
      "asym; without --group q2_k, q3_k, q4_k for one GGUF file, portable for GGUF beside others" },
    { "keep", 0, OPT_STRS, AT(keep), "PATTERN=TYPE", NULL, 0, 0, "another grid, or f16, for these tensors (lm_head=q6_k)", NULL },
    { "target-size", 0, OPT_SIZE, AT(target_size), "SIZE", NULL, 0, 0, "choose GGUF types by what they cost, for a file of this size (480MiB)", NULL },
    { "target-bpw", 0, OPT_NUM, AT(target_bpw), "X", NULL, 1, 16, "the same for so many bits a weight", NULL },
    { "dsq", 0, OPT_ONOFF, AT(q.dsq), NULL, NULL, 0, 0, "second scale of down_proj, merged into up_proj", "the recipe's" },
    { "dsq-norms", 0, OPT_ONOFF, AT(q.dsq_norms), NULL, NULL, 0, 0, "the same of q,k,v and of gate,up, merged into the norms' gains", "the recipe's" },
    { "dsq-o", 0, OPT_ONOFF, AT(q.dsq_o), NULL, NULL, 0, 0, "the same of o, merged into v", "the recipe's" },
    { "dac", 0, OPT_ONOFF, AT(q.dac), NULL, NULL, 0, 0, "mean correction at the norm after attention", "the recipe's" },
    { "dac-target", 0, OPT_STR, AT(q.dac_target), NULL, "float|block", 0, 0, "what the mean is brought back to: the float model's, or that of the block's own float attention", "float" },
    { "propagate", 0, OPT_PAIR, AT(q.alpha), "A,B|off", NULL, 0, 2, "aim at the float path", "the recipe's" },
    { "rotate", 0, OPT_STR, AT(q.rotate), NULL, "auto|off|hadamard", 0, 0, "spread outliers over the residual stream first (QuaRot)",
      "auto: the default recipe, where it takes no bytes" },
    { "order", 0, OPT_STR, AT(q.order), NULL, "none|act", 0, 0, "column order: as stored, or by activation", "the method's" },
    { "search", 0, OPT_STR, AT(q.search), NULL, "minmax|mse|hessian", 0, 0, "how scales are found", "the method's" },
    { "sweeps", 0, OPT_INT, AT(q.sweeps), "N", NULL, 0, 100, "coordinate-descent sweeps after the solve", "the recipe's" },
    { "tune", 0, OPT_INT, AT(q.tune), "N", NULL, 0, 1000, "passes that tune scales and norms towards the float model", "the recipe's" },
    { "tune-lr", 0, OPT_NUM, AT(q.tune_lr), "X", NULL, 0, 0.1, "size of the tuning's first steps", "0.001" },
    { "damp", 0, OPT_NUM, AT(q.damp), "X", NULL, 0, 1, "added to the Hessian, as a share of its mean diagonal", "0.01" },
    { "shrink", 0, OPT_NUM, AT(q.shrink), "X", NULL, 0, 1000, "of the Hessian towards its diagonal, times inputs per token", "the recipe's" },
    { "sinks", 0, OPT_STR, AT(q.sinks), NULL, "keep|skip|clip", 0, 0, "tokens with massive activations", "the method's" },
    { "on-failure", 0, OPT_STR, AT(q.on_failure), NULL, "stop|rtn|keep", 0, 0, "when a matrix cannot be solved", NULL },
    { "calib", 0, OPT_STR, AT(q.calib), "FILE|self", NULL, 0, 0, "text, JSONL, or text the model makes up", NULL },
    { "nsamples", 0, OPT_I64, AT(q.nsamples), "N", NULL, 1, 1 << 24, "calibration sequences", NULL },
    { "self-samples", 0, OPT_I64, AT(q.self_samples), "N", NULL, 0, 1 << 24, "sequences more, beside FILE's, that the model makes up", NULL },
    { "seqlen", 0, OPT_I64, AT(q.seqlen), "N", NULL, 2, 1 << 20, "tokens in each", NULL },
    { "seed", 0, OPT_U64, AT(q.seed), "N", NULL, 0, 9007199254740992.0, "of the choice of calibration text", NULL },
    { "format", 0, OPT_STRS, AT(formats), NULL, "@formats", 0, 0, "several make OUT a folder with one of each", "gptq, or gguf when OUT ends in .gguf" },
    { "drop-corrections", 0, OPT_FLAG, AT(x.drop_corrections), NULL, NULL, 0, 0,
      "leave out what the format cannot carry, with a warning", NULL },
    { "as-llama", 0, OPT_FLAG, AT(x.as_llama), NULL, NULL, 0, 0, "write Mistral, Qwen2 as Llama, which carries DAC", NULL },
    { "shard-size", 0, OPT_SIZE, AT(x.shard_bytes), "SIZE", NULL, 0, 0, "largest weight file (4GB, 500MiB)", "5GB for folders, one GGUF file" },
    { "work", 0, OPT_STR, AT(work), "DIR|off", NULL, 0, 0, "keeps finished blocks: the same command goes on after any end; a folder named here also takes what memory need not hold",
      "OUT.d2q-work" },
    { "fresh", 0, OPT_FLAG, AT(q.fresh), NULL, NULL, 0, 0, "begin anew, whatever work is kept", NULL },
    { "report", 0, OPT_STR, AT(report), "FILE.html", NULL, 0, 0, "also write a page about the run, as d2q report does", NULL },
    { "histogram", 0, OPT_STR, AT(q.histogram), "NAME", NULL, 0, 0, "matrix whose values the report shows before and after",
      "the one with the largest error" },
    { "device", 0, OPT_STR, AT(device), NULL, "cpu", 0, 0, "where the work is done", "cpu" },
    { "profile", 0, OPT_FLAG, AT(profile), NULL, NULL, 0, 0, "print where the time went", NULL },
    { "dry-run", 0, OPT_FLAG, AT(dry_run), NULL, NULL, 0, 0, "print the plan and stop", NULL },
    { 0 },
};

/* ---- before the work ------------------------------------------------------------- */

static int ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

#define UNSET (-1) /* bits and group until check_args, which must know whether they were given */

static bool writes_gguf(const struct args *a)
{
    for (int i = 0; i < a->formats.n; i++)
        if (!strcmp(a->formats.v[i], "gguf"))
            return true;
    return false;
}

/* For one GGUF file a type's own grid, for GGUF beside others the one that all of them hold exactly. */
static const char *default_grid(const struct args *a)
{
    static const char *const own[] = { "q2_k", "q3_k", "q4_k" };
    if (!writes_gguf(a) || a->q.group != UNSET)
        return "asym";
    return a->formats.n == 1 ? own[a->q.bits - 2] : a->q.bits < 4 ? "portable" : "sym";
}

static int check_args(const struct opt_spec *spec, struct args *a)
{
    const char *unused = a->q.grid ? "grid" : a->keep.n ? NULL : a->q.bits != UNSET ? "bits" : a->q.group != UNSET ? "group" : NULL;
    if ((a->target_size || a->target_bpw > 0) && unused) /* --keep PATTERN=asym takes its bits and group from them */
        fprintf(stderr, "d2q: warning: --%s changes nothing: --target-size and --target-bpw choose a type for each matrix\n", unused);
    if (a->q.bits == UNSET)
        a->q.bits = a->bits;
    if (!a->out && !a->dry_run)
        return opt_usage(spec->command, "-o OUT is missing");
    bool gguf = a->out && ends_with(a->out, ".gguf");
    if (gguf && a->formats.n && (a->formats.n > 1 || strcmp(a->formats.v[0], "gguf")))
        return opt_usage(spec->command, "-o %s names one GGUF file, --format %s asks for more: name a folder", a->out,
                         a->formats.v[strcmp(a->formats.v[0], "gguf") ? 0 : 1]);
    for (int i = 0; i < a->formats.n; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(a->formats.v[i], a->formats.v[j]))
                return opt_usage(spec->command, "--format %s is given twice", a->formats.v[i]);
    if (!a->formats.n)
        a->formats.v[a->formats.n++] = gguf || (a->q.grid && d2q_grid_is_type(a->q.grid)) ? "gguf" : "gptq";
    if (!a->q.grid)
        a->q.grid = default_grid(a);
    if (a->q.group == UNSET)
        a->q.group = a->group;
    a->q.keep = a->keep.v;
    a->q.n_keep = a->keep.n;
    bool hf = false, halves = false; /* gptq stores F16 */
    for (int i = 0; i < a->formats.n; i++) {
        a->q.zero_min |= !strcmp(a->formats.v[i], "gptq_v1");
        hf |= !strcmp(a->formats.v[i], "hf");
        halves |= strcmp(a->formats.v[i], "hf") && strcmp(a->formats.v[i], "gguf");
    }
    a->q.kept_f32 = halves ? 0 : hf ? 1 : 2;
    if (a->out && !(a->work && !strcmp(a->work, "off"))) {
        size_t n = strlen(a->out);
        while (n > 1 && a->out[n - 1] == '/')
            n--;
        if ((size_t)snprintf(a->work_dir, sizeof a->work_dir, "%.*s%s", a->work ? 0 : (int)n, a->out,
                             a->work ? a->work : ".d2q-work") >= sizeof a->work_dir)
            return opt_usage(spec->command, "%s: path is too long", a->out);
        if (a->formats.n == 1 && !strncmp(a->work_dir, a->out, n) && (a->work_dir[n] == '/' || !a->work_dir[n]))
            return opt_usage(spec->command, "--work %s: lies in OUT, which is to hold the result alone", a->work);
        a->q.work = a->work_dir;
        a->q.spill = a->work != NULL;
    }
    return -1;
}

/* The disk where OUT will be: that of it, or of the nearest folder above that exists. Bytes free there; -1: not known. */
static double disk_free(const char *out, dev_t *disk)
{
    char dir[4096];
    struct statvfs v;
    struct stat st;
    snprintf(dir, sizeof dir, "%s", out && *out ? out : ".");
    while (statvfs(dir, &v) || stat(dir, &st)) {
        char *slash = strrchr(dir, '/');
        if (!strcmp(dir, ".") || !strcmp(dir, "/"))
            return -1;
        if (!slash)
            strcpy(dir, ".");
        else
            slash[slash == dir] = '\0'; /* "/x" leaves "/" */
    }
    *disk = st.st_dev;
    return (double)v.f_bavail * (double)v.f_frsize;
}

/* Bytes of the files in dir: what a run that goes on has already taken. */
static double dir_bytes(const char *dir)
{
    double n = 0;
    DIR *d = opendir(dir);
    struct dirent *ent;
    struct stat st;
    while (d && (ent = readdir(d)))
        if (!fstatat(dirfd(d), ent->d_name, &st, 0) && S_ISREG(st.st_mode))
            n += (double)st.st_size;
    if (d)
        closedir(d);
    return n;
}

/* What the work folder may still take; 0 where it shares no disk with OUT, and is asked by itself: -1, a message was shown. */
static double work_room(const struct args *a, const json_t *plan, dev_t out_disk)
{
    if (!a->q.work)
        return 0;
    dev_t disk = 0;
    double need = show_num(plan, "work_bytes") - dir_bytes(a->q.work), free = disk_free(a->q.work, &disk);
    need = need < 0 ? 0 : need;
    if (free < 0 || disk == out_disk)
        return need;
    if (a->dry_run || need <= free)
        return 0;
    fprintf(stderr, "d2q: error: %s: the disk has %.0f bytes free, the work needs %.0f\n", a->q.work, free, need);
    return -1;
}

/* Where format i goes: OUT itself, or in it. 0, or -1: too long. */
static int out_path(const struct args *a, int i, char *path, size_t cap)
{
    const char *format = a->formats.v[i], *name = a->formats.n == 1 ? "" : strcmp(format, "gguf") ? format : "model.gguf";
    return (size_t)snprintf(path, cap, "%s%s%s", a->out, *name ? "/" : "", name) < cap ? 0 : -1;
}

/* What each format says of the model to be, and its place of being written: 0, or the exit status after showing why one refuses. */
static int ask_formats(d2q_model *m, struct args *a, json_t *outputs)
{
    char path[4096];
    struct stat st;
    for (int i = 0; i < a->formats.n; i++) {
        char *text = NULL;
        d2q_error e;
        if (d2q_export_check(m, a->formats.v[i], &a->q, &a->x, &text, &e))
            return show_error(&e);
        json_array_append_new(outputs, show_parse(text));
        if (!a->out)
            continue;
        bool made = a->formats.n > 1 && stat(a->out, &st); /* the folder of several, after the work */
        if (out_path(a, i, path, sizeof path))
            return opt_usage("quantize", "%s: path is too long", a->out);
        if (d2q_export_target(m, made ? "hf" : a->formats.v[i], made ? a->out : path, &e))
            return show_error(&e);
    }
    return 0;
}

/* --target-size, --target-bpw: q.keep becomes one type a matrix. 0, or the exit status after an error was shown. */
static int choose_types(const struct opt_spec *spec, d2q_model *m, struct args *a)
{
    d2q_error e;
    char *text = NULL;
    if (!a->target_size && !(a->target_bpw > 0))
        return 0;
    if (a->target_size && a->target_bpw > 0)
        return opt_usage(spec->command, "--target-size and --target-bpw exclude each other");
    if (a->formats.n != 1 || strcmp(a->formats.v[0], "gguf"))
        return opt_usage(spec->command, "--target-size, --target-bpw: choose among types of GGUF; name one .gguf file");
    if (a->out && d2q_export_target(m, "gguf", a->out, &e)) /* measuring takes long */
        return show_error(&e);
    struct progress p;
    progress_init(&p, a->c.quiet);
    a->q.log = progress_log;
    a->q.log_ud = &p;
    int rc = d2q_choose_types(m, &a->q, a->target_size, a->target_bpw, &text, &e);
    progress_clear(&p);
    a->q.log = NULL;
    if (rc)
        return e.code == D2Q_ERR_USAGE ? opt_usage(spec->command, "%s", e.message) : show_error(&e);
    const json_t *keep = json_object_get(a->mix = show_parse(text), "keep"), *k;
    size_t i, n = json_array_size(keep);
    a->mix_keep = calloc(n + 1, sizeof *a->mix_keep);
    if (!a->mix_keep)
        return EXIT_FAILED;
    json_array_foreach(keep, i, k)
        a->mix_keep[i] = json_string_value(k);
    a->q.keep = a->mix_keep;
    a->q.n_keep = (int)n;
    return 0;
}

#define SIDE_BYTES 4e6 /* tokenizer, headers, checksums; more for large models, whose vocabularies are larger */

/* The plan with what the command knows besides. NULL: *rc is the exit status, an error was shown. */
static json_t *make_plan(d2q_model *m, struct args *a, int *rc)
{
    char *text = NULL;
    d2q_error e;
    if (d2q_plan(m, &a->q, &text, &e)) {
        *rc = e.code == D2Q_ERR_USAGE ? opt_usage("quantize", "%s", e.message) : show_error(&e);
        return NULL;
    }
    json_t *plan = show_parse(text), *outputs = json_array();
    *rc = EXIT_FAILED;
    if (!plan || json_object_set_new(plan, "outputs", outputs))
        return NULL;
    json_object_set(plan, "grid_bpw", json_object_get(plan, "bpw"));
    if (a->formats.n == 1 && writes_gguf(a) && json_object_get(plan, "gguf_bpw"))
        json_object_set(plan, "bpw", json_object_get(plan, "gguf_bpw"));
    int refused = ask_formats(m, a, outputs);
    dev_t disk = 0; /* of none, where that is not known */
    double free = disk_free(a->out, &disk), need = 0;
    for (int i = 0; i < a->formats.n; i++) /* hf holds every weight as F32 */
        need += !strcmp(a->formats.v[i], "hf")     ? 4 * show_num(plan, "parameters")
                : !strcmp(a->formats.v[i], "gguf") ? show_num(plan, "gguf_bytes")
                                                   : show_num(plan, "bytes");
    double room = work_room(a, plan, disk);
    if (room < 0) {
        json_decref(plan);
        return NULL;
    }
    json_object_set_new(plan, "disk_bytes", json_real(need));
    need += room + SIDE_BYTES * (1 + show_num(plan, "source_bytes") / 1e9);
    json_object_set_new(plan, "disk_free_bytes", json_real(free));
    if (!refused && (a->dry_run || free < 0 || need <= free))
        return plan;
    if (refused)
        *rc = refused;
    else
        fprintf(stderr, "d2q: error: %s: the disk has %.0f bytes free, the output%s needs %.0f\n", a->out, free,
                room > 0 ? " with the work folder" : "", need);
    json_decref(plan);
    return NULL;
}

/* "168 q2_0, 28 q2_k" */
static void count_types(const json_t *tensors, char *out, size_t cap)
{
    json_t *counts = json_object(), *t, *n;
    const char *type;
    size_t i, at = 0;
    json_array_foreach(tensors, i, t) {
        type = show_str(t, "type");
        json_object_set_new(counts, type, json_integer(json_integer_value(json_object_get(counts, type)) + 1));
    }
    *out = '\0';
    json_object_foreach(counts, type, n) {
        int k = snprintf(out + at, cap - at, "%s%lld %s", at ? ", " : "", (long long)json_integer_value(n), type);
        at = k < 0 || at + (size_t)k >= cap ? cap - 1 : at + (size_t)k;
    }
    json_decref(counts);
}

/* What is allowed and hardly meant. */
static void plan_notes(const json_t *plan, const struct args *a, FILE *f)
{
    const json_t *o = json_object_get(plan, "options");
    const char *grid = show_str(o, "grid");
    double own = show_num(plan, "grid_bpw"), packed = show_num(plan, "gguf_bpw");
    if (show_num(o, "bits") == 2 && (!strcmp(grid, "sym") || !strcmp(grid, "portable")))
        fprintf(f, "note: 2 bits: a symmetric grid (%s) has the levels -2 to 1 and ruins most models; asym (gptq) and signfree (gguf) do not\n", grid);
    if (writes_gguf(a) && packed > 1.25 * own)
        fprintf(f, "note: GGUF has no type for these codes at their width: they take %.2f bits a weight there instead of %.2f (one .gguf without "
                "--group and --grid: q2_k, q3_k, q4_k)\n", packed, own);
}

static void plan_line(const json_t *plan, const struct args *a, FILE *f)
{
    char out[24], memory[24], time[24], types[256];
    count_types(json_object_get(plan, "tensors"), types, sizeof types);
    show_bytes(show_num(plan, "disk_bytes"), out, sizeof out);
    show_bytes(show_num(plan, "peak_bytes"), memory, sizeof memory);
    show_seconds(show_num(plan, "estimated_seconds"), time, sizeof time);
    fprintf(f, "plan: %zu matrices (%s) at %.3f bits a weight, output %s, peak memory %s, about %s\n",
            json_array_size(json_object_get(plan, "tensors")), types, show_num(plan, "bpw"), out, memory, time);
    const json_t *o;
    size_t i;
    json_array_foreach(json_object_get(plan, "outputs"), i, o) {
        fprintf(f, "format %s\n", show_str(o, "format"));
        show_loads(json_object_get(o, "loads"), f);
    }
    plan_notes(plan, a, f);
}

static int print_plan(const json_t *plan, const struct args *a)
{
    const json_t *list = json_object_get(plan, "tensors"), *t;
    bool gguf = writes_gguf(a);
    char free[24];
    size_t i;
    json_array_foreach(list, i, t)
    {
        const json_t *shape = json_object_get(t, "shape");
        printf("%-44s %-14s %lld x %lld%s%s\n", show_str(t, "name"), show_str(t, "type"),
               (long long)json_integer_value(json_array_get(shape, 0)), (long long)json_integer_value(json_array_get(shape, 1)),
               gguf ? ", in GGUF " : "", gguf ? show_str(t, "gguf") : "");
    }
    plan_line(plan, a, stdout);
    show_bytes(show_num(plan, "disk_free_bytes"), free, sizeof free);
    printf("disk: %s free\n", free);
    return show_flush();
}

/* ---- writing ----------------------------------------------------------------------- */

/* How the weights were made, for the output: nothing that differs from run to run. */
static char *make_meta(const json_t *r)
{
    char maker[64];
    snprintf(maker, sizeof maker, "d2quant:%s", d2q_version());
    json_t *meta = json_pack("{s[s]sOsO}", "quantizer", maker, "options", json_object_get(r, "options"), "backend",
                             json_object_get(r, "backend"));
    char *text = meta ? json_dumps(meta, JSON_COMPACT) : NULL;
    json_decref(meta);
    return text;
}

static int export_all(d2q_model *m, struct args *a, json_t *r, d2q_error *e)
{
    json_t *outputs = json_array();
    char *meta = make_meta(r), path[4096];
    double bytes = 0, begin = clock_now();
    int rc = 0;
    json_object_set_new(r, "outputs", outputs);
    a->x.meta = meta;
    if (a->formats.n > 1)
        mkdir(a->out, 0777); /* the first file says why if that failed */
    for (int i = 0; i < a->formats.n && !rc; i++) {
        char *text = NULL;
        (void)out_path(a, i, path, sizeof path); /* asked before */
        rc = d2q_export(m, a->formats.v[i], path, &a->x, &text, e);
        json_t *o = rc ? NULL : show_parse(text);
        bytes += show_num(o, "bytes");
        json_array_append_new(outputs, o);
    }
    if (a->formats.n == 1 && !rc) /* as stored, which in GGUF may be wider than the grid */
        json_object_set(r, "bpw", json_object_get(json_array_get(outputs, 0), "bpw"));
    json_object_set_new(r, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(r, "seconds_export", json_real(clock_now() - begin));
    free(meta); /* from jansson */
    return rc;
}

static void print_profile(const json_t *r)
{
    static const char *const keys[] = { "forward", "statistics", "factor", "solve" };
    const json_t *list = json_object_get(r, "profile"), *p;
    double sum[4] = { 0 };
    size_t i;
    printf("seconds          forward statistics     factor      solve\n");
    json_array_foreach(list, i, p) {
        printf("  %-11s", show_str(p, "stage"));
        for (int k = 0; k < 4; k++) {
            printf(" %10.2f", show_num(p, keys[k]));
            sum[k] += show_num(p, keys[k]);
        }
        putchar('\n');
    }
    printf("  all         %10.2f %10.2f %10.2f %10.2f", sum[0], sum[1], sum[2], sum[3]);
    printf("   tuning %.2f, rest %.2f of %.2f\n", show_num(r, "seconds_tune"),
           show_num(r, "seconds") - sum[0] - sum[1] - sum[2] - sum[3] - show_num(r, "seconds_tune"), show_num(r, "seconds"));
}

/* Never silently: which matrices are not what was asked for. */
static void print_fallbacks(const json_t *r)
{
    const json_t *t;
    size_t i;
    json_array_foreach(json_object_get(r, "tensors"), i, t)
        if (*show_str(t, "fallback"))
            printf("fallback     %s: %s, %s\n", show_str(t, "name"), show_str(t, "fallback"), show_str(t, "type"));
}

static int print_result(const json_t *r, const json_t *plan, bool profile)
{
    char before[24], after[24], memory[24], planned[24], time[24];
    const json_t *o = json_object_get(r, "options"), *out;
    size_t i;
    show_bytes(show_num(plan, "source_bytes"), before, sizeof before);
    show_bytes(show_num(r, "peak_rss_bytes"), memory, sizeof memory);
    show_bytes(show_num(plan, "peak_bytes"), planned, sizeof planned);
    show_seconds(show_num(r, "seconds"), time, sizeof time);
    char types[256];
    count_types(json_object_get(r, "tensors"), types, sizeof types);
    printf("quantized    %zu matrices by %s: %s\n", json_array_size(json_object_get(r, "tensors")), show_str(o, "method"), types);
    print_fallbacks(r);
    printf("bits/weight  %.3f\n", show_num(r, "bpw"));
    json_array_foreach(json_object_get(r, "outputs"), i, out)
    {
        show_bytes(show_num(out, "bytes"), after, sizeof after);
        printf("size         %s -> %s\n", before, after);
        printf("written      %s (%s)\n", show_str(out, "path"), show_str(out, "format"));
        show_loads(json_object_get(out, "loads"), stdout);
    }
    printf("peak memory  %s (planned %s)\ntime         %s: forward %.1f s, statistics %.1f s, solving %.1f s\n", memory, planned,
           time, show_num(r, "seconds_forward"), show_num(r, "seconds_stats"), show_num(r, "seconds_solve"));
    if (profile)
        print_profile(r);
    return show_flush();
}

/* What the result's JSON has from the plan and the command line. */
static void add_plan(json_t *r, const struct args *a, const json_t *plan, double start)
{
    static const char *const keys[][2] = { { "source_bytes", "source_bytes" }, { "peak_bytes", "planned_peak_bytes" },
                                           { "memory", "planned_memory" }, { "parameters", "parameters" },
                                           { "kept_bytes", "kept_bytes" } };
    show_common(r, start);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(r, keys[i][1], json_object_get(plan, keys[i][0]));
    json_t *command = json_string(a->x.command);
    json_object_set_new(r, "command", command ? command : json_string("d2q quantize (its arguments are not UTF-8)"));
}

static int write_report(const char *path, const json_t *r)
{
    d2q_error e;
    char *text = json_dumps(r, JSON_COMPACT);
    d2q_report_run run = { "this run", text };
    int rc = text ? d2q_report(&run, 1, path, &e) : 0;
    free(text);
    return rc ? show_error(&e) : 0;
}

static int work(struct args *a, d2q_model *m, json_t *plan, double start)
{
    struct progress p;
    char *text = NULL;
    d2q_error e;
    progress_init(&p, a->c.quiet);
    a->q.log = a->x.log = progress_log;
    a->q.log_ud = a->x.log_ud = &p;
    guard_hint(a->q.work);
    int rc = d2q_quantize(m, &a->q, &text, &e);
    json_t *r = rc ? NULL : show_parse(text);
    if (!rc && !r)
        return EXIT_FAILED;
    rc = rc || export_all(m, a, r, &e);
    progress_clear(&p);
    if (rc) {
        struct stat st;
        json_decref(r);
        rc = show_error(&e);
        if (a->q.work && e.code != D2Q_ERR_USAGE && !stat(a->q.work, &st) && S_ISDIR(st.st_mode))
            fprintf(stderr, "d2q: the work so far is kept in %s: the same command goes on\n", a->q.work);
        return rc;
    }
    if (a->q.work && d2q_work_remove(a->q.work, &e)) /* the output is written */
        show_error(&e);
    add_plan(r, a, plan, start);
    int reported = a->report ? write_report(a->report, r) : 0;
    if (a->c.json) {
        rc = show_json(r);
        return reported ? reported : rc;
    }
    rc = print_result(r, plan, a->profile);
    if (a->report && !reported)
        printf("report       %s\n", a->report);
    json_decref(r);
    return reported ? reported : rc;
}

int cmd_quantize(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    d2q_error e;
    double start = clock_now();
    d2q_quantize_options_init(&a.q);
    a.group = a.q.group;
    a.bits = a.q.bits;
    a.q.group = a.q.bits = UNSET;
    a.q.grid = NULL;
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0 || (rc = check_args(spec, &a)) >= 0 || (rc = opt_out_file(spec, "report", a.report)) >= 0)
        return rc;
    interrupt_catch();
    d2q_model *m = d2q_open(a.c.model, &e);
    if (!m)
        return show_error(&e);
    char *command = show_command(spec->command, argc, argv);
    a.x.command = command;
    rc = choose_types(spec, m, &a);
    json_t *plan = rc ? NULL : make_plan(m, &a, &rc);
    if (plan && a.dry_run) {
        show_common(plan, start);
        rc = a.c.json ? show_json(json_incref(plan)) : print_plan(plan, &a);
    } else if (plan) {
        if (!a.c.quiet)
            plan_line(plan, &a, stderr);
        rc = work(&a, m, plan, start);
    }
    json_decref(plan);
    json_decref(a.mix);
    free(a.mix_keep);
    free(command);
    d2q_close(m);
    return rc;
}
