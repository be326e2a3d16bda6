"""Document boundaries: a line `<|endoftext|>`, a blank line, or the rows of a .jsonl file."""

import re
from itertools import chain

from slm_np.data.chat_template import DEFAULT, parse_row
from slm_np.errors import UserError, near

MARKER = b"<|endoftext|>"
PLAIN, ROWS = "plain", "jsonl"  # kinds of segments: a text that is one document, and rows of JSON
_LINE = {"marker": re.escape(MARKER), "blank-line": b""}  # what a separating line contains
DOCUMENTS = tuple(_LINE)  # values of --documents
LONGEST = 2 + len(MARKER) + 2  # bytes of the longest separator: a separating line and a newline on each side
END = None  # follows each document in `split`

# One newline on each side of a separating line belongs to it. At the start of a document none is needed before it.
_BETWEEN = {kind: re.compile(rb"\r?\n" + line + rb"\r?\n") for kind, line in _LINE.items()}
_FIRST = {kind: re.compile(line + rb"\r?\n") for kind, line in _LINE.items()}
_AFTER = {kind: re.compile(rb"(?<=\n)" + line + rb"\r?\n") for kind, line in _LINE.items()} | {ROWS: re.compile(rb"\n")}
_LAST = re.compile(rb"(\A|\r?\n)" + re.escape(MARKER) + rb"\r?\Z")  # a marker that ends the text needs no newline


def split(blocks, kind):
    """Yield the documents of a text as blocks of bytes, with `END` after each document. Empty documents are left out.

    blocks: the text, cut anywhere.   kind: marker or blank-line.   Holds one block, however long a document is.
    """
    between, first = _BETWEEN[kind], _FIRST[kind]
    rest, empty = b"", True  # bytes not yet yielded; whether the current document has none so far
    for block in chain(blocks, [b""]):
        rest, at, last = rest + block, 0, not block
        while True:
            match = (first.match(rest, at) if empty else None) or between.search(rest, at)
            if match is None and last and kind == "marker":
                rest, at = rest[at:], 0
                match = _LAST.search(rest)
            if match is None:
                break
            if match.start() > at:
                yield rest[at : match.start()]
                empty = False
            if not empty:
                yield END
            at, empty = match.end(), True
        keep = len(rest) if last else max(at, len(rest) - LONGEST)  # the end may be the start of a separator
        if keep > at:
            yield rest[at:keep]
            empty = False
        rest = rest[keep:]
    if not empty:
        yield END


def has_separator(text, start, stop, kind):
    """Whether the bytes [start, stop) of a `Text` contain a separating line. Reads up to the first one."""
    if kind == "marker":
        head = b"".join(text.blocks(start, min(stop, start + LONGEST)))
        tail = b"".join(text.blocks(max(start, stop - LONGEST), stop))
        if _FIRST[kind].match(head) or _LAST.search(tail if stop - start > LONGEST else head):
            return True
    return next_start(text, start, start, stop, kind) is not None


def next_start(text, position, start, stop, kind):
    """The first byte >= `position` in [start, stop) of a `Text` where a document starts after a separator, or None."""
    at = max(start, position - LONGEST)
    rest = b""
    for block in text.blocks(at, stop):
        rest += block
        for match in _AFTER[kind].finditer(rest):
            if at + match.end() >= max(position, start + 1):
                return at + match.end()
        at += max(0, len(rest) - LONGEST)
        rest = rest[-LONGEST:]
    return None


def rows(text, start, stop):
    """Yield (size in bytes, spans) for each line in the bytes [start, stop) of a `Text`, whole lines of a .jsonl file.

    spans: [(bytes, target), ...], where `target` is True for bytes that the loss counts; [] for a blank line.
    UserError names file and line of a bad row.
    """
    at = start
    for line in lines(text.blocks(start, stop)):
        try:
            yield len(line), _spans(line, "", 0) if line.strip() else []
        except UserError:
            _spans(line, *text.line_of(at))  # raises again, now with the line number, which takes a pass over the file
            raise
        at += len(line)


def lines(blocks):
    """Yield the lines of a text in blocks of bytes, each with its newline."""
    rest = []
    for block in blocks:
        first, newline, others = block.partition(b"\n")
        rest.append(first + newline)
        if newline:
            yield b"".join(rest)
            *whole, last = others.split(b"\n")
            yield from (line + b"\n" for line in whole)
            rest = [last]
    if any(rest):
        yield b"".join(rest)


def _spans(line, file, number):
    row = parse_row(line, file, number)
    return [(row.encode("utf-8", "surrogateescape"), True)] if isinstance(row, str) else DEFAULT.spans(row)


def check_kind(documents):
    """UserError if `documents` is not a value of --documents."""
    if documents not in DOCUMENTS:
        raise UserError(f"--documents {documents!r} is unknown; {near(documents, DOCUMENTS)}")
