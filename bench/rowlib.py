"""What bench/accuracy and bench/gguf_rows.py share: where things lie, calls of d2q, rows kept as JSON, the plot."""
import hashlib, json, math, os, pathlib, shutil, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(os.environ.get("D2Q_DATA", ROOT / "../shared/data")).resolve()
SCRATCH = pathlib.Path(os.environ.get("D2Q_SCRATCH", "/tmp/d2q-accuracy"))
ROWS = ROOT / "bench/rows"
D2Q = os.environ.get("D2Q", str(ROOT / "build/d2q"))


def run(args, both=False, **kw):
    """What it wrote to stdout; both: and to stderr."""
    p = subprocess.run(args, capture_output=True, text=True, errors="replace", **kw)
    if p.returncode:
        sys.exit(f"{' '.join(map(str, args))}\n{p.stderr[-2000:]}")
    return p.stdout + (p.stderr if both else "")


def d2q_json(*args):
    return json.loads(run([D2Q, *map(str, args), "--json", "-q"]))


def quantized(command, out):
    """d2q's JSON of a `quantize` that writes `out`. Kept beside it until finished(out), so that a run cut off while judging needs no second one."""
    kept = out.with_name(out.name + ".run.json")
    shown = " ".join(map(str, [hashlib.sha256(pathlib.Path(D2Q).read_bytes()).hexdigest(), *command]))
    if kept.exists() and out.exists() and (before := json.loads(kept.read_text()))["command"] == shown:
        return before["result"]
    finished(out)
    q = d2q_json(*command)
    save(kept, dict(command=shown, result=q))
    return q


def finished(out):
    """Removes a quantized model, a GGUF file's model card and what quantized() noted of it."""
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    for beside in (out.with_suffix(".md"), out.with_name(out.name + ".run.json")):
        beside.unlink(missing_ok=True)


def anywhere(command, model, out):
    """A command or path without what is this machine's."""
    text = str(command)
    for path, name in ((model, "MODEL"), (DATA, "DATA"), (out, "OUT"), (SCRATCH, "SCRATCH")):
        text = text.replace(str(path), name)
    return text


def portable(options, model, out):
    return {**options, **({"calib": anywhere(options["calib"], model, out)} if "calib" in options else {})}


def stale(row):
    """Made by an older default recipe, to be made again: before shrinkage (as if by --shrink 0), or the 1.5B model's before it was rotated."""
    options = row.get("options", {})
    unrotated = row["row"].startswith("qwen/") and options.get("rotate") == "off" and "--rotate" not in row["command"]
    return options.get("method") == "d2quant" and options.get("recipe") == "default" and ("shrink" not in options or unrotated)


def marked(label, row):
    return f"{label} †" if stale(row) else label


def model_of(s):
    return run([ROOT / f"tools/fetch-{s}.sh"]).strip().splitlines()[-1]


def save(path, row):
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_suffix(".tmp")
    tmp.write_text(json.dumps(row, indent=1) + "\n")
    tmp.rename(path)


def load(key):
    path = ROWS / (key + ".json")
    return json.loads(path.read_text()) if path.exists() else None


def svg(points, path):
    """Megabytes against mean KL (log), one colour a method."""
    w, h, left, top = 720, 400, 60, 20
    if len(points) < 2:
        return
    xs, ys = [p[0] for p in points], [math.log10(p[1]) for p in points]
    x0, x1, y0, y1 = min(xs) * .98, max(xs) * 1.02, math.floor(min(ys) * 5) / 5, math.ceil(max(ys) * 5) / 5
    px = lambda x: left + (x - x0) / (x1 - x0) * (w - left - 220)
    py = lambda y: top + (y1 - y) / (y1 - y0) * (h - top - 40)
    names = list(dict.fromkeys(p[2] for p in points))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">',
           f'<rect width="{w}" height="{h}" fill="white"/>']
    for i in range(round((y1 - y0) * 5) + 1):
        y = y0 + i / 5
        out.append(f'<line x1="{left}" x2="{w - 220}" y1="{py(y):.0f}" y2="{py(y):.0f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{py(y) + 4:.0f}" text-anchor="end">{10 ** y:.2f}</text>')
    for x, y, name in points:
        hue = names.index(name) * 360 / len(names)
        out.append(f'<circle cx="{px(x):.1f}" cy="{py(math.log10(y)):.1f}" r="5" fill="hsl({hue:.0f},70%,45%)"><title>{name.replace("*", "")}: {x:.1f} MB, '
                   f'KL {y:.4f}</title></circle>')
    for i, name in enumerate(names):
        out.append(f'<circle cx="{w - 205}" cy="{top + 12 + 17 * i}" r="5" fill="hsl({i * 360 / len(names):.0f},70%,45%)"/>'
                   f'<text x="{w - 195}" y="{top + 16 + 17 * i}">{name.replace("*", "")}</text>')
    out.append(f'<text x="{left}" y="{h - 8}">MB: {x0 / .98:.0f} to {x1 / 1.02:.0f}; '
               f'upwards: mean KL divergence to float</text></svg>')
    path.write_text("\n".join(out) + "\n")
