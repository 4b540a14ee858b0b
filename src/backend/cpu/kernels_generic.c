/* The element-wise kernels for generic; the Makefile gives this file its flags. */
#define KERNELS_ISA generic
#define KERNELS_SGEMM NULL
#define NARROW_LANES 4
#define NARROW_ROWS 6
#include "backend/cpu/body.h"
