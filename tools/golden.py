#!/usr/bin/env python3
"""Makes tests/fixtures/models: tiny random models of every family and their logits by transformers.

    python tools/golden.py [tests/fixtures/models]     (torch, transformers 5, gguf, tokenizers, safetensors)

Each folder is a Hugging Face checkpoint plus expected.safetensors: `ids` (1, 48) I32 and `logits` (48, vocab)
F32, computed in float32 on the CPU from the weights as stored. text.txt, made up here with WikiText's blank lines, is what eval.json's perplexities (both protocols) and greedy
continuations were computed on. A few models are written a second time as GGUF
(q and k permuted for architecture llama, as llama.cpp's converter does), from the same weights, so that the same
logits are expected. All weights are rounded to values that F32, F16 and BF16 all hold exactly: the stored type
then changes no result. Weights are not small and norms not 1, so that a wrong transposition, permutation,
bias or norm shows in the logits.
"""
import json
import os
import shutil
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import gguf
import numpy as np
import torch
import transformers
import transformers.utils.logging
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../tests/fixtures/models")
N_IDS = 48
VOCAB = 320

BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=None,
            eos_token_id=VOCAB - 1)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

# name: class prefix, config, stored type, extras
MODELS = {
    "llama": ("Llama", dict(rope_parameters=ROPE), "float16", dict(tokenizer=True, gguf=True)),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True), "bfloat16",
               dict(tokenizer=True, gguf=True, old_rope=True)),
    "llama_bias": ("Llama", dict(rope_parameters=LINEAR, attention_bias=True, mlp_bias=True, vocab_size=256,
                                 hidden_size=48, intermediate_size=64), "float32", dict(gguf=True)),
    "smollm2": ("Llama", dict(rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, hidden_size=72,
                              num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                              num_hidden_layers=3, vocab_size=256), "bfloat16", dict(shard="60KB")),
    "mistral": ("Mistral", dict(rope_parameters=ROPE, sliding_window=16, head_dim=24, vocab_size=256), "bfloat16",
                dict()),
    "qwen2": ("Qwen2", dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), "bfloat16",
              dict(tokenizer=True, gguf=True)),
    "qwen3": ("Qwen3", dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, head_dim=32,
                            tie_word_embeddings=True), "float16", dict(gguf=True)),
}


def storable(t):
    """Nearest value that BF16 and F16 both hold."""
    t = t.bfloat16().float()
    return torch.where(t.abs() < 2.0**-16, torch.zeros_like(t), t)


def fill(model, seed):
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith("norm.weight"):
            p.data = storable(1 + 0.2 * noise)
        elif name.endswith("bias"):
            p.data = storable(0.2 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            p.data = storable(0.3 * noise)
        else:
            p.data = storable(0.15 * noise)
    model.tie_weights()


def make_tokenizer():
    """Byte-level BPE of 320 tokens: 256 bytes, 62 merges, two specials, from common words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("the of and to in a is that it was for on are as with his they at be this from have or by one had not but "
             "what all were when we there can an your which their said if do will each about how up out them then she").split()
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = []
    for word in words:
        parts = ["\u0120"] + list(word)
        while len(parts) > 1 and len(merges) < VOCAB - 2 - 256:
            pair = (parts[0], parts[1])
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
            parts[:2] = ["".join(pair)]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<|pad|>", "<|end|>"])
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id("<|end|>") == VOCAB - 1
    return tok, merges


def save_hf(model, name, dtype, extras, folder):
    stored = model.to(getattr(torch, dtype))
    stored.save_pretrained(folder, max_shard_size=extras.get("shard", "5GB"))
    config = os.path.join(folder, "config.json")
    c = json.load(open(config))
    if extras.get("old_rope"):  # as transformers 4 wrote it
        rope = c.pop("rope_parameters")
        c["rope_theta"] = rope.pop("rope_theta")
        c["rope_scaling"] = rope
        c["torch_dtype"] = c.pop("dtype")
    json.dump(c, open(config, "w"), indent=2)
    if os.path.exists(os.path.join(folder, "generation_config.json")) and not extras.get("tokenizer"):
        os.remove(os.path.join(folder, "generation_config.json"))
    if extras.get("tokenizer"):
        tok, _ = make_tokenizer()
        tok.save(os.path.join(folder, "tokenizer.json"))
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|pad|>",
                   "clean_up_tokenization_spaces": False, "model_max_length": 128},
                  open(os.path.join(folder, "tokenizer_config.json"), "w"), indent=2)


TEXT = """ \n = The lighthouse at the end of the land = \n \n The lighthouse was built by the people of the town , who \
had not been there when the first ship was lost . It is one of the oldest in their country , and it can be seen from \
all of the hills around . They said that if you were to stand at the door you would hear each of the waves . \n In \
winter the light was out for as many as three nights , or so it is told . \n \n = = What was there before = = \n \n \
There had been a fire on that rock for which no one had the care ; how it was kept up is not known . She who kept \
the books wrote : " we do what we can , and then we wait . " The naïve café owner paid 12 @,@ 345 for his part 🙂 . \n"""


def nll_of(model, ids, first):
    """-log p of tokens first.. of one window, summed, in double."""
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return -sum(logp[t - 1, ids[t]].item() for t in range(first, len(ids)))


def evaluate(model, tok):
    """Both protocols, written from their description, on TEXT; and greedy continuations."""
    rows = [line + "\n" for line in TEXT.split("\n")[:-1]]
    joined = "\n\n".join("" if r == " \n" else r for r in rows)
    out = {"greedy": []}
    for name, text, ctx in (("gptq", joined, 48), ("gptq", TEXT, 64), ("llama", TEXT, 32)):
        ids = tok.encode(text).ids
        first = ctx // 2 + 1 if name == "llama" else 1
        windows = [ids[i:i + ctx] for i in range(0, len(ids) - ctx + 1, ctx)]
        means = [nll_of(model, w, first) / (ctx - first) for w in windows]
        out.setdefault("ppl", []).append(
            {"protocol": name, "rows": text is joined, "ctx": ctx, "windows": len(windows),
             "tokens": len(windows) * (ctx - first), "n_ids": len(ids), "nll": float(np.mean(means))})
    for prompt in ("The lighthouse", " was built by", "1 2 3", "naïve 🙂"):
        ids = tok.encode(prompt).ids
        new = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=VOCAB - 1,
                             pad_token_id=VOCAB - 2)[0, len(ids):].tolist()
        out["greedy"].append({"prompt": prompt, "ids": new})
    return out


def permute(w, n_head):
    """q, k rows (head, half, pair) -> (head, pair, half), as llama.cpp's converter."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


HF_TO_GGUF = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
              "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def gguf_name(name):
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{HF_TO_GGUF[module]}.{kind}"


def rope_factors(config):
    rope = config.rope_parameters
    base, dim = rope["rope_theta"], config.hidden_size // config.num_attention_heads
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    out = []
    for f in freqs.tolist():
        wave = 2 * np.pi / f
        if wave < old / high:
            out.append(1.0)
        elif wave > old / low:
            out.append(factor)
        else:
            smooth = (old / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def save_gguf(model, extras, path):
    c = model.config
    arch = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}[c.model_type]
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    w.add_file_type(1)
    if arch == "qwen3":
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    if c.rope_parameters["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c.rope_parameters["factor"])
    if c.rope_parameters["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", rope_factors(c))
    if extras.get("tokenizer"):
        tok, merges = make_tokenizer()
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list([tok.id_to_token(i) for i in range(VOCAB)])
        w.add_token_types([1] * (VOCAB - 2) + [3, 3])
        w.add_token_merges([" ".join(m) for m in merges])
        w.add_eos_token_id(VOCAB - 1)
        w.add_pad_token_id(VOCAB - 2)
        w.add_add_bos_token(False)
    for name, t in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        a = t.float().numpy()
        if arch == "llama" and ".q_proj." in name:
            a = permute(a, c.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            a = permute(a, c.num_key_value_heads)
        w.add_tensor(gguf_name(name), np.ascontiguousarray(a if a.ndim == 1 else a.astype(np.float16)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "text.txt"), "w", newline="") as f:
        f.write(TEXT)
    for seed, (name, (prefix, config, dtype, extras)) in enumerate(MODELS.items()):
        folder = os.path.join(OUT, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        config = {**BASE, **config}
        if not extras.get("tokenizer"):
            config["eos_token_id"] = None
        config = getattr(transformers, prefix + "Config")(**config, attn_implementation="eager")
        model = getattr(transformers, prefix + "ForCausalLM")(config).eval()
        fill(model, 1000 + seed)
        ids = torch.randint(0, config.vocab_size, (1, N_IDS), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = model(ids).logits[0].float()
        save_file({"ids": ids.to(torch.int32), "logits": logits.contiguous()},
                  os.path.join(folder, "expected.safetensors"))
        if extras.get("tokenizer"):
            tok, _ = make_tokenizer()
            expected = evaluate(model, tok)
            json.dump(expected, open(os.path.join(folder, "eval.json"), "w"), indent=1)
        if extras.get("gguf"):
            save_gguf(model, extras, os.path.join(OUT, name + ".gguf"))
        save_hf(model, name, dtype, extras, folder)
        again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                  attn_implementation="eager")
        with torch.no_grad():
            diff = (again(ids).logits[0] - logits).abs().max().item()
        assert diff == 0, (name, diff)
        print(f"{name}: logits {logits.min():.2f} to {logits.max():.2f}, std {logits.std():.2f}")


main()
