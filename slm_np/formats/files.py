"""Files that are written atomically, and JSON with a checksum. Failures to write are a UserError that names the path and the cause."""

import contextlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from slm_np.errors import UserError

MEND = "restore it from a copy or use an older checkpoint"


@contextlib.contextmanager
def saving(path):
    """An OSError inside becomes a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); the previous checkpoint is intact, "
            "so make room or make the folder writable and resume, or choose another --out-dir"
        ) from error


def sync_folder(folder):
    # A rename lasts through a power cut once its folder is on disk. Windows and some network disks cannot flush a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path, *chunks):
    """Replace the file `path` by the concatenated byte `chunks`, or raise OSError and leave it as it was."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); make it readable or {MEND}") from error


def to_json(value, **style):
    return json.dumps(value, default=np.generic.item, **style).encode("ascii")  # NumPy's scalars become Python's


def stamped(document, inside):
    """`document` as JSON, after the dict `inside` it has got the CRC-32 of everything else as its last entry.

    A reader parses the bytes, stamps what it got and compares with the bytes: no change of any byte passes, not even of white space.
    """
    inside.pop("crc32", None)
    inside["crc32"] = f"{zlib.crc32(to_json(document, separators=(',', ':'))):08x}"
    return to_json(document, separators=(",", ":"))


def write_json(path, fields):
    """Write the dict `fields` as readable JSON, atomically. UserError if the disk refuses."""
    with saving(path):
        write_bytes(Path(path), to_json(fields, indent=2), b"\n")


def read_json(path):
    """The dict in the JSON file `path`. UserError if it is missing, unreadable, broken or not an object."""
    try:
        fields = json.loads(read_bytes(path))
        if not isinstance(fields, dict):
            raise ValueError("it is no object in braces")
        return fields
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken JSON ({error}); mend it by hand or {MEND}") from None
