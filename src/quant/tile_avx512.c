/* The tile kernels for avx512; the Makefile gives this file its flags. */
#define TILE_NAME tile_kernels_avx512
#include "quant/tile_body.h"
