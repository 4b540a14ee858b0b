/* The packed kernels for neon; the Makefile gives this file its flags. */
#define KERNELS_ISA neon
#include "backend/cpu/packed_body.h"
