/* The tile kernels for neon; the Makefile gives this file its flags. */
#define TILE_NAME tile_kernels_neon
#include "quant/tile_body.h"
