/* The element-wise kernels for amx, those of avx512, and its float products; the Makefile gives this file its flags. */
#define KERNELS_ISA amx
#define KERNELS_SGEMM amx_sgemm
#define NARROW_LANES 16
#define NARROW_ROWS 12
#include "backend/cpu/body.h"
