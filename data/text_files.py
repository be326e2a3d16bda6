"""A text as bytes in files: read in blocks, so that no text has to fit into memory, and identified by its SHA-256."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from slm_np.data.documents import ROWS, separator
from slm_np.data.files import opened, read_json_or_empty, status, verified, write_cache_json
from slm_np.data.meter import metered
from slm_np.errors import UserError

BLOCK = 1 << 20  # bytes per read. Tokenizing holds a few copies of a block, at four bytes per character, and no more
ROW_SUFFIXES = (".jsonl", ".ndjson")  # of files with an object of JSON in each line
CONVERTED = "converted"  # the folder in the cache, see converted.py
ORIGIN = "origin.json"  # beside a converted file: {"path": of the user's file, "unit": what its lines are there, ...}
INDEX_SIZE = 1000  # values in the index of `Text.cached`
JUST_WRITTEN = 2 * 10**9  # nanoseconds within which a file may change again without a new mtime


@dataclass(frozen=True)
class Text:
    """The contents of `files`, one after the other with nothing in between. Any bytes are allowed."""

    files: tuple  # (path, size in bytes, mtime in ns) of each file
    bits_per_byte_floor: float | None = None  # entropy of the source that generated the text, None if unknown
    embedded: tuple | None = None  # (name, split) of an `EmbeddedText`
    notes: tuple = ()  # sentences about it that a user should read

    @property
    def size(self):
        """Bytes in total."""
        return sum(size for _, size, _ in self.files)

    def blocks(self, start=0, stop=None):
        """Yield the bytes [start, stop) in blocks of at most `BLOCK`. UserError if a file cannot be read completely."""
        stop, offset = self.size if stop is None else stop, 0
        for path, size, _ in self.files:
            at, end = max(start, offset), min(stop, offset + size)
            if at < end:
                with opened(path) as file:
                    file.seek(at - offset)
                    while at < end:
                        block = _read(file, min(BLOCK, end - at), path)
                        if not block:
                            raise UserError(f"{path} became shorter while it was read; start again once it is complete")
                        yield block
                        at += len(block)
            offset += size

    def segments(self, documents):
        """[(kind, start, stop), ...]: byte ranges that are read in the same way.

        Each file of rows is a segment of kind `ROWS`. Consecutive files of any other kind form one segment;
        `documents` says how its documents are separated (see documents.py). Empty files are left out.
        """
        found, offset = [], 0
        for path, size, _ in self.files:
            kind = ROWS if is_rows((path,)) else separator(documents)
            if found and kind != ROWS and found[-1][0] == kind:
                found[-1] = kind, found[-1][1], offset + size
            elif size:
                found.append((kind, offset, offset + size))
            offset += size
        return found

    def line_of(self, position):
        """(path, line number from 1, "line") of the byte at `position`. Reads the file up to there.

        Of a converted file, the path of what it came from, and what its lines are there.
        """
        for path, size, mtime in self.files:
            if position < size:
                number = 1 + sum(block.count(b"\n") for block in Text(((path, size, mtime),)).blocks(0, position))
                found = origin(path)
                return found["path"], number, found["unit"]
            position -= size
        raise IndexError(position)

    def character_start(self, position):
        """The largest start of a UTF-8 character that is <= `position`: at most 3 bytes before it."""
        start = max(0, position - 3)
        near = b"".join(self.blocks(start, min(position + 1, self.size)))
        lead = next((i for i in reversed(range(len(near))) if near[i] & 0xC0 != 0x80), 0)
        length = 1 + sum(near[lead] >= least for least in (0xC0, 0xE0, 0xF0))
        return start + lead if start + lead + length > position else position

    def check_unchanged(self):
        """UserError if the size or mtime of a file has changed since this object was made."""
        for path, size, mtime in self.files:
            now = status(path)
            if now is None or (now.st_size, now.st_mtime_ns) != (size, mtime):
                raise UserError(f"{path} changed while it was read; start again once it is complete")

    def sha256(self, cache, progress=True):
        """The SHA-256 of the contents in hexadecimal, cached. File names and boundaries do not affect it."""

        def digest():
            digest = hashlib.sha256()
            for block in metered(self.blocks(), self.size, "reading", progress):
                digest.update(block)
            return digest.hexdigest()

        return self.cached(cache, "sha256", digest)

    def cached(self, cache, what, compute):
        """`compute()`, remembered in an index in the folder `cache` by the path, size and mtime of each file.

        what: a string that names the value and everything it depends on apart from the contents.   compute: returns a
        value that JSON can hold.
        """
        index_file = cache / "corpora" / "index.json"
        stamps = [(str(path.absolute()), size, mtime) for path, size, mtime in self.files]
        key = hashlib.sha256(repr((what, stamps)).encode()).hexdigest()
        index = verified(read_json_or_empty(index_file))  # a damaged index is forgotten
        if key in index:
            return index[key]
        value = compute()
        if max(mtime for _, _, mtime in self.files) < time.time_ns() - JUST_WRITTEN:
            newest = [*verified(read_json_or_empty(index_file)).items()]  # another process may have added to it
            write_cache_json(index_file, {**dict(newest[1 - INDEX_SIZE :]), key: value})
        return value


def _read(file, n, path):
    """The next `n` bytes of an open file. UserError if a disk fails."""
    try:
        return file.read(n)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the disk, or copy the file again") from None


def is_rows(file):
    """Whether a file (path, ...) has a row of JSON in each line, by its name."""
    return Path(file[0]).suffix.lower() in ROW_SUFFIXES


def origin(path):
    """{"path", "unit"} for messages about a file: what a converted file came from, else itself with lines."""
    about = verified(read_json_or_empty(path.with_name(ORIGIN))) if path.parent.parent.name == CONVERTED else {}
    return dict(path=about.get("path", str(path)), unit=about.get("unit", "line"))
