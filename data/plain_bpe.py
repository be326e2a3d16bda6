"""Byte-pair encoding in plain Python, and the vocabulary of the embedded corpora: neither needs a library.

A cache of words makes it fast on a corpus of few different words, such as the stories. For other text the library's
tokenizers (see bpe.py) are faster.
"""

import re
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import numpy as np

from slm_np.data.segments import ESCAPED, decoded, segments
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_json import bpe_model, byte_letters, byte_level, joined_merges, tokenizer_json
from slm_np.data.word_patterns import SPACES, WORD

VOCABULARY = Path(__file__).with_name("stories_vocabulary.txt")
CACHE = 1 << 24  # size of the cache of words. A word counts its characters and `WORD_COST`
WORD_COST = 128
LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}

# GPT-2's words. It tells letters from numbers outside of ASCII, which changes no id: no merge has such a character.
GPT2_WORD = re.compile(
    rf"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:_|[^\w{SPACES}])+|[{SPACES}]+(?![^{SPACES}])|[{SPACES}]+"
)


class PlainBPE(Tokenizer):
    """Ids: the 256 values of a byte, a token for each of `merges`, and the end-of-text token.

    merges: "left right" strings in the letters of GPT-2's vocabulary (see `byte_letters`), in the order in which they
    apply within GPT-2's words. ValueError if one is malformed, has a token that is not there, gives one that already
    is, or has a byte outside of ASCII.
    """

    def __init__(self, merges):
        self.merges = tuple(merges)
        self._tokens = [bytes([byte]) for byte in range(256)]  # the bytes of each id
        self._pairs, ids = {}, dict(BYTES)  # {(left id, right id): id}, {token in letters: id}
        for id, merge in enumerate(self.merges, 256):
            left, right = merge.split(" ")
            if left + right in ids or not {left, right} <= ids.keys():
                raise ValueError(f"{merge!r} cannot be the merge {id - 256}")
            self._pairs[ids[left], ids[right]] = ids[left + right] = id
            self._tokens.append(self._tokens[ids[left]] + self._tokens[ids[right]])
        if not all(map(bytes.isascii, self._tokens[256:])):
            raise ValueError("merges are of ASCII")
        self.end_of_text = len(self._tokens)
        self.vocab_size = self.end_of_text + 1
        self._tokens.append(b"")
        self._words, self._words_size = {}, 0  # {word: its ids as bytes}, and its size as `CACHE` counts it

    @classmethod
    def stories(cls):
        """The tokenizer of the embedded corpora."""
        return cls(VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1])

    @classmethod
    def from_json(cls, fields):
        """The tokenizer with the merges of a tokenizer.json, or None if it has other ids.

        The other fields may differ from those of `to_json`.
        """
        vocab = fields["model"]["vocab"]
        if any(vocab.get(letter) != byte for letter, byte in BYTES.items()):
            return None
        try:
            found = cls(joined_merges(fields["model"]))
        except ValueError:
            return None
        return found if len(vocab) == found.end_of_text else None

    def with_end(self):
        return self

    def encode_blocks(self, blocks, begins=True):
        for segment in segments(decoded(blocks)):
            words = WORD.findall(segment)
            for word in set(words).difference(self._words):
                self._words[word] = np.array(self._encoded(word), self.dtype).tobytes()
                self._words_size += len(word) + WORD_COST
            ids = b"".join(map(self._words.__getitem__, words))
            if self._words_size > CACHE:
                self._words, self._words_size = {}, 0
            yield np.frombuffer(ids, self.dtype)

    def _encoded(self, text):
        """A list of ids. A byte that is not UTF-8 separates words."""
        found = []
        for part in ESCAPED.split(text):
            words = [part] if ESCAPED.match(part) else GPT2_WORD.findall(part)
            for word in words:
                found += merged(word.encode("utf-8", "surrogateescape"), self._pairs)
        return found

    def decode(self, ids):
        return b"".join(map(self._tokens.__getitem__, self._checked(ids).tolist()))

    def to_json(self):
        names = [*LETTERS, *(merge.replace(" ", "") for merge in self.merges)]
        vocab = {name: id for id, name in enumerate(names)}
        return tokenizer_json(byte_level(True), byte_level(True), bpe_model(vocab, list(self.merges)), self.end_of_text)


def merged(word, pairs):
    """The ids of a word (bytes) after all merges: the smallest id first, then from left to right. O(n log n).

    pairs: {(left id, right id): id of the merge}
    """
    ids, n = list(word), len(word)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))  # the neighbors of what is not merged away
    heap = [(pairs[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in pairs]
    heapify(heap)
    while heap:
        new, left = heappop(heap)
        right = after[left]
        if right == n or pairs.get((ids[left], ids[right])) != new:  # another merge took one of the two
            continue
        ids[left], ids[right] = new, None
        after[left] = following = after[right]
        if following < n:
            before[following] = left
            if (new, ids[following]) in pairs:
                heappush(heap, (pairs[new, ids[following]], left))
        if before[left] >= 0 and (ids[before[left]], new) in pairs:
            heappush(heap, (pairs[ids[before[left]], new], before[left]))
    return [id for id in ids if id is not None]
