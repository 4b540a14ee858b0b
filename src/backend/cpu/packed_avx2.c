/* The packed kernels for avx2; the Makefile gives this file its flags. */
#define KERNELS_ISA avx2
#include "backend/cpu/packed_body.h"
