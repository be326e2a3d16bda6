"""Tokenizers that the tests of data share."""

import functools

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
