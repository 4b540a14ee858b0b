#!/usr/bin/env bash
# d2quant on a real model, from nothing: builds the program, fetches SmolLM2-135M and a book, quantizes the model at 3 and 2 bits by
# round-to-nearest, GPTQ and D2Quant on text that it makes up itself, and prints what each cost. On a slow or busy machine it
# leaves runs out so as to end within ten minutes.
#   DEMO_DIR=build/demo      where the models go
#   DEMO_TEXT=6x512          calibration: sequences x tokens
#   DEMO_WINDOWS=6           evaluation: windows of 1024 tokens
#   DEMO_SECONDS=600         time there is
set -eu
cd "$(dirname "$0")"
started=$(date +%s)
dir=${DEMO_DIR:-build/demo}
text=${DEMO_TEXT:-6x512}
windows=${DEMO_WINDOWS:-6}
limit=${DEMO_SECONDS:-600}
elapsed() { echo $(($(date +%s) - started)); }
say() { printf '[%3d s] %s\n' "$(elapsed)" "$*"; }

. tools/deps.sh
deps_build
say "building"
mkdir -p build "$dir"
make -j"$(nproc)" all >build/demo-make.log 2>&1 || { cat build/demo-make.log; exit 1; }
say "fetching the model and the book"
model=$(tools/fetch-smollm2.sh)
book=$(tools/fetch-book.sh)

value() { grep -o "\"$1\":[-+0-9.e]*" | head -1 | cut -d: -f2; } # the first number of that name in JSON
ppl() { build/d2q eval "$1" --ppl "$book" --ctx 1024 --chunks "$windows" -q --json >"$dir/eval.json" && value ppl <"$dir/eval.json"; }

say "perplexity of the model as it is, on the first $windows windows of the book"
table=$dir/table.txt
size=$(stat -L -c %s "$model")
printf '%-22s %5s %9s %8s\n' weights bits 'size MB' 'perplexity' >"$table"
p=$(ppl "$model")
awk -v b="$size" -v p="$p" 'BEGIN { printf "%-22s %5s %9.1f %10.2f\n", "float (from Q4_1)", "5.0", b / 1e6, p }' >>"$table"

longest=0 # of the runs so far
for bits in 3 2; do
    for method in rtn d2quant gptq; do
        out=$dir/$method-$bits
        if [ $(($(elapsed) + longest + longest / 4 + 20)) -gt "$limit" ]; then
            say "$method at $bits bits: left out, $limit seconds would not do"
            continue
        fi
        say "$method at $bits bits"
        begun=$(elapsed)
        json=$(build/d2q quantize "$model" -o "$out" --method $method --bits $bits --group 64 --calib self \
            --nsamples "${text%x*}" --seqlen "${text#*x}" --report "$out.html" -q --json)
        p=$(ppl "$out")
        awk -v n="$method, $bits bits g64" -v w="$(echo "$json" | value bpw)" -v b="$(echo "$json" | value bytes)" \
            -v p="$p" 'BEGIN { printf "%-22s %5.2f %9.1f %10.2f\n", n, w, b / 1e6, p }' >>"$table"
        took=$(($(elapsed) - begun))
        [ "$took" -le "$longest" ] || longest=$took
    done
done

echo
cat "$table"
echo
echo "bits: of a quantized weight, scales and zeros counted. size: all files; the embeddings (57 MB) are kept as F16."
echo "perplexity: Debian Policy Manual, $windows windows of 1024 tokens; calibrated on $text tokens of the model's own text."
echo
prompt="The capital of France is"
for m in "$model" "$dir/d2quant-3"; do
    [ -e "$m" ] || continue
    echo "$(basename "$m"):"
    printf '  %s' "$prompt"
    build/d2q run "$m" -p "$prompt" -n 40 -q | sed '2,$s/^/  /'
    echo
done
say "done; the models are in $dir and load with transformers (GPTQModel) as they are; a page about each: $dir/*.html"
