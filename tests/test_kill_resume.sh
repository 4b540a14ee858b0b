#!/usr/bin/env bash
# kill -9 at N random moments of a quantization (default 20; tests/test_kill_resume.sh 200), each followed by the same command: the
# output is that of a run that was left alone, byte for byte, and no file of ours is left over. SEED repeats a run.
cd "$(dirname "$0")/.." || exit 1
n=${1:-20} d2q=${D2Q_BUILD:-build}/d2q
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
RANDOM=${SEED:-$$}
quantize() { # OUT
    "$d2q" quantize "$dir/model" -o "$1" --group 32 --nsamples 8 --seqlen 64 --tune 1 --quiet >/dev/null 2>"$dir/log"
}
cp -r tests/fixtures/models/llama "$dir/model"
start=$(date +%s%N)
mkdir "$dir/part"
quantize "$dir/part/out" || { cat "$dir/log"; echo "not ok 1 - the uninterrupted run"; exit 1; }
ms=$((($(date +%s%N) - start) / 1000000))
bad=0 killed=0 resumed=0
mv "$dir/part" "$dir/whole"; mkdir "$dir/part"
for ((i = 0; i < n; i++)); do
    rm -rf "$dir/part"/*
    "$d2q" quantize "$dir/model" -o "$dir/part/out" --group 32 --nsamples 8 --seqlen 64 --tune 1 --quiet >/dev/null 2>&1 &
    pid=$!
    sleep "$(printf '%d.%03d' $((ms * (RANDOM % 100) / 100000)) $((ms * (RANDOM % 100) / 100 % 1000)))"
    kill -9 $pid 2>/dev/null && killed=$((killed + 1))
    wait $pid 2>/dev/null
    ls "$dir/part/out.d2q-work"/block-*.bin >/dev/null 2>&1 && resumed=$((resumed + 1))
    if ! quantize "$dir/part/out"; then
        bad=$((bad + 1)); cat "$dir/log"
    elif ! diff -rq "$dir/whole/out" "$dir/part/out" || [ -e "$dir/part/out.d2q-work" ] ; then
        bad=$((bad + 1)); ls -la "$dir/part"
    fi
done
echo "# $killed of $n runs of $ms ms killed, $resumed had finished blocks, $bad differ (SEED=${SEED:-$$})"
[ $bad -eq 0 ] && [ $killed -ge $((n / 4)) ] && [ $resumed -gt 0 ] || { echo "not ok 1 - killed and resumed"; exit 1; }
echo "ok 1 - killed and resumed"
