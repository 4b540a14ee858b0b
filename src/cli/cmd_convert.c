/* d2q convert: a model as it is, in another format; nothing is rounded, what the format does not hold is refused. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cmd.h"
#include "cli/progress.h"
#include "cli/show.h"

struct args {
    struct common c;
    const char *out, *format;
    d2q_export_options x;
};

#define AT(member) offsetof(struct args, member)
const struct opt cmd_convert_opts[] = {
    { "out", 'o', OPT_STR, AT(out), "OUT", NULL, 0, 0, "folder, or .gguf file, to write", NULL },
    { "format", 0, OPT_STR, AT(format), NULL, "@formats", 0, 0, "what to write", "gptq, or gguf when OUT ends in .gguf" },
    { "drop-corrections", 0, OPT_FLAG, AT(x.drop_corrections), NULL, NULL, 0, 0,
      "leave out what the format cannot carry, with a warning", NULL },
    { "as-llama", 0, OPT_FLAG, AT(x.as_llama), NULL, NULL, 0, 0, "write Mistral, Qwen2 as Llama, which carries DAC", NULL },
    { "shard-size", 0, OPT_SIZE, AT(x.shard_bytes), "SIZE", NULL, 0, 0, "largest weight file (4GB, 500MiB)", "5GB for folders, one GGUF file" },
    { 0 },
};

static int print(const json_t *r)
{
    char size[24];
    show_bytes(show_num(r, "bytes"), size, sizeof size);
    printf("written      %s (%s), %s\n", show_str(r, "path"), show_str(r, "format"), size);
    show_loads(json_object_get(r, "loads"), stdout);
    return show_flush();
}

int cmd_convert(const struct opt_spec *spec, int argc, char **argv)
{
    struct args a = { 0 };
    struct progress p;
    d2q_error e;
    char *text = NULL;
    double start = clock_now();
    int rc = opt_parse(spec, argc, argv, &a);
    if (rc >= 0)
        return rc;
    if (!a.out)
        return opt_usage(spec->command, "-o OUT is missing");
    size_t n = strlen(a.out);
    bool gguf = n >= 5 && !strcmp(a.out + n - 5, ".gguf");
    if (!a.format)
        a.format = gguf ? "gguf" : "gptq";
    if (gguf && strcmp(a.format, "gguf"))
        return opt_usage(spec->command, "-o %s names one GGUF file, --format %s is a folder", a.out, a.format);
    interrupt_catch();
    progress_init(&p, a.c.quiet);
    a.x.log = progress_log;
    a.x.log_ud = &p;
    char *command = show_command(spec->command, argc, argv);
    a.x.command = command;
    d2q_model *m = d2q_open(a.c.model, &e);
    rc = !m || d2q_export(m, a.format, a.out, &a.x, &text, &e);
    progress_clear(&p);
    d2q_close(m);
    free(command);
    if (rc)
        return show_error(&e);
    return show_result(show_parse(text), start, a.c.json, print);
}
