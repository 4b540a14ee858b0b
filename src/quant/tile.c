#include "quant/tile.h"

#include <string.h>

#include "backend/backend.h"

const struct tile_kernels *tile_kernels(void)
{
    const char *isa = backend_isa();
    (void)isa;
#if defined(__x86_64__)
    if (!strcmp(isa, "avx512"))
        return &tile_kernels_avx512;
    if (!strcmp(isa, "avx2"))
        return &tile_kernels_avx2;
#elif defined(__aarch64__)
    if (!strcmp(isa, "neon"))
        return &tile_kernels_neon;
#endif
    return &tile_kernels_generic;
}
