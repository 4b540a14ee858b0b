#!/usr/bin/env bash
# The rules of the layers, the headers, what the libraries export, and what make install gives. TAP.
cd "$(dirname "$0")/.." || exit 1
build=${D2Q_BUILD:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0
check() { # name; a command
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$tmp/log" 2>&1; then echo "ok $n - $name"; else
        echo "not ok $n - $name"
        sed 's/^/# /' "$tmp/log" | head -20
    fi
}

# The check itself must be able to fail: a tree with one breach of each rule.
breaches_found() {
    local t=$tmp/tree k
    mkdir -p "$t"/src/{base,io,cli,quant,new} "$t/tests"
    echo '#include "backend/backend.h"' >"$t/src/io/a.c"
    echo '#include "quant/quant.h"' >"$t/src/cli/a.c"
    printf '#ifdef X\n#endif\nvoid f(void) { printf("x"); p = malloc(1); }\n#include "base/a.c"\n' >"$t/src/quant/a.c"
    tests/check_layers.sh "$t" >"$tmp/found" && return 1
    for k in 'io may include' 'cli may include' 'no such layer' '#if only' 'never prints' 'base/mem' 'no source file'; do
        grep -q "$k" "$tmp/found" || { echo "not found: $k"; cat "$tmp/found"; return 1; }
    done
    [ "$(grep -c '^src/' "$tmp/found")" = 7 ] || { cat "$tmp/found"; return 1; }
}

only_d2q() { # "global defined symbols" of a library
    local extra
    extra=$(nm "$@" | awk 'NF == 3 && $2 ~ /^[A-Z]$/ && $2 != "U" { print $3 }' | grep -v '^d2q_')
    [ -z "$extra" ] || { echo "$extra" | head; return 1; }
    [ "$(nm "$@" | grep -c ' T d2q_')" -gt 10 ]
}

write_program() {
    cat >"$tmp/p.c" <<'C'
#include <d2quant.h>
#include <stdio.h>

int main(void)
{
    d2q_error e;
    d2q_model *m = d2q_open("/no/such/model", &e);
    printf("%s|%d|%s\n", d2q_version(), m == NULL, e.message);
    return m != NULL;
}
C
}

installed_works() { # shared | static
    local flags pc="$tmp/usr/lib/pkgconfig"
    write_program
    if [ "$1" = static ]; then
        flags=$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs --static d2quant | sed "s|-ld2q|$tmp/usr/lib/libd2q.a|")
    else
        flags="$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs d2quant) -Wl,-rpath,$tmp/usr/lib"
    fi
    # shellcheck disable=SC2086
    ${CC:-cc} -std=c11 -Wall -Wextra -Werror "$tmp/p.c" -o "$tmp/p-$1" $flags || return 1
    "$tmp/p-$1" | grep -q '|1|.*/no/such/model' || { "$tmp/p-$1"; return 1; }
}

example_works() {
    local flags
    flags=$(PKG_CONFIG_PATH=$tmp/usr/lib/pkgconfig pkg-config --cflags --libs d2quant)
    # shellcheck disable=SC2086
    ${CC:-cc} -std=c11 -Wall -Wextra -Werror examples/quantize.c -o "$tmp/example" $flags "-Wl,-rpath,$tmp/usr/lib" || return 1
    "$tmp/example" tests/fixtures/models/llama "$tmp/out" tests/fixtures/models/text.txt && [ -s "$tmp/out/model.safetensors" ]
}

instrumented() { nm "$build/libd2q.so" | grep -qE '__asan_init|__ubsan_|__tsan_init|__gcov_init'; }

check "layers include only what stands left of them" tests/check_layers.sh
check "the check of the layers finds breaches" breaches_found
check "each header compiles alone" make -s BUILD="$build" check-headers
if instrumented; then
    echo "ok $((n + 1)) - exported symbols and installation # SKIP instrumented build"
    n=$((n + 1))
else
    check "libd2q.so exports only d2q_" only_d2q -D "$build/libd2q.so"
    check "libd2q.a defines only d2q_" only_d2q "$build/libd2q.a"
    check "make install" make -s BUILD="$build" PREFIX="$tmp/usr" install
    check "a program links the installed shared library" installed_works shared
    check "a program links the installed static library" installed_works static
    check "the example works with what is installed" example_works
    check "make uninstall leaves nothing" bash -c "make -s BUILD='$build' PREFIX='$tmp/usr' uninstall && ! find '$tmp/usr' -type f -o -type l | grep ."
fi
echo "1..$n"
