/* The element-wise kernels for neon; the Makefile gives this file its flags. */
#define KERNELS_ISA neon
#define KERNELS_SGEMM NULL
#include "backend/cpu/body.h"
