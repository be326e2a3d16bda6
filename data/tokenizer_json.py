"""The fields of Hugging Face's `tokenizer.json`, in which every tokenizer is saved."""

import contextlib

END_OF_TEXT = "<|endoftext|>"  # name of the token that ends a document. The same characters inside a text are text


def tokenizer_json(pre_tokenizer, decoder, model, end_of_text=None):
    """All fields. `end_of_text` is the id of the end-of-text token, or None without one."""
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[] if end_of_text is None else [end_of_text_token(end_of_text)],
        normalizer=None,
        pre_tokenizer=pre_tokenizer,
        post_processor=None,
        decoder=decoder,
        model=model,
    )


def end_of_text_token(id):
    """The entry of `added_tokens` for the end-of-text token."""
    return dict(
        id=id, content=END_OF_TEXT, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True
    )


def byte_level(use_regex):
    """GPT-2's mapping between bytes and letters, as pre-tokenizer or decoder. `use_regex` splits into words first."""
    return dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=use_regex)


def byte_letters():
    """The 256 letters that stand for the byte values in GPT-2's vocabulary (Radford et al. 2019).

    188 printable Latin-1 characters stand for themselves. The others, in order, are U+0100 and following.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def bpe_model(vocab, merges):
    """A byte-pair model. vocab: {token: id}.   merges: "left right" strings, in the order in which they apply."""
    return dict(
        type="BPE",
        dropout=None,
        unk_token=None,
        continuing_subword_prefix=None,
        end_of_word_suffix=None,
        fuse_unk=False,
        byte_fallback=False,
        ignore_merges=False,
        vocab=vocab,
        merges=merges,
    )


def joined_merges(model):
    """The merges of a byte-pair model as "left right" strings. Newer files have [left, right] instead."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def leading_token(fields):
    """The name of the special token that the post-processor puts before a text, or None.

    Also None if the post-processor is damaged: nothing else of it is used.
    """
    found = fields.get("post_processor") or {}
    with contextlib.suppress(AttributeError, TypeError, LookupError):
        for step in found.get("processors", [found]):
            single = step.get("single") or [{}]
            if step.get("type") == "TemplateProcessing" and "SpecialToken" in single[0]:
                name = single[0]["SpecialToken"]["id"]
                return name if isinstance(name, str) else None
    return None
