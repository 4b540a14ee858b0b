/* The packed kernels for generic; the Makefile gives this file its flags. */
#define KERNELS_ISA generic
#include "backend/cpu/packed_body.h"
