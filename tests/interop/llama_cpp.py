#!/usr/bin/env python3
"""GGUF files of d2q in llama.cpp: loads each type we write, and compares perplexities under its own protocol.

    python tests/interop/llama_cpp.py [--d2q build/d2q] [--llama DIR] [--model MODEL --text FILE]

DIR holds llama-perplexity and llama-completion (default: $LLAMA_BIN, or the search path). Without --model: tiny random
models of each architecture (torch, transformers), wide enough for the K types, in every grid that GGUF carries. Also reads
each file with the PyPI package gguf, if there, and compares some decoded rows with a float folder (format hf) of
the same codes. Prints one TAP line a file; `skip:` where a peer is missing. llama.cpp rounds activations to 8 bits, d2q does
not, hence a tolerance: 1 % of the perplexity."""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOLERANCE = 0.01
GRIDS = [(2, "sym", 64), (2, "sym", 256), (2, "asym", 256), (3, "sym", 256), (3, "sym", 64), (4, "sym", 32), (4, "asym", 256)]
HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "../fixtures/models")


def run(*cmd):
    p = subprocess.run(cmd, capture_output=True, text=True)
    return p.returncode, p.stdout, p.stderr


def tiny(folder, prefix, extra):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(5)
    config = getattr(transformers, prefix + "Config")(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=319, **extra)
    model = getattr(transformers, prefix + "ForCausalLM")(config)
    for name, p in model.named_parameters():
        p.data = (1 + 0.2 * torch.randn(p.shape) if name.endswith("norm.weight")
                  else (0.2 if "embed" in name or "lm_head" in name else 0.05) * torch.randn(p.shape))
    model.to(torch.float16).save_pretrained(folder)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(FIXTURES, "llama", f), folder)


def peer_perplexity(tool, path, text, ctx, chunks):
    cmd = [tool, "-m", path, "-f", text, "-c", str(ctx), "-t", "1"] + (["--chunks", str(chunks)] if chunks else [])
    for _ in range(8):  # its log thread loses the last lines now and then
        rc, out, err = run(*cmd)
        final = re.findall(r"Final estimate: PPL = ([\d.]+)", out + err)
        if final or rc:
            break
    if final:
        return float(final[0])
    sys.exit(f"{' '.join(cmd)}: status {rc}, no figure\n{(out + err)[-2000:]}")


def same_values(path, folder):
    """Rows decoded by the package gguf against the float folder: "equal", "differs", or why not compared."""
    try:
        import gguf
        import numpy as np
        from safetensors import safe_open
        reader = gguf.GGUFReader(path)
    except (ImportError, ValueError) as e:  # older packages know no q2_0
        return f"not compared ({e})"
    f = safe_open(os.path.join(folder, "model.safetensors"), "np")
    for t in reader.tensors:
        if not t.name.startswith("blk.0.ffn_"):
            continue
        name = t.name.replace("blk.0.ffn_", "").replace(".weight", "")
        if name not in ("gate", "up", "down"):
            continue
        want = f.get_tensor(f"model.layers.0.mlp.{name}_proj.weight")
        got = gguf.quants.dequantize(t.data, t.tensor_type)
        if not np.array_equal(got, want):
            return "differs"
    return "equal"


def check(n, args, tools, model, grid, tmp, ctx, method):
    bits, kind, group = grid
    out, folder = os.path.join(tmp, "model.gguf"), os.path.join(tmp, "hf")
    shutil.rmtree(folder, ignore_errors=True)
    base = [args.d2q, "quantize", model, "--bits", str(bits), "--grid", kind, "--group", str(group), "--quiet", *method]
    rc, _, err = run(*base, "-o", out)
    if rc:
        print(f"not ok {n} - {os.path.basename(model)} {grid}: {err.strip()}")
        return False
    note = ""
    if not args.model:
        run(*base, "-o", folder, "--format", "hf")
        note = ", values " + same_values(out, folder)
    rc, ours, err = run(args.d2q, "eval", out, "--ppl", args.text, "--protocol", "llama", "--ctx", str(ctx), "--json",
                        *(["--chunks", str(args.chunks)] if args.chunks else []))
    if rc:
        print(f"not ok {n} - {os.path.basename(model)} {grid}: {err.strip()}")
        return False
    ours, theirs = json.loads(ours)["ppl"], peer_perplexity(tools[0], out, args.text, ctx, args.chunks)
    _, inspect, _ = run(args.d2q, "inspect", out, "--json")
    types = {t["type"] for t in json.loads(inspect)["tensors"] if "blk." in t["name"]}
    ok = abs(ours / theirs - 1) <= TOLERANCE and "differs" not in note
    print(f"{'ok' if ok else 'not ok'} {n} - {os.path.basename(model)} {bits} bits {kind} g{group} as {'/'.join(sorted(types))}: "
          f"perplexity {ours:.4f}, llama.cpp {theirs:.4f} ({100 * (ours / theirs - 1):+.3f} %){note}", flush=True)
    return ok


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--d2q", default="build/d2q")
    p.add_argument("--llama", default=os.environ.get("LLAMA_BIN", ""))
    p.add_argument("--model")
    p.add_argument("--text", default=os.path.join(FIXTURES, "text.txt"))
    p.add_argument("--ctx", type=int, default=0)
    p.add_argument("--chunks", type=int, default=0)
    p.add_argument("--grid", action="append", help="BITS,sym|asym,GROUP")
    args, method = p.parse_known_args()
    tools = [shutil.which(os.path.join(args.llama, t)) for t in ("llama-perplexity",)]
    if None in tools:
        print("skip: llama-perplexity not found (set LLAMA_BIN or --llama)")
        return
    grids = [(int(b), k, int(g)) for b, k, g in (s.split(",") for s in args.grid)] if args.grid else GRIDS
    method = method or ["--method", "rtn"]
    n, failed = 0, 0
    with tempfile.TemporaryDirectory() as tmp:
        models = [args.model] if args.model else []
        try:
            for prefix, extra in () if models else (("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 64})):
                models.append(os.path.join(tmp, prefix.lower()))
                tiny(models[-1], prefix, extra)
        except ImportError as e:
            print(f"skip: {e}")
            return
        for model in models:
            for grid in grids:
                n += 1
                failed += not check(n, args, tools, model, grid, tmp, args.ctx or (512 if args.model else 64), method)
    print(f"1..{n}")
    sys.exit(failed > 0)


main()
