"""What the judges share: TAP, running programs, tiny models, logits of both sides."""
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FIXTURES = os.path.join(ROOT, "tests/fixtures/models")
D2Q = os.environ.get("D2Q", os.path.join(ROOT, "build/d2q"))
state = {"n": 0, "failed": 0, "skipped": 0}


def report(ok, text):
    state["n"] += 1
    state["failed"] += not ok
    print(f"{'ok' if ok else 'not ok'} {state['n']} - {text}", flush=True)


def skip(text, why):
    state["n"] += 1
    state["skipped"] += 1
    print(f"ok {state['n']} - {text} # skip: {why}", flush=True)


def finish():
    print(f"1..{state['n']}\n{state['n'] - state['failed'] - state['skipped']} passed, {state['failed']} failed, {state['skipped']} skipped")
    sys.exit(state["failed"] > 0)


def run(*cmd, ok=True, env=None):
    p = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, errors="replace", env={**os.environ, **(env or {})})
    if ok and p.returncode:
        raise RuntimeError(f"{' '.join(map(str, cmd))}: status {p.returncode}: {(p.stderr or p.stdout).strip()[-600:]}")
    return p


def quantize(model, out, *args):
    return run(D2Q, "quantize", model, "-o", out, "--quiet", *args)


def eval_llama(path, text, ctx, chunks):
    return json.loads(run(D2Q, "eval", path, "--ppl", text, "--protocol", "llama", "--ctx", ctx, "--chunks", chunks, "--json").stdout)


def smollm2():
    """Path of the real model, or None."""
    p = os.environ.get("D2Q_SMOLLM2") or os.path.expanduser("~/.cache/d2quant/SmolLM2-135M-Instruct.Q4_1.gguf")
    return p if os.path.exists(p) else None


def tiny(folder, prefix, **extra):
    """A random model of 256-wide rows (what the K types need) with the llama fixture's tokenizer."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(5)
    config = getattr(transformers, prefix + "Config")(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=319, **extra)
    model = getattr(transformers, prefix + "ForCausalLM")(config)
    for name, p in model.named_parameters():
        p.data = (1 + 0.2 * torch.randn(p.shape) if name.endswith("norm.weight")
                  else (0.2 if "embed" in name or "lm_head" in name else 0.05) * torch.randn(p.shape))
    model.to(torch.float16).save_pretrained(folder)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(FIXTURES, "llama", f), folder)
    return folder


def tiny_models(tmp):
    return {"llama": tiny(f"{tmp}/llama", "Llama"), "qwen2": tiny(f"{tmp}/qwen2", "Qwen2"), "qwen3": tiny(f"{tmp}/qwen3", "Qwen3", head_dim=64)}


class Drivers:
    """The two programs that print logits, compiled once."""

    def __init__(self, tmp, llama):
        self.tmp, lib = tmp, [f"{llama}/build/{p}" for p in ("src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a",
                                                             "ggml/src/libggml-base.a")]
        flags = run("pkg-config", "--cflags", "--libs", "openblas", "lapacke", "jansson", "libpcre2-8", "libutf8proc", "nettle").stdout.split()
        run("c++", "-O1", f"-I{llama}/include", f"-I{llama}/ggml/include", f"{HERE}/logits_llama.cpp", "-o", f"{tmp}/theirs", *lib,
            "-fopenmp", "-lpthread", "-ldl", "-lm")
        run("cc", "-std=c11", "-D_GNU_SOURCE", f"-I{ROOT}/src", f"-I{ROOT}/include", f"{HERE}/logits_d2q.c", "-o", f"{tmp}/ours",
            os.path.join(os.path.dirname(D2Q), "libd2q_internal.a"), *flags, "-lm", "-pthread")

    def both(self, path, ids):
        import numpy as np
        np.asarray(ids, np.int32).tofile(f"{self.tmp}/ids")
        out = []
        for who in ("ours", "theirs"):
            run(f"{self.tmp}/{who}", path, f"{self.tmp}/ids", f"{self.tmp}/logits")
            out.append(np.fromfile(f"{self.tmp}/logits", np.float32).reshape(len(ids), -1).astype(np.float64))
        return out

    def distance(self, path, ids):
        """(rms of the difference / rms of ours about its mean over the vocabulary, share of equal best tokens)"""
        import numpy as np
        a, b = (x - x.mean(1, keepdims=True) for x in self.both(path, ids))
        return float(np.sqrt(((a - b) ** 2).mean() / (a ** 2).mean())), float((a.argmax(1) == b.argmax(1)).mean())

    def tensor(self, path, name):
        import numpy as np
        run(f"{self.tmp}/ours", path, "-", f"{self.tmp}/tensor", name)
        return np.fromfile(f"{self.tmp}/tensor", np.float32)
