/* The element-wise kernels for generic; the Makefile gives this file its flags. */
#define KERNELS_ISA generic
#define KERNELS_SGEMM NULL
#include "backend/cpu/body.h"
