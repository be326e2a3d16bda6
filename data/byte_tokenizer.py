"""A token for each byte value: encodes any data and needs no training."""

import numpy as np

from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_json import bpe_model, byte_letters, byte_level, tokenizer_json


class ByteTokenizer(Tokenizer):
    """256 ids, each the value of a byte. With `end`, id 256 is the end-of-text token."""

    def __init__(self, end=False):
        self.vocab_size, self.end_of_text = 256 + end, 256 if end else None

    def with_end(self):
        return ByteTokenizer(end=True)

    def encode_blocks(self, blocks, begins=True):
        for block in blocks:
            yield np.frombuffer(block, np.uint8).astype(self.dtype)

    def decode(self, ids):
        ids = self._checked(ids)
        return ids[ids < 256].astype(np.uint8).tobytes()

    def to_json(self):
        vocab = {letter: byte for byte, letter in enumerate(byte_letters())}
        # Byte-pair encoding without merges leaves bytes.
        return tokenizer_json(byte_level(False), byte_level(False), bpe_model(vocab, []), self.end_of_text)
