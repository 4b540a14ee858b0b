#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/blocks.gguf: for each packed type a tensor of random blocks ("raw.<type>")
and what the PyPI package `gguf` decodes it to ("f32.<type>"). Needs: pip install gguf numpy."""
import sys
import gguf
import numpy as np

OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/gguf/blocks.gguf"
rng = np.random.default_rng(7)
# where the fp16 fields of a block lie, so that they can be made finite
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

w = gguf.GGUFWriter(OUT, "test")
w.add_uint32("test.rows", 3)
for name, halves in HALVES.items():
    t = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[t]
    n = 4 if block == 32 else 2  # blocks in a row
    raw = rng.integers(0, 256, (3, n * size), dtype=np.uint8)
    for b in range(n):
        for h in halves:
            raw[:, b * size + h:b * size + h + 2] = (rng.standard_normal(3) * 10.0 ** rng.integers(-4, 3, 3)) \
                .astype(np.float16).view(np.uint8).reshape(3, 2)
    w.add_tensor("raw." + name.lower(), raw, raw_dtype=t)
    w.add_tensor("f32." + name.lower(), gguf.quants.dequantize(raw, t).astype(np.float32))
halfs = (rng.standard_normal((3, 40)) * 100).astype(np.float16)
w.add_tensor("raw.f16", halfs)
w.add_tensor("f32.f16", halfs.astype(np.float32))
f = rng.standard_normal((3, 40)).astype(np.float32)
b = (f.view(np.uint32) >> 16).astype(np.uint16)
w.add_tensor("raw.bf16", b.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
w.add_tensor("f32.bf16", (b.astype(np.uint32) << 16).view(np.float32))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
