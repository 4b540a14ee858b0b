/* The element-wise kernels for neon; the Makefile gives this file its flags. */
#define KERNELS_ISA neon
#define KERNELS_SGEMM NULL
#define NARROW_LANES 4
#define NARROW_ROWS 12
#include "backend/cpu/body.h"
