"""Which bytes of a text are for training and which for validation. Splits end between documents where possible."""

import json
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from slm_np.config import DOCUMENTS
from slm_np.data import corpus
from slm_np.data.chat_template import parse_row
from slm_np.data.converted import published_file, readable
from slm_np.data.documents import END, ROWS, has_separator, lines, next_start, reads_as_before, separator_at, split
from slm_np.data.meter import metered
from slm_np.data.text_files import BLOCK, Text, origin
from slm_np.errors import UserError

FOREIGN_MARKERS = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<eos>", "[EOS]", "<|end|>")


class TextRange(NamedTuple):
    """The bytes [start, stop) of a text."""

    text: Text
    start: int
    stop: int


def split_ranges(data, val_data, documents, limit_bytes, whole, cache, progress, write=True, binary=False):
    """{"train": TextRange, "validation": TextRange} of the text `data`. The arguments are those of `load_corpus`,
    and `write` that of `corpus.find`.

    The validation split is `val_data` if it is given, else that of a corpus known by name, else the last tenth of the
    bytes: from the start of a document on, if that gives at least half of the tenth, else from a character on.
    """
    known = corpus.named(data)
    if documents.startswith("csv:") and (binary or known):
        raise UserError(
            f"--documents {documents} has no effect {'with --binary' if binary else 'on ' + known}; leave it out"
        )
    if not val_data and known in corpus.OWN_VALIDATION:
        val_data = data
    # A missing file is reported before the others are read.
    found = {"train": corpus.find(data, whole if whole and known else "train", cache, progress, write)}
    if val_data and not whole:
        found["validation"] = corpus.find(val_data, "validation", cache, progress, write)
    for part, name in (("train", data), ("validation", val_data)):
        if part in found and not binary and not corpus.named(name):
            found[part] = readable(found[part], documents, cache, progress)
    text = found["train"]
    stop = _limited(text, limit_bytes, documents, cache)
    if whole:
        return dict(train=TextRange(text, 0, stop), validation=TextRange(text, stop, stop))
    if val_data:
        val_text = found["validation"]
        return dict(train=TextRange(text, 0, stop), validation=TextRange(val_text, 0, val_text.size))
    cut, row = _last_tenth(text, stop, documents, cache)
    if row:
        text, cut, stop = _divided(text, cut, row, stop, data, cache)
    return dict(train=TextRange(text, 0, cut), validation=TextRange(text, cut, stop))


class _Metered:
    """A `Text` that shows how much of it has been searched for separators."""

    def __init__(self, text, progress=True):
        self.text, self.progress = text, progress

    def blocks(self, start, stop):
        blocks = self.text.blocks(start, stop)
        return metered(blocks, stop - start, "looking for documents", self.progress)


def is_separated(part, documents, cache, progress=False):
    """Whether a `TextRange` has a document separator, or rows."""
    if documents == "marker" and part.text.embedded:
        return False

    def search():
        return any(
            kind == ROWS
            or has_separator(_Metered(part.text, progress), max(start, part.start), min(stop, part.stop), kind)
            for kind, start, stop in part.text.segments(documents)
            if max(start, part.start) < min(stop, part.stop)
        )

    return part.text.cached(cache, f"separated {part.start} {part.stop} {documents}", search)


def hint(data, documents, cache):
    """What may separate the documents of the text `data`, in which --documents finds only one; "" if nothing does."""
    text = readable(corpus.find(data, "train", cache, progress=False), documents, cache, progress=False)
    others = [kind for kind in DOCUMENTS if kind != documents and _has_several(text, kind)]
    head = b"".join(text.blocks(0, min(BLOCK, text.size)))
    counts = {marker: head.count(marker.encode()) for marker in FOREIGN_MARKERS}
    found = max(counts, key=counts.get)
    if "marker" not in others and counts[found] > 1:
        return f"{found} occurs {counts[found]:,} times at its start; if it ends documents, replace it by <|endoftext|>"
    if not others or others == ["line"]:
        return "--documents line makes each line one" if others else ""
    return f"--documents {others[0]} finds more"


def _has_several(text, kind):
    """Whether a `Text` has more than one document of this kind. Reads up to the second one."""
    blocks = split(_Metered(text).blocks(0, text.size), kind)
    return sum(1 for _ in islice((block for block in blocks if block is END), 2)) > 1


def read_as_before(part, documents, cache, progress=False):
    """Whether earlier versions found the same documents in a `TextRange`, see `documents.reads_as_before`."""
    if documents == "marker" and part.text.embedded:
        return True

    def search():
        return all(
            reads_as_before(_Metered(part.text, progress), max(start, part.start), min(stop, part.stop), kind)
            for kind, start, stop in part.text.segments(documents)
            if max(start, part.start) < min(stop, part.stop)
        )

    return part.text.cached(cache, f"as before {part.start} {part.stop} {documents}", search)


def _limited(text, limit, documents, cache):
    """Where the first `limit` bytes of a text end, extended to the end of the document that they cut."""
    if not limit or limit >= text.size:
        return text.size

    def search():
        found = _next_document(text, limit, text.size, documents)
        if found:
            return found
        whole = TextRange(text, 0, text.size)
        return text.size if is_separated(whole, documents, cache) else text.character_start(limit)

    return text.cached(cache, f"limit of {limit} {documents}", search)


def _last_tenth(text, stop, documents, cache):
    """[cut, row]: where the last tenth of the bytes [0, stop) starts.

    That is at its first document if the rest is at least half of the tenth. Otherwise it is at a character; row is then
    the (start, stop) of the row of JSON that contains it, or None. A row that is the last one starting before the cut
    is not divided if the rest is at most two tenths.
    """

    def search():
        wanted = stop * 9 // 10
        tenth = stop - wanted
        found = _next_document(text, wanted, stop, documents)
        if found and 2 * (stop - found) >= tenth:
            return [found, None]
        for kind, start, end in text.segments(documents):
            if kind == ROWS and start <= wanted < end:
                for line in lines(text.blocks(start, min(end, stop))):
                    if start + len(line) > wanted:
                        break
                    start += len(line)
                if start and stop - start <= 2 * tenth:
                    return [start, None]
                return [wanted, [start, start + len(line)]]
        return [_within_document(text, wanted, stop, documents), None]

    return text.cached(cache, f"last tenth of {stop}, no separator cut, {documents}", search)


def _within_document(text, wanted, stop, documents):
    """The start of a character near the position `wanted` in [0, stop), not within a separator or a line end.

    If `wanted` is within a separator, the cut is as far before it as `wanted` is before the end.
    """
    cut = text.character_start(wanted)
    for kind, start, end in text.segments(documents):
        if start <= cut < end:
            separator = separator_at(text, cut, start, min(end, stop), kind)
            if separator is not None:
                cut = text.character_start(max(start, separator - (stop - wanted)))
    if b"".join(text.blocks(max(0, cut - 1), min(cut + 1, stop))) == b"\r\n":
        cut += 1 if cut + 1 < stop else -1
    return cut


def _divided(text, wanted, row, stop, data, cache):
    """(Text, cut, stop) with the row of JSON in the bytes [row) divided at the position `wanted`, into two rows.

    If the row cannot be divided, the cut is beside it. UserError if nothing is left there.
    """
    start, end = row
    line = b"".join(text.blocks(start, end))
    content = parse_row(line, *text.line_of(start))
    at = (len(content) * (wanted - start) // (end - start)) if isinstance(content, str) else 0
    halves = [content[:at], content[at:]] if at else []
    if halves and all(half.strip() for half in halves):
        first, second = (json.dumps(half).encode() + b"\n" for half in halves)
        text, grown = _with_rows(text, start, end, [first, second], cache)
        return text, start + len(first), stop + grown
    if start or end < stop:
        return text, start or end, stop
    raise UserError(
        f"--data {data} is a single {'text of one character' if isinstance(content, str) else 'conversation'}, which "
        "cannot be divided; name a text to validate on with --val-data"
    )


def _with_rows(text, start, end, rows, cache):
    """(Text, bytes it has grown by) with other rows in place of the bytes [start, end), which are a row."""
    offset, files = 0, list(text.files)
    for n, file in enumerate(files):
        if offset <= start < offset + file[1]:
            one, at = Text((file,)), start - offset
            blocks = chain(one.blocks(0, at), rows, one.blocks(at + end - start))
            identity = [*map(str, file), at, [row.decode() for row in rows]]
            files[n] = published_file(identity, "rows.jsonl", blocks, file, origin(file[0])["unit"], cache)
            return replace(text, files=tuple(files)), files[n][1] - file[1]
        offset += file[1]
    raise IndexError(start)


def _next_document(text, position, stop, documents):
    """The first byte >= `position` in [0, stop) at which a document starts after another one, or None."""
    for kind, start, end in text.segments(documents):
        if start and position <= start < stop:
            return start
        if start <= position < end:
            found = next_start(text, position, start, min(end, stop), kind)
            if found:
                return found
    return None
