/* The element-wise kernels for avx2; the Makefile gives this file its flags. */
#define KERNELS_ISA avx2
#define KERNELS_SGEMM NULL
#include "backend/cpu/body.h"
