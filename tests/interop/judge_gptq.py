#!/usr/bin/env python3
"""GPTQ folders of d2q in transformers with GPTQModel, on the CPU. Prints TAP.

For 2, 3, 4 bits, symmetric and asymmetric, v1 and v2, and with the biases of DAC: the folder loads; the loaded modules' dequantized
weights are our float32 values (format hf, same codes) within fp16's rounding, far below the distance of two codes; logits are those of the float folder within fp16 rounding, and
so is the perplexity on a text (0.5 %)."""
import os
import tempfile

from judge_common import FIXTURES, finish, quantize, report, skip

CASES = [(b, grid, f) for b in (2, 3, 4) for grid in ("sym", "asym") for f in ("gptq", "gptq_v1")]


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32).eval()


def nll(model, text_ids):
    import torch
    total, n = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(text_ids) - 64, 64):
            ids = torch.tensor(text_ids[i:i + 64])[None]
            logp = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
            total -= logp.gather(1, ids[0, 1:, None]).sum().item()
            n += 63
    return total / n


def modules(model):
    return {name: m for name, m in model.named_modules() if hasattr(m, "qweight")}


def case(tmp, bits, grid, fmt, dac):
    import numpy as np
    import torch
    from safetensors.torch import load_file
    out = f"{tmp}/{bits}{grid}{fmt}{dac}"
    args = ["--bits", bits, "--grid", grid, "--group", 32, "--format", fmt, "--format", "hf"]
    # the tiny fixture is 64 wide: GPTQModel's kernels take it
    method = ["--method", "d2quant", "--dac", "on", "--calib", f"{FIXTURES}/text.txt", "--nsamples", 4, "--seqlen", 48] if dac else ["--method", "rtn"]
    quantize(f"{FIXTURES}/llama", out, *method, *args)
    float_model, model = load(f"{out}/hf"), load(f"{out}/{fmt}")
    ours, n, worst = load_file(f"{out}/hf/model.safetensors"), 0, 0.0
    for name, m in modules(model).items():
        want = ours[name + ".weight"]
        eye = torch.eye(m.in_features)
        got = m(eye).detach().T - (m.bias.detach()[:, None] if getattr(m, "bias", None) is not None else 0)
        worst = max(worst, ((got.float() - want).abs().max() / want.abs().max()).item())
        n += 1
    if n != 14:
        return False, f"{n} quantized modules, expected 14"
    text = open(f"{FIXTURES}/text.txt").read()
    from transformers import AutoTokenizer
    ids = AutoTokenizer.from_pretrained(f"{out}/hf")(text)["input_ids"][:1500]
    a, b = nll(model, ids), nll(float_model, ids)
    ppl = float(np.exp(a - b) - 1)
    kernel = type(next(iter(modules(model).values()))).__name__
    ok = worst < 1.2e-3 and abs(ppl) < 5e-3
    return ok, f"{n} linears ({kernel}) within {worst:.1e} of ours (fp16: 1e-3), perplexity {100 * ppl:+.3f} %"


def main():
    try:
        import gptqmodel
        import torch
        import transformers
    except Exception as e:  # it raises other things than ImportError where it does not like the machine
        skip("gptqmodel", f"{type(e).__name__}: {e}")
        finish()
    with tempfile.TemporaryDirectory() as tmp:
        for bits, grid, fmt, dac in [(*c, False) for c in CASES] + [(2, "asym", "gptq", True), (3, "sym", "gptq_v1", True)]:
            what = f"{bits} bits {grid} {fmt}{' with mlp_bias' if dac else ''}"
            try:
                ok, text = case(tmp, bits, grid, fmt, dac)
            except Exception as e:
                ok, text = False, f"{type(e).__name__}: {str(e)[:300]}"
            report(ok, f"{what}: {text}")
    print(f"# gptqmodel {gptqmodel.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    finish()


os.cpu_count = lambda: 4  # it divides by cores minus something and fails on two
main()
