#include "base/cpu.h"

#include <stdatomic.h>
#include <stdint.h>

bool cpu_has_generic(void)
{
    return true;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(r, n) (((r) >> (n)) & 1u)

/* XCR0: the register sets that the OS saves on a context switch. */
static uint32_t saved_state(void)
{
    uint32_t a, b, c, d, lo, hi;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !BIT(c, 27)) /* OSXSAVE */
        return 0;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

bool cpu_has_avx2(void)
{
    uint32_t a, b, c, d;
    if ((saved_state() & 0x6) != 0x6) /* xmm, ymm */
        return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !BIT(c, 12) || !BIT(c, 28) || !BIT(c, 29)) /* FMA, AVX, F16C */
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && BIT(b, 5);
}

bool cpu_has_avx512(void)
{
    uint32_t a, b, c, d;
    if (!cpu_has_avx2() || (saved_state() & 0xe6) != 0xe6) /* and opmask, zmm */
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && BIT(b, 16) && BIT(b, 17) && BIT(b, 30) && BIT(b, 31);
}

/* Asked for every product: kept, since cpuid leaves a virtual machine, which takes some 50 microseconds. */
bool cpu_has_avx512_vnni(void)
{
    static atomic_int known; /* 0: not asked, 1: no, 2: yes */
    int k = atomic_load_explicit(&known, memory_order_relaxed);
    if (!k) {
        uint32_t a, b, c, d;
        k = cpu_has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && BIT(c, 11) ? 2 : 1;
        atomic_store_explicit(&known, k, memory_order_relaxed);
    }
    return k == 2;
}

/* Linux gives the 8 KiB of tile registers to processes that ask for them (arch_prctl(2)); to all threads, once and for all. */
bool cpu_has_amx(void)
{
    enum { REQUEST = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILE_DATA = 18 };
    uint32_t a, b, c, d;
    if (!cpu_has_avx512_vnni() || (saved_state() & 0x60000) != 0x60000)
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !BIT(d, 22) || !BIT(d, 24)) /* AMX-BF16, AMX-TILE */
        return false;
#if defined(__linux__)
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}
#else
bool cpu_has_amx(void)
{
    return false;
}

bool cpu_has_avx512_vnni(void)
{
    return false;
}

bool cpu_has_avx2(void)
{
    return false;
}

bool cpu_has_avx512(void)
{
    return false;
}
#endif

bool cpu_has_neon(void)
{
#if defined(__aarch64__)
    return true; /* part of the base architecture */
#else
    return false;
#endif
}
