#!/usr/bin/env python3
"""What transformers computes from SmolLM2-135M-Instruct.Q4_1.gguf in float32: tests/fixtures/smollm2.safetensors.

    python tools/golden_smollm2.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf

Holds `ids` (n) I32, a text; `vocab` (512) I32, entries of the vocabulary; `logits` (n, 512) F32 at those entries;
`logsumexp` (n) F32 and `top` (n) I32 over the whole vocabulary; `range` (1) F32 of all logits; and greedy
continuations of five prompts: `prompt_i`, `greedy_i` I32 (64 tokens) and `margin_i` F32, by how much the chosen
token led. Used by tests/test_smollm2.c, which skips when the model is not there.
"""
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["The capital of France is", "Once upon a time, in a village by the sea,",
           "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
           "def fibonacci(n):\n", "1, 2, 3, 5, 8, 13,"]
TEXT = ("The lighthouse stood at the end of the headland, where the road gave out and the grass began. For three "
        "winters nobody had lit its lamp; the keeper's daughter, who was by then 41 years old, said that ships had "
        "\"better things than glass\" to steer by. In 1987 the roof went. What is left today - the tower, a low wall, "
        "some forty steps of the iron stair - belongs to the parish, and in June the swifts come back to it by the hundred.")

path = sys.argv[1]
tok = AutoTokenizer.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path))
model = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path),
                                             dtype=torch.float32).eval()
ids = tok(TEXT).input_ids
gen = torch.Generator().manual_seed(7)
out = {}
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
    vocab = torch.cat([torch.randperm(logits.shape[1], generator=gen)[:512 - 64], logits[-1].topk(64).indices])
    out["ids"] = torch.tensor(ids, dtype=torch.int32)
    out["vocab"] = vocab.to(torch.int32)
    out["logits"] = logits[:, vocab].contiguous()
    out["logsumexp"] = torch.logsumexp(logits.double(), -1).float()
    out["top"] = logits.argmax(-1).to(torch.int32)
    out["range"] = torch.tensor([(logits.max() - logits.min()).item()])
    for i, p in enumerate(PROMPTS):
        x, new, margin = tok(p).input_ids, [], []
        out[f"prompt_{i}"] = torch.tensor(x, dtype=torch.int32)
        while len(new) < 64:
            row = model(torch.tensor([x + new])).logits[0, -1]
            two = row.topk(2)
            new.append(two.indices[0].item())
            margin.append((two.values[0] - two.values[1]).item())
        out[f"greedy_{i}"] = torch.tensor(new, dtype=torch.int32)
        out[f"margin_{i}"] = torch.tensor(margin)
        print(repr(p), "->", repr(tok.decode(new)), "least margin", min(margin))
where = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/fixtures/smollm2.safetensors")
save_file(out, where)
print(len(ids), "tokens;", os.path.getsize(where), "bytes")
