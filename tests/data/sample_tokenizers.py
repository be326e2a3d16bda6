"""Tokenizers that the tests of data share."""

import functools
import json

from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.tokenizer_factory import make_tokenizer
from slm_np.data.tokenizer_json import bpe_model

SAMPLE = "To be, or not to be:\n\tthat's the  question… ça va? Ω≈ç√ 漢字 🙂👩‍👩‍👧\r\n\x00\u2028\ufeff\x7f\xad"
TALE = (
    "Once upon a time there was a cat. The cat's hat, naïve and 42 years old, didn't fit;\n\n"
    "so the cat sat.  漢字 🙂 the end of the tale.\n"
)


def char_tokenizer(text):
    """The tokenizer of the characters of a text."""
    return CharTokenizer.learn([text.encode()])


@functools.lru_cache(maxsize=None)
def bpe_tokenizer(n=300):
    """A vocabulary of n tokens, trained on `TALE`."""
    return make_tokenizer(f"bpe:{n}", [lambda: [TALE.encode()] * 3], progress=False)


def sentencepiece(vocab=(), merges=(), **changes):
    """The fields of a tokenizer like Llama's: bytes as <0x..>, a space as U+2581, and a space before a text."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdehnot",
        *(merge.replace(" ", "") for merge in merges),
        *vocab,
    ]
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        **dict(
            version="1.0",
            truncation=None,
            padding=None,
            added_tokens=[dict(id=id, content=tokens[id], **special) for id in range(3)],
            normalizer=dict(
                type="Sequence",
                normalizers=[
                    dict(type="Prepend", prepend="▁"),
                    dict(type="Replace", pattern={"String": " "}, content="▁"),
                ],
            ),
            pre_tokenizer=None,
            post_processor=None,
            decoder=dict(
                type="Sequence",
                decoders=[
                    dict(type="Replace", pattern={"String": "▁"}, content=" "),
                    dict(type="ByteFallback"),
                    dict(type="Fuse"),
                    dict(type="Strip", content=" ", start=1, stop=0),
                ],
            ),
            model={
                **bpe_model({token: id for id, token in enumerate(tokens)}, list(merges)),
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
            },
        ),
        **changes,
    }


LLAMA = sentencepiece(merges=["▁ t", "h e", "▁t he", "c a", "▁ ca"])


def _special(id, content, **changes):
    """An entry of added_tokens."""
    return dict(
        dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True),
        **changes,
    )


@functools.lru_cache(maxsize=None)
def wild():
    """{name: fields} of tokenizers as other programs write them, most of which lose something of some texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    quiet = dict(show_progress=False)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    metaspace = pre_tokenizers.Metaspace()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    wanted = dict(
        wordpiece=(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        wordlevel=(models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer),
        unigram=(models.Unigram(), trainers.UnigramTrainer),
        unigram_bytes=(models.Unigram(), trainers.UnigramTrainer),
        bpe_unk=(models.BPE(unk_token="[UNK]", fuse_unk=True), trainers.BpeTrainer),
        bpe_dropped=(models.BPE(), trainers.BpeTrainer),
        bpe_bytes=(models.BPE(), trainers.BpeTrainer),
        bpe_dropout=(models.BPE(dropout=0.5), trainers.BpeTrainer),
        bpe_normalized=(models.BPE(), trainers.BpeTrainer),
        bpe_added=(models.BPE(), trainers.BpeTrainer),
    )
    made = {}
    for name, (model, trainer) in wanted.items():
        library, options = Tokenizer(model), dict(vocab_size=420, **quiet)
        if name.startswith("word"):
            library.normalizer = normalizers.BertNormalizer(lowercase=True)
            library.pre_tokenizer, library.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
            options |= dict(special_tokens=special)
        elif name.startswith("unigram"):
            library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
            library.pre_tokenizer, library.decoder = metaspace, decoders.Metaspace()
            options |= dict(special_tokens=["<unk>", "</s>"], unk_token="<unk>")
        elif name in ("bpe_unk", "bpe_dropped"):
            library.pre_tokenizer, library.decoder = metaspace, decoders.Metaspace()
            options |= dict(special_tokens=special if name == "bpe_unk" else [])
        else:
            library.pre_tokenizer, library.decoder = byte_level, decoders.ByteLevel()
            options |= dict(initial_alphabet=letters, special_tokens=special)
        library.train_from_iterator([TALE, TALE.lower()], trainer(**options))
        if name == "wordpiece":
            library.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            )
            library.enable_truncation(8)
            library.enable_padding(length=8)
        if name == "bpe_normalized":
            library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
        if name == "bpe_added":
            library.add_tokens(
                [
                    AddedToken("the", single_word=True, normalized=False),
                    AddedToken("cat", lstrip=True, rstrip=True),
                    AddedToken("hat, na", normalized=True),
                    AddedToken("\n\n"),
                ]
            )
        made[name] = json.loads(library.to_str())
    made["bpe_ignored_merges"] = {**made["bpe_bytes"], "model": {**made["bpe_bytes"]["model"], "ignore_merges": True}}
    fallback = made["unigram_bytes"]["model"]
    fallback["vocab"] += [[f"<0x{byte:02X}>", -9.0] for byte in range(256)]
    fallback["byte_fallback"] = True
    made["unigram_bytes"]["decoder"] = dict(
        type="Sequence",
        decoders=[dict(type="ByteFallback"), dict(type="Metaspace", replacement="▁", prepend_scheme="always")],
    )
    made["llama"] = LLAMA
    words = {word: 3 * id for id, word in enumerate(["[UNK]", "the", "cat", "sat"])}
    made["holes"] = {
        **made["wordlevel"],
        "model": dict(type="WordLevel", vocab=words, unk_token="[UNK]"),
        "added_tokens": [_special(0, "[UNK]"), _special(50, "</s>"), _special(60, " hat ", special=False)],
    }
    one = dict(type="WordLevel", vocab={"a": 0}, unk_token="a")
    made["one"] = {**made["wordlevel"], "model": one, "added_tokens": []}
    many = {"[UNK]": 0, **{f"w{id}": id for id in range(1, 70_000)}, "the": 70_000}
    made["many"] = {**made["wordlevel"], "model": dict(one, vocab=many, unk_token="[UNK]"), "added_tokens": []}
    return made


WILD = (
    *("wordpiece", "wordlevel", "unigram", "unigram_bytes", "bpe_unk", "bpe_dropped", "bpe_bytes", "bpe_dropout"),
    *("bpe_normalized", "bpe_added", "bpe_ignored_merges", "llama", "holes", "one", "many"),
)
