#!/usr/bin/env python3
"""Writes tests/fixtures/hf: what the Python world writes, for our readers and writers to agree with.

  dtypes.safetensors   every type we read, by the package safetensors
  sharded/             two shards and an index
  gptq_<fmt>_<bits>/   GPTQ folders: "a" trivial g_idx, "b" permuted g_idx; packed by the classic per-bit rules
                       (32 codes in 3 words spelled out for 3 bits), not by a bit stream; expect.a, expect.b are the
                       weights by the formula scale[g] * (code - zero), in float32

Needs numpy, torch, safetensors. Deterministic: run it again and git sees no change.
"""
import json
import os

import numpy as np
import torch
from safetensors.numpy import save_file as save_np
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "hf")


def dump(path, obj):
    with open(path, "w") as f:
        json.dump(obj, f, indent=1)
        f.write("\n")


def pack_down(codes, bits):
    """codes (n, m) -> int32 (ceil(n*bits/32), m): the classic AutoGPTQ packer, n a multiple of 32."""
    c = codes.astype(np.uint32)
    n, m = c.shape
    rows = []
    if bits in (2, 4, 8):
        per = 32 // bits
        for r in range(0, n, per):
            w = np.zeros(m, np.uint32)
            for j in range(per):
                w |= c[r + j] << np.uint32(bits * j)
            rows.append(w)
    else:
        for r in range(0, n, 32):
            v = c[r:r + 32]
            w = [np.zeros(m, np.uint32) for _ in range(3)]
            for j in range(10):
                w[0] |= v[j] << np.uint32(3 * j)
            w[0] |= (v[10] & 3) << np.uint32(30)
            w[1] |= (v[10] >> np.uint32(2)) & 1
            for j in range(10):
                w[1] |= v[11 + j] << np.uint32(3 * j + 1)
            w[1] |= (v[21] & 1) << np.uint32(31)
            w[2] |= (v[21] >> np.uint32(1)) & 3
            for j in range(10):
                w[2] |= v[22 + j] << np.uint32(3 * j + 2)
            rows += w
    return np.stack(rows).view(np.int32)


def gptq_linear(rng, bits, n_in, n_out, group, permuted, v1, low):
    groups = -(-n_in // group)
    codes = rng.integers(0, 2**bits, (n_in, n_out))
    zeros = rng.integers(low if permuted else v1 * 1, 2**bits, (groups, n_out))
    scales = (rng.standard_normal((groups, n_out)) * 0.02).astype(np.float16)
    g_idx = (np.arange(n_in) // group).astype(np.int32)
    if permuted:
        rng.shuffle(g_idx)
    w = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx]).astype(np.float32)
    stored = (zeros - 1) % 2**bits if v1 else zeros
    qzeros = np.ascontiguousarray(pack_down(stored.T, bits).T)
    return {"qweight": pack_down(codes, bits), "qzeros": qzeros, "scales": scales, "g_idx": g_idx}, \
        np.ascontiguousarray(w.T)


def gptq_folder(fmt, bits):
    rng = np.random.default_rng(bits * 10 + (fmt == "gptq"))
    path = os.path.join(OUT, f"{fmt}_{bits}")
    os.makedirs(path, exist_ok=True)
    tensors = {}
    for name, permuted in (("a", False), ("b", True)):
        # low 0, in "b": a v1 zero of 0 is stored as 2^bits - 1 and must wrap; 48 does not divide 64
        parts, w = gptq_linear(rng, bits, 64, 32, 48, permuted, fmt == "gptq", 0)
        tensors.update({f"{name}.{k}": v for k, v in parts.items()})
        tensors["expect." + name] = w
    save_np(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    quant = {"bits": bits, "group_size": 48, "sym": False, "desc_act": True, "quant_method": "gptq",
             "checkpoint_format": fmt, "pack_dtype": "int32"}
    dump(os.path.join(path, "config.json"), {"model_type": "llama", "quantization_config": quant})


def dtypes():
    g = torch.Generator().manual_seed(0)
    t = {
        "f32": torch.randn(3, 5, generator=g), "f16": torch.randn(2, 7, generator=g).half(),
        "bf16": torch.randn(4, 3, generator=g).bfloat16(), "i32": torch.arange(-3, 3, dtype=torch.int32),
        "i64": torch.tensor([[1, -2], [2**40, -2**40]]), "u8": torch.arange(11, dtype=torch.uint8),
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "four": torch.randn(2, 1, 3, 2, generator=g),
        'quote " back\\ \u00fc': torch.ones(1),
    }
    save_file(t, os.path.join(OUT, "dtypes.safetensors"), metadata={"format": "pt"})


def sharded():
    path = os.path.join(OUT, "sharded")
    os.makedirs(path, exist_ok=True)
    names = {"model-00001-of-00002.safetensors": ["z.weight", "a.weight"],
             "model-00002-of-00002.safetensors": ["m.weight"]}
    weight_map, total, k = {}, 0, 0
    for shard, tensors in names.items():
        t = {}
        for n in tensors:
            t[n] = torch.arange(6, dtype=torch.float32).reshape(2, 3) + 10 * k
            weight_map[n] = shard
            total += t[n].numel() * 4
            k += 1
        if k == 3:
            t["not.listed"] = torch.zeros(1)
        save_file(t, os.path.join(path, shard), metadata={"format": "pt"})
    dump(os.path.join(path, "model.safetensors.index.json"), {"metadata": {"total_size": total}, "weight_map": weight_map})
    dump(os.path.join(path, "config.json"), {"model_type": "llama"})
    dump(os.path.join(path, "generation_config.json"), {"eos_token_id": 2})


os.makedirs(OUT, exist_ok=True)
dtypes()
sharded()
for f in ("gptq", "gptq_v2"):
    for b in (2, 3, 4, 8):
        gptq_folder(f, b)
