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
from slm_np.data.word_patterns import LLAMA3, WORD_AND_LINE_END

VOCABULARY = Path(__file__).with_name("stories_vocabulary.txt")
CACHE = 1 << 24  # size of the cache of words. A word counts its characters and `WORD_COST`
WORD_COST = 128
LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}

# `LLAMA3` where each character outside of ASCII is replaced by a letter, a number, white space or a sign: Python has no
# \p{L} and \p{N}. U+017F stays, since (?i:'s) matches it.
OUTSIDE = re.compile("[^\0-\x7f\u017f]")
LETTER, NUMBER, SPACE, SIGN = "\xe9\xb2\xa0\xa7"
L, N, S = f"A-Za-z\u017f{LETTER}", f"0-9{NUMBER}", f"\t-\r {SPACE}"
WORD = re.compile(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}"
    rf"| ?[^{S}{L}{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+"
)


class PlainBPE(Tokenizer):
    """Ids: the 256 values of a byte, `tokens`, and the end-of-text token.

    tokens: strings in the letters of GPT-2's vocabulary (see `byte_letters`). "left right" is merged from two earlier
    tokens, and such merges apply in their order. A token without a space is only found as a whole word. Words are those
    of Llama 3, and a word that is a token stays whole.
    ValueError if a token comes twice, is empty, or is merged from tokens that are not there. TypeError for other
    letters.
    """

    def __init__(self, tokens):
        self.tokens = tuple(tokens)
        self._bytes = [bytes([byte]) for byte in range(256)]  # of each id
        self._ids, self._pairs = dict(zip(self._bytes, range(256))), {}  # {bytes: id}, {(left id, right id): id}
        for id, token in enumerate(self.tokens, 256):
            parts = [bytes(map(BYTES.get, part)) for part in token.split(" ")]
            whole = b"".join(parts)
            if len(parts) == 2 and self._ids.keys() >= set(parts):
                self._pairs[self._ids[parts[0]], self._ids[parts[1]]] = id
            elif len(parts) > 1:
                raise ValueError(f"the token {token!r} is merged from tokens that are not there")
            if whole in self._ids or not whole:
                raise ValueError(f"the token {token!r} comes twice, or is empty")
            self._ids[whole] = id
            self._bytes.append(whole)
        self.end_of_text = len(self._bytes)
        self.vocab_size = self.end_of_text + 1
        self._bytes.append(b"")
        self._words, self._words_size = {}, 0  # {word: its ids as bytes}, and its size as `CACHE` counts it

    @classmethod
    def stories(cls):
        """The tokenizer of the embedded corpora."""
        return cls(VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1])

    @classmethod
    def from_json(cls, fields):
        """The tokenizer with the tokens and merges of a tokenizer.json, or None if no `PlainBPE` can have them.

        The other fields may differ from those of `to_json`.
        """
        vocab = fields["model"]["vocab"]
        if any(vocab.get(letter) != byte for letter, byte in BYTES.items()):
            return None
        merges = {merge.replace(" ", ""): merge for merge in joined_merges(fields["model"])}
        try:
            return cls(merges.get(name, name) for name in sorted(vocab, key=vocab.get)[len(BYTES) :])
        except (ValueError, TypeError):
            return None

    def with_end(self):
        return self

    def encode_blocks(self, blocks, begins=True):
        for segment in segments(decoded(blocks)):
            parts = WORD_AND_LINE_END.findall(segment)
            for part in set(parts).difference(self._words):
                self._words[part] = np.array(self._encoded(part), self.dtype).tobytes()
                self._words_size += len(part) + WORD_COST
            ids = b"".join(map(self._words.__getitem__, parts))
            if self._words_size > CACHE:
                self._words, self._words_size = {}, 0
            yield np.frombuffer(ids, self.dtype)

    def _encoded(self, text):
        """A list of ids. A byte that is not UTF-8 separates words."""
        found = []
        for part in ESCAPED.split(text):
            for word in [part] if ESCAPED.match(part) else words_of(part):
                data = word.encode("utf-8", "surrogateescape")
                found += [self._ids[data]] if data in self._ids else merged(data, self._pairs)
        return found

    def decode(self, ids):
        return b"".join(map(self._bytes.__getitem__, self._checked(ids).tolist()))

    def to_json(self):
        vocab = {name: id for id, name in enumerate([*LETTERS, *(token.replace(" ", "") for token in self.tokens)])}
        model = bpe_model(vocab, [token for token in self.tokens if " " in token])
        words = dict(type="Split", pattern=dict(Regex=LLAMA3), behavior="Isolated", invert=False)
        steps = dict(type="Sequence", pretokenizers=[words, byte_level(False)])
        return tokenizer_json(steps, byte_level(True), dict(model, ignore_merges=True), self.end_of_text)


def words_of(text):
    """The words of a text by the expression `LLAMA3`."""
    return [text[found.start() : found.end()] for found in WORD.finditer(OUTSIDE.sub(_kind, text))]


def _kind(match):
    """A character of the same kind as the one that `OUTSIDE` matched."""
    letter = match[0]
    return LETTER if letter.isalpha() else NUMBER if letter.isnumeric() else SPACE if letter.isspace() else SIGN


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
