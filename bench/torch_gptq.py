#!/usr/bin/env python3
"""A plain torch program that makes the passes of `d2q quantize --method gptq`, to be timed beside it.

    bench/torch_gptq.py MODEL --calib FILE [--nsamples 16 --seqlen 1024 --bits 3 --group 64 --threads N]

MODEL is a Hugging Face folder or a .gguf file (dequantized by transformers). Needs torch and transformers; gguf
and accelerate too for a .gguf file. The timer starts when the model is loaded and the text tokenized. Per block: the inputs of q,k,v, then of o, then of
gate,up, then of down are collected with what precedes them already quantized (true sequential), a Hessian is accumulated for each,
the matrices are solved by GPTQ as IST-DASLab published it (blocks of 128 columns, damping 1 %, asymmetric min-max
grid, no reordering), and the block's outputs are recomputed for the next. Everything is float32 on the CPU, in
torch's own threads.
"""
import argparse
import os
import random
import resource
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    kw = {"pretrained_model_name_or_path": path}
    if path.endswith(".gguf"):
        kw = {"pretrained_model_name_or_path": os.path.dirname(path), "gguf_file": os.path.basename(path)}
    tok = AutoTokenizer.from_pretrained(**kw)
    model = AutoModelForCausalLM.from_pretrained(**kw, dtype=torch.float32, attn_implementation="sdpa").eval()
    return model, tok


class Hessian:
    def __init__(self, n):
        self.h = torch.zeros(n, n)
        self.rows = 0

    def add(self, x):
        x = x.reshape(-1, x.shape[-1])
        total = self.rows + x.shape[0]
        self.h.mul_(self.rows / total)
        self.h.addmm_(x.t(), x, alpha=2.0 / total)
        self.rows = total


def grid(w, maxq):
    """fp16 scale and integer zero of each row of w (n_out, group)."""
    lo, hi = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    flat = (lo == 0) & (hi == 0)
    lo[flat], hi[flat] = -1, 1
    scale = ((hi - lo) / maxq).half().float()
    return scale[:, None], torch.round(-lo[:, None] / scale[:, None]).clamp(0, maxq)


def gptq(weight, h, bits, group, block=128):
    w, h = weight.clone(), h.clone()
    n = w.shape[1]
    maxq = 2 ** bits - 1
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(0.01 * torch.diag(h).mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    q = torch.empty_like(w)
    for a in range(0, n, block):
        b = min(a + block, n)
        w1, err, u1 = w[:, a:b].clone(), torch.empty(w.shape[0], b - a), u[a:b, a:b]
        for i in range(b - a):
            if (a + i) % group == 0:
                # columns of this block that belong to the group, as they are now, and those behind it
                end = min(a + i + group, n)
                scale, zero = grid(torch.cat((w1[:, i:i + group], w[:, b:end]), 1), maxq)
            col = w1[:, i:i + 1]
            v = scale * ((col / scale + zero).round().clamp(0, maxq) - zero)
            q[:, a + i:a + i + 1] = v
            e = (col - v) / u1[i, i]
            w1[:, i:] -= e * u1[i, i:]
            err[:, i:i + 1] = e
        w[:, b:] -= err @ u[a:b, b:]
    return q


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--calib", required=True)
    p.add_argument("--nsamples", type=int, default=16)
    p.add_argument("--seqlen", type=int, default=1024)
    p.add_argument("--bits", type=int, default=3)
    p.add_argument("--group", type=int, default=64)
    p.add_argument("--threads", type=int, default=0)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model, tok = load(args.model)
    ids = tok(open(args.calib, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
    random.seed(0)
    starts = [random.randrange(0, len(ids) - args.seqlen) for _ in range(args.nsamples)]
    windows = [ids[s:s + args.seqlen][None] for s in starts]

    start = time.time()
    core = model.model
    hidden = [core.embed_tokens(w) for w in windows]
    pos = torch.arange(args.seqlen)[None]
    rope = core.rotary_emb(hidden[0], pos)
    stages = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
              ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
    spent = {"forward": 0.0, "solve": 0.0}

    def run(layer, x):
        y = layer(x, position_embeddings=rope, position_ids=pos, attention_mask=None)
        return y[0] if isinstance(y, tuple) else y

    class Stop(Exception):
        """Raised when the input of a stage was seen: what comes behind it in the block is not needed."""

    for index, layer in enumerate(core.layers):
        for names in stages:
            t0 = time.time()
            linears = [layer.get_submodule(n) for n in names]
            hess = Hessian(linears[0].in_features)

            def see(module, inputs):
                hess.add(inputs[0])
                raise Stop

            hook = linears[0].register_forward_pre_hook(see)
            for x in hidden:
                try:
                    run(layer, x)
                except Stop:
                    pass
            hook.remove()
            t1 = time.time()
            for linear in linears:
                linear.weight.copy_(gptq(linear.weight, hess.h, args.bits, args.group))
            spent["forward"] += t1 - t0
            spent["solve"] += time.time() - t1
        t0 = time.time()
        hidden = [run(layer, x) for x in hidden]
        spent["forward"] += time.time() - t0
        print(f"block {index + 1}/{len(core.layers)}  {time.time() - start:.1f} s", flush=True)
    total = time.time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seconds {total:.1f} (forward and Hessians {spent['forward']:.1f}, solving {spent['solve']:.1f}), "
          f"threads {torch.get_num_threads()}, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
