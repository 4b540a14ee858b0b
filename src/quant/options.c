/* options: the defaults of each method and recipe, in one place. What they were measured to give: doc/results.md. */
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
    *o = (struct quant_options){
        .method = (enum method)id, .bits = 2, .group = 128, .sym = false,
        .prop_damp = 0.05, .order = ORDER_NONE, .search = SEARCH_HESSIAN, .damp = 0.01,
        .sinks = SINKS_CLIP, .on_failure = FAILURE_STOP, .kept = DT_F16,
    };
    if (id == METHOD_rtn)
        o->search = SEARCH_MSE;
    if (id != METHOD_d2quant)
        return 0;
    o->dsq = true;
    o->dac = paper; /* measured neutral beside propagated error, and few formats carry it */
    o->dac_accept = !paper;
    o->dsq_init = paper ? DSQ_ONES : DSQ_ACTIVATION;
    o->dsq_rounds = paper ? 5 : 2;
    if (!paper) {
        o->alpha = o->beta = 0.5;
        o->sweeps = 1;
    }
    return 0;
}

int quant_options_check(const struct quant_options *o, struct err *e)
{
    if (o->bits < 2 || o->bits > 4)
        return err_set(e, ERR_USAGE, "bits: expected 2, 3 or 4, found %d", o->bits);
    if (o->zero_min < 0 || o->zero_min > 1)
        return err_set(e, ERR_USAGE, "zero_min: expected 0 or 1, found %d", o->zero_min);
    if (o->damp < 0 || o->damp > 1 || o->prop_damp < 0)
        return err_set(e, ERR_USAGE, "damp: expected a share between 0 and 1, found %g", o->damp);
    if (!(o->alpha >= 0 && o->alpha <= 2 && o->beta >= 0 && o->beta <= 2))
        return err_set(e, ERR_USAGE, "propagate: expected two numbers between 0 and 2, found %g,%g",
                       o->alpha, o->beta);
    if (o->kept != DT_F16 && o->kept != DT_F32)
        return err_set(e, ERR_USAGE, "kept tensors: expected f16 or f32");
    if (o->method != METHOD_d2quant && (o->dsq || o->dac))
        return err_set(e, ERR_USAGE, "dsq and dac belong to method d2quant");
    return 0;
}
