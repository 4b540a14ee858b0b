/* tune: after the codes, the scales. An extension of ours (`--tune N`), not of the paper.
 *
 * With all codes and integers fixed, what is continuous in the quantized model - the fp16 factors of every group or block, the
 * gains of the norms - is moved by Adam so that the model's next-token distribution follows the float model's: the loss is
 * KL(float || quantized) over the calibration tokens. Steps are multiplicative (theta = log of a factor), each factor is rounded
 * to what its format stores before every use, and nothing is added to the file. The held-out sequences decide: the best pass is
 * kept, and none if no pass lowers their KL divergence. */
#ifndef D2Q_QUANT_TUNE_H
#define D2Q_QUANT_TUNE_H

#include "quant/block.h"

/* r after its last block: r->hf is the float path's output. Fills res->tune_*. */
int tune_scales(struct run *r, struct err *e);
/* What it takes besides the pipeline's own, for sequences of up to `longest` tokens. */
uint64_t tune_bytes(const struct model *m, const struct quant_options *o, int64_t longest);

#endif
