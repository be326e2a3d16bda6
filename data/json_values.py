"""The rows of a JSON file: the entries of an array, or values one after the other. Holds one entry at a time."""

import codecs
import json
import re

from slm_np.errors import UserError

LONGEST = 64 << 20  # characters of an entry
_SKIPPED = re.compile(r"[\s,\ufeff]*")  # between entries
_NEAR_END = 64  # characters before the end of what is read, in which a cut value shows an error
_REMEDY = "write an array of objects, or one object per line in a .jsonl file"


def values(blocks, path):
    """Yield the value of each entry of the JSON in `blocks` of bytes.

    An array at the top contributes its entries, any other value itself. UserError, which names `path` and the entry, if
    the file is not JSON or not UTF-8, or if an entry has more than `LONGEST` characters.
    """
    decoder, read = json.JSONDecoder(), _Reader(blocks, path)
    number, inside = 0, False
    while True:
        read.skip()
        if inside and read.starts("]"):
            inside = False
        elif not inside and read.starts("["):
            inside = True
        elif read.is_empty():
            if inside:
                raise UserError(f"{path} is incomplete: its array does not end; get it again")
            return
        else:
            number += 1
            yield _value(decoder, read, f"{path}, row {number},")


def _value(decoder, read, where):
    """The next value of a `_Reader`."""
    while True:
        try:
            value, end = decoder.raw_decode(read.text, read.at)
            # A number may go on in the next block.
            if end < len(read.text) or not read.more():
                read.at = end
                return value
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos > len(read.text) - _NEAR_END
            if not cut or len(read.text) - read.at > LONGEST or not read.more():
                if len(read.text) - read.at > LONGEST:
                    raise UserError(f"{where} has more than {LONGEST >> 20} million characters; {_REMEDY}") from None
                raise UserError(f"{where} is not JSON ({error.msg}); {_REMEDY}") from None
        except (ValueError, RecursionError):  # endless digits, deep nesting
            raise UserError(f"{where} is not JSON that can be read (too many digits or levels); {_REMEDY}") from None


class _Reader:
    """A text that is read in blocks: `text` from the position `at` on, which grows."""

    def __init__(self, blocks, path):
        self.text, self.at, self.path = "", 0, path
        self.blocks, self.decoder = iter(blocks), codecs.getincrementaldecoder("utf-8")()

    def more(self):
        """Read as much again, at least a block. Whether there was more."""
        parts, size, wanted = [self.text[self.at :]], 0, len(self.text) - self.at
        try:
            for block in self.blocks:
                parts.append(self.decoder.decode(block))
                size += len(parts[-1])
                if size >= max(1, wanted):
                    break
            else:
                parts.append(self.decoder.decode(b"", final=True))
        except UnicodeDecodeError:
            raise UserError(f"{self.path} is not UTF-8; save the file in that encoding") from None
        self.text, self.at = "".join(parts), 0
        return size > 0

    def skip(self):
        """Go to the start of the next value."""
        self.at = _SKIPPED.match(self.text, self.at).end()
        while self.at == len(self.text) and self.more():
            self.at = _SKIPPED.match(self.text, self.at).end()

    def starts(self, bracket):
        """Whether this bracket comes next, which is then read."""
        found = self.text.startswith(bracket, self.at)
        self.at += found
        return found

    def is_empty(self):
        """Whether everything has been read."""
        return self.at == len(self.text)
