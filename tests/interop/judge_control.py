#!/usr/bin/env python3
"""Files that llama-quantize wrote, as a control: our dequantizers, the package gguf's and ggml's own agree to the bit. Prints TAP."""
import ctypes
import os
import tempfile

from judge_common import D2Q, Drivers, finish, report, run, skip, tiny

LLAMA = os.environ.get("LLAMA_SRC", "")
TYPES = {"q2_0": "Q2_0", "tq2_0": "TQ2_0", "q2_k": "Q2_K", "q3_k": "Q3_K_S", "q4_0": "Q4_0", "q4_1": "Q4_1", "q4_k": "Q4_K_S", "q5_0": "Q5_0",
         "q5_1": "Q5_1", "q5_k": "Q5_K_S", "q6_k": "Q6_K", "q8_0": "Q8_0", "f16": "F16", "bf16": "BF16"}


def ggml_driver(tmp):
    """A program that decodes a file's tensor by ggml_get_type_traits()->to_float."""
    src = f"{tmp}/ggml.cpp"
    open(src, "w").write(r'''
#include <cstdio>
#include <cstring>
#include <vector>
#include "ggml.h"
#include "gguf.h"
int main(int, char **argv) {
    ggml_context *c = nullptr;
    gguf_init_params p = { false, &c };
    gguf_context *g = gguf_init_from_file(argv[1], p);
    ggml_tensor *t = g ? ggml_get_tensor(c, argv[2]) : nullptr;
    if (!t) return 1;
    std::vector<float> out(ggml_nelements(t));
    if (t->type == GGML_TYPE_F32) memcpy(out.data(), t->data, out.size() * 4);
    else ggml_get_type_traits(t->type)->to_float(t->data, out.data(), ggml_nelements(t));
    FILE *f = fopen(argv[3], "wb");
    return fwrite(out.data(), 4, out.size(), f) != out.size() || fclose(f);
}
''')
    run("c++", "-O1", f"-I{LLAMA}/ggml/include", src, "-o", f"{tmp}/ggml", f"{LLAMA}/build/ggml/src/libggml.a",
        f"{LLAMA}/build/ggml/src/libggml-cpu.a", f"{LLAMA}/build/ggml/src/libggml-base.a", "-fopenmp", "-lpthread", "-ldl", "-lm")


def main():
    if not os.path.exists(f"{LLAMA}/build/bin/llama-quantize"):
        skip("control", "LLAMA_SRC names no llama.cpp with build/bin")
        finish()
    try:
        import gguf
        import numpy as np
    except ImportError as e:
        skip("control", e)
        finish()
    with tempfile.TemporaryDirectory() as tmp:
        drivers = Drivers(tmp, LLAMA)
        ggml_driver(tmp)
        folder = tiny(f"{tmp}/m", "Llama")
        run(D2Q, "convert", folder, "-o", f"{tmp}/f.gguf", "--format", "gguf", "--quiet")
        for kind, name in TYPES.items():
            out = f"{tmp}/q.gguf"
            p = run(f"{LLAMA}/build/bin/llama-quantize", "--allow-requantize", "--pure", f"{tmp}/f.gguf", out, name, "2", ok=False)
            if p.returncode:
                skip(kind, f"llama-quantize does not write {name}")
                continue
            wrong, n, package = [], 0, "equal"
            try:
                reader = {t.name: t for t in gguf.GGUFReader(out).tensors}
            except ValueError as e:
                reader, package = {}, f"not compared ({e})"
            for tensor in ("blk.0.ffn_down.weight", "blk.1.attn_v.weight", "blk.0.attn_norm.weight", "token_embd.weight"):
                ours = drivers.tensor(out, tensor)
                run(f"{tmp}/ggml", out, tensor, f"{tmp}/theirs")
                if ours.tobytes() != np.fromfile(f"{tmp}/theirs", np.float32).tobytes():
                    wrong.append(f"{tensor} differs from ggml")
                if tensor in reader:
                    t = reader[tensor]
                    if not np.array_equal(gguf.quants.dequantize(t.data, t.tensor_type).ravel(), ours):
                        wrong.append(f"{tensor} differs from package gguf")
                n += ours.size
            report(not wrong, f"{kind}: {n} values equal to ggml's to the bit, package gguf {package}" if not wrong else f"{kind}: {'; '.join(wrong)}")
    finish()


main()
