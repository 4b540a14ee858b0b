# deps: what the scripts need installed. Sourced: deps_build, deps_fetch.
# With root (or sudo that asks no password) apt-get installs what is missing; otherwise the packages are named and the script ends.

deps_missing_libs() { # "pkg-config name:Debian package"
    local pair
    for pair in openblas:libopenblas-dev lapacke:liblapacke-dev jansson:libjansson-dev libpcre2-8:libpcre2-dev \
        libutf8proc:libutf8proc-dev nettle:nettle-dev cmocka:libcmocka-dev; do
        pkg-config --exists "${pair%%:*}" 2>/dev/null || echo "${pair#*:}"
    done
}

deps_missing_tools() { # "program:Debian package"
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair#*:}"
    done
}

deps_install() { # packages
    [ $# -gt 0 ] || return 0
    local sudo=
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "missing (Debian names): $*; install them and run this again" >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if sudo -n true 2>/dev/null; then sudo='sudo -n'; else
            echo "missing: $*" >&2
            echo "run as root:  apt-get install --no-install-recommends $*" >&2
            exit 1
        fi
    fi
    echo "installing: $*"
    if ! { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends "$@"; } >/tmp/d2quant-apt.$$ 2>&1; then
        cat "/tmp/d2quant-apt.$$" >&2
        rm -f "/tmp/d2quant-apt.$$"
        echo "apt-get could not install: $*" >&2
        exit 1
    fi
    rm -f "/tmp/d2quant-apt.$$"
}

deps_build() { # to build and test
    local list
    list="$(deps_missing_tools cc:gcc make:make ld:binutils pkg-config:pkg-config; deps_missing_libs)"
    echo 'int main(void) { return 0; }' | ${CC:-cc} -x c -include stdlib.h -fsyntax-only - 2>/dev/null || list="$list libc6-dev"
    # shellcheck disable=SC2086
    deps_install $list
}

deps_fetch() { # to fetch the demo's model and text
    local list
    list="$(deps_missing_tools python3:python3 gzip:gzip apt-get:apt)"
    python3 -m pip --version >/dev/null 2>&1 || list="$list python3-pip"
    # shellcheck disable=SC2086
    deps_install $list
}
