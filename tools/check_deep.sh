#!/usr/bin/env bash
# Static and dynamic analysis: tools/check_deep.sh [STEP...]   (make check-deep; steps: analyzer tidy cppcheck valgrind tsan)
# Prints what is found; exit status 1 if anything was. Takes an hour or so of processor time.
# Not looked at statically: src/backend/cpu and the *_<isa>.c files of one set of intrinsics each. Analyzers know nothing of these
# and take minutes a file; the kernels are checked against plain loops by test_backend, test_packed and the sanitizers.
# Exceptions: .clang-tidy (checks left out), tools/deep/*.known, *.supp, "NOLINT", "cppcheck-suppress" in place. Each says why.
set -u
cd "$(dirname "$0")/.."
. tools/deps.sh
# shellcheck disable=SC2046
deps_install $(deps_missing_tools gcc:gcc clang-tidy-14:clang-tidy-14 cppcheck:cppcheck valgrind:valgrind)
flags="-std=c11 -D_GNU_SOURCE -DD2Q_VERSION='\"0\"' -Isrc -Iinclude" # goes through sh -c below
# shellcheck disable=SC2046
flags="$flags $(pkg-config --cflags openblas lapacke jansson libpcre2-8 libutf8proc nettle)"
sources=$(find src -name '*.c' ! -path 'src/backend/cpu/*' ! -name '*_avx*.c' ! -name '*_neon.c' ! -name '*_generic.c' | LC_ALL=C sort)
jobs=${JOBS:-$(nproc)}
bad=0

each() { # command with {}; its output, if any, is a finding
    printf '%s\n' $sources | xargs -P "$jobs" -I{} sh -c "$1" 2>&1
}

report() { # step, output
    if [ -n "$2" ]; then
        printf '%s\n' "$2"
        echo "$1: findings"
        bad=1
    else
        echo "$1: clean"
    fi
}

# To see how a finding of these two comes about: the command on that file.
step_analyzer() {
    report analyzer "$(each "gcc $flags -O1 -Wno-psabi -fanalyzer -fdiagnostics-plain-output -c {} -o /dev/null" |
        grep -E '(warning|error):' | grep -vE -f <(grep -v '^#' tools/deep/analyzer.known))"
}
step_tidy() {
    report clang-tidy "$(each "clang-tidy-14 --quiet {} -- $flags" | grep -E '(warning|error):' | grep -vE -f <(grep -v '^#' tools/deep/tidy.known))"
}
step_cppcheck() {
    # shellcheck disable=SC2086
    report cppcheck "$(cppcheck -q -j "$jobs" --std=c11 --enable=warning,portability --inline-suppr --suppress=missingIncludeSystem \
        --include=tools/deep/cppcheck.h -D_GNU_SOURCE -D__x86_64__ -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 \
        '-DD2Q_VERSION="0"' -Isrc -Iinclude $sources 2>&1)"
}

# The readers, the small models of all families, a session. Without AVX-512, which valgrind lacks: dispatch sees to that.
step_valgrind() {
    local t log out=
    make -s tests || { bad=1; return; }
    log=$(mktemp)
    for t in test_corpus test_safetensors test_gguf test_checkpoint test_model test_run test_kl; do
        OPENBLAS_NUM_THREADS=1 valgrind -q --error-exitcode=9 --suppressions=tools/deep/valgrind.supp --leak-check=full \
            --errors-for-leak-kinds=definite --show-leak-kinds=definite "build/tests/$t" >"$log" 2>&1 ||
            out="$out$t"$'\n'"$(grep -E '^==|^not ok|FAILED' "$log")"$'\n'
    done
    rm -f "$log"
    report valgrind "$out"
}

# What runs on par's threads. OpenBLAS is not instrumented: one thread, so that it synchronizes nothing unseen.
step_tsan() {
    local t log out= list="test_base test_backend test_model test_run test_kl test_quant"
    # shellcheck disable=SC2086
    make -s BUILD=build-tsan SANITIZE=thread OPT="-O1 -g" $(printf 'build-tsan/tests/%s ' $list) || { bad=1; return; }
    log=$(mktemp)
    for t in $list; do
        OPENBLAS_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=0:exitcode=9 "build-tsan/tests/$t" >"$log" 2>&1 ||
            out="$out$t"$'\n'"$(cat "$log")"$'\n'
    done
    rm -f "$log"
    report tsan "$out"
}

for step in "${@:-all}"; do
    case $step in
    all) for s in cppcheck analyzer tidy valgrind tsan; do "step_$s"; done ;;
    analyzer | tidy | cppcheck | valgrind | tsan) "step_$step" ;;
    *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done
exit $bad
