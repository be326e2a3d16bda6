"""Find the text that a `--data` string names: files, folders and globs, or a corpus known by name."""

import difflib
import glob
import os
import stat
from pathlib import Path

from slm_np.data.download import SOURCES, download
from slm_np.data.embedded import WRITERS, written
from slm_np.data.files import status, unreadable
from slm_np.data.text_files import Text
from slm_np.errors import UserError
from slm_np.paths import is_run

NAMES = (*WRITERS, *SOURCES)
OWN_VALIDATION = (*WRITERS, *(name for name, source in SOURCES.items() if "validation" in source.files))
FLAGS = dict(train="--data", validation="--val-data")


def find(data, split, cache, progress=True, write=True):
    """The `Text` that the string `data` names.

    data: files, folders, globs and names in `NAMES`, separated by commas. Of a folder all files count, recursively and
    sorted by name, except hidden ones. No file counts twice. A file that exists takes precedence over a name.
    split: train or validation. It selects the part of a corpus known by name, and the flag that errors mention.
    cache: the folder for embedded and downloaded corpora.   write: as in `embedded.written`.
    UserError for what is missing, empty or unreadable.
    """
    name = named(data)
    if name in WRITERS:
        return written(name, split, cache, progress, write)
    files = {}
    for item in split_list(data):
        name = named(item)
        if name in WRITERS:  # among others
            item = str(written(name, split, cache, progress).files[0][0])
        elif name:
            item = str(download(name, split, cache, progress))
        for path, found in _expanded(item, FLAGS[split]):
            files.setdefault(os.path.abspath(path), (path, found.st_size, found.st_mtime_ns))
    if not files:
        raise UserError(
            f"{FLAGS[split]} {data!r} matches no files; give files, folders or globs separated by commas, "
            f"or {', '.join(NAMES)}"
        )
    text = Text(tuple(files.values()))
    if text.size == 0:
        raise UserError(f"{FLAGS[split]} {data} matches only empty files; give some text")
    return text


def named(data):
    """The corpus in `NAMES` that a `--data` string names, or None if it is something else or such a file exists."""
    name = data.strip()
    return name if name in NAMES and not os.path.exists(name) else None


def split_list(data):
    """The items of a `--data` string, which commas separate. A file with commas in its name is one item."""
    return [data] if os.path.exists(data) else [item.strip() for item in data.split(",") if item.strip()]


def _missing(path, flag, pattern=False):
    """The UserError for a path or a pattern without files. It suggests similar names, or lists part of the folder."""
    at = Path(path)
    while not os.path.isdir(at.parent) and at.parent != at.parent.parent:
        at = at.parent
    wrong = "matches no files" if pattern else "does not exist" + f", nor does the folder {at}" * (at != Path(path))
    try:
        names = sorted(name for name in os.listdir(at.parent) if not name.startswith("."))
    except OSError:
        names = []
    near = difflib.get_close_matches(at.name, names + [*NAMES] * (str(path) == at.name), n=3)
    if near:
        hint = f"did you mean {' or '.join(name if name not in names else str(at.parent / name) for name in near)}?"
    else:
        hint = f"{at.parent.absolute()} contains {', '.join(names[:5]) or 'nothing'}{' and more' * (len(names) > 5)}"
    return UserError(f"{flag} {path} {wrong}; {hint}")


def _expanded(item, flag):
    """[(path, status), ...] of the regular files that one item of a `--data` string names."""
    path = os.path.expanduser(item)
    found = status(path, flag)
    if found is None and any(letter in path for letter in "*?["):
        matches = sorted(glob.glob(path, recursive=True), key=lambda match: Path(match).parts)
        files = [file for match in matches for file in _files(match, flag)]
        if not files:
            raise _missing(item, flag, pattern=True)
        return files
    if found is None:
        raise _missing(path, flag)
    if stat.S_ISDIR(found.st_mode):
        if is_run(path):
            raise UserError(
                f"{flag} {item} is a run and not a text; name a text, and continue the run with train --resume or "
                "finetune --base"
            )
        files = _files(path, flag)
        if not files:
            raise UserError(f"{flag} {item} is a folder without files (hidden files do not count); name another folder")
        return files
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{flag} {item} is neither a file nor a folder; write its contents to a file first")
    if found.st_size == 0:
        raise UserError(f"{flag} {item} is empty; give a file with text")
    return [(Path(path), found)]


def _files(path, flag):
    """[(path, status), ...] of the regular files at `path`: itself, or what the folder contains, sorted by name.

    Links to folders are not followed.
    """
    found = status(path, flag)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return [(Path(path), found)] if found and stat.S_ISREG(found.st_mode) else []
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(path, error) from None
    return [
        file
        for entry in entries
        if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir())
        for file in _files(entry.path, flag)
    ]
