#include "quant/tile.h"

#include <string.h>

#include "backend/backend.h"

static const struct {
    const char *isa;
    const struct tile_kernels *kernels;
} table[] = {
#define ISA(name, like) { #name, &tile_kernels_##like },
#include "backend/cpu/isa.def"
#undef ISA
};

const struct tile_kernels *tile_kernels(void)
{
    const char *isa = backend_isa();
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(isa, table[i].isa))
            return table[i].kernels;
    return &tile_kernels_generic;
}
