"""A token for each character of a text, which must be UTF-8."""

import codecs

import numpy as np

from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_json import tokenizer_json
from slm_np.errors import UserError
from slm_np.words import counted

SHOWN = 80  # characters of the vocabulary that an error lists


class CharTokenizer(Tokenizer):
    """An id per character of `characters`, in its order. With `end`, the last id is the end-of-text token."""

    def __init__(self, characters, end=False):
        self.characters = characters
        self.vocab_size, self.end_of_text = len(characters) + end, len(characters) if end else None
        self._codes = code_points(characters)
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)  # last entry: any code point above the others
        self._ids[self._codes] = np.arange(len(characters))

    @classmethod
    def learn(cls, *texts):
        """The tokenizer of all characters in `texts`, sorted by code point.

        texts: iterables of blocks of UTF-8 bytes. One block is in memory at a time.   UserError if there is no
        character, or the bytes are not UTF-8.
        """
        seen = np.zeros(0x110000, bool)
        for blocks in texts:
            for text in decoded_blocks(blocks):
                seen[code_points(text)] = True
        if not seen.any():
            raise UserError("the text has no characters to learn a vocabulary from; give some text")
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def with_end(self):
        return CharTokenizer(self.characters, end=True)

    def encode_blocks(self, blocks, begins=True):
        for text in decoded_blocks(blocks):
            codes = code_points(text)
            ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
            if ids.size and ids.min() < 0:
                wrong, n = text[int(np.argmin(ids))], len(self.characters)
                known = self.characters if n <= SHOWN else self.characters[:SHOWN] + "..."
                raise UserError(
                    f"the character {wrong!r} (U+{ord(wrong):04X}) is not among the {counted(n, 'character')} of the "
                    f"tokenizer, {known!r}; remove it, or train with --tokenizer byte"
                )
            yield ids.astype(self.dtype)

    def decode(self, ids):
        ids = self._checked(ids)
        return self._codes[ids[ids < len(self.characters)]].tobytes().decode("utf-32-le").encode()

    def to_json(self):
        split = dict(type="Split", pattern={"Regex": r"[\s\S]"}, behavior="Isolated", invert=False)
        # A word-level model must name an unknown token. A name outside the vocabulary makes unknown characters an
        # error.
        vocab = {character: id for id, character in enumerate(self.characters)}
        model = dict(type="WordLevel", vocab=vocab, unk_token="<unk>")
        return tokenizer_json(split, dict(type="Fuse"), model, self.end_of_text)


def code_points(text):
    """The code points (N,) of a string, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def decoded_blocks(blocks):
    """Yield each block of UTF-8 bytes as a string. A character cut by the end of a block goes to the next string.

    UserError with the position of the first byte that is not UTF-8.
    """
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        for block in blocks:
            pending = len(decoder.getstate()[0])  # bytes of a cut character from earlier blocks
            yield decoder.decode(block)
            position += len(block)
        pending = len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text is not UTF-8 (byte 0x{error.object[error.start]:02x} at position "
            f"{position - pending + error.start}); convert it, or use --tokenizer byte"
        ) from None
