/* cpu: which instruction sets the processor has and the operating system saves.
 * Answers are false on other architectures; the #ifs for that live here. */
#ifndef D2Q_BASE_CPU_H
#define D2Q_BASE_CPU_H

#include <stdbool.h>

bool cpu_has_generic(void); /* always */
bool cpu_has_avx2(void);    /* AVX2, FMA and F16C */
bool cpu_has_avx512(void);  /* the above and AVX-512 F, BW, DQ, VL */
bool cpu_has_avx512_vnni(void); /* cpu_has_avx512 and its 8-bit dot products */
/* cpu_has_avx512_vnni and tile products of bfloat16, which the operating system lets this process use. */
bool cpu_has_amx(void);
bool cpu_has_neon(void);

#endif
