/* d2quant: weight-only quantization of large language models below 4 bits.
 *
 * A model is opened from a Hugging Face folder or a GGUF file. Opening maps it: nothing is
 * copied until it is needed. A model may be run (d2q_generate), measured (d2q_eval), quantized in place
 * (d2q_quantize) and written (d2q_export). A quantized model is a model: all of this works on it as before.
 *
 *     d2q_error err;
 *     d2q_model *m = d2q_open("Llama-3.2-1B", &err);
 *     d2q_quantize_options q;
 *     d2q_quantize_options_init(&q);
 *     q.bits = 3; q.group = 64; q.calib = "text.txt";
 *     char *json = NULL;
 *     if (!m || d2q_quantize(m, &q, &json, &err) || d2q_export(m, "gptq", "out", NULL, &json2, &err))
 *         fprintf(stderr, "%s\n", err.message);
 *     d2q_free(json);
 *     d2q_close(m);
 *
 * Conventions. Fallible functions return 0 or -1 (or NULL) and then fill the d2q_error (NULL allowed) with one complete
 * sentence. Results come as JSON text with the keys that the command line prints (d2q_free). Strings given in options
 * are borrowed for the call. The library never prints, exits or changes signal handlers; it reports through a log
 * callback. A model is used by one thread at a time; different models by different threads; the work of
 * a call is spread over threads itself (d2q_set_threads). Results do not depend on the number of threads.
 * After a d2q_quantize that failed or was cancelled the model may be half of one and half of the other: what it is asked for then
 * is refused (but d2q_inspect); close it and open it again. d2q_set_threads is not called while another call runs, and no call is made in a
 * child process that was forked after the first.
 * D2Q_CPU=generic|avx2|avx512|amx|neon in the environment forces the instruction set. */
#ifndef D2QUANT_H
#define D2QUANT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define D2Q_API __attribute__((visibility("default")))

enum d2q_code {
    D2Q_OK = 0, D2Q_ERR_USAGE, D2Q_ERR_IO, D2Q_ERR_FORMAT, D2Q_ERR_UNSUPPORTED, D2Q_ERR_MEMORY, D2Q_ERR_NUMERIC,
    D2Q_ERR_CANCELLED
};

typedef struct d2q_error {
    int code; /* enum d2q_code */
    char message[1024];
} d2q_error;

/* kind: 0 progress (text names the step; done of total), 1 information, 2 warning, 3 a finished tensor (text is its JSON).
 * A non-zero return cancels the work at the next progress report. */
enum d2q_log_kind { D2Q_LOG_PROGRESS, D2Q_LOG_INFO, D2Q_LOG_WARN, D2Q_LOG_TENSOR };
typedef int (*d2q_log_fn)(void *ud, int kind, const char *text, double done, double total);

typedef struct d2q_model d2q_model;

D2Q_API const char *d2q_version(void);
D2Q_API void d2q_free(void *p);               /* any text this library returned */
D2Q_API void d2q_set_threads(int n);          /* < 1: all cores */
D2Q_API uint64_t d2q_peak_rss(void);          /* bytes, of this process */
/* The rows of a table, as JSON [{"name", "help", ...}]: "methods", "grids", "formats", "families",
 * "types". NULL: no such table. */
D2Q_API char *d2q_list(const char *table);

/* Is this grid a type of GGUF, which other formats do not hold? */
D2Q_API int d2q_grid_is_type(const char *grid);

D2Q_API d2q_model *d2q_open(const char *path, d2q_error *err);
D2Q_API void d2q_close(d2q_model *m); /* NULL allowed */
/* Shape, types, sizes; with tensor (a name, or NULL) the figures of that tensor. */
D2Q_API int d2q_inspect(d2q_model *m, const char *tensor, char **json, d2q_error *err);

/* Reads all of a written model: structure, finite values, the checksums that d2q_export left. -1: it cannot be opened. JSON: {"path",
 * "tensors", "checksums", "files", "bytes", "has_checksums", "failures": [{"tensor", "why"}]}; no failures: it is whole. */
D2Q_API int d2q_verify(const char *path, d2q_log_fn log, void *log_ud, char **json, d2q_error *err);

/* Every tensor of a against b's: types, |a - b| / |a| (Frobenius), largest difference (both null where values are not
 * finite). Models of one shape, in any containers. */
D2Q_API int d2q_diff(d2q_model *a, d2q_model *b, char **json, d2q_error *err);

/* ---- quantizing ------------------------------------------------------------------ */

#define D2Q_DEFAULT (-1) /* the recipe decides */

typedef struct d2q_quantize_options {
    const char *method;   /* "d2quant" */
    const char *recipe;   /* "default" or "paper" */
    int bits;             /* 2 */
    int group;            /* 128; 0: one group a row */
    const char *grid;     /* a row of d2q_list("grids"): "asym", "sym", "portable", "q2_k" ...; a type's own settle bits, group */
    const char *const *keep; /* (n_keep) "PATTERN=TYPE": other grids for tensors by name ("*.down_proj=q4_k") */
    int n_keep;
    int dsq, dac;         /* 0, 1 or D2Q_DEFAULT */
    const char *dac_target; /* "float": the float model's path; "block": the block's own float attention, without propagated error and tuning; NULL: "float" */
    int dsq_norms;        /* DSQ of q,k,v and gate,up too; 0, 1 or D2Q_DEFAULT: the recipe's, where dsq is on */
    int dsq_o;            /* DSQ of o too; likewise */
    double alpha, beta;   /* propagated error; D2Q_DEFAULT, 0: off */
    const char *rotate;   /* "hadamard": residual stream and heads rotated first, which unties the head; "off"; "auto": the default recipe rotates
                           * where that takes no bytes, with a head of its own and tables written as floats (kept_f32 0 or 1) */
    const char *order;    /* "none", "act"; NULL: the method's default, also below */
    const char *search;   /* "minmax", "mse", "hessian" */
    const char *sinks;    /* "keep", "skip", "clip" */
    int sweeps;           /* coordinate-descent sweeps; D2Q_DEFAULT */
    int tune;             /* passes over the calibration text that tune scales and norms; D2Q_DEFAULT */
    double tune_lr;       /* size of its steps at the start, of the logarithm of a scale; D2Q_DEFAULT */
    double damp;          /* share of the mean diagonal; D2Q_DEFAULT */
    double shrink;        /* of the Hessian towards its diagonal, times inputs / tokens; D2Q_DEFAULT, 0: none */
    const char *on_failure; /* "stop", "rtn", "keep" */
    const char *calib;    /* text or JSONL file, or "self": text that the model generates itself */
    int64_t nsamples, seqlen; /* 128 sequences of 2048 tokens */
    int64_t self_samples; /* 0: sequences more, beside a text's, that the model generates itself */
    uint64_t seed;        /* 0 */
    int zero_min;         /* smallest zero point: 0, or 1 for format gptq_v1, which cannot hold 0 */
    int kept_f32;         /* what is not quantized is rounded to F16 (0) or F32 (1), or kept as it is, but F32 embeddings as
                           * F16 (2, for GGUF): what the output stores */
    const char *histogram; /* matrix (its Hugging Face name) whose values before and after the result counts; NULL: the one with the largest error */
    const char *work;     /* folder that keeps each finished block, so that the same call on the model opened again goes on; NULL: none */
    int fresh;            /* what is in it is thrown away first */
    int spill;            /* hidden states and the output so far lie in unnamed files in work, in memory only while they are used */
    d2q_log_fn log;
    void *log_ud;
} d2q_quantize_options;

D2Q_API void d2q_quantize_options_init(d2q_quantize_options *o);
/* What the run would do and take: tensors, types, bytes, memory. Nothing is changed. */
D2Q_API int d2q_plan(d2q_model *m, const d2q_quantize_options *o, char **json, d2q_error *err);
/* Types for a budget, for GGUF: measures on a few calibration sequences what each type costs each matrix and answers with "keep",
 * o's own and one line a matrix, to be put into o->keep. bytes: of the whole file, embeddings and head take part;
 * or 0, then bpw: bits a weight of the blocks' matrices. */
D2Q_API int d2q_choose_types(d2q_model *m, const d2q_quantize_options *o, uint64_t bytes, double bpw, char **json, d2q_error *err);
D2Q_API int d2q_quantize(d2q_model *m, const d2q_quantize_options *o, char **json, d2q_error *err);
/* Deletes a work folder, once its result is written, unless another run is in it. What is not ours in it stays. */
D2Q_API int d2q_work_remove(const char *work, d2q_error *err);

/* ---- writing ---------------------------------------------------------------------- */

typedef struct d2q_export_options {
    int drop_corrections; /* leave out what the format cannot carry, with a warning */
    int as_llama;         /* call a Mistral or Qwen2 model Llama, whose config has biases for gate and up */
    uint64_t shard_bytes; /* largest weight file; 0: 5 GB for folders, one file for GGUF */
    const char *command;  /* the command line, for the model card; NULL: no card */
    const char *meta;     /* JSON object for the output's metadata (how it was made), or NULL */
    d2q_log_fn log;
    void *log_ud;
} d2q_export_options;

/* Can this format carry the model once quantized with o (NULL: as it is)? For asking before hours of work. */
/* JSON (NULL allowed): {"format", "loads": [{"runtime", "loads", "condition", "how", "source", "run_here"}]}. */
D2Q_API int d2q_export_check(d2q_model *m, const char *format, const d2q_quantize_options *q,
                             const d2q_export_options *o, char **json, d2q_error *err);
/* May path be written, or replaced if it is there? Also for asking before. */
D2Q_API int d2q_export_target(d2q_model *m, const char *format, const char *path, d2q_error *err);
/* path: a folder, or for format gguf a file. Written under a temporary name, read back, compared bit for bit, then renamed to path. JSON: {"format", "path", "bytes",
 * "loads"}. */
D2Q_API int d2q_export(d2q_model *m, const char *format, const char *path, const d2q_export_options *o, char **json,
                       d2q_error *err);

/* ---- measuring ---------------------------------------------------------- */

typedef struct d2q_eval_options {
    const char *text;     /* file: plain text; NULL with a stored reference: its tokens */
    const char *protocol; /* "gptq" or "llama"; NULL: gptq, but llama with stored log probabilities */
    int64_t ctx;          /* 0: 2048 (gptq), 512 (llama) */
    int64_t chunks;       /* windows at most, 0: all */
    const char *kl;       /* reference: a model, or a file of stored log probabilities (llama-perplexity's format) */
    const char *save_base; /* stores the reference's log probabilities there (without kl: this model's) */
    d2q_log_fn log;
    void *log_ud;
} d2q_eval_options;

D2Q_API void d2q_eval_options_init(d2q_eval_options *o);
/* Cancelled by the log callback once a window is done: the result so far, with "interrupted": true, and no file stored. */
D2Q_API int d2q_eval(d2q_model *m, const d2q_eval_options *o, char **json, d2q_error *err);

/* Multiple-choice tasks as lm-evaluation-harness scores them, from JSONL files (doc/formats.md). */
typedef struct d2q_task_options {
    const char *file;     /* one task's file, or NULL */
    const char *tasks;    /* "all" (the paper's seven), or names with commas between: d2q_list("tasks"); or NULL */
    const char *data;     /* folder of their files */
    int64_t limit;        /* items of each at most, 0: all */
    int shots;            /* examples before each question, 0 or 5: only mmlu has them */
    const char *items;    /* file to write: a JSON line an item with the log-likelihoods of its choices; NULL */
    d2q_log_fn log;
    void *log_ud;
} d2q_task_options;

D2Q_API void d2q_task_options_init(d2q_task_options *o);
/* "tasks": a list of {task, n, shots, acc, acc_err, acc_norm, acc_norm_err, tokens, seconds}; with several also "acc_average" and
 * "acc_norm_average" (acc where a task has no acc_norm). Cancelled once an item is done: what is done, "interrupted": true there and in
 * the task that is not whole; its items are then the longest, not the first. */
D2Q_API int d2q_tasks(d2q_model *m, const d2q_task_options *o, char **json, d2q_error *err);

/* ---- reporting ------------------------------------------------------------------------ */

/* What d2q quantize --json, d2q eval --json or d2q compare --json printed: JSON objects, one behind another. name: for messages. */
typedef struct d2q_report_run {
    const char *name, *json;
} d2q_report_run;

/* One HTML page of all of them, which needs nothing else, written to path. */
D2Q_API int d2q_report(const d2q_report_run *runs, int n, const char *path, d2q_error *err);

/* ---- generating, benchmarking ----------------------------------------------------------- */

typedef struct d2q_generate_options {
    const char *prompt;
    int64_t max_new;      /* 64 */
    double temp;          /* 0: greedy */
    int top_k;            /* 0: all */
    double top_p;         /* 1: all */
    uint64_t seed;
    /* bytes of the next token (n = 0 before each batch of the prompt); non-zero stops. NULL allowed: the text is in the JSON too */
    int (*emit)(void *ud, const char *bytes, size_t n);
    void *emit_ud;
} d2q_generate_options;

D2Q_API void d2q_generate_options_init(d2q_generate_options *o);
/* One seed gives one text in a model just opened. A model used before may give another: matrices used often are repacked and summed in
 * another order. */
D2Q_API int d2q_generate(d2q_model *m, const d2q_generate_options *o, char **json, d2q_error *err);

typedef struct d2q_bench_options {
    double seconds;  /* 0.5: for each figure of our matrix product beside OpenBLAS, on the shapes of m; 0: none */
    int64_t prefill; /* 512: tokens of a prompt; 0: not measured */
    int64_t decode;  /* 64: new tokens */
    int64_t rounds;  /* 2: the best counts */
} d2q_bench_options;

D2Q_API void d2q_bench_options_init(d2q_bench_options *o);
/* Speed of m on this machine. */
D2Q_API int d2q_bench(d2q_model *m, const d2q_bench_options *o, char **json, d2q_error *err);

#ifdef __cplusplus
}
#endif
#endif
