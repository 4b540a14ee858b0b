/* work: the folder in which a run keeps what it has done, so that the same command goes on after any end.
 *
 *   recipe.json     everything that decides the result: options, model, calibration, version, instruction set
 *   calib.bin       self-made calibration tokens
 *   block-00012.bin a finished block: seven matrices, biases, what is recorded of them
 *   state.bin       hidden states (float32, both paths) at the input of the next block
 *   lock            held while a run uses the folder
 *
 * Each .bin ends with the SHA-256 of what is before it and appears whole or not at all (struct outfile). A block is
 * written before the state behind it, so a state's index never exceeds the blocks there are. States are stored, not computed
 * again, because DSQ and rounded biases change a block after its inputs were used: the final file must not differ by a bit. */
#ifndef D2Q_QUANT_WORK_H
#define D2Q_QUANT_WORK_H

#include <jansson.h>

#include "quant/quant.h"

struct run;

struct work {
    char *dir;
    int lock;       /* -1: not open */
    bool made_lock; /* no run was in the folder before */
    bool entered;   /* what is in it is this run's */
    int64_t done;   /* blocks taken over from an earlier run */
};

/* Recipe of a run. calib: its tokens, or NULL; self (borrowed; NULL: none) describes how others are going to be made. */
json_t *work_recipe(const struct model *m, const struct quant_options *o, const struct calib *calib, const json_t *self,
                    const char *version);

/* Makes or enters dir and locks it. fresh: what is there of an earlier run is deleted. A folder of another recipe is refused with
 * the differences, one with files named as ours but no recipe of ours in any case; a refused folder stays as it was. */
int work_open(struct work *w, const char *dir, bool fresh, const json_t *recipe, struct err *e);
void work_close(struct work *w); /* finished blocks and calibration tokens stay, else the folder goes; safe on a zeroed struct */
/* Deletes a folder's files of ours, and it when nothing else is in it. Absent, or in use by a run: fine. */
int work_remove(const char *dir, struct err *e);

/* 1: *ids (n, mem_free) are there; 0: they are not, or not whole. */
int work_tokens_load(const struct work *w, int32_t **ids, size_t *n, struct err *e);
int work_tokens_save(const struct work *w, const int32_t *ids, size_t n, struct err *e);

/* After block `index`. */
int work_block_save(const struct work *w, const struct run *r, int64_t index, struct err *e);
/* Blocks and states of an earlier run into r, whose states are those of block 0; w->done of them. */
int work_restore(struct work *w, struct run *r, struct err *e);
/* Bytes that the folder needs at most. */
uint64_t work_bytes(const struct model *m, const struct quant_options *o, int64_t calib_tokens);

#endif
