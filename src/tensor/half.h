/* half: IEEE fp16 and bfloat16, exact in both directions (round to nearest even). */
#ifndef D2Q_TENSOR_HALF_H
#define D2Q_TENSOR_HALF_H

#include <stdint.h>

float half_to_f32(uint16_t h);
uint16_t half_from_f32(float f);
float bf16_to_f32(uint16_t h);
uint16_t bf16_from_f32(float f);
/* f rounded to fp16 and back: what a file that stores fp16 will say. */
float half_round(float f);

#endif
