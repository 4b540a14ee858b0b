/* block: the packed layouts of GGUF (formats.md 3b), as structs of bytes.
 *
 * Every member is a byte array, so that a struct may lie at any address of a mapping; 16-bit
 * fields are little-endian and read by load_u16. Element order and the order of the
 * float operations are those of ggml's reference decoders: results agree to the bit. */
#ifndef D2Q_TENSOR_BLOCK_H
#define D2Q_TENSOR_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/tensor.h"

struct block_q2_0 { uint8_t d[2], qs[16]; };
struct block_q4_0 { uint8_t d[2], qs[16]; };
struct block_q4_1 { uint8_t d[2], m[2], qs[16]; };
struct block_q5_0 { uint8_t d[2], qh[4], qs[16]; };
struct block_q5_1 { uint8_t d[2], m[2], qh[4], qs[16]; };
struct block_q8_0 { uint8_t d[2]; int8_t qs[32]; };
struct block_q2_k { uint8_t scales[16], qs[64], d[2], dmin[2]; };
struct block_q3_k { uint8_t hmask[32], qs[64], scales[12], d[2]; };
struct block_q4_k { uint8_t d[2], dmin[2], scales[12], qs[128]; };
struct block_q5_k { uint8_t d[2], dmin[2], scales[12], qh[32], qs[128]; };
struct block_q6_k { uint8_t ql[128], qh[64]; int8_t scales[16]; uint8_t d[2]; };
struct block_tq2_0 { uint8_t qs[64], d[2]; };

_Static_assert(sizeof(struct block_q2_0) == 2 + 16, "q2_0");
_Static_assert(sizeof(struct block_tq2_0) == 64 + 2, "tq2_0");
_Static_assert(sizeof(struct block_q4_0) == 2 + 16, "q4_0");
_Static_assert(sizeof(struct block_q4_1) == 2 + 2 + 16, "q4_1");
_Static_assert(sizeof(struct block_q5_0) == 2 + 4 + 16, "q5_0");
_Static_assert(sizeof(struct block_q5_1) == 2 + 2 + 4 + 16, "q5_1");
_Static_assert(sizeof(struct block_q8_0) == 2 + 32, "q8_0");
_Static_assert(sizeof(struct block_q2_k) == 16 + 64 + 2 + 2, "q2_k");
_Static_assert(sizeof(struct block_q3_k) == 32 + 64 + 12 + 2, "q3_k");
_Static_assert(sizeof(struct block_q4_k) == 2 + 2 + 12 + 128, "q4_k");
_Static_assert(sizeof(struct block_q5_k) == 2 + 2 + 12 + 32 + 128, "q5_k");
_Static_assert(sizeof(struct block_q6_k) == 128 + 64 + 16 + 2, "q6_k");

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* What a block of a quantized type says, whatever its layout; unused fields are not read.
 *   q2_0, tq2_0     (q - 1) d            q4_0, q5_0, q8_0  (q - 8, 16, 128) d
 *   q4_1, q5_1      q d + m              q2_k, q4_k, q5_k  (d sc[g]) q - m mn[g]     (m is dmin)
 *   q3_k, q6_k      (d sc[g]) (q - 4, 32) */
struct block_fields {
    uint16_t d, m;           /* fp16 bits */
    int16_t sc[16], mn[16];  /* of each group of 16 (q2_k, q3_k, q6_k) or 32: q3_k -32..31, q6_k -128..127 */
    uint8_t q[256];
};

/* Writes one block of a quantized type. */
void block_store(enum dtype type, const struct block_fields *f, void *out);
/* Where a block keeps d (k = 0) or m (k = 1); NULL: it has none. */
uint8_t *block_factor(enum dtype type, uint8_t *block, int k);
/* Multiplies d and m of all blocks of a row of n elements, rounded to fp16; false when one leaves its range. */
bool block_scale_row(enum dtype type, void *row, int64_t n, float factor);

/* One per row of dtypes.def. */
#define DTYPE(id, name, ggml_id, ftype, len, bytes) \
    void dtype_##name##_to_f32(const void *row, float *dst, int64_t n);
#include "tensor/dtypes.def"
#undef DTYPE

#endif
