"""Multiple-choice tasks: per-item log-likelihoods and choices of `d2q eval --tasks` against lm-evaluation-harness's procedure (its
_encode_pair and _loglikelihood_tokens, written out) over transformers in float32, on SmolLM2. D2Q_ITEMS items a task (default 200)."""
import json
import os
import tempfile

import judge_common as c

DATA = os.environ.get("D2Q_DATA", os.path.join(c.ROOT, "../shared/data"))
FILES = {"piqa": "piqa_validation", "hellaswag": "hellaswag_validation", "arc_easy": "arc_easy_test", "arc_challenge": "arc_challenge_test",
         "winogrande": "winogrande_xl_validation", "rte": "rte_validation", "openbookqa": "openbookqa_test", "mmlu": "mmlu_test"}
N = int(os.environ.get("D2Q_ITEMS", 200))


def pairs(task, item, examples):
    if "contexts" in item:
        return [(x, item["continuation"]) for x in item["contexts"]]
    before = examples[item["id"].rsplit("-", 1)[0]]["description"] if task == "mmlu" else ""
    lead = item.get("lead", [0] * len(item["choices"]))
    return [(before + item["context"], " " * k + x) for k, x in zip(lead, item["choices"])]


def loglikelihoods(model, tok, both):
    """One padded batch: sums of log p of the continuations' tokens."""
    import torch
    rows = []
    for ctx, cont in both:
        whole, head = (tok.encode(t, add_special_tokens=False) for t in (ctx + cont, ctx))
        rows.append((head + whole[len(head):], len(whole) - len(head)))
    width = max(len(r) for r, _ in rows) - 1
    ids = torch.tensor([r[:-1] + [0] * (width - len(r) + 1) for r, _ in rows])
    with torch.no_grad():
        logits = model(ids).logits
    sums = []
    for i, (r, n) in enumerate(rows):  # only the rows that predict the continuation
        logp = torch.log_softmax(logits[i, len(r) - 1 - n:len(r) - 1].double(), -1)
        sums.append(sum(logp[k, r[len(r) - n + k]].item() for k in range(n)))
    return sums


def best(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def main():
    smol = c.smollm2()
    if not smol or not os.path.isdir(DATA):
        c.skip("tasks", f"needs SmolLM2 and {DATA}")
        return c.finish()
    import torch
    import transformers
    with tempfile.TemporaryDirectory() as tmp:
        c.run(c.D2Q, "convert", smol, "-o", f"{tmp}/hf", "--format", "hf", "-q")
        tok = transformers.AutoTokenizer.from_pretrained(f"{tmp}/hf")
        model = transformers.AutoModelForCausalLM.from_pretrained(f"{tmp}/hf", dtype=torch.float32).eval()
        examples = {e["subject"]: e for e in map(json.loads, open(f"{DATA}/mmlu_fewshot.jsonl", encoding="utf-8"))}
        for task, file in FILES.items():
            c.run(c.D2Q, "eval", smol, "--tasks", task, "--data", DATA, "--limit", N, "--items", f"{tmp}/items", "-q")
            ours = [json.loads(line) for line in open(f"{tmp}/items", encoding="utf-8")]
            worst, other, close = 0, [], 0
            for item, us in zip(map(json.loads, open(f"{DATA}/{file}.jsonl", encoding="utf-8")), ours):
                both = pairs(task, item, examples)
                theirs = loglikelihoods(model, tok, both)
                assert item["id"] == us["id"]
                worst = max(worst, max(abs(a - b) for a, b in zip(us["ll"], theirs)))
                norm = [v / len(t[1:]) for v, (_, t) in zip(theirs, both)]
                if (best(theirs), best(norm)) != (us["choice"], us["choice_norm"]):
                    other.append(item["id"])
            c.report(worst <= 1e-3 and not other and len(ours) == min(N, len(ours)), f"{task}: {len(ours)} items, log-likelihoods within "
                     f"{worst:.1e} of transformers', {len(other)} other choices {other[:3]}")
    c.finish()


main()
