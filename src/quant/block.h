/* block: one block of the model on its way through the pipeline. Internal to quant. */
#ifndef D2Q_QUANT_BLOCK_H
#define D2Q_QUANT_BLOCK_H

#include "quant/boa.h"
#include "quant/correct.h"
#include "quant/rotate.h"

/* The whole run. Hidden states are those at the input of the current block. */
struct run {
    struct model *m;
    const struct quant_options *o;
    const struct calib *calib;
    const struct log *log;
    quant_tensor_fn on_tensor;
    void *ud;
    struct quant_result *res;
    bool use_float;      /* the float path is needed: propagated error, DAC */
    int64_t n_tok, longest; /* calibration tokens, longest sequence */
    struct tensor embd, float_head; /* the float model's, whatever becomes of its own */
    const float *float_norm;
    float *hq, *hf;      /* (n_tok, n_embd) */
    float *mid;          /* (n_tok, n_head*head_dim): quantized path's input of o */
    int64_t n_fit;       /* sequences before it fit matrices; the rest are left to judge by */
    struct fwd fq, ff;   /* one sequence */
    struct rotator rot;  /* with o->rotate */
    struct arena arena;
};

/* The current block. */
struct block {
    struct run *run;
    int64_t index;
    struct layer ff;     /* float32 weights */
    struct layer *fq;    /* the model's own layer: quantized so far */
    struct arena arena;  /* float32 copies */
    struct quant_block *out;
    const float *norm_scale; /* (n_embd) what DSQ multiplied the gains of the current stage's norm by, or NULL */
    struct boa *boa;     /* of q, k, v; NULL: another method, or not yet gathered */
    bool v_quantized, up_quantized; /* it has fp16 factors that can absorb DSQ's scales */
    bool v_scaled;       /* it did: what o sees is to be computed again */
};

/* Quantizes lin[first .. first+n) of the block, which see the same input described by st (finished here; NULL: nothing is known of it).
 * What fails numerically falls back by the user's rule, or stops the run. */
int block_solve(struct block *b, enum role first, int n, struct stats *st, struct err *e);
/* Are matrices aimed at the float path's outputs? */
bool block_propagates(const struct run *r);
/* A copy of v (n) rounded as the output stores it, in the model's arena; NULL: out of memory. */
const float *block_keep_vector(struct run *r, const float *v, int64_t n);
/* DAC: mu (n_embd) from the sums of st, its share fitted on the held-out sequences; shifts st. Returns 1 when mu is
 * to be used, 0 when refused. */
int block_dac(struct block *b, const double *mean_diff, float *mu, struct err *e);
/* bias of gate and up: b = W_q mu (+ the family's own). */
int block_dac_bias(struct block *b, const float *mu, struct err *e);

/* First held-out sequence: the last eighth, at least one; n itself when there is only one. */
int64_t held_out(const struct calib *c);

#endif
