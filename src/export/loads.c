#include "export/loads.h"

#include <stdio.h>
#include <string.h>

/* What decides: gathered over the seven matrices of all blocks. */
struct traits {
    int bits_min, bits_max;
    bool any, three, asym, act_order, ragged; /* three: 3 bits somewhere; ragged: a group does not divide the width */
    bool odd_groups;                   /* one that GPTQModel's kernels do not list */
    bool marlin_shape;                 /* n_out % 64, n_in % 128, group of 32, 64, 128 or a row */
    bool small_groups;                 /* below 32 */
    bool mixed;                        /* not all quantized matrices have one grid */
    bool whole_rows;                   /* groups that take a row */
    bool v1;                           /* format gptq_v1 */
    bool unlike;                       /* q,k,v or gate,up of a block, which vLLM makes one matrix of, differ in their grids */
    bool no_tokenizer;
    bool types[DT_COUNT];              /* of the matrices in a GGUF file */
    const char *family;
};

static void add_grid(struct traits *t, const struct pack_grid *g, int64_t n_out)
{
    static const int64_t listed[] = { 16, 32, 64, 128, 256, 512, 1024 };
    bool known = g->group >= g->n_in, marlin = known;
    for (size_t i = 0; i < sizeof listed / sizeof *listed; i++)
        known |= g->group == listed[i];
    marlin |= g->group == 32 || g->group == 64 || g->group == 128;
    t->bits_min = !t->any || g->bits < t->bits_min ? g->bits : t->bits_min;
    t->bits_max = g->bits > t->bits_max ? g->bits : t->bits_max;
    t->three |= g->bits == 3;
    t->asym |= g->zmin != g->zmax;
    t->ragged |= g->group < g->n_in && g->n_in % g->group;
    t->odd_groups |= !known;
    t->whole_rows |= g->group >= g->n_in;
    t->small_groups |= g->group < 32 && g->group < g->n_in;
    t->marlin_shape &= marlin && n_out % 64 == 0 && g->n_in % 128 == 0;
    t->any = true;
}

/* What matrix i will be, or is; g: of grouped integers. */
static enum dtype matrix_grid(const struct model *m, const struct export_plan *p, int64_t i, struct pack_grid *g)
{
    const struct tensor *w = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
    enum dtype type = p && p->lin ? p->lin[i].type : w->type;
    if (type == DT_QMAT)
        *g = p && p->lin ? p->lin[i].grid : pack_grid_of(w->q);
    return type;
}

static bool same_grid(const struct pack_grid *a, const struct pack_grid *b)
{
    bool rows = a->group >= a->n_in && b->group >= b->n_in;
    return a->bits == b->bits && (rows || a->group == b->group) && (a->zmin == a->zmax) == (b->zmin == b->zmax);
}

static bool alike(const struct model *m, const struct export_plan *p, int64_t i, int64_t j)
{
    struct pack_grid a, b;
    enum dtype type = matrix_grid(m, p, i, &a);
    return matrix_grid(m, p, j, &b) == type && (type != DT_QMAT || same_grid(&a, &b));
}

static struct traits survey(const struct model *m, const struct export_options *o, const struct export_plan *p)
{
    struct traits t = { .marlin_shape = true, .family = o->as_llama ? "llama" : m->hp.family, .no_tokenizer = !m->tok };
    struct pack_grid first = { 0 };
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i++) {
        const struct tensor *w = &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w;
        struct pack_grid g;
        enum dtype type = matrix_grid(m, p, i, &g);
        if (type == DT_QMAT) {
            first = t.any ? first : g;
            t.mixed |= !same_grid(&first, &g);
            add_grid(&t, &g, w->dim[0]);
            t.act_order |= !(p && p->lin) && w->q->g_idx;
            type = pack_type(&g);
        }
        if (type < DT_COUNT)
            t.types[type] = true;
    }
    for (int64_t i = 0; i < m->hp.n_layer * ROLE_COUNT; i += ROLE_COUNT)
        t.unlike |= !alike(m, p, i + ROLE_Q, i + ROLE_K) || !alike(m, p, i + ROLE_Q, i + ROLE_V) || !alike(m, p, i + ROLE_GATE, i + ROLE_UP);
    return t;
}

/* ---- conditions: true when it loads; text: why not, or what to know ------------------ */

static bool check_any(const struct traits *t, char *text, size_t n)
{
    (void)t;
    snprintf(text, n, "%s", "");
    return true;
}

static const char fused[] = "q, k, v and gate, up of a block must have the same bits and groups: it makes one matrix of them";

static bool check_vllm_gptq(const struct traits *t, char *text, size_t n)
{
    snprintf(text, n, "%s", t->unlike ? fused : "");
    return !*text;
}

static bool check_gguf(const struct traits *t, char *text, size_t n)
{
    const char *since = "any since 2023";
    if (t->no_tokenizer) {
        snprintf(text, n, "%s", "there is no tokenizer to put into the file");
        return false;
    }
    if (!strcmp(t->family, "qwen3"))
        since = "since April 2025 (qwen3)";
    if (t->types[DT_TQ2_0])
        since = !strcmp(t->family, "qwen3") ? since : "since September 2024 (tq2_0)";
    if (t->types[DT_Q2_0])
        since = "since July 2026 (q2_0, PR 24448); on x86 CPUs q2_0 has no SIMD kernel and is slow";
    snprintf(text, n, "%s", since);
    return true;
}

/* optimum makes every matrix of one grid, or of those named in modules_in_block_to_quantize; "dynamic" is read by GPTQModel alone. */
static bool check_gptqmodel(const struct traits *t, char *text, size_t n)
{
    if (t->mixed) {
        snprintf(text, n, "one grid for all quantized matrices; GPTQModel.load takes mixtures");
        return false;
    }
    if (t->odd_groups)
        snprintf(text, n, "its kernels take groups of 16, 32, 64, 128, 256, 512, 1024 or a whole row");
    else if (t->v1 && t->asym)
        snprintf(text, n, "by transformers alone: GPTQModel.load refuses zero points in v1 (format gptq has them)");
    else if (t->ragged)
        snprintf(text, n, "the group does not divide every width: its last group is short, which not every kernel takes");
    return !t->odd_groups;
}

static bool check_vllm_marlin(const struct traits *t, char *text, size_t n)
{
    bool bits = t->bits_min == t->bits_max && (t->bits_min == 4 || t->bits_min == 8);
    snprintf(text, n, "%s", !bits          ? "4 or 8 bits only"
                            : t->asym      ? "symmetric only"
                            : t->unlike    ? fused
                            : !t->marlin_shape ? "outputs must be multiples of 64, inputs of 128, groups 32, 64, 128 or a row"
                                               : "");
    return !*text;
}

static bool check_vllm_humming(const struct traits *t, char *text, size_t n)
{
    snprintf(text, n, "%s", t->act_order      ? "no activation order"
                            : t->ragged       ? "groups must divide the widths"
                            : t->small_groups ? "groups of 32 or more"
                            : t->whole_rows   ? "groups, not whole rows"
                            : t->v1 && t->asym ? "it takes v1's zero points for v2's: format gptq"
                            : t->unlike       ? fused : "");
    return !*text;
}

/* Up to 0.17.1 the package put ten 3-bit codes into a word, since then (PR 732) 32 codes into three. */
static bool check_ct_transformers(const struct traits *t, char *text, size_t n)
{
    snprintf(text, n, "%s", t->asym ? "version 0.20 does not load packed zero points: symmetric only"
                            : t->ragged ? "groups must divide the widths"
                            : t->three ? "3 bits: compressed-tensors 0.18 or later" : "");
    return !t->asym && !t->ragged;
}

static bool check_ct_vllm(const struct traits *t, char *text, size_t n)
{
    bool zeros = t->asym && t->bits_min != 4 && t->bits_min != 8;
    snprintf(text, n, "%s", zeros ? "zero points at 4 and 8 bits only" : t->ragged ? "groups must divide the widths" : t->unlike ? fused : "");
    return !*text;
}

static bool check_four_or_eight(const struct traits *t, char *text, size_t n)
{
    bool ok = t->bits_min == t->bits_max && (t->bits_min == 4 || t->bits_min == 8);
    snprintf(text, n, "%s", ok ? "" : "4 or 8 bits only");
    return ok;
}

static const struct row {
    const char *format, *runtime;
    bool (*check)(const struct traits *t, char *text, size_t n);
    const char *how, *source;
    bool run;
} rows[] = {
#define LOADS(format, runtime, check, how, source, run) { #format, runtime, check_##check, how, source, run },
#include "export/loads.def"
#undef LOADS
};

json_t *loads_list(const struct model *m, const char *format, const struct export_options *o, const struct export_plan *plan)
{
    static const struct export_options defaults;
    struct traits t = survey(m, o ? o : &defaults, plan);
    json_t *list = json_array();
    t.v1 = !strcmp(format, "gptq_v1");
    const char *key = t.v1 ? "gptq" : format;
    for (size_t i = 0; list && i < sizeof rows / sizeof *rows; i++) {
        char text[256] = "";
        if (strcmp(rows[i].format, key))
            continue;
        bool ok = rows[i].check(&t, text, sizeof text);
        json_array_append_new(list, json_pack("{sssbsssssssb}", "runtime", rows[i].runtime, "loads", (int)ok, "condition", text, "how",
                                              rows[i].how, "source", rows[i].source, "run_here", (int)rows[i].run));
    }
    return list;
}
