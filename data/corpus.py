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

from slm_np.errors import UserError
from slm_np.paths import published

BLOCK = 1 << 20  # bytes read at a time: a few copies of it, four bytes a character, are all the memory that tokenising takes
STORIES = "stories"
STORIES_BYTES = dict(train=12_000_000, validation=120_000)  # of the embedded corpus
STORIES_SEEDS = dict(train=1, validation=2)
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
        index_file = cache / "corpora" / "index.json"
        index = read_json(index_file)
        stamps = [(str(path.absolute()), size, mtime) for path, size, mtime in self.files]
        key = hashlib.sha256(repr(stamps).encode()).hexdigest()
        if isinstance(index.get(key), str):
            return index[key]
        digest = hashlib.sha256()
        for block in shown(self.blocks(), self.size, "reading", progress):
            digest.update(block)
        # A file written to just now may change again without a change of its mtime, so it is not remembered yet.
        if max(mtime for _, _, mtime in self.files) < time.time_ns() - 2 * 10 ** 9:
            _write_json(index_file, dict([*index.items()][-999:], **{key: digest.hexdigest()}))
        return digest.hexdigest()


def find(data, split, cache, progress=True):
    """The `Text` that the string `data` names: files, folders (all in them but what is hidden) and globs separated by commas, each
    file once; or `stories`, the embedded corpus' part for `split` (train or validation), written into the folder `cache` at first.
    UserError names what is missing, empty or unreadable.
    """
    if data.strip() == STORIES:
        return _stories(split, cache, progress)
    files = {}
    for item in items(data):
        for path, status in _expanded(item, FLAGS[split]):
            files.setdefault(os.path.abspath(path), (path, status.st_size, status.st_mtime_ns))
    if not files:
        raise UserError(f"{FLAGS[split]} is {data!r}, which names nothing; give files, folders or globs separated by commas, or {STORIES}")
    text = Text(tuple(files.values()))
    if text.size == 0:
        raise UserError(f"{FLAGS[split]} {data} names only empty files; give some text")
    return text


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
    near = difflib.get_close_matches(at.name, names + [STORIES] * (str(path) == at.name), n=3)
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
    """Pass blocks of bytes through, showing how many of `total` have come: a bar on a terminal or in a notebook, else a line now and then."""
    terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
    started, done, quiet = time.monotonic(), 0, 5.0
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=1, disable=not (show and terminal)) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))
            done += len(block)
            seconds = time.monotonic() - started
            if show and not terminal and seconds > quiet:
                quiet = seconds + 15.0
                left = seconds * (total - done) / done
                print(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB, {left:.0f} s left", file=sys.stderr, flush=True)


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
            raise UserError(f"{flag} {item} is a folder without files (hidden ones do not count); put text into it or name another")
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
    return [file for entry in entries if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir())
            for file in _files(entry.path, flag)]


def _status(path, flag=""):
    """`os.stat`, or None where there is nothing."""
    try:
        return os.stat(path)
    except PermissionError as error:
        raise _unreadable(path, error, flag) from None
    except (OSError, ValueError):
        return None


def _unreadable(path, error, flag=""):
    return UserError(f"{flag} {path} cannot be read ({error.strerror}); give yourself the right to read it, or leave it out".lstrip())


def _stories(split, cache, progress):
    """The embedded corpus as a file in the cache, with the entropy of its writer beside it. A new writer makes a new file."""
    writer = importlib.import_module("slm_np.data.stories")
    size, seed = STORIES_BYTES[split], STORIES_SEEDS[split]
    version = hashlib.sha256(Path(writer.__file__).read_bytes().replace(b"\r\n", b"\n") + repr((size, seed)).encode()).hexdigest()
    folder = cache / "stories" / f"{split}-{version[:16]}"
    file, floor_file = folder / "stories.txt", folder / "floor.json"
    floor = read_json(floor_file)
    if folder.is_dir() and not (file.is_file() and file.stat().st_size == floor.get("bytes") and "bits" in floor):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        floor = dict(bytes=0, bits=0.0)

        def texts():
            for text, bits in writer.write(size, seed):
                data = text.encode()
                floor["bytes"] += len(data)
                floor["bits"] += float(bits)
                yield data

        with published(folder) as part:
            with open(part / file.name, "wb") as out:
                out.writelines(shown(texts(), size, f"writing the {split} stories", progress))
            (part / floor_file.name).write_text(json.dumps(floor), encoding="utf-8")
    status = file.stat()
    return Text(((file, status.st_size, status.st_mtime_ns),), floor["bits"] / floor["bytes"])
