#!/usr/bin/env python3
"""Writes tests/fixtures/tok/<style>/: small trained tokenizers of each style, and expected.json with the ids and the decoded text
that the PyPI package `tokenizers` gives for a hard set. Needs: pip install tokenizers."""
import json
import os
import sys
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/tok"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
CORPUS = ["The quick brown fox jumps over the lazy dog; the dog isn't amused, and they'll say so in 1234 words.",
          "Ein schöner Tag für Übungen. Ça va? Où est l'hôtel près de la gare? ñandú, Ångström, naïve café.",
          "日本語のテキストと中文文本。 مرحبا بالعالم. שלום עולם. привет мир, как дела?",
          "def f(x):\n    return x ** 2 + 10\n\nfor i in range(100):\n\tprint(i, f(i))\n",
          "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 😀😀 ½ Ⅷ ④ \u00a0 \u2028 e\u0301 a\u030a"] * 4
HARD = ["", " ", "  ", "\n", "\n\n\n", " \n \n x  ", "Hello world", "hello  world   again    more", "\ttabs\t\tand spaces \t ",
        "a\r\nb\r\n\r\nc\r", "I'm you're HE'LL they'VE don'T 'S 's ''s", "1234567890 12 3.14 1,000,000 ١٢٣ ४५६ ½ Ⅷ ②",
        "👨‍👩‍👧‍👦 family 🏳️‍🌈 🇩🇪 😀😀😀", "e\u0301 \u00e9 a\u030a å ñ n\u0303 \ufb01 \u212b ①", "日本語のテキスト 中文 한국어 ひらがなカタカナ",
        "مرحبا بالعالم שלום עולם", "zero\u200bwidth\u200d\ufeff joiner\u00a0nbsp\u2028line\u2029para\u0085nel",
        "<|special|>text<|special|> <|plain|>x <|left|> y <|right|>  z", "<s>a</s> <unk>", "a" * 300, "ab " * 100,
        "def f(x):\n    return x ** 2  # comment\n\n\n", "İstanbul ſ ß ẞ ǅ", "\u0001\u0002\u007f", "▁under▁score _ __", "trailing   "]


def train(tok, byte_level, extra=()):
    tr = trainers.BpeTrainer(vocab_size=480, special_tokens=["<unk>", "<s>", "</s>"] + list(extra), show_progress=False,
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [])
    tok.train_from_iterator(CORPUS, tr)
    tok.add_special_tokens(["<|special|>"])
    tok.add_tokens([AddedToken("<|plain|>", normalized=False), AddedToken("<|left|>", lstrip=True, normalized=False),
                    AddedToken("<|right|>", rstrip=True, normalized=False)])


def byte_level(pre, normalizer=None, ignore_merges=False, bos=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer, tok.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tok.normalizer = normalizer
    train(tok, True)
    if bos:
        tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])])
    return tok


def spm(metaspace=None):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    else:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    train(tok, False, ["<0x%02X>" % b for b in range(256)])
    d = json.loads(tok.to_str())  # byte tokens are of the vocabulary, not specials
    d["added_tokens"] = [a for a in d["added_tokens"] if not a["content"].startswith("<0x")]
    d["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                           {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return Tokenizer.from_str(json.dumps(d))


def spm_normed():
    """Added tokens that are found in normalized text, where a space stands before them."""
    tok = spm()
    tok.add_tokens([AddedToken("<foo>"), AddedToken("<a b>"), AddedToken("<foo><bar>", rstrip=True)])
    return tok


BL = pre_tokenizers.ByteLevel
STYLES = {
    "gpt2": lambda: byte_level(BL(add_prefix_space=False)),
    "prefix": lambda: byte_level(BL(add_prefix_space=True)),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                          BL(add_prefix_space=False)])),
    "llama3": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                 BL(add_prefix_space=False, use_regex=False)]), ignore_merges=True, bos=True),
    "qwen2": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                                BL(add_prefix_space=False, use_regex=False)]), normalizers.NFC()),
    "llama2": spm,
    "llama2_normed": spm_normed,
    "metaspace_first": lambda: spm("first"),
    "metaspace_always": lambda: spm("always"),
}
MORE = {"llama2_normed": ["a <foo> b", "a<foo> b", "<foo>", "x <a b> y", " <foo> <foo><bar>\n\nz <foo>", "<s><foo></s> <foo>", "<|plain|><foo> <|plain|> <foo>", "日本 <foo>語"]}
for name, make in STYLES.items():
    tok = make()
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({"model_type": "none"}, f)
    cases = [{"text": t, "ids": tok.encode(t).ids, "decoded": tok.decode(tok.encode(t).ids)} for t in HARD + MORE.get(name, [])]
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump(cases, f, ensure_ascii=True, indent=0)
    print(name, tok.get_vocab_size())
