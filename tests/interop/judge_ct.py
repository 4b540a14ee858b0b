#!/usr/bin/env python3
"""compressed-tensors folders of d2q in the package compressed-tensors and in transformers.

    python tests/interop/judge_ct.py [--d2q build/d2q] [--model DIR]

Quantizes a tiny model (a fixture) to format ct at 2, 3, 4 bits, symmetric and asymmetric, by group and by row, and the same codes to
format hf (float32). Then, for every linear: the package's own unpacking gives codes that, with its scales, are our float32 values
exactly, and what its decompressor makes in fp16 is those values rounded to fp16; transformers loads the folder and its logits are
those of the float folder within fp16's rounding. Prints TAP."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CASES = [(b, g, "sym") for b in (2, 3, 4) for g in (32, 0)] + [(4, 32, "asym"), (4, 0, "asym")]
# transformers 5.23 with compressed-tensors 0.20 makes zero points of unpacked shape and then refuses packed ones, anybody's
failed = 0


def report(n, ok, text):
    global failed
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {n} - {text}", flush=True)


def compare(folder, reference):
    """Largest difference of codes * scales to our float32, and of the decompressor's fp16 to ours rounded."""
    import torch
    from safetensors.torch import load_file
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    config = json.load(open(f"{folder}/config.json"))["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    args = QuantizationArgs(**{k: v for k, v in weights.items() if v is not None})
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    ours, theirs, n = load_file(f"{reference}/model.safetensors"), load_file(f"{folder}/model.safetensors"), 0
    for name in theirs:
        if not name.endswith(".weight_packed"):
            continue
        p = name[: -len("_packed")]
        shape = torch.Size(theirs[p + "_shape"].tolist())
        scale, bits = theirs[p + "_scale"], args.num_bits
        q = unpack_from_int32(theirs[name], bits, shape).float()
        if p + "_zero_point" in theirs:
            z = unpack_from_int32(theirs[p + "_zero_point"], bits, torch.Size([shape[0], scale.shape[1]]), packed_dim=0).float()
            q -= z.repeat_interleave(shape[1] // scale.shape[1], 1)
        exact = q * scale.float().repeat_interleave(shape[1] // scale.shape[1], 1)
        if not torch.equal(exact, ours[p]):
            return f"{p}: codes or scales differ"
        state = {k: theirs[f"{p}_{k}"] for k in ("packed", "scale", "shape", "zero_point") if f"{p}_{k}" in theirs}
        dense = PackedQuantizationCompressor.decompress({f"weight_{k}": v for k, v in state.items()}, scheme)["weight"]
        if not torch.equal(dense, ours[p].half()):
            return f"{p}: decompressed weights differ"
        n += 1
    return n


def logits(folder):
    import torch
    from transformers import AutoModelForCausalLM
    m = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(1, 65).remainder(m.config.vocab_size)[None]
    with torch.no_grad():
        return m(ids).logits.double()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--d2q", default=f"{ROOT}/build/d2q")
    a.add_argument("--model", default=f"{ROOT}/tests/fixtures/models/llama")
    a = a.parse_args()
    try:
        import compressed_tensors
        import torch
        import transformers
    except ImportError as e:
        print(f"ok 1 - ct # skip: {e}\n1..1")
        return 0
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    n = 0
    for bits, group, grid in CASES:
        with tempfile.TemporaryDirectory() as d:
            n += 1
            what = f"{bits} bits {grid} {'group %d' % group if group else 'rows'}"
            r = subprocess.run([a.d2q, "quantize", a.model, "-o", f"{d}/out", "--method", "rtn", "--bits", str(bits), "--group", str(group),
                                "--grid", grid, "--format", "ct", "--format", "hf", "-q"], capture_output=True, text=True)
            if r.returncode:
                report(n, False, f"{what}: {r.stderr.strip()}")
                continue
            found = compare(f"{d}/out/ct", f"{d}/out/hf")
            if not isinstance(found, int) or not found:
                report(n, False, f"{what}: {found}")
                continue
            if grid == "asym":
                report(n, True, f"{what}: {found} linears equal (transformers does not load packed zero points; not asked)")
                continue
            try:
                x, y = logits(f"{d}/out/ct"), logits(f"{d}/out/hf")
                far = ((x - y).abs().max() / (y.max() - y.min())).item()
                report(n, far < 2e-3, f"{what}: {found} linears equal; transformers' logits differ by {far:.1e} of their range")
            except Exception as e:  # the loader's own refusal is a result too
                report(n, False, f"{what}: {found} linears equal, but transformers: {type(e).__name__}: {e}")
    print(f"1..{n}\n# compressed-tensors {compressed_tensors.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    return failed > 0


sys.exit(main())
