#!/usr/bin/env bash
# The operating system fails (tests/preload/faults.c), the source changes, the disk is too small: each time one clear message, status 1, the
# old output byte for byte as it was, nothing half-written or left over, and the same command then goes on to the right output.
# D2Q_FAULTS=all takes every call instead of a sample. Prints TAP.
cd "$(dirname "$0")/.." || exit 1
d2q=${D2Q_BUILD:-build}/d2q shim=$PWD/${D2Q_BUILD:-build}/tests/faults.so
export ASAN_OPTIONS=verify_asan_link_order=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
RANDOM=${SEED:-8}
n=0 bad=0 part=$dir/part
ok() { n=$((n + 1)); if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else bad=1; echo "not ok $n - $2"; fi; }
skip() { n=$((n + 1)); echo "ok $n - $1 # SKIP needs $2"; echo "skip: $1: needs $2"; }
quantize() { # FORMAT [OPTION...]: part/out, or part/out.gguf
    local out=$part/out; [ "$1" = gguf ] && out+=.gguf
    "$d2q" quantize "$dir/model" -o "$out" --format "$1" --group 32 --nsamples 2 --seqlen 32 --quiet "${@:2}" >"$dir/stdout" 2>"$dir/log"
}
fault() { # SPEC COMMAND...
    D2Q_FAULT=$1 D2Q_FAULT_LOG=$dir/calls LD_PRELOAD=$shim "${@:2}"
}
visible() { find "$1" -mindepth 1 -maxdepth 1 ! -name '*.d2q-work' -printf '%f\n' | LC_ALL=C sort | tr '\n' ' '; }
same() { diff -r -x '*.d2q-work' "$1" "$2" >/dev/null; }
cp -r tests/fixtures/models/llama "$dir/model"

prepare() { # FORMAT: old/ holds an output of another recipe, new/ the one to come
    rm -rf "$part" "$dir/old" "$dir/new"; mkdir "$part"
    quantize "$1" --method rtn --bits 4 || cat "$dir/log"
    cp -r "$part" "$dir/old"
    quantize "$1" --bits 3 || cat "$dir/log"
    mv "$part" "$dir/new"
}
# One failing call: SPEC FORMAT [OPTION...]. Prints what is wrong, if anything.
one() {
    rm -rf "$part"; cp -r "$dir/old" "$part"
    local why="" list rc
    fault "$1" quantize "${@:2}" --bits 3; rc=$?
    list=$(visible "$part")
    if [ $rc -eq 0 ]; then
        same "$part" "$dir/new" || why="status 0, but another output"
    elif [ $rc -ne 1 ]; then why="status $rc"
    elif ! grep -q '^d2q: error: ' "$dir/log"; then why="no message"
    elif grep -q 'part/out\(.gguf\|.md\)\?: is in place' "$dir/log"; then [ "$2" = gguf ] && cp "$dir/new/out.md" "$part"; same "$part" "$dir/new" || why="in place, but another output"
    elif ! same "$part" "$dir/old"; then why="the old output changed"
    fi
    [ "$list" = "$(visible "$dir/new")" ] || why+="; left over: $list"
    if [ -z "$why" ] && [ $rc -ne 0 ]; then
        quantize "${@:2}" --bits 3 || why="does not go on"
        same "$part" "$dir/new" || why="another output after going on"
        [ -e "$part"/*.d2q-work ] && why="the work folder stays"
    fi
    case $1:$rc in fsync:*:0) why="what did not reach the disk is called written" ;; esac
    [ -z "$why" ] || { echo "# $1 $2: $why: $(tail -2 "$dir/log")"; return 1; }
}
sweep() { # FORMAT CALL ERROR SAMPLE [OPTION...]: every call of that name fails in turn, or SAMPLE of them
    local format=$1 call=$2 error=$3 sample=$4 total i rc=0 list; shift 4
    rm -rf "$part"; cp -r "$dir/old" "$part"
    fault "$call:$error:0" quantize "$format" --bits 3 "$@"
    total=$(cat "$dir/calls")
    [ "${D2Q_FAULTS:-}" = all ] || [ "$total" -le "$sample" ] || list=$(shuf -i 1-"$total" -n "$sample" --random-source=<(yes "$RANDOM"))
    for i in ${list:-$(seq 1 "$total")}; do one "$call:$error:$i" "$format" "$@" || rc=1; done
    [ "$total" -gt 0 ] || rc=1
    ok $rc "$format: $call fails ($error), ${list:+$sample of }$total calls"
}

for format in gptq gguf; do
    prepare $format
    sweep $format write eio 6
    sweep $format write short 4
    sweep $format fsync eio 6
    sweep $format rename eacces 6
    sweep $format open eacces 10
    sweep $format read eio 5
    sweep $format mmap enomem 3
done
sweep gguf mkdir erofs 2
sweep gguf pwrite enospc 2
sweep gguf close eio 4

# A disk that becomes full after so many bytes, anywhere: before a byte, in a block, in the state, in the output.
rc=0
fault disk:enospc:999999999 quantize gguf --bits 3 && total=$(cat "$dir/calls") || rc=1
for i in 0 1 $(shuf -i 2-$((total - 1)) -n "$([ "${D2Q_FAULTS:-}" = all ] && echo 300 || echo 10)" --random-source=<(yes "$RANDOM")) $((total - 1)); do
    one disk:enospc:"$i" gguf || rc=1
done
ok $rc "gguf: the disk is full after any number of its $total bytes"

# A split file whose parts cannot all be renamed: no first part of one run before parts of another.
rc=0
rm -rf "$part"; mkdir "$part"
split() { quantize gguf --bits "$1" --shard-size 50KB; }
split 4 && cp -r "$part" "$dir/four" && split 3 && cp -r "$part" "$dir/three" || rc=1
parts=("$part"/out-00001-of-*)
[ -e "${parts[0]}" ] && [ "$(ls "$part")" = "$(ls "$dir/four")" ] || rc=1
for i in $(seq 1 "$(ls "$part" | grep -c gguf)"); do
    rm -rf "$part"; cp -r "$dir/four" "$part"
    D2Q_FAULT=rename:eacces:$i:out-0 D2Q_FAULT_LOG=$dir/calls LD_PRELOAD=$shim split 3; [ $? -eq 1 ] || rc=1
    [ ! -e "${parts[0]}" ] || same "$part" "$dir/four" || { rc=1; echo "# rename $i: $(ls "$part" | tr '\n' ' ')"; }
    split 3 && same "$part" "$dir/three" || { rc=1; tail -1 "$dir/log"; }
done
ok $rc "a split file whose parts cannot all be renamed"

# Work that was done is kept, and is not done again.
rm -rf "$part"; cp -r "$dir/old" "$part"
fault "write:enospc:1+:unverified" quantize gguf --bits 3; rc=$?
[ $rc -eq 1 ] && grep -q 'No space left on device' "$dir/log" && grep -q 'out.gguf' "$dir/log" && grep -q 'the work so far is kept in' "$dir/log" &&
    same "$part" "$dir/old" && quantize gguf --bits 3 --json && grep -q '"resumed_blocks":2' "$dir/stdout" && cmp -s "$part/out.gguf" "$dir/new/out.gguf"
ok $? "a full disk at the end costs no block"

# Room on the disk is looked at before the work begins.
rm -rf "$part"; cp -r "$dir/old" "$part"
fault statvfs:-:1000 quantize gguf --bits 3; rc=$?
[ $rc -eq 1 ] && grep -q 'the disk has .* bytes free' "$dir/log" && same "$part" "$dir/old" && [ ! -e "$part/out.gguf.d2q-work" ]
ok $? "too little room: refused before the work"
if [ "$(id -u)" -eq 0 ] && mkdir "$dir/small" && mount -t tmpfs -o size=64k none "$dir/small" 2>/dev/null; then
    "$d2q" quantize "$dir/model" -o "$dir/small/x.gguf" --bits 3 --quiet >/dev/null 2>"$dir/log"; rc=$?
    [ $rc -eq 1 ] && grep -q 'bytes free' "$dir/log" && [ -z "$(ls "$dir/small")" ]; rc=$?
    umount "$dir/small"
    ok $rc "a small tmpfs: the same"
else skip "a small tmpfs: the same" "root, who may mount"; fi

# No permission, or something else in the way: said before the work.
rm -rf "$part"; mkdir "$part"; echo mine >"$part/out.gguf"
quantize gguf --bits 3; [ $? -eq 1 ] && grep -q 'is no GGUF file' "$dir/log" && [ "$(cat "$part/out.gguf")" = mine ] && [ ! -e "$part/out.gguf.d2q-work" ]
ok $? "a file of another kind is not replaced, and that is said before the work"
mkdir "$part/out"; echo mine >"$part/out/x"
quantize gptq --bits 3; [ $? -eq 1 ] && grep -q 'holds no model that d2q wrote' "$dir/log" && [ ! -e "$part/out.d2q-work" ]
ok $? "nor a folder of other things"
"$d2q" quantize "$dir/model" -o "$dir/none/out" --bits 3 --quiet --work off >/dev/null 2>"$dir/log"
[ $? -eq 1 ] && grep -q 'No such file' "$dir/log"
ok $? "a folder that is not there"
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    mkdir "$dir/closed"; chmod 755 "$dir" "$dir/closed"; cp "$d2q" "$dir/d2q"; chmod 755 "$dir/d2q"
    setpriv --reuid 65534 --clear-groups "$dir/d2q" quantize "$dir/model" -o "$dir/closed/out" --bits 3 --quiet >/dev/null 2>"$dir/log"
    [ $? -eq 1 ] && grep -q 'Permission denied' "$dir/log" && [ -z "$(ls "$dir/closed")" ]
    ok $? "no permission to write there"
    chmod 000 "$dir/model/model.safetensors"
    setpriv --reuid 65534 --clear-groups "$dir/d2q" inspect "$dir/model" >/dev/null 2>"$dir/log"
    [ $? -eq 1 ] && grep -q 'model.safetensors: cannot open: Permission denied' "$dir/log"
    ok $? "no permission to read"
    chmod 644 "$dir/model/model.safetensors"
else skip "no permission to write there, or to read" "root and setpriv"; fi

# The source during the run, which stops before its first block gets its name.
during() { # COMMAND on the source meanwhile; the run's status, its messages in log
    rm -rf "$part"; mkdir "$part"
    D2Q_FAULT=rename:stop:1:block-00000 LD_PRELOAD=$shim "$d2q" quantize "$dir/model" -o "$part/out" --group 32 --nsamples 2 --seqlen 32 \
        --bits 3 --quiet >/dev/null 2>"$dir/log" &
    local pid=$!
    while [[ $(cut -d' ' -f3 /proc/$pid/stat 2>/dev/null || echo Z) != [TZ] ]]; do sleep 0.02; done # or it has ended
    "$@"
    kill -CONT $pid
    wait $pid
}
restore() { rm -rf "$dir/model"; cp -r tests/fixtures/models/llama "$dir/model"; }
during truncate -s 4096 "$dir/model/model.safetensors"
[ $? -eq 1 ] && grep -q 'model.safetensors: .*\(was truncated\|changed while it was read\)' "$dir/log" && grep -q 'the work so far is kept' "$dir/log" &&
    [ "$(ls "$part")" = out.d2q-work ]
ok $? "a source that is truncated"
restore
during dd if=/dev/zero of="$dir/model/model.safetensors" bs=1 seek=9000 count=8 conv=notrunc status=none
[ $? -eq 1 ] && grep -q 'model.safetensors: changed while it was read' "$dir/log" && [ "$(ls "$part")" = out.d2q-work ]
ok $? "a source that is written to"
restore
during rm "$dir/model/model.safetensors"
[ $? -eq 0 ] && "$d2q" verify "$part/out" >/dev/null && grep -q 'model.safetensors' "$part/out/README.md"
ok $? "a source that is deleted: what is mapped stays, the output is whole"
restore
rm -rf "$part"; mkdir "$part"; quantize gptq --bits 3
silent=0
for call in eval:"--ppl tests/fixtures/models/text.txt --ctx 64" run:"-p a -n 4" inspect: verify: convert:"-o $dir/conv --format hf"; do
    for i in 1 2 3; do
        fault open:eio:$i:part/out "$d2q" "${call%%:*}" "$part/out" ${call#*:} >/dev/null 2>"$dir/log"
        rc=$?; { [ $rc -eq 1 ] && grep -q '^d2q: error: .*Input/output error' "$dir/log"; } || { echo "# ${call%%:*} $i: $rc $(cat "$dir/log")"; silent=1; }
    done
done
ok $silent "reading fails in every command"
"$d2q" inspect "$part/out" >/dev/full 2>"$dir/log"; [ $? -eq 1 ] && grep -q 'stdout' "$dir/log"
ok $? "stdout is full"
exit $bad
