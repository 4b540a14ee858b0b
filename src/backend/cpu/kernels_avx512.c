/* The element-wise kernels for avx512; the Makefile gives this file its flags. */
#define KERNELS_ISA avx512
#define KERNELS_SGEMM NULL
#define NARROW_LANES 16
#define NARROW_ROWS 12
#include "backend/cpu/body.h"
