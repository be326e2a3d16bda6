"""Which bytes of a text are for training and which for validation. Splits end between documents where possible."""

from typing import NamedTuple

from slm_np.data import corpus
from slm_np.data.documents import ROWS, has_separator, lines, next_start
from slm_np.data.text_files import Text


class TextRange(NamedTuple):
    """The bytes [start, stop) of a text."""

    text: Text
    start: int
    stop: int


def split_ranges(data, val_data, documents, limit_bytes, whole, cache, progress, write=True):
    """{"train": TextRange, "validation": TextRange} of the text `data`. The arguments are those of `load_corpus`,
    and `write` that of `corpus.find`.

    The validation split is `val_data` if it is given, else that of a corpus known by name, else the
    last tenth of the bytes, from the start of a document on.
    """
    known = corpus.named(data)
    text = corpus.find(data, whole if whole and known else "train", cache, progress, write)
    stop = _limited(text, limit_bytes, documents, cache)
    if whole:
        return dict(train=TextRange(text, 0, stop), validation=TextRange(text, stop, stop))
    if not val_data and known in corpus.OWN_VALIDATION:
        val_data = data
    if val_data:
        val_text = corpus.find(val_data, "validation", cache, progress, write)
        return dict(train=TextRange(text, 0, stop), validation=TextRange(val_text, 0, val_text.size))
    cut = _last_tenth(text, stop, documents, cache)
    return dict(train=TextRange(text, 0, cut), validation=TextRange(text, cut, stop))


def is_separated(part, documents, cache):
    """Whether a `TextRange` has a document separator, or rows."""
    if documents == "marker" and part.text.embedded:
        return False

    def search():
        return any(
            kind == ROWS or has_separator(part.text, max(start, part.start), min(stop, part.stop), kind)
            for kind, start, stop in part.text.segments(documents)
            if max(start, part.start) < min(stop, part.stop)
        )

    # Cached values of earlier versions have this name.
    return part.text.cached(cache, f"bordered {part.start} {part.stop} {documents}", search)


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

    return text.cached(cache, f"limit {limit} {documents}", search)


def _last_tenth(text, stop, documents, cache):
    """Where the last tenth of the bytes [0, stop) starts: at its first document, or at any character if it has none."""

    def search():
        wanted = stop * 9 // 10
        found = _next_document(text, wanted, stop, documents)
        if found and found < stop:
            return found
        for kind, start, end in text.segments(documents):
            if kind == ROWS and start <= wanted < end:  # a row cannot be cut: take the last row before the end
                at = start
                for line in lines(text.blocks(start, min(end, stop))):
                    if at + len(line) >= min(end, stop):
                        return at
                    at += len(line)
        return text.character_start(wanted)

    return text.cached(cache, f"tenth {stop} {documents}", search)


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
