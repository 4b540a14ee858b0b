/* quant: weights below 4 bits, block by block.
 *
 * Two copies of the calibration text flow through the model: one through the
 * float weights, one through what is quantized so far. Inside a block the order is
 * q,k,v, then o, then gate,up, then down; each matrix is fitted to the inputs
 * that it will really see (the quantized path's), and, with propagated error, aimed at the
 * float path's outputs. design.md 5 states the method.
 *
 * quantize_model works in place: it replaces the type and data of the seven matrices
 * of every block (struct qmat in the model's arena) and adds biases where
 * DAC does; the result runs, evaluates and exports like any model. */
#ifndef D2Q_QUANT_QUANT_H
#define D2Q_QUANT_QUANT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "model/model.h"
#include "quant/grid.h"

/* Rows of methods.def; the id is METHOD_<name>. */
enum method {
#define METHOD(name, needs_calib, help) METHOD_##name,
#include "quant/methods.def"
#undef METHOD
    METHOD_COUNT,
};

struct method_info {
    const char *name;
    bool needs_calib;
    const char *help; /* one line */
};
extern const struct method_info method_table[METHOD_COUNT];

enum quant_order { ORDER_NONE, ORDER_ACT };
enum quant_search { SEARCH_MINMAX, SEARCH_MSE, SEARCH_HESSIAN };
enum quant_sinks { SINKS_KEEP, SINKS_SKIP, SINKS_CLIP };
enum quant_failure { FAILURE_STOP, FAILURE_RTN, FAILURE_KEEP };
enum dsq_init { DSQ_ONES, DSQ_ACTIVATION };
/* What DAC brings the mean back to: the float path's, or that of the block's own float attention on the quantized path's input. */
enum dac_target { DAC_OFF, DAC_FLOAT, DAC_BLOCK };

/* Token sequences; ids of all of them lie behind each other. */
struct calib {
    int64_t n;       /* sequences */
    int64_t *start;  /* (n + 1): sequence i is ids[start[i]] .. ids[start[i+1]-1] */
    int32_t *ids;
    struct arena arena;
};

/* Tensors whose name matches get another grid. */
struct quant_keep {
    char pattern[96]; /* of the shell, against "model.layers.0.mlp.down_proj", "model.embed_tokens", "lm_head" */
    enum grid_id grid;
};
#define QUANT_KEEP_MAX 2048 /* one a matrix of a large model, and the user's */

struct quant_options {
    enum method method;
    enum grid_id grid; /* of the seven matrices; a type's own grids settle bits and group */
    int bits;         /* 2, 3 or 4 */
    int group;        /* inputs per group; <= 0: one group a row */
    int zero_min;     /* smallest zero point, 0 or 1: GPTQ v1 files cannot hold 0 */
    bool dsq;         /* d2quant only */
    bool dsq_norms;   /* DSQ of q,k,v and of gate,up as well, absorbed by the norms' gains; d2quant only */
    bool dsq_o;       /* DSQ of o as well, absorbed by v; d2quant only */
    enum dac_target dac; /* d2quant only; DAC_BLOCK without propagation and tuning */
    bool dac_accept;  /* keep a block's DAC only where held-out calibration gains */
    double alpha, beta; /* propagated error; 0, 0: off. gptaq: alpha is the share of its term */
    bool rotate;      /* QuaRot's fusable rotation before anything else (quant/rotate.h) */
    double prop_damp; /* of H in the propagated error, as a share of its mean diagonal */
    enum quant_order order;
    enum quant_search search;
    int sweeps;       /* coordinate-descent sweeps after the solve */
    double damp;      /* share of the mean diagonal of H */
    double shrink;    /* of H towards its diagonal, times inputs / tokens (stats_shrink); 0: none */
    enum quant_sinks sinks;
    enum dsq_init dsq_init;
    bool dsq_weighted; /* H-weighted closed form for s^c, else the plain one */
    int dsq_rounds;
    int tune;         /* passes over the calibration text that tune scales and gains; 0: none */
    double tune_lr;   /* of log factors, per step at the start */
    enum quant_failure on_failure;
    enum dtype kept;  /* what tensors that are not quantized are rounded to: DT_F16 or DT_F32 */
    struct quant_keep keep[QUANT_KEEP_MAX]; /* the last match counts; embeddings and head only by these */
    int n_keep;
    bool spill;       /* with a work folder: hidden states and the output so far lie there, in memory only while they are used */
    bool kept_packed; /* with DT_F32: F32 embeddings and head become F16, packed ones stay as stored (GGUF) */
};

/* Fills o for a method and a recipe ("default" or "paper"; only d2quant has two). */
int quant_options_init(struct quant_options *o, const char *method, const char *recipe, struct err *e);
/* One more of o->keep from "PATTERN=TYPE". */
int quant_keep_add(struct quant_options *o, const char *text, struct err *e);
/* 0, or -1 with ERR_USAGE naming the option. */
int quant_options_check(const struct quant_options *o, struct err *e);
/* Can this model be quantized so? At no cost. */
int quant_check_model(const struct model *m, const struct quant_options *o, struct err *e);
/* Is every weight a number? Reads them all; what is not would stop a run hours later. */
int quant_check_weights(const struct model *m, struct err *e);
/* Every pattern of o->keep names a matrix of a model of n_layer blocks, or its embeddings or head. */
int quant_keep_check(const struct quant_options *o, int64_t n_layer, struct err *e);
/* Does it need the calibration text's way through the float model beside the quantized one's? */
bool quant_float_path(const struct quant_options *o);

/* The grid of one of the seven matrices of block `layer`. */
void quant_grid(const struct quant_options *o, int64_t layer, enum role role, int64_t n_in, struct grid *g);
/* Of "model.embed_tokens" or "lm_head"; false: nothing was asked for it. */
bool quant_grid_kept(const struct quant_options *o, const char *name, int64_t n_in, struct grid *g);

struct quant_tensor {
    const char *name; /* Hugging Face name */
    char type[24];    /* "int3 g64 asym", "f16" */
    int64_t n_out, n_in;
    double bpw;
    double err;        /* tr(E H E^T) / tr(W H W^T) against the original W; H = I for rtn */
    double err_target; /* the same of W' - V, W' what the solver aimed at */
    double damp;       /* that it took */
    int64_t dead;      /* inputs that are 0 on all calibration tokens: their weights became 0 */
    char fallback[8];  /* "": as asked; else what on_failure made of it, "rtn" or "keep" */
    double seconds;
};

/* The matrices of a block that see the same input, in order of work. */
enum quant_stage { STAGE_QKV, STAGE_O, STAGE_GATE_UP, STAGE_DOWN, STAGE_COUNT };

#define QUANT_SPREAD 5
struct quant_block {  /* what the corrections did, one per block */
    double dac_share; /* kept share of mu (0: refused), and held-out gain it brought */
    double dac_gain;
    double dac_shift; /* rms of mu */
    double dac_before, dac_after; /* rms over channels of the mean deviation at the norm after attention on held-out sequences
                       * (the only one, where there is one), as a share of the norm's rms; after: what mu leaves. 0 without float path,
                       * and with tuning, which keeps those sequences out of the statistics */
    double dsq_min, dsq_max; /* range of s^c of down */
    double dsq_quantile[QUANT_SPREAD]; /* of s^c: 5, 25, 50, 75, 95 % */
    double dsq_gain[STAGE_COUNT]; /* error with s^c / error of GPTQ alone; 0: not used */
    double out_err;   /* |h_q - h|^2 / |h|^2 of the block's output, sinks left out; 0 without the float path, DAC_BLOCK included */
};

/* Where the time of all blocks went, by stage. */
struct quant_profile {
    double forward, stats, factor, solve; /* seconds; factor: of H, and propagated error's and GPTAQ's terms */
};

struct quant_result {
    struct arena arena;
    struct quant_tensor *tensors; /* n_layer * ROLE_COUNT, in order of work */
    int64_t n_tensors;
    struct quant_block *blocks;   /* n_layer */
    double bpw;        /* over all quantized weights, scales and zeros counted */
    double tune_before, tune_after; /* mean KL divergence of the held-out sequences to the float model; 0 without tuning */
    double seconds, seconds_forward, seconds_stats, seconds_factor, seconds_solve, seconds_tune; /* solve includes factor */
    struct quant_profile profile[STAGE_COUNT];
    int64_t calib_tokens;
};

/* Called once for each finished tensor (NULL allowed). */
typedef void (*quant_tensor_fn)(void *ud, const struct quant_tensor *t);

/* calib may be NULL for methods that need none. */
int quantize_model(struct model *m, const struct quant_options *o, const struct calib *calib,
                   const struct log *log, quant_tensor_fn on_tensor, void *ud,
                   struct quant_result *res, struct err *e);
/* The same, each finished block kept in work (open, of this run's recipe; NULL allowed): goes on where an earlier run stopped. */
struct work;
int quantize_resumable(struct model *m, const struct quant_options *o, const struct calib *calib, struct work *work,
                       const struct log *log, quant_tensor_fn on_tensor, void *ud,
                       struct quant_result *res, struct err *e);
void quant_result_release(struct quant_result *r);

/* What a run will take, before it begins. */
enum quant_memory { MEM_SOURCE, MEM_QUANTIZED, MEM_KEPT, MEM_BLOCK, MEM_STATES, MEM_FORWARD, MEM_STAGE, MEM_TUNE, MEM_COUNT };
struct quant_plan {
    double bpw;             /* of the quantized weights */
    uint64_t quantized_bytes, kept_bytes, output_bytes;
    uint64_t vector_bytes;  /* norms and biases, part of kept_bytes */
    uint64_t states_bytes;  /* hidden states, wherever they lie */
    uint64_t peak_bytes;    /* resident: the sum of memory */
    uint64_t memory[MEM_COUNT]; /* of the mapped source what a block takes (tuning: all of it), quantized matrices, copies of what is kept, one block in float, hidden states,
                             * forward passes, statistics and solver of one stage, tuning */
    double flops;           /* of all forward passes and solves */
};
void quant_plan(const struct model *m, const struct quant_options *o, int64_t calib_tokens,
                int64_t longest_sequence, struct quant_plan *p);

/* ---- calibration text (calib.c) ------------------------------------------ */

/* path: plain text, or JSONL with "text" or chat "messages" a line. Cut into sequences of seqlen tokens: n of them
 * chosen at random by seed when there are more, else all there are (the caller compares c->n and
 * says so; a text shorter than one sequence is one short sequence). */
int calib_from_file(struct calib *c, const struct model *m, const char *path, int64_t n,
                    int64_t seqlen, uint64_t seed, struct err *e);
/* From one run of tokens, cut every seqlen (the last, shorter piece is kept if it is all there is). */
int calib_from_tokens(struct calib *c, const int32_t *ids, int64_t n_ids, int64_t n, int64_t seqlen,
                      uint64_t seed, struct err *e);
/* n sequences of seqlen tokens more, before those there are: the last, by which choices are judged, stay the last. */
int calib_prepend(struct calib *c, const int32_t *ids, int64_t n, int64_t seqlen, struct err *e);
void calib_release(struct calib *c);
int64_t calib_tokens(const struct calib *c);

#endif
