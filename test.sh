#!/usr/bin/env bash
# Builds with warnings as errors and runs every test. Installs what is missing (as root, or says what to install).
#   ./test.sh [NAME...]     only these tests (test_cli of tests/test_cli.c, test_faults.sh of a script)
# Ends with "N passed, N failed[, N skipped]"; exit status 0 only if none failed.
set -eu
cd "$(dirname "$0")"
. tools/deps.sh
deps_build
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "building"
if ! make -j"$(nproc)" WERROR=1 all tests >"$log" 2>&1; then
    cat "$log"
    echo "the build failed"
    echo "0 passed, 1 failed"
    exit 1
fi
if [ -z "${D2Q_SMOLLM2:-}" ]; then # a real model to test with; without it those tests say that they skip
    D2Q_SMOLLM2=$(tools/fetch-smollm2.sh) && export D2Q_SMOLLM2 || unset D2Q_SMOLLM2
fi
tests/run build "$@"
