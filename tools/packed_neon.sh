#!/bin/sh
# The NEON packed kernels, compiled by the cross compiler and run under qemu-user, against the generic ones: the files they
# need and no library. Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cc="${CROSS_CC:-aarch64-linux-gnu-gcc} -std=c11 -D_GNU_SOURCE -Isrc -Itests -Wall -Wextra -Werror -pthread -ffp-contract=off"
cat > "$dir/main.c" <<'END'
#include "packed_check.h"
#include "backend/cpu/kernels.h"
#include "backend/backend.h"
/* packed.c chooses by these; only its packed_find and packed_take are used here. */
const struct cpu_kernels *cpu_kernels(void) { return 0; }
int op_linear(const struct tensor *w, const float *b, const float *x, int64_t n, float *y, int a, struct err *e)
{
    (void)w, (void)b, (void)x, (void)n, (void)y, (void)a, (void)e;
    return -1;
}
int main(void) { return packed_check(&packed_neon, &packed_generic); }
END
n=0
for f in src/backend/cpu/packed_neon.c src/backend/cpu/packed_generic.c src/backend/packed.c src/backend/packed_lanes.c src/tensor/tensor.c src/tensor/half.c \
         src/tensor/block_k.c src/tensor/block_legacy.c src/tensor/block_plain.c src/base/mem.c src/base/err.c src/base/par.c \
         src/base/cpu.c tests/packed_check.c "$dir/main.c"; do
    n=$((n + 1))
    case $f in *_neon.c) o="-O3 -ffp-contract=fast" ;; *_generic.c) o=-O3 ;; *) o=-O2 ;; esac
    $cc $o -c "$f" -o "$dir/$n.o"
done
$cc -static -o "$dir/check" "$dir"/*.o -lm
${QEMU:-qemu-aarch64} "$dir/check"
