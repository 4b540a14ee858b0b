#!/usr/bin/env bash
# Prints the path of a plain-text book to measure on: the Debian Policy Manual without its table of contents, from the Debian package debian-policy
# (GPL-2+), fetched once by apt-get download, which needs no root. D2Q_BOOK=FILE names another text.
set -eu
. "$(dirname "$0")/deps.sh"
if [ -n "${D2Q_BOOK:-}" ]; then
    [ -f "$D2Q_BOOK" ] || { echo "D2Q_BOOK=$D2Q_BOOK: no such file" >&2; exit 1; }
    echo "$D2Q_BOOK"
    exit 0
fi
dir=${XDG_CACHE_HOME:-$HOME/.cache}/d2quant
file=$dir/policy-body.txt
if [ ! -s "$file" ]; then
    deps_fetch >&2
    mkdir -p "$dir"
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    cd "$tmp"
    echo "fetching debian-policy" >&2
    apt-get -qq -o APT::Sandbox::User="$(id -un)" download debian-policy >&2 || {
        [ "$(id -u)" -eq 0 ] && apt-get -qq update >&2 && apt-get -qq -o APT::Sandbox::User=root download debian-policy >&2
    } || { echo "apt-get could not download debian-policy" >&2; exit 1; }
    dpkg-deb -x debian-policy_*.deb x
    gzip -dc x/usr/share/doc/debian-policy/policy.txt.gz | sed '1,/^1\. About this manual$/d' >policy.txt
    [ -s policy.txt ] || { echo "debian-policy: policy.txt is not as expected" >&2; exit 1; }
    mv policy.txt "$file"
fi
echo "$file"
