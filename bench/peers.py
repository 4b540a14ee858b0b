#!/usr/bin/env python3
"""Quantizes a Hugging Face folder by another tool, for bench/gptqmodel and bench/accuracy: run it with a Python that has that tool.

    bench/peers.py gptqmodel|auto-round MODEL OUT --calib TEXT [--bits 3 --group 64 --nsamples 16 --seqlen 1024 --iters 200]

Asymmetric grid, the first nsamples x seqlen tokens of the text, the tool's own defaults otherwise (no activation order asked of GPTQModel). OUT gets GPTQ
files. Both want 4 cores to start and are told of as many; they get as many threads as there are. Prints the seconds of quantizing alone."""
import argparse, os, time

p = argparse.ArgumentParser()
p.add_argument("tool", choices=["gptqmodel", "auto-round"])
p.add_argument("model")
p.add_argument("out")
p.add_argument("--calib", required=True)
p.add_argument("--bits", type=int, default=3)
p.add_argument("--group", type=int, default=64)
p.add_argument("--nsamples", type=int, default=16)
p.add_argument("--seqlen", type=int, default=1024)
p.add_argument("--iters", type=int, default=200)
a = p.parse_args()

cores = len(os.sched_getaffinity(0))
os.cpu_count = lambda: max(4, cores)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(cores)
tokenizer = AutoTokenizer.from_pretrained(a.model)
ids = tokenizer(open(a.calib).read()[: a.nsamples * a.seqlen * 12])["input_ids"]
rows = [ids[i * a.seqlen:(i + 1) * a.seqlen] for i in range(a.nsamples)]
assert len(rows[-1]) == a.seqlen, "the text is too short"
if a.tool == "gptqmodel":
    from gptqmodel import GPTQModel, QuantizeConfig
    model = GPTQModel.load(a.model, QuantizeConfig(bits=a.bits, group_size=a.group, sym=False, desc_act=False, device="cpu", offload_to_disk=False))
    t0 = time.time()
    model.quantize([{"input_ids": r, "attention_mask": [1] * a.seqlen} for r in rows], batch_size=1)
    t1 = time.time()
    model.save(a.out)
else:
    from auto_round import AutoRound
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    t0 = time.time()
    AutoRound(model, tokenizer, scheme="W4A16", bits=a.bits, group_size=a.group, sym=False, iters=a.iters, seqlen=a.seqlen, nsamples=a.nsamples,
              dataset=[torch.tensor([r]) for r in rows], device_map="cpu", enable_torch_compile=False).quantize_and_save(a.out, format="auto_gptq")
    t1 = time.time()
print(f"seconds in quantize: {t1 - t0:.1f}")
