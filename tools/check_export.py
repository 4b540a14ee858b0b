#!/usr/bin/env python3
"""Checks exported folders with the programs of others.

    python tools/check_export.py HF_FOLDER [--gptq GPTQ_FOLDER] [--expected expected.safetensors]

HF_FOLDER must load in transformers without missing or unexpected tensors. --gptq: the same model as GPTQ; its
linears, unpacked here by the classic rules, must equal HF_FOLDER's bit for bit. --expected: ids and logits of
tools/golden.py; prints the largest difference over the range and fails above 1e-5.
"""
import argparse
import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file


def tensors(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    files = sorted(set(json.load(open(index))["weight_map"].values())) if os.path.exists(index) else ["model.safetensors"]
    out = {}
    for f in files:
        out.update(load_file(os.path.join(folder, f)))
    return out


def unpack_down(words, bits, n):
    """int32 (k, m) -> codes (n, m): bits 2, 4, 8 by shifts, 3 by the 10-1-10-1-10 rule of AutoGPTQ."""
    w = words.view(np.uint32)
    if bits != 3:
        per = 32 // bits
        codes = np.stack([(w[r // per] >> np.uint32(bits * (r % per))) & (2**bits - 1) for r in range(w.shape[0] * per)])
        return codes[:n].astype(np.int64)
    rows = []
    for r in range(0, w.shape[0], 3):
        a, b, c = w[r], w[r + 1], w[r + 2]
        rows += [(a >> np.uint32(3 * j)) & 7 for j in range(10)]
        rows.append((a >> np.uint32(30)) | ((b & 1) << np.uint32(2)))
        rows += [(b >> np.uint32(3 * j + 1)) & 7 for j in range(10)]
        rows.append((b >> np.uint32(31)) | ((c & 3) << np.uint32(1)))
        rows += [(c >> np.uint32(3 * j + 2)) & 7 for j in range(10)]
    return np.stack(rows)[:n].astype(np.int64)


def check_gptq(gptq, hf):
    config = json.load(open(os.path.join(gptq, "config.json")))["quantization_config"]
    assert config == json.load(open(os.path.join(gptq, "quantize_config.json")))
    parsed = transformers.GPTQConfig.from_dict(dict(config))
    assert (parsed.bits, parsed.group_size, parsed.sym) == (config["bits"], config["group_size"], config["sym"])
    q, f, n = tensors(gptq), tensors(hf), 0
    for name in f:
        if name in q:
            assert np.array_equal(q[name].astype(np.float32), f[name]), name
            continue
        p = name.removesuffix(".weight")
        out, n_in = f[name].shape
        bits = q[p + ".qweight"].shape[0] * 32 // n_in
        codes = unpack_down(q[p + ".qweight"], bits, n_in)
        zeros = unpack_down(np.ascontiguousarray(q[p + ".qzeros"].T), bits, out).T
        if config["checkpoint_format"] == "gptq":
            zeros = zeros + 1
        g = q[p + ".g_idx"]
        w = q[p + ".scales"].astype(np.float32)[g] * (codes - zeros[g]).astype(np.float32)
        assert np.array_equal(np.ascontiguousarray(w.T), f[name]), name
        n += 1
    print(f"gptq: {n} linears equal bit for bit, bits {config['bits']}, format {config['checkpoint_format']}")


def check_hf(folder, expected):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    bad = {k: v for k, v in info.items() if v and k != "error_msgs"}
    assert not bad, bad
    assert model.dtype == torch.float32, model.dtype
    print(f"hf: {type(model).__name__} loads, {sum(p.numel() for p in model.parameters())} parameters")
    if not expected:
        return
    with safe_open(expected, "pt") as f:
        ids, want = f.get_tensor("ids").long(), f.get_tensor("logits")
    with torch.no_grad():
        got = model(ids).logits[0]
    diff = ((got - want).abs().max() / (want.max() - want.min())).item()
    print(f"hf: logits differ by {diff:.2e} of their range")
    assert diff < 1e-5


ap = argparse.ArgumentParser()
ap.add_argument("hf")
ap.add_argument("--gptq")
ap.add_argument("--expected")
a = ap.parse_args()
check_hf(a.hf, a.expected)
if a.gptq:
    check_gptq(a.gptq, a.hf)
sys.exit(0)
