/* The element-wise kernels for avx512; the Makefile gives this file its flags. */
#define KERNELS_ISA avx512
#define KERNELS_SGEMM NULL
#include "backend/cpu/body.h"
