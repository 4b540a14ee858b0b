/* task: multiple-choice tasks as lm-evaluation-harness scores them, from JSONL files (schema: doc/formats.md).
 *
 * A choice's score is the sum of log p of its tokens: context and context + choice are encoded, without BOS, and what follows the
 * context's tokens is the choice's. acc takes the largest score; acc_norm divides by the choice's characters without its leading
 * space first. WinoGrande scores one continuation after each of several contexts. */
#ifndef D2Q_EVAL_TASK_H
#define D2Q_EVAL_TASK_H

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/model.h"

struct task_info {
    const char *name, *file;
    bool norm, seven;
};
extern const struct task_info task_table[];
extern const int task_count;

/* The row whose name this is, or whose file name path ends in; NULL: none. */
const struct task_info *task_find(const char *name_or_path);

struct task_options {
    int64_t limit; /* items at most, 0: all */
    int shots;     /* 0, or as many as the file of examples has: 5 of MMLU */
    struct outfile *items; /* NULL, or a JSON line an item: task, id, gold, ll of each choice, choice, choice_norm */
};

struct task_result {
    int64_t n;
    double acc, acc_err, acc_norm, acc_norm_err; /* shares, standard errors of means */
    double seconds;
    int64_t tokens; /* rows computed */
    bool interrupted; /* cancelled: of the n items that were done */
};

/* Can it be run at all: the file, and examples where o asks for them? Cheap: for asking before other tasks take their time. */
int task_check(const char *name, const char *path, const struct task_options *o, struct err *e);
/* path: a JSONL file. MMLU finds its descriptions and examples in mmlu_fewshot.jsonl beside it. */
int task_run(const struct model *m, const char *name, const char *path, const struct task_options *o, const struct log *log,
             struct task_result *r, struct err *e);

#endif
