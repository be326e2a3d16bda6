"""Cut a text into segments that depend on its characters alone, so that a tokenizer encodes each segment on its own."""

import codecs
import re
from itertools import chain

SEGMENT = 1 << 14  # characters, about: the length of a segment
LIMIT = 1 << 20  # characters after which a segment ends even without a boundary

# No common pre-tokenizer has a token across these boundaries: before a space that follows another character, and
# between a single newline and a word.
BOUNDARY = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)")
ESCAPED = re.compile("([\udc80-\udcff])")  # bytes that are not UTF-8, as "surrogateescape" decodes them


def decoded(blocks):
    """Yield blocks of bytes as strings. Bytes that are not UTF-8 become U+DC80 to U+DCFF, which UTF-8 cannot encode."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def segments(strings):
    """Yield the segments of one text, which is given as consecutive strings.

    A segment ends at the first `BOUNDARY` after `SEGMENT` characters, or after `LIMIT` characters if there is none, so
    the segments do not depend on how the text is cut. Holds at most `LIMIT` characters and one string.
    """
    held = ""
    for string in chain(strings, [None]):
        held, at = held + (string or ""), 0
        while len(held) - at > (SEGMENT if string is None else LIMIT):
            found = BOUNDARY.search(held, at + SEGMENT, at + LIMIT + 1)
            end = found.start() if found else at + LIMIT
            yield held[at:end]
            at = end
        held = held[at:]
    if held:
        yield held
