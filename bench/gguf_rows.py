"""Rows of bench/accuracy that are GGUF files: d2q beside llama-quantize with imatrix, judged by llama-perplexity. D2Q_LLAMA_CPP=llama.cpp/build/bin.

The same float model (the source's own values) and text for all: WikiText-2 train, 16,384 tokens for d2q's statistics and for the imatrix.
With --pure every matrix has the type named, embeddings and head stay as the source has them, as with d2q's --grid; "mix" is what
llama-quantize makes of a type by itself; "at the size of" is d2q's --target-size, free in every type."""
import os, pathlib, re, sys, time

from rowlib import DATA, ROOT, ROWS, SCRATCH, anywhere, finished, load, marked, model_of, portable, quantized, run, save, svg

SET = "qwen-gguf"
TITLE = "Qwen2.5-Coder-1.5B-Instruct as GGUF files"
TABLES = ["--token-embedding-type", "q4_K", "--output-tensor-type", "q6_K"]
# name: (label, maker, arguments)
NAMES = {
    "d2q-q2_k": ("**D²Quant, q2_k**", "d2q", "--grid q2_k"),
    "lq-q2_k": ("llama-quantize --pure Q2_K", "pure", "Q2_K"),
    "d2q-q3_k": ("**D²Quant, q3_k**", "d2q", "--grid q3_k"),
    "lq-q3_k": ("llama-quantize --pure Q3_K", "pure", "Q3_K"),
    "lq-iq2_s": ("llama-quantize --pure IQ2_S", "pure", "IQ2_S"),
    "d2q-as-iq2_s": ("**D²Quant, types chosen at the size of IQ2_S**", "d2q", "lq-iq2_s"),
    "lq-iq3_xxs": ("llama-quantize --pure IQ3_XXS", "pure", "IQ3_XXS"),
    "d2q-as-iq3_xxs": ("**D²Quant, types chosen at the size of IQ3_XXS**", "d2q", "lq-iq3_xxs"),
    "lq-mix-iq2_s": ("llama-quantize, mix IQ2_S", "mix", "IQ2_S"),
    "lq-mix-q2_k": ("llama-quantize, mix Q2_K", "mix", "Q2_K"),
    "d2q-as-mix-q2_k": ("**D²Quant, types chosen at the size of the mix Q2_K**", "d2q", "lq-mix-q2_k"),
    "lq-mix-iq3_xxs": ("llama-quantize, mix IQ3_XXS", "mix", "IQ3_XXS"),
    "lq-mix-q3_k_m": ("llama-quantize, mix Q3_K_M", "mix", "Q3_K_M"),
}
EVAL = ["-f", DATA / "wikitext2_raw_test.txt", "-c", 512, "--chunks", 16]


def llama(tool, *args):
    folder = os.environ.get("D2Q_LLAMA_CPP") or sys.exit("set D2Q_LLAMA_CPP=llama.cpp/build/bin")
    return run([pathlib.Path(folder) / tool, *map(str, args)], both=True)


def how():
    """Weights as they lie: its repacked ones for AMX crash in 0.3.36 (llama-imatrix, Q4_K_M)."""
    return ["-t", len(os.sched_getaffinity(0)), "--no-repack"]


def once(name, make):
    """SCRATCH/name, made under another name first."""
    path = SCRATCH / name
    if not path.exists():
        tmp = SCRATCH / ("tmp-" + name)
        make(tmp)
        tmp.rename(path)
    return path


def written(maker, args, model, out):
    """The command that wrote `out`, the seconds it took, d2q's options."""
    calib = DATA / "wikitext2_raw_train_head.txt"
    if maker == "d2q":
        if args.startswith("lq-"):
            target = load(f"{SET}/{args}") or sys.exit(f"{SET}/{args} comes first: its size is the target")
            args = f"--target-size {target['bytes']}"
        command = ["quantize", model, "-o", out, *args.split(), "--calib", calib, "--nsamples", 16, "--seqlen", 1024, "--work", "off"]
        q = quantized(command, out)
        return ["d2q", *command], q["seconds"], portable(q["options"], model, out)
    flt = once("qwen-f16.gguf", lambda f: llama("llama-quantize", "--allow-requantize", *TABLES, model, f, "F16"))
    imatrix = once("qwen-imatrix.gguf", lambda f: llama("llama-imatrix", "-m", model, "-f", calib, "-o", f, "-c", 512, "--chunks", 32, *how()))
    command = ["--allow-requantize", "--imatrix", imatrix, *(["--pure", *TABLES] if maker == "pure" else []), flt, out, args]
    start = time.time()
    llama("llama-quantize", *command, len(os.sched_getaffinity(0)))
    return ["llama-quantize", *command], time.time() - start, {}


def judged(path, model):
    base = once("qwen-llama.base", lambda f: llama("llama-perplexity", "-m", model, *EVAL, "--kl-divergence-base", f, *how()))
    text = llama("llama-perplexity", "-m", path, *EVAL, "--kl-divergence-base", base, "--kl-divergence", *how())

    def number(label):
        m = re.search(label + r"\s*:\s*([0-9.]+)(?: ±\s*([0-9.]+))?", text)
        return (float(m[1]), float(m[2] or 0)) if m else sys.exit(f"llama-perplexity said no '{label}':\n{text[-2000:]}")

    kl, err = number("Mean    KLD")
    return dict(ppl=number(r"Mean PPL\(Q\)")[0], float_ppl=number(r"Mean PPL\(base\)")[0], kl=kl, kl_err=err, top1=number("Same top p")[0] / 100)


def compute(name):
    _, maker, args = NAMES[name]
    model, out = model_of("qwen"), SCRATCH / f"{SET}-{name}.gguf"
    command, seconds, options = written(maker, args, model, out)
    row = dict(row=f"{SET}/{name}", command=anywhere(" ".join(map(str, command)), model, out), bytes=os.path.getsize(out), seconds=seconds, options=options,
               **judged(out, model))
    save(ROWS / SET / f"{name}.json", row)
    finished(out)
    print(f"{SET}/{name}: {row['bytes']} bytes, ppl {row['ppl']:.3f}, KL {row['kl']:.4f}, {seconds:.0f} s", flush=True)


def jobs():
    return {f"{SET}/{name}": (f"{maker} {args}", lambda name=name: compute(name)) for name, (_, maker, args) in NAMES.items()}


def write():
    """The table, and the plot beside it."""
    rows = [(label, r) for name, (label, _, _) in NAMES.items() if (r := load(f"{SET}/{name}"))]
    svg([(r["bytes"] / 1e6, r["kl"], label) for label, r in rows], ROOT / f"doc/accuracy-{SET}.svg")
    if not rows:
        return ""
    lines = [f"| {marked(label, r)} | {r['bytes']:,} | {r['ppl']:.2f} | {r['kl']:.4f} ± {r['kl_err']:.4f} | {100 * r['top1']:.1f} % | {r['seconds']:.0f} |" for label, r in rows]
    return "\n".join([f"**{TITLE}** (float: perplexity {rows[0][1]['float_ppl']:.2f})", "", "| | bytes | WikiText-2 | KL | top-1 | s |",
                      "| --- " + "| ---: " * 5 + "|", *lines, ""])
