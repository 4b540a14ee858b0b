/* The element-wise kernels for avx2; the Makefile gives this file its flags. */
#define KERNELS_ISA avx2
#define KERNELS_SGEMM NULL
#define NARROW_LANES 8
#define NARROW_ROWS 6
#include "backend/cpu/body.h"
