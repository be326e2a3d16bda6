"""Files that are replaced atomically, and JSON files by the same rules.

A writer fills `NAME.tmp-PROCESS`, flushes it to disk and renames it, so that NAME always shows the old content or the
new one. Failures are a `UserError` that names the path, the cause and what to do about this cause.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from slm_np.errors import UserError, fault_in, remedy
from slm_np.paths import is_run, sync

BLOCK = 1 << 24  # bytes per write, so that a signal need not wait for gigabytes
RESTORE = "restore it from a backup"  # the end of the messages about bad files


@contextlib.contextmanager
def saving(path):
    """Turn an OSError inside the block into a UserError about `path`, a file or a checkpoint in a run's directory."""
    try:
        yield
    except OSError as error:
        helps = remedy(error)
        if is_run(Path(path).parent):  # and not one that is just being created
            helps += ", then resume: what the run saved before is intact"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {helps}") from error


def write_bytes(path, content):
    """Replace the file `path` with the bytes `content`, or raise OSError and leave it as it was."""
    write_chunks(path, [content])


def write_chunks(path, chunks, report=lambda n: None):
    """Replace the file `path` with the concatenated byte `chunks`, or raise OSError and leave it as it was.

    chunks: any iterable. Each one is made when it is written.   report: function (n), called when n more bytes are
    written.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for chunk in chunks:
                for start in range(0, len(chunk), BLOCK):
                    report(file.write(chunk[start : start + BLOCK]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


@contextlib.contextmanager
def replacing(path):
    """A path to write a file to, which replaces `path` when the block ends. If it fails, `path` stays as it was."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


@contextlib.contextmanager
def new_folder(folder):
    """Yield an empty folder beside `folder` to fill. At the end it gets that name; if the block raises, it is removed.

    Raises UserError if `folder` exists and is not an empty folder, before the block or after it, or if the disk cannot
    be written.
    """
    folder = Path(folder)
    part = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    _check_free(folder)
    try:
        with saving(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)  # of a process with this number that was killed
            part.mkdir()
            yield part
            for path in (*part.iterdir(), part):
                sync(path)
            try:
                if folder.is_dir():
                    folder.rmdir()
                os.rename(part, folder)
            except OSError:
                _check_free(folder)  # another process may have made it meanwhile
                raise
            sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_free(folder):
    """UserError if the path exists, unless it is an empty folder."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another name, or remove it")


def read_bytes(path):
    """The content of the file `path`. UserError if it is missing or unreadable."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {RESTORE}") from None
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check its permissions, or {RESTORE}"
        ) from error


def to_json(value, **style):
    """`value` as ASCII JSON. NumPy scalars become Python's; `style` goes to json.dumps."""
    return json.dumps(value, default=np.generic.item, **style).encode("ascii")


def write_json(path, fields):
    """Write the dict `fields` as indented JSON, atomically. UserError if the file cannot be written."""
    write_file(path, to_json(fields, indent=2) + b"\n")


def write_file(path, content):
    """Write the bytes `content`, atomically. UserError if the file cannot be written."""
    with saving(path):
        write_bytes(Path(path), content)


def read_json(path):
    """The dict in the JSON file `path`. UserError if it is missing, unreadable, malformed or not an object."""
    try:
        fields = json.loads(read_bytes(path))
        if not isinstance(fields, dict):
            raise ValueError("the top level is not an object")
        return fields
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({fault_in(error)}); fix it by hand, or {RESTORE}") from None
