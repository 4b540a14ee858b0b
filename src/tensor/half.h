/* half: IEEE fp16 and bfloat16, exact in both directions (round to nearest even). */
#ifndef D2Q_TENSOR_HALF_H
#define D2Q_TENSOR_HALF_H

#include <stdbool.h>
#include <stdint.h>

float half_to_f32(uint16_t h);
uint16_t half_from_f32(float f);
float bf16_to_f32(uint16_t h);
uint16_t bf16_from_f32(float f);
/* f rounded to fp16 and back: what a file that stores fp16 will say. */
float half_round(float f);
/* Clears *f16, *bf16 where one of n values is not exact in that type; v NULL: none is there. */
void half_exact(const float *v, int64_t n, bool *f16, bool *bf16);

#endif
