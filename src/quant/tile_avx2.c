/* The tile kernels for avx2; the Makefile gives this file its flags. */
#define TILE_NAME tile_kernels_avx2
#include "quant/tile_body.h"
