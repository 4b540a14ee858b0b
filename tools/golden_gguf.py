#!/usr/bin/env python3
"""Writes into tests/fixtures/gguf: blocks.gguf, for each packed type a tensor of random blocks ("raw.<type>")
and what the PyPI package `gguf` decodes it to ("f32.<type>"); keys.gguf, a value of every metadata type and two
tensors; split-0000N-of-00003.gguf, keys.gguf's keys and five tensors in three parts. Needs: pip install gguf numpy."""
import enum
import os
import sys
import gguf
import numpy as np

DIR = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/gguf"
OUT = os.path.join(DIR, "blocks.gguf")
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


def put(name, t, block, size, at, decode):
    raw = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
    for k in range(2):
        raw[:, k * size + at:k * size + at + 2] = rng.standard_normal(3).astype(np.float16).view(np.uint8).reshape(3, 2)
    w.add_tensor("raw." + name, raw, raw_dtype=t)
    w.add_tensor("f32." + name, decode(raw))


def decode_q2_0(raw):
    """From ggml's dequantize_row_q2_0, the package has none: d, then four codes a byte, lowest bits first; (q - 1) * d."""
    out = np.empty((raw.shape[0], raw.shape[1] // 18 * 64), np.float32)
    for r in range(raw.shape[0]):
        for b in range(raw.shape[1] // 18):
            block = raw[r, 18 * b:18 * b + 18]
            d = np.float32(block[:2].copy().view(np.float16)[0])
            for j in range(64):
                q = int(block[2 + j // 4]) >> (j % 4 * 2) & 3
                out[r, 64 * b + j] = np.float32(q - 1) * d
    return out


class Late(enum.IntEnum):  # types that the package does not know yet
    Q2_0 = 42


gguf.GGML_QUANT_SIZES[Late.Q2_0] = (64, 18)
TQ2_0 = gguf.GGMLQuantizationType.TQ2_0
put("tq2_0", TQ2_0, 256, 66, 64, lambda raw: gguf.quants.dequantize(raw, TQ2_0).astype(np.float32))
put("q2_0", Late.Q2_0, 64, 18, 0, decode_q2_0)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def put_keys(writer):
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_uint64("t.u64", 1 << 40)
    writer.add_int64("t.i64", -(1 << 40))
    writer.add_float32("t.f32", 1.5)
    writer.add_float64("t.f64", 1e300)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "naïve")
    writer.add_array("t.strings", ["a", "bc", "", "d"])
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -0.25])


finish(w)
w = gguf.GGUFWriter(os.path.join(DIR, "keys.gguf"), "test")
put_keys(w)
w.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
w.add_tensor("b", np.array([1, 2, 3, 4], np.float16))
finish(w)
w = gguf.GGUFWriter(os.path.join(DIR, "split.gguf"), "test", split_max_tensors=2)
put_keys(w)
for i in range(5):
    w.add_tensor(f"t{i}", np.full((2, 4), i, np.float32))
finish(w)
