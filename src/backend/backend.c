#include "backend/backend.h"

#include <cblas.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/kernels.h"
#include "base/cpu.h"

struct isa {
    const char *name;
    bool (*usable)(void);
    const struct cpu_kernels *kernels;
};

static const struct isa isa_table[] = {
#define ISA(name, like) { #name, cpu_has_##name, &cpu_kernels_##name },
#include "backend/cpu/isa.def"
#undef ISA
};

#define N_ISA ((int)(sizeof isa_table / sizeof *isa_table))

static _Atomic(const struct cpu_kernels *) chosen;

const char *backend_isa_name(int i)
{
    return i >= 0 && i < N_ISA ? isa_table[i].name : NULL;
}

bool backend_isa_usable(int i)
{
    return i >= 0 && i < N_ISA && isa_table[i].usable();
}

static void name_list(char *out, size_t size)
{
    out[0] = 0;
    for (int i = 0; i < N_ISA; i++) {
        strncat(out, i ? ", " : "", size - strlen(out) - 1);
        strncat(out, isa_table[i].name, size - strlen(out) - 1);
    }
}

/* Exported by OpenBLAS builds that hold kernels of several cores, in none of its headers. */
void gotoblas_dynamic_init(void) __attribute__((weak));
void gotoblas_dynamic_quit(void) __attribute__((weak));

/* OpenBLAS knows processors by model number and takes one that is newer than itself for a Prescott: kernels of 2004, 5 times slower.
 * Then it gets the core of the instruction set that is there. A choice by the user (OPENBLAS_CORETYPE) stands. */
static void blas_core(void)
{
    static const char *const old[] = { "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom", "Nano", "Athlon", "Opteron",
                                       "Barcelona", "Bobcat" };
    const char *now = openblas_get_corename(), *asked = getenv("OPENBLAS_CORETYPE");
    if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit || (asked && *asked) || !cpu_has_avx2())
        return;
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        if (!strncmp(now, old[i], strlen(old[i]))) {
            setenv("OPENBLAS_CORETYPE", cpu_has_avx512() ? "SkylakeX" : "Haswell", 1);
            gotoblas_dynamic_quit();
            gotoblas_dynamic_init();
            unsetenv("OPENBLAS_CORETYPE");
            return;
        }
}

static int choose(const char *name, struct err *e)
{
    const struct isa *found = NULL;
    for (int i = 0; i < N_ISA; i++)
        if (name ? !strcmp(name, isa_table[i].name) : isa_table[i].usable())
            found = &isa_table[i];
    if (!found) {
        char names[128];
        name_list(names, sizeof names);
        return err_set(e, ERR_USAGE, "D2Q_CPU is \"%s\", expected one of %s", name, names);
    }
    if (!found->usable())
        return err_set(e, ERR_USAGE, "D2Q_CPU is \"%s\", but this processor or its operating system does not support it",
                       name);
    /* Every BLAS call is one tile of a par_for: threads of its own would fight ours. */
    openblas_set_num_threads(1);
    blas_core();
    atomic_store(&chosen, found->kernels);
    return 0;
}

int backend_force(const char *name, struct err *e)
{
    const char *env = getenv("D2Q_CPU");
    return choose(name ? name : env && *env ? env : NULL, e);
}

int backend_init(struct err *e)
{
    return atomic_load(&chosen) ? 0 : backend_force(NULL, e);
}

const struct cpu_kernels *cpu_kernels(void)
{
    const struct cpu_kernels *k = atomic_load(&chosen);
    if (k)
        return k;
    if (backend_init(NULL))
        choose("generic", NULL);
    return atomic_load(&chosen);
}

bool backend_plain(void)
{
    return cpu_kernels() == &cpu_kernels_generic;
}

const char *backend_isa(void)
{
    return cpu_kernels()->name;
}

const char *backend_blas(void)
{
    return backend_plain() ? "none" : openblas_get_corename();
}
