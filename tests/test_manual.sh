#!/usr/bin/env bash
# Man pages and completion scripts, as the programs that read them judge: mandoc, groff, bash, zsh, fish (those that are there).
set -u
cd "$(dirname "$0")/.." || exit 1
build=${D2Q_BUILD:-build}
d2q=$build/d2q
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
n=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
bad() { n=$((n + 1)); echo "not ok $n - $1"; sed 's/^/# /'; }
check() { # name, file: nothing in it is good
    if [ -s "$2" ]; then bad "$1" < <(head -5 "$2"); else ok "$1"; fi
}
skip() { n=$((n + 1)); echo "ok $n - $1 # SKIP $2 is not installed"; echo "skip: $1: $2 is not installed"; }
out=$tmp/out
commands=$(sed -n 's/^COMMAND(\([a-z]*\),.*/\1/p' src/cli/commands.def)

# ---- man pages
mkdir "$tmp/man"
for c in '' $commands; do
    # shellcheck disable=SC2086
    "$d2q" --man $c >"$tmp/man/d2q${c:+-$c}.1" || echo "d2q --man $c failed"
done >"$out"
check "a page each" "$out"
if command -v mandoc >/dev/null; then # a page without date is the same in every build
    for f in "$tmp"/man/*.1; do mandoc -T lint -W warning "$f" 2>&1 | grep -v 'missing date'; done >"$out"
    check "mandoc finds nothing wrong" "$out"
else skip "man pages by mandoc" mandoc; fi
if command -v groff >/dev/null && groff -man -Tascii /dev/null >/dev/null 2>&1; then
    for f in "$tmp"/man/*.1; do groff -man -ww -Tascii "$f" 2>&1 >/dev/null; done >"$out"
    check "groff warns of nothing" "$out"
else skip "man pages by groff" groff; fi
options=0
for c in $commands; do # every option of --help is on the page
    for o in $("$d2q" "$c" --help | sed -n '/^options:/,/^examples:/s/^  \(-.,\|   \) --\([a-z0-9-]*\).*/\2/p'); do
        grep -q -- "\\\\-\\\\-${o//-/\\\\-}\\\\fR" "$tmp/man/d2q-$c.1" || echo "d2q-$c.1 has no --$o"
        options=$((options + 1))
    done
done >"$out"
[ "$options" -ge 60 ] || echo "only $options options were found" >>"$out"
check "every option is on its page" "$out"

# ---- bash
"$d2q" --completion bash >"$tmp/d2q.bash"
cat >"$tmp/ask.bash" <<'EOF'
. "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
compopt() { echo "compopt $*"; }
_d2q
echo "${COMPREPLY[*]}"
EOF
expect() { # what; expected; words
    local what=$1 want=$2 got
    shift 2
    got=$(cd "$tmp" && bash ask.bash d2q.bash "$@" 2>&1)
    if [ "$got" = "$want" ]; then ok "bash: $what"; else bad "bash: $what" <<<"expected '$want', got '$got'"; fi
}
touch "$tmp/text.txt"
expect "commands" "convert compare" d2q co
expect "options" "--target-size --target-bpw" d2q quantize MODEL --target
expect "choices" "2 3 4" d2q quantize MODEL --bits ''
expect "choices behind =" "d2quant" d2q quantize MODEL --method = d2
expect "on and off" "on off" d2q quantize --dsq ''
expect "tables of the library" "gptq gptq_v1 gguf" d2q convert x --format g
expect "files" text.txt d2q eval x --ppl te
expect "nothing for numbers" "compopt +o default" d2q quantize --group ''

# ---- zsh, fish
"$d2q" --completion zsh >"$tmp/_d2q"
"$d2q" --completion fish >"$tmp/d2q.fish"
if command -v zsh >/dev/null; then
    zsh -n "$tmp/_d2q" >"$out" 2>&1
    check "zsh reads its script" "$out"
    cat >"$tmp/ask.zsh" <<'EOF'
autoload -U compinit && compinit -D -u
. "$1/_d2q"
_arguments() { print -rl -- "$@" }
words=(d2q quantize --bits) CURRENT=3
_d2q
EOF
    if zsh -f "$tmp/ask.zsh" "$tmp" 2>&1 | grep -qF -- '--bits=[bits of a code]:bits:(2 3 4)'; then ok "zsh: choices"; else
        bad "zsh: choices" < <(zsh -f "$tmp/ask.zsh" "$tmp" 2>&1 | head -5); fi
else skip "completion in zsh" zsh; fi
if command -v fish >/dev/null; then
    ask() { HOME=$tmp fish -c "source $tmp/d2q.fish; complete -C'$1'" 2>&1 | cut -f1 | sort | tr '\n' ' '; }
    fish -n "$tmp/d2q.fish" >"$out" 2>&1
    check "fish reads its script" "$out"
    got=$(ask 'd2q quantize --bits '); [ "$got" = '2 3 4 ' ] && : >"$out" || echo "'$got'" >"$out"
    check "fish: choices" "$out"
    got=$(ask 'd2q comp'); [ "$got" = 'compare ' ] && : >"$out" || echo "'$got'" >"$out"
    check "fish: commands" "$out"
else skip "completion in fish" fish; fi

# ---- installed
make -s BUILD="$build" install DESTDIR="$tmp/root" PREFIX=/usr >"$out" 2>&1 && : >"$out"
for f in man/man1/d2q.1 man/man1/d2q-quantize.1 bash-completion/completions/d2q zsh/site-functions/_d2q fish/vendor_completions.d/d2q.fish; do
    [ -s "$tmp/root/usr/share/$f" ] || echo "$f was not installed"
done >>"$out"
check "make install" "$out"
make -s BUILD="$build" uninstall DESTDIR="$tmp/root" PREFIX=/usr >/dev/null 2>&1
find "$tmp/root" -type f >"$out"
check "make uninstall leaves nothing" "$out"
echo "1..$n"
