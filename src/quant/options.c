/* options: the defaults of each method and recipe, in one place. What they were measured to give: doc/results.md. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "quant/quant.h"

const struct method_info method_table[METHOD_COUNT] = {
#define METHOD(name, needs, help) { #name, needs, help },
#include "quant/methods.def"
#undef METHOD
};

int quant_options_init(struct quant_options *o, const char *method, const char *recipe, struct err *e)
{
    int id = 0;
    while (id < METHOD_COUNT && strcmp(method_table[id].name, method))
        id++;
    if (id == METHOD_COUNT)
        return err_set(e, ERR_USAGE, "unknown method '%s'", method);
    bool paper = !strcmp(recipe, "paper");
    if (!paper && strcmp(recipe, "default"))
        return err_set(e, ERR_USAGE, "unknown recipe '%s' (expected default or paper)", recipe);
    if (paper && id != METHOD_d2quant)
        return err_set(e, ERR_USAGE, "recipe paper belongs to method d2quant, found method %s", method);
    *o = (struct quant_options){
        .method = (enum method)id, .grid = GRID_asym, .bits = 2, .group = 128,
        .prop_damp = 0.05, .tune_lr = 1e-3, .order = ORDER_NONE, .search = SEARCH_HESSIAN, .damp = 0.01,
        .sinks = SINKS_CLIP, .on_failure = FAILURE_STOP, .kept = DT_F16,
    };
    if (id == METHOD_gptaq)
        o->alpha = 0.25; /* the authors' */
    if (id == METHOD_rtn)
        o->search = SEARCH_MSE;
    if (id != METHOD_d2quant)
        return 0;
    o->dsq = true;
    o->shrink = paper ? 0 : 2;
    o->dac = paper ? DAC_FLOAT : DAC_OFF; /* measured neutral beside propagated error, and few formats carry it */
    o->dac_accept = !paper;
    o->dsq_init = paper ? DSQ_ONES : DSQ_ACTIVATION;
    o->dsq_rounds = paper ? 5 : 2;
    o->dsq_weighted = !paper;
    if (!paper) {
        o->alpha = o->beta = 0.5;
        o->sweeps = 1;
    }
    return 0;
}

bool quant_float_path(const struct quant_options *o)
{
    return o->alpha > 0 || o->beta > 0 || o->dac != DAC_OFF || o->tune > 0;
}

static int check_grid(const struct quant_options *o, enum grid_id grid, struct err *e)
{
    if (grid_table[grid].type == DT_QMAT && (o->bits < 2 || o->bits > 4))
        return err_set(e, ERR_USAGE, "bits: expected 2, 3 or 4, found %d", o->bits);
    if (grid == GRID_portable && (o->bits > 3 || o->group <= 0 || o->group % 16 || (o->group < 256 ? 256 % o->group : o->group % 256)))
        return err_set(e, ERR_USAGE, "grid portable: expected 2 or 3 bits and a group of 16, 32, 64, 128 or a multiple of 256, "
                       "found %d bits and group %d", o->bits, o->group);
    return 0;
}

int quant_options_check(const struct quant_options *o, struct err *e)
{
    if (check_grid(o, o->grid, e))
        return -1;
    for (int i = 0; i < o->n_keep; i++)
        if (check_grid(o, o->keep[i].grid, e))
            return err_prefix(e, "keep %s", o->keep[i].pattern);
    if (o->zero_min < 0 || o->zero_min > 1)
        return err_set(e, ERR_USAGE, "zero_min: expected 0 or 1, found %d", o->zero_min);
    if (o->damp < 0 || o->damp > 1 || o->prop_damp < 0)
        return err_set(e, ERR_USAGE, "damp: expected a share between 0 and 1, found %g", o->damp);
    if (!(o->shrink >= 0 && o->shrink <= 1000))
        return err_set(e, ERR_USAGE, "shrink: expected a number between 0 and 1000, found %g", o->shrink);
    if (!(o->alpha >= 0 && o->alpha <= 2 && o->beta >= 0 && o->beta <= 2))
        return err_set(e, ERR_USAGE, "propagate: expected two numbers between 0 and 2, found %g,%g",
                       o->alpha, o->beta);
    if (o->tune < 0 || (o->tune && !method_table[o->method].needs_calib))
        return err_set(e, ERR_USAGE, "tune: expected a number of passes, and a method that has calibration text");
    if (!(o->tune_lr > 0 && o->tune_lr <= 0.1))
        return err_set(e, ERR_USAGE, "tune-lr: expected a number above 0, at most 0.1, found %g", o->tune_lr);
    if (o->kept != DT_F16 && o->kept != DT_F32)
        return err_set(e, ERR_USAGE, "kept tensors: expected f16 or f32");
    if (!method_table[o->method].needs_calib && (o->alpha > 0 || o->beta > 0 || o->sweeps || o->shrink > 0 || o->order == ORDER_ACT))
        return err_set(e, ERR_USAGE, "method %s has no calibration text: propagate, sweeps, shrink and order act are of methods that have",
                       method_table[o->method].name);
    if (o->method == METHOD_gptaq && (o->sweeps || o->beta > 0))
        return err_set(e, ERR_USAGE, "method gptaq: its term is part of the solve, which sweeps would undo, and has one share: expected no sweeps "
                       "and propagate A,0");
    if (o->method != METHOD_d2quant && (o->dsq || o->dsq_norms || o->dsq_o || o->dac != DAC_OFF))
        return err_set(e, ERR_USAGE, "dsq and dac belong to method d2quant");
    if (o->dac == DAC_BLOCK && (o->alpha > 0 || o->beta > 0 || o->tune))
        return err_set(e, ERR_USAGE, "dac-target block: DAC alone, without the float path: expected propagate off and no tuning");
    return 0;
}

/* name: without the ".weight" that plans, results and files have behind it. */
static bool keep_matches(const struct quant_keep *k, const char *name)
{
    char whole[128];
    snprintf(whole, sizeof whole, "%s.weight", name);
    return !fnmatch(k->pattern, name, 0) || !fnmatch(k->pattern, whole, 0);
}

static const struct quant_keep *keep_of(const struct quant_options *o, const char *name)
{
    const struct quant_keep *found = NULL;
    for (int i = 0; i < o->n_keep; i++)
        if (keep_matches(&o->keep[i], name))
            found = &o->keep[i];
    return found;
}

int quant_keep_check(const struct quant_options *o, int64_t n_layer, struct err *e)
{
    for (int i = 0; i < o->n_keep; i++) {
        const struct quant_keep *k = &o->keep[i];
        bool found = keep_matches(k, "model.embed_tokens") || keep_matches(k, "lm_head");
        for (int64_t j = 0; j < n_layer * ROLE_COUNT && !found; j++) {
            char name[96];
            matrix_name(name, sizeof name, j, "");
            found = keep_matches(k, name);
        }
        if (!found)
            return err_set(e, ERR_USAGE, "keep %s: no matrix of this model has such a name (expected model.layers.0.%s .. %lld.%s, "
                           "model.embed_tokens, lm_head, or a pattern)", k->pattern, role_hf_name[0], (long long)n_layer - 1,
                           role_hf_name[ROLE_COUNT - 1]);
    }
    return 0;
}

void quant_grid(const struct quant_options *o, int64_t layer, enum role role, int64_t n_in, struct grid *g)
{
    char name[96];
    matrix_name(name, sizeof name, layer * ROLE_COUNT + (int)role, "");
    const struct quant_keep *k = keep_of(o, name);
    grid_init(g, k ? k->grid : o->grid, o->bits, o->group, o->zero_min, n_in);
}

int quant_keep_add(struct quant_options *o, const char *text, struct err *e)
{
    struct quant_keep *k = &o->keep[o->n_keep];
    const char *eq = strrchr(text, '=');
    if (o->n_keep == QUANT_KEEP_MAX)
        return err_set(e, ERR_USAGE, "keep: at most %d patterns", QUANT_KEEP_MAX);
    if (!eq || eq == text || (size_t)(eq - text) >= sizeof k->pattern)
        return err_set(e, ERR_USAGE, "keep: expected PATTERN=TYPE, found '%s'", text);
    memcpy(k->pattern, text, (size_t)(eq - text));
    k->pattern[eq - text] = '\0';
    k->grid = grid_by_name(eq + 1);
    if (k->grid == GRID_COUNT)
        return err_set(e, ERR_USAGE, "keep: unknown type '%s' in '%s'", eq + 1, text);
    o->n_keep++;
    return 0;
}

bool quant_grid_kept(const struct quant_options *o, const char *name, int64_t n_in, struct grid *g)
{
    const struct quant_keep *k = keep_of(o, name);
    if (k)
        grid_init(g, k->grid, o->bits, o->group, o->zero_min, n_in);
    return k != NULL;
}
