"""Small helpers for files: open, read JSON, replace JSON, with errors that name the file; JSON with its checksum."""

import hashlib
import json
import os
import zlib

from slm_np.errors import UserError


def opened(path):
    """The file at `path`, opened to read bytes. UserError if it cannot be opened."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from None


def status(path, flag=""):
    """`os.stat(path)`, or None if nothing is there. UserError, which starts with `flag`, if access is denied."""
    try:
        return os.stat(path)
    except PermissionError as error:
        raise unreadable(path, error, flag) from None
    except (OSError, ValueError):
        return None


def unreadable(path, error, flag=""):
    """The UserError for an OSError at `path`, which the flag `flag` named."""
    return UserError(
        f"{flag} {path} cannot be read ({error.strerror}); check its permissions, or leave it out".lstrip()
    )


def read_json_or_empty(path):
    """The object in a JSON file. {} if the file is missing, is damaged, or holds something other than an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_of(path):
    """The SHA-256 of a file, in hexadecimal. For texts see `Text.sha256`."""
    digest = hashlib.sha256()
    with opened(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def checksummed(fields):
    """The object `fields` and, as its last entry "checksum", the CRC-32 of the others. See `verified`."""
    return {**fields, "checksum": f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"}


def verified(fields):
    """`fields` without their checksum. {} if it is missing, or not that of the other entries."""
    rest = {key: value for key, value in fields.items() if key != "checksum"}
    return rest if fields == checksummed(rest) else {}


def write_cache_json(path, fields):
    """Replace the JSON file at `path` by `checksummed(fields)`. For caches only: a failed write is ignored."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(checksummed(fields), indent=1), encoding="utf-8")
        os.replace(part, path)
    except OSError:
        pass
