#!/usr/bin/env python3
"""Perplexity by transformers in float32 on the CPU, under d2quant's protocols: the reference for `d2q eval --ppl`.

    python tools/ppl_transformers.py MODEL TEXT [--protocol gptq|llama] [--ctx N] [--windows N] [--rows|--as-is]

MODEL is a Hugging Face folder or a .gguf file. WikiText raw files (blank lines of one space) get the row rule
under gptq. Nothing here is shared with the C program.
"""
import argparse
import math
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    where = (os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)}) if path.endswith(".gguf") else (path, {})
    tok = AutoTokenizer.from_pretrained(where[0], **where[1])
    model = AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
    return model, tok


def rows_of(text):
    lines = text.split("\n")
    rows = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    return "\n\n".join("" if r == " \n" else r for r in rows)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("text")
    ap.add_argument("--protocol", default="gptq", choices=["gptq", "llama"])
    ap.add_argument("--tokenizer", help="folder whose tokenizer to use: transformers makes of a GGUF file of SmolLM2 one without its digit rule")
    ap.add_argument("--ctx", type=int)
    ap.add_argument("--windows", type=int)
    ap.add_argument("--as-is", action="store_true")
    ap.add_argument("--threads", type=int)
    args = ap.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    text = open(args.text, encoding="utf-8", newline="").read()
    rule = "as-is"
    if args.protocol == "gptq" and not args.as_is and "\n \n" in text and "\n\n" not in text:
        text, rule = rows_of(text), "wikitext-rows"
    model, tok = load(args.model)
    if args.tokenizer:
        tok = AutoTokenizer.from_pretrained(args.tokenizer)
    ids = tok(text, verbose=False).input_ids
    ctx = args.ctx or (2048 if args.protocol == "gptq" else 512)
    first = 1 if args.protocol == "gptq" else ctx // 2 + 1
    n = len(ids) // ctx
    n = min(n, args.windows) if args.windows else n
    means, start = [], time.time()
    with torch.no_grad():
        for i in range(n):
            w = torch.tensor([ids[i * ctx:(i + 1) * ctx]])
            logits = model(w, logits_to_keep=ctx - first + 1).logits[0, :-1]
            total = 0.0
            for t in range(0, logits.shape[0], 256):
                logp = torch.log_softmax(logits[t:t + 256].double(), -1)
                total -= logp.gather(1, w[0, first + t:first + t + logp.shape[0], None]).sum().item()
            means.append(total / (ctx - first))
            print(f"{i + 1}/{n} nll {sum(means) / len(means):.6f} ppl {math.exp(sum(means) / len(means)):.4f} "
                  f"{time.time() - start:.0f} s", file=sys.stderr, flush=True)
    nll = sum(means) / n
    print(f"ppl {math.exp(nll):.6f} nll {nll:.9f} tokens {n * (ctx - first)} window {ctx} windows {n} ids {len(ids)} "
          f"protocol {args.protocol} text {rule}")


main()
