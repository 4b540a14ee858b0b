/* libfuzzer: one target (-DFUZZ_TARGET=fuzz_name) as libFuzzer wants it. */
#include "base/par.h"
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int __wrap_pcre2_jit_compile_8(void *code, uint32_t options);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    par_set_threads(1);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    FUZZ_TARGET(data, n);
    vfs_clear();
    return 0;
}

/* A millisecond for each regex; the interpreter does as well for texts of a few bytes. */
int __wrap_pcre2_jit_compile_8(void *code, uint32_t options)
{
    (void)code, (void)options;
    return -45; /* PCRE2_ERROR_JIT_BADOPTION */
}
