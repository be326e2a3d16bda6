"""Document boundaries: a marker `<|endoftext|>`, a blank line, a line end, or the rows of a .jsonl file.

A line ends with \\n, \\r\\n or \\r. What separates two documents belongs to neither:
    marker        the marker, wherever it stands in a line. If nothing but spaces and tabs is between it and the end of
                  its line, these and the line end belong to it; on the other side the same, up to the line end before.
    blank-line    lines of nothing but white space, and the line end before them
    line          a line end, and lines of nothing but white space
White space counts up to `MOST_SPACES` characters in a row. So a separator has at most `LONGEST` bytes,
and documents do not depend on where a text is cut into blocks.
"""

import re
from itertools import chain

from slm_np.config import DOCUMENTS
from slm_np.data.chat_template import DEFAULT, parse_row
from slm_np.errors import UserError

MARKER = b"<|endoftext|>"
PLAIN, ROWS = "plain", "jsonl"  # kinds of segments: a text that is one document, and rows of JSON
END = None  # follows each document in `split`
MOST_SPACES = 1000
LONGEST = 4096  # bytes that decide on a separator: at most MOST_SPACES characters of 3 bytes, and two line ends

_EOL = rb"(?:\r\n|\n|\r(?!\n))"
# White space inside a line, as in `str.isspace`, in UTF-8.
_SPACE = (
    rb"(?:[ \t\v\f\x1c-\x1f]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)"
    b"{0,%d}" % MOST_SPACES
)
_TAB = rb"[ \t]{0,%d}" % MOST_SPACES
_BEFORE_MARKER = re.compile(_EOL + _TAB + rb"\Z")
_AFTER_MARKER = re.compile(_TAB + rb"(?:" + _EOL + rb"|\Z)")
_BLANK = re.compile(_SPACE + rb"(?:" + _EOL + rb"|\Z)")  # a blank line at the start of a document
_BLANK_END = re.compile(rb"(?:\A|[\r\n])" + _SPACE.replace(b"{0,", b"{1,") + rb"\Z")
_BETWEEN = {"blank-line": re.compile(_EOL + _SPACE + _EOL), "line": re.compile(_EOL)}
# What a document may follow.
_AFTER = {
    "marker": re.compile(re.escape(MARKER) + rb"(?:" + _AFTER_MARKER.pattern + rb")?"),
    "blank-line": re.compile(rb"(?:(?<=\n)|(?<=\r)(?!\n))" + _SPACE + _EOL),
    "line": _BETWEEN["line"],
    ROWS: re.compile(rb"\n"),
}


def split(blocks, kind):
    """Yield the documents of a text as blocks of bytes, with `END` after each document. Empty documents are left out.

    blocks: the text, cut anywhere.   kind: marker, blank-line or line.   Holds one block, however long a document is.
    """
    find = _marker if kind == "marker" else _blank
    rest, empty = b"", True  # bytes not yet yielded; whether the current document has none so far
    for block in chain(blocks, [b""]):
        rest, at, last = rest + block, 0, not block
        certain = len(rest) - (0 if last else LONGEST)  # a separator that starts later may go on in the next block
        while found := find(rest, at, empty, kind):
            start, stop = found
            if start > certain:
                break
            if start > at:
                yield rest[at:start]
                empty = False
            if not empty:
                yield END
            at, empty = stop, True
        keep = max(at, certain)
        if keep > at:
            yield rest[at:keep]
            empty = False
        rest = rest[keep:]
    if not empty:
        yield END


def _marker(rest, at, empty, kind):
    """(start, stop) of the first separator with a marker in `rest` from `at` on, or None. empty: a document starts."""
    start = rest.find(MARKER, at)
    if start < 0:
        return None
    stop = start + len(MARKER)
    before, after = (
        _BEFORE_MARKER.search(rest, max(at, start - MOST_SPACES - 2), start),
        _AFTER_MARKER.match(rest, stop),
    )
    if before:
        start = before.start()
    elif empty and start - at <= MOST_SPACES and not rest[at:start].strip(b" \t"):
        start = at
    return start, after.end() if after else stop


def _blank(rest, at, empty, kind):
    """(start, stop) of the first separator of lines in `rest` from `at` on, or None. empty: a document starts there."""
    match = _BLANK.match(rest, at) if empty and at < len(rest) else None
    match = match or _BETWEEN[kind].search(rest, at)
    return match.span() if match else None


def has_separator(text, start, stop, kind):
    """Whether the bytes [start, stop) of a `Text` contain a separator. Reads up to the first one."""
    return next_start(text, start, start, stop, kind) is not None


def next_start(text, position, start, stop, kind):
    """The first byte >= `position` in [start, stop] of a `Text` where a document may start after a separator, or None.

    Only what follows a separator in [start, stop) counts.
    """
    ends = (end for _, _, end in _separators(text, max(start, position - LONGEST), stop, kind))
    return next((end for end in ends if end >= max(position, start + 1)), None)


def separator_at(text, position, start, stop, kind):
    """The start of the separator in the bytes [start, stop) of a `Text` that contains `position`, or None."""
    for separator, _, end in _separators(text, max(start, position - LONGEST), min(stop, position + 2 * LONGEST), kind):
        if end - len(separator) < position < end:
            return end - len(separator)
    return None


def _separators(text, start, stop, kind):
    """Yield (bytes, previous byte, position of its end) of each match of `_AFTER` in the bytes [start, stop)."""
    rest, at, done = b"", start, start
    for block in chain(text.blocks(start, stop), [b""]):
        rest += block
        certain = len(rest) - (LONGEST if block else 0)
        for match in _AFTER[kind].finditer(rest, max(0, done - at)):
            if match.start() > certain:
                break
            done = at + match.end()
            yield match.group(), rest[max(0, match.start() - 1) : match.start()], done
        cut = max(0, certain - 1)  # keeps the byte before the next match
        at, rest = at + cut, rest[cut:]


def reads_as_before(text, start, stop, kind):
    """Whether the bytes [start, stop) of a `Text` have the documents that earlier versions found.

    They knew markers alone in a line, empty lines, and the line ends \\n and \\r\\n.
    """

    def is_alone(separator, previous, end):
        after = separator[len(MARKER) :]
        return previous in (b"", b"\n") and (after in (b"\n", b"\r\n") or end == stop and after in (b"", b"\r"))

    def is_empty(separator, previous, end):
        return separator in (b"\n", b"\r\n") and previous == b"\n"

    if kind == "blank-line":
        head = b"".join(text.blocks(start, min(stop, start + LONGEST)))
        tail = b"".join(text.blocks(max(start, stop - LONGEST), stop))
        blank = _BLANK.match(head)
        if blank and blank.group() not in (b"", b"\n", b"\r\n") or _BLANK_END.search(tail):
            return False
    known = dict(marker=is_alone) | {"blank-line": is_empty}
    return kind not in known or all(known[kind](*found) for found in _separators(text, start, stop, kind))


def rows(text, start, stop, written=DEFAULT.spans):
    """Yield (size in bytes, spans) for each line in the bytes [start, stop) of a `Text`, whole lines of a .jsonl file.

    written: function (messages) -> spans of a conversation, as a chat template writes it.
    spans: [(bytes or int, target), ...], where an int is the id of a special token, and `target` is True for what the
    loss counts; [] for a row or a blank line without anything to learn. UserError names file and line of a bad row.
    """
    at = start
    for line in lines(text.blocks(start, stop)):
        try:
            yield len(line), _spans(line, ("", 0, "line"), written) if line.strip() else []
        except UserError:
            _spans(line, text.line_of(at), written)  # again, now with the line number: that takes a pass over the file
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


def _spans(line, where, written):
    """The spans of a row. where: its file, number and unit, for errors."""
    row = parse_row(line, *where)
    if row is None:
        return []
    if isinstance(row, str):
        return [(row.encode("utf-8", "surrogateescape"), True)]
    try:
        return written(row)
    except UserError as error:
        file, number, unit = where
        raise UserError(f"{file}, {unit} {number}: {error}") from None


def separator(documents):
    """The kind of segments without rows: the value of --documents, and marker for csv:COLUMN, which makes rows."""
    return documents if documents in DOCUMENTS else "marker"
