"""What every tokenizer has: from bytes to token ids and back, whole or as a stream, and saved as `tokenizer.json`."""

import codecs
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_np import arguments
from slm_np.data.tokenizer_json import END_OF_TEXT
from slm_np.errors import UserError


class SpecialToken(NamedTuple):
    """A token that a chat template writes by its name. No text contains it."""

    id: int
    lstrip: bool = False  # whether the white space before it belongs to it, as other programs read templates
    rstrip: bool = False  # the same for the white space after it


class Tokenizer:
    """The base class. A subclass adds

    vocab_size                            number of ids
    encode_blocks(blocks, begins=True)    yields arrays of ids for one text, given as blocks of bytes. The ids must not
                                          depend on where the blocks are cut. If `begins` is false, the text continues
                                          an earlier one, and a tokenizer that puts a space before a text adds none.
    decode(ids)                           the bytes of ids. The end-of-text token has none.
    with_end()                            the same tokenizer with an end-of-text token, as one more id, the last
    to_json()                             the fields of tokenizer.json (see tokenizer_json.py)
    """

    end_of_text = None  # id of the token that ends a document, None if there is none
    trained_ends = True  # whether the model was trained with that token, so that a prompt may start after it
    prompt_start = None  # ids that start each prompt of another program's model, None for a model of this one
    more_ends = ()  # ids besides `end_of_text` that end each text of a model
    begins_after_special = False  # whether text after a special token is encoded like the start of a text
    lossless = True  # whether each text comes back from its ids by construction; else see lossy.py
    unknown = None  # id of the token for what is not in the vocabulary, None if there is none
    start_of_text = 0  # id that a prompt without tokens is replaced by

    @property
    def dtype(self):
        """The type of ids: uint16 if the vocabulary fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def ends(self):
        """The set of ids that end a text."""
        return {self.end_of_text, *self.more_ends} - {None}

    @property
    def special_tokens(self):
        """{name: `SpecialToken`}"""
        return {} if self.end_of_text is None else {END_OF_TEXT: SpecialToken(self.end_of_text)}

    def encode(self, data, begins=True):
        """The ids (N,) of a text: bytes, or a str, which becomes UTF-8. UserError if the tokenizer cannot encode them.

        The surrogates of a str are the bytes that `surrogateescape` made them from, as in names of files.
        """
        data = arguments.encoded("data", data)
        return np.concatenate([np.empty(0, self.dtype), *self.encode_blocks([data], begins)])

    def stream(self, after=()):
        """A `StreamingDecoder` for ids that arrive one at a time after the ids `after`, such as those of a prompt."""
        return StreamingDecoder(self, after)

    def to_bytes(self):
        """The content of tokenizer.json. The `tokenizers` library can read it without this program."""
        return (json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n").encode("utf-8")

    def save(self, path):
        """Write tokenizer.json at `path`."""
        Path(arguments.path("path", path)).write_bytes(self.to_bytes())

    def _checked(self, ids):
        """`ids` as an int64 array (N,). UserError if they are not integers, or one is outside the vocabulary."""
        ids = arguments.integers("ids", ids)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(
                f"token id {wrong} is outside the tokenizer's vocabulary of {self.vocab_size}; "
                "use the tokenizer that made the tokens"
            )
        return ids


def encode_spans(tokenizer, spans):
    """Yield (ids (N,), target) of [(bytes or int, target), ...], as chat templates write a conversation.

    An int is the id of a special token.
    """
    begins = True
    for part, target in spans:
        if isinstance(part, int):
            yield np.array([part], tokenizer.dtype), target
        else:
            yield tokenizer.encode(part, begins), target
        begins = isinstance(part, int) and tokenizer.begins_after_special


def used_like(tokenizer, other):
    """The tokenizer, after it takes from `other` how the texts of its model start and end."""
    tokenizer.prompt_start, tokenizer.more_ends = other.prompt_start, other.more_ends
    return tokenizer


class StreamingDecoder:
    """Decodes ids as they arrive and never returns part of a UTF-8 character.

    A byte becomes U+FFFD only when no continuation can complete it. So the strings returned, joined, equal
    `tokenizer.decode(ids).decode("utf-8", "replace")`, wherever tokens split characters. With ids `after`, they equal
    what follows the text of those.
    """

    def __init__(self, tokenizer, after=()):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # A token may decode differently at the start of a text. The last token that has bytes, and those after it, tell
        # whether the next one is at the start.
        self._before = arguments.integers("after", after).tolist()

    def push(self, id):
        """The text that `id` completes: possibly none, possibly several characters."""
        whole = self._tokenizer.decode([*self._before, id])
        new = whole[len(self._tokenizer.decode(self._before)) :]
        if new or id == self._tokenizer.end_of_text:
            self._before = [id]
        elif id not in self._before:  # a second one without bytes changes nothing
            self._before.append(id)
        return self._utf8.decode(new)

    def flush(self):
        """The text of an incomplete character at the end. The next id then starts a new text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._before = []
        return rest
