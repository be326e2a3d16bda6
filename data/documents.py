"""Where documents begin and end: at a line `<|endoftext|>`, at blank lines, or as the rows of a `.jsonl` file."""

import re
from itertools import chain

from slm_np.errors import UserError, near

MARKER = b"<|endoftext|>"
PLAIN, ROWS = "plain", "jsonl"  # a text that is one document; rows of JSON
_LINE = {"marker": re.escape(MARKER), "blank-line": b""}  # what stands alone on the line that separates two documents
DOCUMENTS = tuple(_LINE)
HOLD = 2 + len(MARKER) + 2  # bytes that a separating line and the newlines on its two sides take, at most
END = None  # after each document in `split`

# One newline on each side of a separating line belongs to it; at a document's start it needs none before it.
_BETWEEN = {kind: re.compile(rb"\r?\n" + line + rb"\r?\n") for kind, line in _LINE.items()}
_FIRST = {kind: re.compile(line + rb"\r?\n") for kind, line in _LINE.items()}
_AFTER = {kind: re.compile(rb"(?<=\n)" + line + rb"\r?\n") for kind, line in _LINE.items()} | {ROWS: re.compile(rb"\n")}
_LAST = re.compile(
    rb"(\A|\r?\n)" + re.escape(MARKER) + rb"\r?\Z"
)  # a marker that ends the text needs no newline after it


def split(blocks, kind):
    """The documents of a text in blocks, as blocks of theirs with `END` after each one. Empty documents are left out.

    kind: marker or blank-line. Memory: a block, however long a document is.
    """
    between, first = _BETWEEN[kind], _FIRST[kind]
    rest, empty = b"", True
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
        keep = len(rest) if last else max(at, len(rest) - HOLD)
        if keep > at:
            yield rest[at:keep]
            empty = False
        rest = rest[keep:]
    if not empty:
        yield END


def has_borders(text, start, stop, kind):
    """Whether the bytes [start, stop) of a `Text` hold a separating line. Reads up to the first."""
    if kind == "marker":
        edge = b"".join(text.blocks(start, min(stop, start + HOLD)))
        end = b"".join(text.blocks(max(start, stop - HOLD), stop))
        if _FIRST[kind].match(edge) or _LAST.search(end if stop - start > HOLD else edge):
            return True
    return next_start(text, start, start, stop, kind) is not None


def next_start(text, position, start, stop, kind):
    """The first place >= `position` in the bytes [start, stop) of a `Text` where a document begins after a separator; None if there is none."""
    at = max(start, position - HOLD)
    rest = b""
    for block in text.blocks(at, stop):
        rest += block
        for match in _AFTER[kind].finditer(rest):
            if at + match.end() >= max(position, start + 1):
                return at + match.end()
        at += max(0, len(rest) - HOLD)
        rest = rest[-HOLD:]
    return None


def rows(text, start, stop):
    """Each row in the bytes [start, stop) of a `Text`, whole lines of a .jsonl file, as (bytes that it takes, its pieces), where the
    pieces are [(bytes, learn), ...]: what is to be learnt and what is only read. Blank lines give []. UserError names file and line."""
    at = start
    for line in lines(text.blocks(start, stop)):
        try:
            yield len(line), _pieces(line, "", 0) if line.strip() else []
        except UserError:
            _pieces(line, *text.place(at))  # once more, for the line's number takes a pass through the file
            raise
        at += len(line)


def lines(blocks):
    """The lines of a text in blocks, each with its newline."""
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


def _pieces(line, file, number):
    """[(bytes, learn), ...] of one row."""
    from slm_np.data.chat_template import parse_row, pieces

    row = parse_row(line, file, number)
    return [(row.encode("utf-8", "surrogateescape"), True)] if isinstance(row, str) else pieces(row)


def check_kind(documents):
    """UserError if `documents` is no value of --documents."""
    if documents not in DOCUMENTS:
        raise UserError(f"--documents {documents!r} is unknown; {near(documents, DOCUMENTS)}")
