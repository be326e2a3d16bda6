"""The raw text: found from a `--data` string, read in blocks, known by its content. Any bytes are fine; nothing is held in memory."""

import difflib
import glob
import hashlib
import importlib
import json
import os
import shutil
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from slm_np.data.documents import ROWS
from slm_np.errors import UserError
from slm_np.paths import published
from slm_np.progress import interactive

BLOCK = (
    1 << 20
)  # bytes read at a time: a few copies of it, four bytes a character, are all the memory that tokenising takes
EMBEDDED = ("stories", "dialogues")  # written by data/stories.py and data/dialogues.py
EMBEDDED_BYTES = dict(train=12_000_000, validation=120_000)
EMBEDDED_SEEDS = dict(train=1, validation=2)
DOWNLOADED = ("tinyshakespeare", "tinystories")  # see data/download.py
NAMES = EMBEDDED + DOWNLOADED
OWN_VALIDATION = ("stories", "dialogues", "tinystories")
FLAGS = dict(train="--data", validation="--val-data")


@dataclass(frozen=True)
class Text:
    """The contents of `files`, one after the other with nothing in between. `bits_per_byte_floor`: the entropy of the source that
    wrote it, in bits per byte, where that is known."""

    files: tuple  # (path, size in bytes, mtime in ns) of each
    bits_per_byte_floor: float | None = None

    @property
    def size(self):
        """Bytes in all."""
        return sum(size for _, size, _ in self.files)

    def blocks(self, start=0, stop=None):
        """The bytes [start, stop) in blocks of at most `BLOCK`. UserError if a file cannot be read, or got shorter since it was found."""
        stop, at = self.size if stop is None else stop, 0
        for path, size, _ in self.files:
            begin, end = max(start, at), min(stop, at + size)
            if begin < end:
                with opened(path) as file:
                    file.seek(begin - at)
                    while begin < end:
                        block = file.read(min(BLOCK, end - begin))
                        if not block:
                            raise UserError(f"{path} got shorter while it was read; start again once it is complete")
                        yield block
                        begin += len(block)
            at += size

    def segments(self, documents):
        """(kind, start, stop) of the parts to be read alike: each .jsonl file's rows, and files of text one after the other as one text
        whose documents are separated as `documents` says (marker or blank-line)."""
        found, at = [], 0
        for path, size, _ in self.files:
            kind = ROWS if Path(path).suffix.lower() == ".jsonl" else documents
            if found and kind != ROWS and found[-1][0] == kind:
                found[-1] = kind, found[-1][1], at + size
            elif size:
                found.append((kind, at, at + size))
            at += size
        return found

    def place(self, position):
        """(file, number of the line, counted from 1) of the byte at `position`."""
        for path, size, mtime in self.files:
            if position < size:
                number = 1 + sum(block.count(b"\n") for block in Text(((path, size, mtime),)).blocks(0, position))
                return path, number
            position -= size
        raise IndexError(position)

    def border(self, position):
        """`position`, or up to 3 bytes before it if a UTF-8 character would be cut there."""
        begin = max(0, position - 3)
        near = b"".join(self.blocks(begin, min(position + 1, self.size)))
        lead = next((i for i in reversed(range(len(near))) if near[i] & 0xC0 != 0x80), 0)
        length = 1 + sum(near[lead] >= least for least in (0xC0, 0xE0, 0xF0))
        return begin + lead if begin + lead + length > position else position

    def check_unchanged(self):
        """UserError if a file has changed since it was found."""
        for path, size, mtime in self.files:
            now = _status(path)
            if now is None or (now.st_size, now.st_mtime_ns) != (size, mtime):
                raise UserError(f"{path} changed while it was read; start again once it is complete")

    def sha256(self, cache, progress=True):
        """The SHA-256 of the contents, in hexadecimal; names and the division into files do not enter.

        A small index in the folder `cache` remembers it by path, size and mtime, so that a large corpus is read through only once.
        """

        def digest():
            digest = hashlib.sha256()
            for block in shown(self.blocks(), self.size, "reading", progress):
                digest.update(block)
            return digest.hexdigest()

        return self.remembered(cache, "sha256", digest)

    def remembered(self, cache, what, compute):
        """`compute()`, a value that JSON can hold and that depends on the contents and the string `what` only, found once for these files."""
        index_file = cache / "corpora" / "index.json"
        stamps = [(str(path.absolute()), size, mtime) for path, size, mtime in self.files]
        key = hashlib.sha256(repr((what, stamps)).encode()).hexdigest()
        index = read_json(index_file)
        if key in index:
            return index[key]
        value = compute()
        # A file written to just now may change again without a change of its mtime, so it is not remembered yet.
        if max(mtime for _, _, mtime in self.files) < time.time_ns() - 2 * 10**9:
            _write_json(index_file, dict([*read_json(index_file).items()][-999:], **{key: value}))
        return value


def find(data, split, cache, progress=True):
    """The `Text` that the string `data` names: files, folders (all in them but what is hidden) and globs separated by commas, each
    file once; or the part for `split` (train or validation) of a corpus in `NAMES`, where no file is called so: the embedded ones are
    written, the others downloaded at first, into the folder `cache`. UserError names what is missing, empty or unreadable.
    """
    name = named(data)
    if name in EMBEDDED:
        return _written(name, split, cache, progress)
    if name:
        from slm_np.data.download import fetched

        data = [str(fetched(name, split, cache, progress))]
    files = {}
    for item in data if name else items(data):
        for path, status in _expanded(item, FLAGS[split]):
            files.setdefault(os.path.abspath(path), (path, status.st_size, status.st_mtime_ns))
    if not files:
        raise UserError(
            f"{FLAGS[split]} is {data!r}, which names nothing; give files, folders or globs separated by commas, or {', '.join(NAMES)}"
        )
    text = Text(tuple(files.values()))
    if text.size == 0:
        raise UserError(f"{FLAGS[split]} {data} names only empty files; give some text")
    return text


def named(data):
    """The name in `NAMES` that a `--data` string is; None if it is something else, or a file is called so."""
    return data.strip() if data.strip() in NAMES and not os.path.exists(data.strip()) else None


def items(data):
    """The parts between the commas of a `--data` string, or the whole where a file of that name exists."""
    return [data] if os.path.exists(data) else [item.strip() for item in data.split(",") if item.strip()]


def missing(path, flag, pattern=False):
    """The UserError for a path or pattern that leads nowhere: it names the near ones, or some of what the folder holds."""
    at = Path(path)
    while not os.path.isdir(at.parent) and at.parent != at.parent.parent:
        at = at.parent
    wrong = "matches no file" if pattern else "does not exist" + f", nor does the folder {at}" * (at != Path(path))
    try:
        names = sorted(name for name in os.listdir(at.parent) if not name.startswith("."))
    except OSError:
        names = []
    near = difflib.get_close_matches(at.name, names + [*NAMES] * (str(path) == at.name), n=3)
    if near:
        hint = f"did you mean {' or '.join(name if name not in names else str(at.parent / name) for name in near)}?"
    else:
        hint = f"{at.parent.absolute()} holds {', '.join(names[:5]) or 'nothing'}{' and more' * (len(names) > 5)}"
    return UserError(f"{flag} {path} {wrong}; {hint}")


def opened(path):
    """The file, opened for reading bytes. UserError if that is not allowed."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def shown(blocks, total, what, show=True):
    """Pass blocks of bytes through, showing how many of `total` have come."""
    with Meter(total, what, show) as meter:
        for block in blocks:
            yield block
            meter.update(len(block))


class Meter:
    """Shows how many of `total` bytes are done: a bar on a terminal or in a notebook, else a line now and then."""

    def __init__(self, total, what, show=True, done=0):
        terminal = interactive()
        self.total, self.what, self.lines = total, what, show and not terminal
        self.begun, self.started, self.done, self.quiet = done, time.monotonic(), done, 5.0
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit="B", unit_scale=True, delay=1, disable=not (show and terminal)
        )

    def update(self, n):
        self.bar.update(n)
        self.done += n
        seconds = time.monotonic() - self.started
        if self.lines and seconds > self.quiet:
            self.quiet = seconds + 15.0
            left = seconds * (self.total - self.done) / max(1, self.done - self.begun)
            print(
                f"{self.what}: {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()


def read_json(path):
    """The object in a JSON file; an empty one if the file is missing, damaged, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path, value):
    """Replace the file in one step. It is a help, not a need: a disk that refuses is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(part, path)
    except OSError:
        pass


def _expanded(item, flag):
    """(path, status) of each regular file that one part of a `--data` string stands for."""
    path = os.path.expanduser(item)
    status = _status(path, flag)
    if status is None and any(letter in path for letter in "*?["):
        matches = sorted(glob.glob(path, recursive=True), key=lambda match: Path(match).parts)
        found = [file for match in matches for file in _files(match, flag)]
        if not found:
            raise missing(item, flag, pattern=True)
        return found
    if status is None:
        raise missing(path, flag)
    if stat.S_ISDIR(status.st_mode):
        found = _files(path, flag)
        if not found:
            raise UserError(
                f"{flag} {item} is a folder without files (hidden ones do not count); put text into it or name another"
            )
        return found
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{flag} {item} is neither a file nor a folder; write its contents to a file first")
    if status.st_size == 0:
        raise UserError(f"{flag} {item} is empty; give a file with text")
    return [(Path(path), status)]


def _files(path, flag):
    """(path, status) of the regular files at `path`: itself, or what it holds in the order of names, links to folders not followed."""
    status = _status(path, flag)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return [(Path(path), status)] if status and stat.S_ISREG(status.st_mode) else []
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(path, error) from None
    return [
        file
        for entry in entries
        if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir())
        for file in _files(entry.path, flag)
    ]


def _status(path, flag=""):
    """`os.stat`, or None where there is nothing."""
    try:
        return os.stat(path)
    except PermissionError as error:
        raise _unreadable(path, error, flag) from None
    except (OSError, ValueError):
        return None


def _unreadable(path, error, flag=""):
    return UserError(
        f"{flag} {path} cannot be read ({error.strerror}); give yourself the right to read it, or leave it out".lstrip()
    )


def _written(name, split, cache, progress):
    """An embedded corpus as a file in the cache, with the entropy of its writer beside it where that is known. A new writer makes a new file."""
    writer = importlib.import_module(f"slm_np.data.{name}")
    size, seed = EMBEDDED_BYTES[split], EMBEDDED_SEEDS[split]
    sources = [writer] if name == "stories" else [writer, importlib.import_module("slm_np.data.stories")]
    code = b"".join(Path(source.__file__).read_bytes().replace(b"\r\n", b"\n") for source in sources)
    version = hashlib.sha256(code + repr((size, seed)).encode()).hexdigest()
    folder = cache / name / f"{split}-{version[:16]}"
    file, floor_file = folder / (name + (".txt" if name == "stories" else ".jsonl")), folder / "floor.json"
    floor = read_json(floor_file)
    if folder.is_dir() and not (file.is_file() and file.stat().st_size == floor.get("bytes") and "bits" in floor):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        floor = dict(bytes=0, bits=0.0 if name == "stories" else None)

        def texts():
            for told in writer.write(size, seed):
                text, bits = told if name == "stories" else (told, None)
                data = text.encode()
                floor["bytes"] += len(data)
                if bits is not None:
                    floor["bits"] += float(bits)
                yield data

        with published(folder) as part:
            with open(part / file.name, "wb") as out:
                out.writelines(shown(texts(), size, f"writing the {split} {name}", progress))
            (part / floor_file.name).write_text(json.dumps(floor), encoding="utf-8")
    status = file.stat()
    return Text(
        ((file, status.st_size, status.st_mtime_ns),), None if floor["bits"] is None else floor["bits"] / floor["bytes"]
    )
