#!/usr/bin/env bash
# Pictures of a report page, to be looked at: tools/report_shots.sh PAGE.html [DIR]
# Writes light.png, dark.png (1280 wide), phone.png (390) and, printed, print-*.png. Needs chromium and, for the last, pdftoppm; without them
# it says what it skips.
set -eu
page=$(realpath "$1") out=$(realpath "${2:-.}")
browser=$(command -v chromium || command -v chromium-browser || true)
if [ -z "$browser" ]; then
    echo "skip: no chromium here (Debian: apt-get install chromium)"
    exit 0
fi
shot() { "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars "$@" >/dev/null 2>&1; }
shot --window-size=1280,5200 --screenshot="$out/light.png" "file://$page"
shot --window-size=1280,5200 --blink-settings=preferredColorScheme=0 --screenshot="$out/dark.png" "file://$page"
frame=$(mktemp --suffix=.html) # a window is never narrower than 500
trap 'rm -f "$frame" "$out/print.pdf"' EXIT
echo "<body style='margin:0'><iframe src='file://$page' style='border:0;width:390px;height:9000px'></iframe>" >"$frame"
shot --window-size=500,9000 --screenshot="$out/phone.png" "file://$frame"
shot --no-pdf-header-footer --print-to-pdf="$out/print.pdf" "file://$page"
if command -v pdftoppm >/dev/null; then
    pdftoppm -r 60 -png "$out/print.pdf" "$out/print"
else
    echo "skip: no pdftoppm here (Debian: apt-get install poppler-utils)"
fi
for f in light dark phone; do [ -s "$out/$f.png" ] || { echo "$f.png was not made" >&2; exit 1; }; done
