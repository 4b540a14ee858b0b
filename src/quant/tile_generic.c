/* The tile kernels for generic; the Makefile gives this file its flags. */
#define TILE_NAME tile_kernels_generic
#include "quant/tile_body.h"
