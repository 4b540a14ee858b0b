#!/usr/bin/env bash
# Checks the rules that keep the layers apart (doc/design.md). Prints each breach as "file:line: text"; exit status 1 if any.
#   1. a layer includes only what stands left of it:  base < tensor < {io, backend} < model < quant
#      < {export, eval, run, report} < api < cli; io and backend, and export, eval, run, report, do not know each other
#   2. the cli includes its own headers, d2quant.h and system headers only
#   3. #if and #ifdef only in base/, *.def files and include guards
#   4. no source file is included
#   5. the library never prints, exits, or allocates outside base/mem
shopt -s lastpipe # so that breach, at the end of a pipe, can set bad
cd "$(dirname "$0")/.." || exit 1
root=${1:-.} # another tree, for the test of this check
bad=0
breach() { # heading; lines on stdin
    local lines
    lines=$(cat)
    [ -n "$lines" ] || return 0
    printf '%s\n%s\n' "$1:" "$lines"
    bad=1
}

allowed() {
    case $1 in
    base) echo base ;;
    tensor) echo base tensor ;;
    io) echo base tensor io ;;
    backend) echo base tensor backend ;;
    model) echo base tensor io backend model ;;
    quant) echo base tensor io backend model quant ;;
    export | eval | run | report) echo base tensor io backend model quant "$1" ;;
    api) echo base tensor io backend model quant export eval run report api d2quant.h ;;
    cli) echo cli d2quant.h ;;
    *) echo ;;
    esac
}

cd "$root" || exit 1
for dir in src/*/; do
    layer=$(basename "$dir")
    ok=$(allowed "$layer" | sed 's/ /|/g; s/\./\\./g')
    if [ -z "$ok" ]; then
        echo "$dir" | breach "no such layer in tests/check_layers.sh"
        continue
    fi
    grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]+"' "$dir" | grep -vE "\"($ok)(/[^\"]*)?\"" |
        breach "$layer may include only: $(allowed "$layer")"
done
grep -rnE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef|elif)\b' src --include='*.c' --include='*.h' | grep -v '^src/base/' |
    grep -vE '#ifndef D2Q_[A-Z0-9_]+_H$' | breach "#if only in base/ and *.def files"
grep -rnE '#[[:space:]]*include[[:space:]]+"[^"]*\.c"' src tests/*.c 2>/dev/null | breach "no source file is included"
grep -rnE '(^|[^_[:alnum:]>.])(printf|fprintf|vprintf|puts|putchar|fputs|perror|exit|_exit|abort)[[:space:]]*\(' src \
    --include='*.c' --include='*.h' | grep -v '^src/cli/' | breach "the library never prints or exits"
grep -rnE '(^|[^_[:alnum:]>.])(malloc|calloc|realloc|strdup|strndup|aligned_alloc|posix_memalign)[[:space:]]*\(' src \
    --include='*.c' --include='*.h' | grep -vE '^src/(cli/|base/mem\.c)' | breach "memory comes from base/mem"
exit $bad
