#!/usr/bin/env python3
"""llama.cpp as judge of our GGUF files. LLAMA_SRC: its source folder with build/ (see run). Prints TAP.

1. Every type we write, for a tiny random model of each architecture: loads, and its logits are ours within what llama.cpp's 8-bit
   activations cost. That bound is measured, not chosen: the distance between the two programs on a file of the same type that
   llama-quantize itself wrote from the same model, times 1.5 (the weights differ, so the roundings do). Types whose activations are not rounded to 8 bits
   must agree closely: f16 to 2e-3.
2. SmolLM2: logits and perplexity the same way (12 chunks: no farther apart than twice the worst of
   four files of llama-quantize's own, whose roundings differ);
   greedy text of 32 tokens, and where it parts, whether the two best tokens were nearer to each other than the two programs are."""
import os
import re
import tempfile

from judge_common import D2Q, Drivers, eval_llama, finish, quantize, report, run, skip, smollm2, tiny_models

LLAMA = os.environ.get("LLAMA_SRC", "")
BIN = f"{LLAMA}/build/bin"
TYPES = ["q2_0", "tq2_0", "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0"]
GRIDS = [("sym 2 bits g64", "--bits 2 --grid sym --group 64"), ("signfree 2 bits g64", "--bits 2 --grid signfree --group 64"),
         ("asym 2 bits g256", "--bits 2 --grid asym --group 256"), ("portable 2 bits g64", "--bits 2 --grid portable --group 64"),
         ("portable 3 bits g32", "--bits 3 --grid portable --group 32"), ("asym 3 bits g64 (in q4_0)", "--bits 3 --grid asym --group 64"),
         ("asym 4 bits g64 (in q5_0)", "--bits 4 --grid asym --group 64"),
         ("q2_k, embeddings q6_k", "--grid q2_k --keep *embed*=q6_k --keep lm_head=q6_k"),
         ("q3_k, embeddings q8_0", "--grid q3_k --keep *embed*=q8_0 --keep lm_head=q4_k")]
SLACK = 1.5
PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time", "The three primary colors are", "def add(a, b):",
           "In 1969, the first", "My favorite book is", "The quick brown fox"]


def control(drivers, source, tmp, kind, ids):
    """Distance on a file of llama-quantize's own; None when it has no such type."""
    out = f"{tmp}/theirs-{kind}.gguf"
    names = {"q3_k": "Q3_K_S", "q4_k": "Q4_K_S", "q5_k": "Q5_K_S", "q2_k": "Q2_K"}
    p = run(f"{BIN}/llama-quantize", "--allow-requantize", "--pure", source, out, names.get(kind, kind.upper()), "2", ok=False)
    if p.returncode:
        return None
    return drivers.distance(out, ids)[0]


def tiny_part(drivers, tmp):
    try:
        models = tiny_models(tmp)
    except ImportError as e:
        skip("tiny models", e)
        return
    ids = [(7 * i * i + 3 * i) % 319 for i in range(96)]
    for name, folder in models.items():
        float_file = f"{tmp}/{name}-f16.gguf"
        run(D2Q, "convert", folder, "-o", float_file, "--format", "gguf", "--quiet")
        base = drivers.distance(float_file, ids)[0]
        report(base < 2e-3, f"{name} f16: logits {base:.1e} apart (llama.cpp rounds activations to f16)")
        bounds = {t: control(drivers, float_file, tmp, t, ids) for t in TYPES}
        worst = max(b for b in bounds.values() if b)
        cases = [(t, f"--grid {t}", bounds[t]) for t in TYPES] + [(what, args, worst) for what, args in GRIDS]
        for what, args, bound in cases:
            out = f"{tmp}/{name}.gguf"
            try:
                quantize(folder, out, "--method", "rtn", *args.split())
                far, same = drivers.distance(out, ids)
            except RuntimeError as e:
                report(False, f"{name} {what}: {e}")
                continue
            limit = SLACK * (bound or worst)
            report(far <= limit, f"{name} {what}: logits {far:.1e} apart, best token equal {100 * same:.0f} %; llama-quantize's own "
                   f"file {bound or worst:.1e}{'' if bound else ' (worst of the others: it has no such type)'}")


def perplexity(path, text, ctx, chunks):
    for _ in range(6):  # its log thread loses the last lines now and then
        p = run(f"{BIN}/llama-perplexity", "-m", path, "-f", text, "-c", ctx, "-t", 2, "--chunks", chunks)
        found = re.findall(r"Final estimate: PPL = ([\d.]+)", p.stdout + p.stderr)
        if found:
            return float(found[0])
    raise RuntimeError("llama-perplexity printed no figure")


def tokens(path, text):
    out = run(f"{BIN}/llama-tokenize", "-m", path, "-p", text, "--ids", "--log-disable").stdout
    return [int(i) for i in out.strip().strip("[]").split(",")]


def greedy(drivers, path):
    """(prompts continued alike for 32 tokens, partings that the logits explain, the others): at the first difference the two best
    tokens are closer to each other than the two programs are."""
    same, explained, rest = 0, 0, []
    for prompt in PROMPTS:
        ours = run(D2Q, "run", path, "-p", prompt, "-n", 32, "--temp", 0, "--quiet").stdout.rstrip("\n")
        theirs = run(f"{BIN}/llama-completion", "-m", path, "-p", prompt, "-n", 32, "--temp", 0, "-no-cnv", "-t", 2, "--no-warmup",
                     "--no-display-prompt").stdout.replace(" [end of text]", "").rstrip("\n")
        common = os.path.commonprefix([ours, theirs])
        if len(common) == min(len(ours), len(theirs)):
            same += 1
            continue
        # back to the last word that both have whole, and on by one token at a time, as both did
        ids = tokens(path, prompt + common[: max(common.rfind(" "), common.rfind("\n"), 0)])
        close = False
        for _ in range(6):
            a, b = (x[-1] for x in drivers.both(path, ids))
            i, j = (int(k) for k in a.argsort()[::-1][:2])
            close |= float(a[i] - a[j]) <= SLACK * float(abs(a - b).max())
            ids.append(i)
        if close:
            explained += 1
        else:
            rest.append(f"'{prompt}' after '{common[-20:]}'")
    return same, explained, rest


def smollm2_part(drivers, tmp):
    model, text = smollm2(), os.environ.get("D2Q_TEXT", "")
    if not model or not os.path.exists(text):
        skip("SmolLM2", "no model (D2Q_SMOLLM2) or no text (D2Q_TEXT)")
        return
    ids, chunks = list(range(1000, 1128)), 12
    run(f"{BIN}/llama-quantize", "--allow-requantize", model, f"{tmp}/f16.gguf", "F16", "2")
    apart, gaps = {}, {}
    for name in ("Q4_0", "Q8_0", "Q3_K_S", "Q5_1"):
        run(f"{BIN}/llama-quantize", "--allow-requantize", f"{tmp}/f16.gguf", f"{tmp}/theirs.gguf", name, "2")
        apart[name] = drivers.distance(f"{tmp}/theirs.gguf", ids)[0]
        gaps[name] = abs(eval_llama(f"{tmp}/theirs.gguf", text, 512, chunks)["ppl"] / perplexity(f"{tmp}/theirs.gguf", text, 512, chunks) - 1)
    print("# on llama-quantize's own files: " + ", ".join(f"{k} logits {apart[k]:.1e}, perplexity {100 * gaps[k]:.2f} %" for k in gaps))
    gptq = f"--method gptq --calib {text} --nsamples 4 --seqlen 512"
    for what, args in (("f16", None), ("q4_0", "--method rtn --grid q4_0"), ("q8_0", "--method rtn --grid q8_0"), ("q3_k", f"{gptq} --grid q3_k"),
                       ("int3 g64 in q4_0", f"{gptq} --bits 3 --grid asym --group 64")):
        path = f"{tmp}/ours.gguf"
        if args:
            quantize(model, path, *args.split())
        else:
            path = f"{tmp}/f16.gguf"
        far, best = drivers.distance(path, ids)
        report(far <= (SLACK * max(apart.values()) if args else 5e-3), f"SmolLM2 {what}: logits {far:.1e} apart, best token equal {100 * best:.0f} %")
        ours, peer = eval_llama(path, text, 512, chunks)["ppl"], perplexity(path, text, 512, chunks)
        limit = max(gaps.values()) if args else 1e-3
        report(abs(ours / peer - 1) <= (2 if args else 1) * limit, f"SmolLM2 {what}: perplexity {ours:.4f}, llama.cpp {peer:.4f} ({100 * (ours / peer - 1):+.2f} %, "
               f"llama-quantize's own: up to {100 * limit:.2f} %)")
        if what in ("f16", "q8_0"):
            same, explained, rest = greedy(drivers, path)
            n = len(PROMPTS)
            report(same + explained == n and (2 * same > n or what != "f16"), f"SmolLM2 {what}: greedy text of 32 tokens equal in {same} of {n} prompts; "
                   f"{explained} part where the two best tokens are nearer than the programs{'; not explained: ' if rest else ''}{'; '.join(rest)}")


def main():
    if not os.path.exists(f"{BIN}/llama-perplexity"):
        skip("llama.cpp", "LLAMA_SRC names no llama.cpp with build/bin")
        finish()
    with tempfile.TemporaryDirectory() as tmp:
        drivers = Drivers(tmp, LLAMA)
        tiny_part(drivers, tmp)
        smollm2_part(drivers, tmp)
    finish()


main()
