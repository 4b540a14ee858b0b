/* plan: what a run will take, from shapes alone. The terms are those of pipeline.c; a change there belongs here too. */
#include <string.h>

#include "quant/tune.h"

static double matrix_bytes(const struct quant_options *o, int64_t layer, enum role role, const struct tensor *w)
{
    struct grid g;
    quant_grid(o, layer, role, w->dim[1], &g);
    return grid_row_bits(&g, w->dim[1]) / 8 * (double)w->dim[0];
}

/* Of embeddings (i = 0) or head, where they were asked to have a type of their own. */
static bool asked(const struct model *m, const struct quant_options *o, int i, uint64_t *bytes)
{
    struct grid g;
    int64_t d = m->hp.n_embd;
    bool one = m->hp.tied && !o->rotate; /* then the head's name goes first (round_embeddings) */
    bool found = (one && quant_grid_kept(o, "lm_head", d, &g)) || quant_grid_kept(o, i ? "lm_head" : "model.embed_tokens", d, &g);
    if (found)
        *bytes = (uint64_t)(grid_row_bits(&g, d) / 8 * (double)m->hp.n_vocab);
    return found;
}

/* Embeddings, and the head where it is a matrix of its own. *copies: of them, what the run makes anew; the rest stays a view of the source. */
static uint64_t table_bytes(const struct model *m, const struct quant_options *o, uint64_t *copies)
{
    uint64_t width = o->kept == DT_F16 ? 2 : 4, sum = 0;
    int n = m->hp.tied && !o->rotate ? 1 : 2; /* a rotated head is no longer the embedding */
    for (int i = 0; i < n; i++) {
        const struct tensor *t = i ? &m->lm_head : &m->tok_embd;
        uint64_t bytes = (uint64_t)tensor_count(t) * width;
        bool copy = o->rotate || (o->kept == DT_F16 && t->type != DT_F16) || (o->kept_packed && t->type == DT_F32);
        if (asked(m, o, i, &bytes))
            copy = true;
        else if (o->kept_packed) /* at their own width, or F16 */
            bytes = copy ? 2 * (uint64_t)tensor_count(t) : t->size;
        sum += bytes;
        *copies += copy ? bytes : 0;
    }
    return sum;
}

static uint64_t vector_bytes(const struct model *m, const struct quant_options *o)
{
    const struct hparams *hp = &m->hp;
    uint64_t n = (uint64_t)hp->n_embd;
    for (int64_t i = 0; i < hp->n_layer; i++) {
        n += 2 * (uint64_t)hp->n_embd + (hp->qk_norm ? 2 * (uint64_t)hp->head_dim : 0);
        for (int r = 0; r < ROLE_COUNT; r++)
            n += m->layers[i].lin[r].b || (o->dac != DAC_OFF && (r == ROLE_GATE || r == ROLE_UP)) ? (uint64_t)m->layers[i].lin[r].w.dim[0] : 0;
    }
    return n * (o->kept == DT_F16 ? 2 : 4);
}

/* A stage's input, widest output and matrices. Those of one matrix write to the residual stream. */
struct stage_shape {
    int64_t d, n_out, matrices;
};

static const int n_shapes = 3;

static struct stage_shape stage_shape(const struct hparams *hp, int i)
{
    const struct stage_shape all[] = { { hp->n_embd, hp->n_ff, 2 }, { hp->n_head * hp->head_dim, hp->n_embd, 1 }, { hp->n_ff, hp->n_embd, 1 } };
    return all[i];
}

static uint64_t shape_stats_bytes(const struct quant_options *o, bool with_float, const struct stage_shape *s)
{
    return stats_bytes(s->d, !with_float ? PATH_NONE : s->matrices > 1 || o->method == METHOD_gptaq ? PATH_D : PATH_T, s->n_out);
}

/* The largest of the stages: first the statistics with the Cholesky factor of H in double, then H alone with the solver's factor in
 * double and in float; the targets of all its matrices and scratch of one. */
static uint64_t stage_bytes(const struct model *m, const struct quant_options *o, bool with_float)
{
    uint64_t worst = 0;
    for (int i = 0; i < n_shapes; i++) {
        struct stage_shape s = stage_shape(&m->hp, i);
        uint64_t dd = (uint64_t)(s.d * s.d);
        uint64_t aiming = with_float ? shape_stats_bytes(o, true, &s) + dd * 8 : 0;
        uint64_t solving = dd * (o->method == METHOD_gptaq ? 20 : 16); /* D, the factor and three of the like for its term */
        uint64_t bytes = (aiming > solving ? aiming : solving) + (uint64_t)(s.n_out * s.d * (with_float ? s.matrices + 1 : 2)) * 4;
        if (o->method == METHOD_boa && i == 0) /* H_col of each head of v, and a copy */
            bytes += (uint64_t)(m->hp.n_head_kv + 1) * dd * 4;
        if (o->dsq_norms && s.matrices > 1) /* DSQ's values of all of them */
            bytes += (uint64_t)(s.n_out * s.d * s.matrices) * 4;
        if (bytes > worst)
            worst = bytes;
    }
    return worst;
}

/* What statistics take while they are gathered. */
static uint64_t gathered_bytes(const struct model *m, const struct quant_options *o, bool with_float)
{
    uint64_t worst = 0;
    for (int i = 0; i < n_shapes; i++) {
        struct stage_shape s = stage_shape(&m->hp, i);
        uint64_t bytes = shape_stats_bytes(o, with_float, &s);
        worst = bytes > worst ? bytes : worst;
    }
    return worst;
}

/* The largest block as it is stored. */
static uint64_t source_block_bytes(const struct model *m)
{
    uint64_t worst = 0;
    for (int64_t i = 0; i < m->hp.n_layer; i++) {
        uint64_t sum = 0;
        for (int r = 0; r < ROLE_COUNT; r++)
            sum += m->layers[i].lin[r].w.size;
        worst = sum > worst ? sum : worst;
    }
    return worst;
}

void quant_plan(const struct model *m, const struct quant_options *o, int64_t calib_tokens,
                int64_t longest_sequence, struct quant_plan *p)
{
    const struct hparams *hp = &m->hp;
    bool with_float = quant_float_path(o);
    uint64_t weights = 0;
    memset(p, 0, sizeof *p);
    for (int64_t i = 0; i < hp->n_layer; i++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            const struct tensor *w = &m->layers[i].lin[r].w;
            double n = (double)w->dim[0] * (double)w->dim[1];
            p->quantized_bytes += (uint64_t)matrix_bytes(o, i, (enum role)r, w);
            weights += (uint64_t)n;
            p->flops += n * 2 * (double)calib_tokens * (with_float ? 2 : 1) + n * 6 * (double)w->dim[1];
        }
    p->bpw = (double)p->quantized_bytes * 8 / (double)weights;
    uint64_t copies = 0;
    p->vector_bytes = vector_bytes(m, o);
    p->kept_bytes = p->vector_bytes + table_bytes(m, o, &copies);
    p->output_bytes = p->quantized_bytes + p->kept_bytes;
    uint64_t block = weights / (uint64_t)(hp->n_layer ? hp->n_layer : 1) * 4;
    p->memory[MEM_SOURCE] = o->tune > 0 ? m->ck->data_bytes : source_block_bytes(m);
    p->memory[MEM_QUANTIZED] = o->spill ? p->quantized_bytes / (uint64_t)(hp->n_layer ? hp->n_layer : 1) : p->quantized_bytes;
    p->memory[MEM_BLOCK] = block;
    p->memory[MEM_KEPT] = p->vector_bytes + (o->spill ? 0 : copies);
    if (method_table[o->method].needs_calib) {
        uint64_t states = (uint64_t)calib_tokens * (uint64_t)(hp->n_embd * (with_float ? 2 : 1) + hp->n_head * hp->head_dim) * 4;
        uint64_t solving = stage_bytes(m, o, with_float), passing = gathered_bytes(m, o, with_float) + states;
        p->states_bytes = states;
        p->memory[MEM_STATES] = !o->spill ? states : passing > solving ? passing - solving : 0; /* gone while a stage is solved */
        p->memory[MEM_FORWARD] = fwd_bytes(hp, longest_sequence) * (with_float ? 2 : 1);
        /* weighted copies of one sequence's inputs are there while statistics are added to */
        p->memory[MEM_STAGE] = solving + (uint64_t)(longest_sequence * hp->n_ff * (with_float ? 2 : 1)) * 4;
        p->memory[MEM_TUNE] = o->tune > 0 ? tune_bytes(m, o, longest_sequence) : 0;
    }
    for (int i = 0; i < MEM_COUNT; i++)
        p->peak_bytes += p->memory[i];
    /* a pass forward twice and backward twice, and the head three times */
    p->flops += o->tune * (double)calib_tokens * 2 * (4 * (double)weights + 3 * (double)tensor_count(&m->lm_head));
}
