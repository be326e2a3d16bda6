"""Tokens: what training reads. One split of a corpus, or both with their tokenizer."""

from dataclasses import dataclass

import numpy as np

from slm_np import arguments
from slm_np.data.files import opened
from slm_np.data.text_files import BLOCK
from slm_np.data.tokenizer import Tokenizer
from slm_np.errors import UserError
from slm_np.progress import say
from slm_np.words import counted

SPLITS = ("train", "validation")
# What a byte of a mask says of its token: the loss counts it; it is the end-of-text token but within a document, as
# where a chat template ends each message with that token.
TARGET, WITHIN = 1, 2


@dataclass(frozen=True, eq=False)
class Tokens:
    """One split of a corpus."""

    split: str  # train or validation
    ids: np.ndarray  # (N,) uint16 or uint32, memory-mapped, read-only
    n_bytes: int | None = None  # of the text of all targets, None if unknown
    bits_per_byte_floor: float | None = None  # entropy of the source that generated the text, None if unknown
    mask: np.ndarray | None = None  # (N,) uint8, memory-mapped: TARGET, WITHIN, both or 0; None if all are targets
    n_targets: int | None = None  # tokens that the loss counts; None counts them
    n_documents: int | None = None  # None if unknown
    lossy: str = ""  # what the tokenizer loses of the text, so that its bytes do not measure the tokens (see lossy.py)

    def __post_init__(self):
        if self.mask is None:
            object.__setattr__(self, "n_targets", len(self.ids))
        elif self.n_targets is None:
            object.__setattr__(self, "n_targets", int(np.count_nonzero(targets(self.mask))))

    def __len__(self):
        return len(self.ids)

    def first(self, n):
        """The `Tokens` of the first `n`, or all of them if there are fewer."""
        n = arguments.whole("n", n)
        if n >= len(self):
            return self
        return Tokens(self.split, self.ids[:n], mask=None if self.mask is None else self.mask[:n], lossy=self.lossy)

    def sample(self):
        """`Tokens` that stand for all in their bytes per token: these."""
        return self


@dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits and their tokenizer. While the token store is being built, the splits are `GrowingTokens`."""

    train: Tokens
    validation: Tokens
    tokenizer: Tokenizer | None  # None for token files without a tokenizer.json
    vocab_size: int
    fingerprint: str  # in hexadecimal: equal exactly if contents, splits and tokenizer are equal
    source: str  # the `--data` string
    building: object = None  # the `growing.Building`; None if the corpus is complete


def targets(mask):
    """(N,) bool: which tokens the loss counts. mask: part of that of a split"""
    return (np.asarray(mask) & TARGET) != 0


def mapped(path, dtype, start=0):
    """The little-endian array (N,) from the byte `start` of a file on, memory-mapped and read-only."""
    dtype = dtype.newbyteorder("<")
    with opened(path) as file:
        is_empty = path.stat().st_size == start  # and has no map
        return np.empty(0, dtype) if is_empty else np.memmap(file, dtype, "r", start)


def largest_id(ids):
    """(largest id, its first position), (-1, -1) if there are none. Reads a block at a time."""
    largest, at = -1, -1
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        if block.max() > largest:
            largest, at = int(block.max()), start + int(block.argmax())
    return largest, at


def check_ids(tokens, vocab_size, may_grow=False):
    """UserError if an id of `tokens` is outside a vocabulary of `vocab_size`. Reads all ids.

    may_grow: whether --vocab-size can make the vocabulary larger.
    """
    largest, at = largest_id(tokens.ids)
    if largest >= vocab_size:
        fix = f"use --vocab-size {largest + 1} or more, or" if may_grow else "give"
        raise UserError(
            f"the {tokens.split} tokens contain the id {largest} at position {at}, but the vocabulary has "
            f"{vocab_size}; {fix} tokens of the right tokenizer"
        )


def check_length(tokens, block_size):
    """UserError if `tokens` has fewer than `block_size` + 1 tokens, so that no window fits."""
    n = len(tokens)
    if n <= block_size:
        remedy = "give more text" if tokens.split == "train" else "give a longer text with --val-data"
        lower = f"lower --block-size to {n - 1} or less, or " * (n > 1)
        raise UserError(
            f"the {tokens.split} split has {counted(n, 'token')}, but --block-size {block_size} needs "
            f"{block_size + 1}; {lower}{remedy}"
        )


def say_lossy(sentence, progress):
    """Print what a tokenizer loses of a text, if it loses anything."""
    if sentence and progress:
        say(sentence)
