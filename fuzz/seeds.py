#!/usr/bin/env python3
"""Makes fuzz/corpus/NAME/seed-*: small valid files of every kind, from tests/fixtures and by hand.

    python3 fuzz/seeds.py [DIR]        (nothing but the standard library; DIR: default fuzz/corpus)

Findings in the same folders (crash-*, slow-*) are left alone. The form of an input is the target's: fuzz/vfs.c.
"""
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FIX = os.path.join(HERE, "../tests/fixtures")
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "corpus")


def seed(target, name, data):
    os.makedirs(os.path.join(OUT, target), exist_ok=True)
    with open(os.path.join(OUT, target, "seed-" + name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def read(path):
    with open(os.path.join(FIX, path), "rb") as f:
        return f.read()


def dumps(o):
    return json.dumps(o, separators=(",", ":"), ensure_ascii=False).encode()


BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "U8": 1, "F64": 8}


def safetensors(tensors, metadata=None):
    """{name: (dtype, shape, bytes or None)} as header, NUL, data"""
    head, data = {}, b""
    if metadata:
        head["__metadata__"] = metadata
    for name, (dtype, shape, body) in tensors.items():
        n = BYTES[dtype]
        for d in shape:
            n *= d
        body = (b"abcdefgh" * (n // 8 + 1))[:n] if body is None else body
        assert len(body) == n, name
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n]}
        data += body
    return dumps(head) + b"\0" + data


def folder(**sections):
    """Sections by their letters (vfs.c); s1 is letter 1"""
    return b"".join(b"@@" + k[-1].encode() + (v if isinstance(v, bytes) else dumps(v)) for k, v in sections.items())


# ---- weights -----------------------------------------------------------------------------

seed("safetensors", "types", safetensors({t: (t, [2, 2], None) for t in BYTES}, {"format": "pt"}))
seed("safetensors", "dims", safetensors({"a": ("F16", [1, 2, 1, 3], None), "none": ("F32", [0, 4], None), "one": ("F32", [], None)}))
seed("safetensors", "odd", safetensors({"a": ("U8", [3], None), "b": ("F32", [2], None)}))  # b is not aligned
seed("safetensors", "raw", b"\xff" + struct.pack("<Q", 2) + b"{}")
seed("safetensors", "empty", b"{}")

INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "model-00001-of-00003.safetensors",
         "b": "model-00001-of-00003.safetensors", "c": "model-00002-of-00003.safetensors"}}
seed("index", "three", dumps(INDEX))
seed("index", "shards", folder(i={"weight_map": {"x": "model-00003-of-00003.safetensors"}},
                               s3=safetensors({"x": ("BF16", [2, 3], None), "y": ("I64", [1], None)})))
seed("index", "etc", dumps({"weight_map": {"a": "../../etc/passwd"}}))


def gguf_string(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def gguf_value(v):
    """(type, bytes)"""
    if isinstance(v, bool):
        return 7, struct.pack("<B", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v & 0xffffffff)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, (str, bytes)):
        return 8, gguf_string(v)
    parts = [gguf_value(x) for x in v]
    return 9, struct.pack("<IQ", parts[0][0] if parts else 4, len(parts)) + b"".join(p[1] for p in parts)


TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def gguf(keys, tensors, version=3):
    """tensors: {name: (type, ne)}, ne[0] the row's length"""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for k, v in keys.items():
        t, body = v if isinstance(v, tuple) else gguf_value(v)
        out += gguf_string(k) + struct.pack("<I", t) + body
    at, bodies = 0, []
    for name, (kind, ne) in tensors.items():
        number, block, size = TYPES[kind]
        n = size
        for d in ne:
            n *= d
        n //= block
        out += gguf_string(name) + struct.pack("<I", len(ne)) + struct.pack("<%dQ" % len(ne), *ne) + struct.pack("<IQ", number, at)
        bodies.append((at, n))
        at = (at + n + 31) // 32 * 32
    out += b"\0" * (-len(out) % 32)
    start = len(out)
    for off, n in bodies:
        out += b"\0" * (start + off - len(out)) + (b"\x11\x22\x03\x3c" * (n // 4 + 1))[:n]
    return out


MODEL = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 4, "llama.attention.head_count": 2,
         "llama.attention.head_count_kv": 1, "llama.feed_forward_length": 4, "llama.context_length": 16,
         "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 3, "llama.rope.freq_base": 10000.0}
W = {"token_embd.weight": ("F32", [4, 3]), "output_norm.weight": ("F32", [4]), "blk.0.attn_norm.weight": ("F32", [4]),
     "blk.0.ffn_norm.weight": ("F32", [4]), "blk.0.attn_q.weight": ("F16", [4, 4]), "blk.0.attn_k.weight": ("F16", [4, 2]),
     "blk.0.attn_v.weight": ("F16", [4, 2]), "blk.0.attn_output.weight": ("F16", [4, 4]), "blk.0.ffn_gate.weight": ("F16", [4, 4]),
     "blk.0.ffn_up.weight": ("F16", [4, 4]), "blk.0.ffn_down.weight": ("F16", [4, 4])}
seed("gguf", "model", gguf(MODEL, W))
seed("gguf", "v2", gguf({"a": True, "b": 1.5, "c": [1, 2, 3], "d": ["x", "yz"], "general.alignment": 32}, {"t": ("F32", [3, 2])}, 2))
seed("gguf", "types", gguf({"i64": (11, struct.pack("<q", -5)), "f64": (12, struct.pack("<d", 2.5)), "u8": (0, b"\7"), "i16": (3, b"\xff\xff")},
                           {k: (k, [v[1], 1]) for k, v in TYPES.items()}))
seed("gguf", "bpe", gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
                          "tokenizer.ggml.tokens": ["a", "b", "ab", "Ġ", "Ġa", "</s>", "é"], "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 4],
                          "tokenizer.ggml.merges": ["a b", "Ġ a"], "tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.bos_token_id": 5,
                          "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ x }}"}, {}))
seed("gguf", "spm", gguf({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "t", "h", "th", "▁th"],
                          "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
                          "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1], "tokenizer.ggml.add_space_prefix": False}, {}))
scaled = dict(MODEL, **{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0, "general.architecture": "llama"})
seed("gguf", "scaled", gguf(scaled, {"rope_freqs.weight": ("F32", [1])}))
seed("gguf", "split", b"@@A" + gguf({"split.no": 0, "split.count": 3, "split.tensors.count": 2}, {"a": ("F32", [2])}) +
     b"@@B" + gguf({"split.no": 1, "split.count": 3}, {"b": ("F32", [2])}) + b"@@C" + gguf({"split.no": 2, "split.count": 3}, {}))

# ---- configuration -----------------------------------------------------------------------

for m in ("llama", "llama3", "llama_bias", "mistral", "qwen2", "qwen3"):
    seed("config", m, dumps(json.loads(read("models/%s/config.json" % m))))
seed("config", "old-rope", dumps({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                                  "intermediate_size": 8, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e6}))

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}


def gptq(bits, n_out, n_in, group, g_idx, **more):
    groups = -(-n_in // group)
    t = {"l.qweight": ("I32", [-(-n_in * bits // 32), n_out], None), "l.qzeros": ("I32", [groups, -(-n_out * bits // 32)], None),
         "l.scales": ("F16", [groups, n_out], None)}
    if g_idx:
        t["l.g_idx"] = ("I32", [n_in], struct.pack("<%di" % n_in, *[(n_in - 1 - j) // group for j in range(n_in)]))
    return folder(c={"quantization_config": dict(GPTQ, bits=bits, group_size=group, **more)}, m=safetensors(t))


seed("gptq", "4", gptq(4, 8, 32, 32, False))
seed("gptq", "3-act", gptq(3, 4, 40, 16, True, desc_act=True))
seed("gptq", "2-dynamic", gptq(8, 8, 32, 8, False, dynamic={"-:x": {}, "+:l.*": {"bits": 8, "group_size": 8}}))
seed("gptq", "v2", gptq(8, 33, 64, 64, True, checkpoint_format="gptq_v2"))
seed("gptq", "config", folder(q=GPTQ, m=safetensors({"l.qweight": ("I32", [1, 1], None)})))


def ct(bits, n_out, n_in, group, sym, g_idx=False, scale="F16"):
    groups = n_in // group
    one = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}[scale]
    t = {"l.weight_packed": ("I32", [n_out, -(-n_in * bits // 32)], None), "l.weight_scale": (scale, [n_out, groups], one * n_out * groups),
         "l.weight_shape": ("I64", [2], struct.pack("<qq", n_out, n_in))}
    if not sym:
        t["l.weight_zero_point"] = ("I32", [-(-n_out * bits // 32), groups], None)
    if g_idx:
        t["l.weight_g_idx"] = ("I32", [n_in], struct.pack("<%di" % n_in, *[j % groups for j in range(n_in)]))
    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "group_size": group, "strategy": "group"}
    return folder(c={"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                                             "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}}, m=safetensors(t))


seed("ct", "4", ct(4, 8, 32, 32, True))
seed("ct", "3", ct(3, 4, 40, 20, False, True, "BF16"))
seed("ct", "8", ct(8, 33, 64, 64, False, scale="F32"))
seed("ct", "2", ct(2, 8, 32, 16, True, True))

# ---- text --------------------------------------------------------------------------------


def byte_chars():
    """GPT-2's characters for bytes"""
    keep = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) if b in keep else chr(256 + rest.index(b)) for b in range(256)}


def tokenizer(vocab, merges, byte_level, **more):
    return dict({"added_tokens": [{"id": len(vocab), "content": "</s>", "special": True, "lstrip": True, "rstrip": False}],
                 "model": {"type": "BPE", "vocab": {v: i for i, v in enumerate(vocab)}, "merges": merges, "byte_fallback": not byte_level,
                           "unk_token": "<unk>"}}, **more)


B = byte_chars()
CHARS = [B[ord(c)] for c in "the ca1,.\n"] + [B[0xc3], B[0xa9]]
PRE = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": True}]}
seed("tokenizer", "bytes", folder(t=tokenizer(CHARS + ["th", "the"], ["t h", ["th", "e"]], True, pre_tokenizer=PRE,
                                              post_processor={"type": "ByteLevel"}, normalizer={"type": "NFC"}), x=b"the cat </s> 11"))
SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"},
                                                "behavior": "Isolated", "invert": False}, {"type": "ByteLevel", "use_regex": False}]}
seed("tokenizer", "split", folder(t=tokenizer(CHARS + ["th"], ["t h"], True, pre_tokenizer=SPLIT), k={"bos_token": "</s>", "eos_token": {"content": "</s>"},
                                  "chat_template": "{{ messages }}"}, x="thé  11\n".encode()))
SPM = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
POST = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
seed("tokenizer", "spm", folder(t=tokenizer(["<unk>", "<0x0A>", "▁", "t", "h", "▁t", "▁th"], ["▁ t", "▁t h"], False, normalizer=SPM, post_processor=POST),
                                j=b"{{ x }}", x=b"th th\n\xff"))
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
seed("tokenizer", "metaspace", folder(t=tokenizer(["<unk>", "▁", "t", "h", "▁t"], ["▁ t"], False, pre_tokenizer=META), x=b" t h</s>t"))

seed("messages", "text", '{"text":"the cat sat on the mat"}\n\n{"text":"other"}\n')
seed("messages", "chat", '{"messages":[{"role":"user","content":"hello there"},{"role":"assistant","content":"th\\u00e9"}]}\n')
seed("messages", "plain", "the cat sat\n on the mat, {and} more")

seed("task", "choices", '{"id":"a-0","context":"Question: x\\nAnswer:","choices":[" the"," \\u00e9t"],"gold":1}\n\n'
     '{"id":"a-1","context":"y","choices":["z","zz"],"gold":0,"lead":[1,0]}\n')
seed("task", "contexts", '{"id":"w-0","contexts":["a b","a c"],"continuation":" d.","gold":1}\n')
seed("task", "mmlu", folder(f=b'{"subject":"s","description":"Of s.","fewshot":"x A\\n\\n"}\n',
                            l=b'{"id":"s-0","context":"q\\nAnswer:","choices":[" A"," B"," C"," D"],"gold":2}\n'))


def kl(window, n_vocab, n):
    rows = window - 1 - window // 2
    row = struct.pack("<ff", 16 / 65535, -16.0) + struct.pack("<%dH" % ((n_vocab + 1) // 2 * 2), *[65535 * k // n_vocab for k in range((n_vocab + 1) // 2 * 2)])
    return b"_logits_" + struct.pack("<iii", window, n_vocab, n) + struct.pack("<%di" % (n * window), *[i % n_vocab for i in range(n * window)]) + row * rows * n


seed("kl", "small", kl(4, 3, 1))
seed("kl", "two", kl(6, 8, 2))
