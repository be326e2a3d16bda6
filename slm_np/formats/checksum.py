"""CRC-32 checksums, and JSON documents that contain their own."""

import zlib

from slm_np.errors import UserError
from slm_np.formats.files import read_json, to_json, write_json


def crc32(data):
    """The CRC-32 of the bytes or the contiguous array `data`, as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def with_checksum(document, inside):
    """`document` as compact JSON, after the CRC-32 of its other content has become the last entry of the dict `inside`.

    inside    a dict within `document`, or `document` itself; an entry "crc32" that it has is replaced
    A reader parses the bytes, calls this on the result and compares: any changed byte shows, even one of white space.
    """
    inside.pop("crc32", None)
    inside["crc32"] = crc32(to_json(document, separators=(",", ":")))
    return to_json(document, separators=(",", ":"))


def write_settings(path, fields):
    """Write the dict `fields` as JSON that people read and may edit, after their checksum, the entry "crc32".

    Atomically; UserError if the file cannot be written.
    """
    write_json(path, {"crc32": _checksum_of(fields), **fields})


def read_settings(path):
    """The dict in a file of `write_settings`, verified, without its checksum. A file without one is taken as it is.

    The checksum covers the values, not their layout: editors may indent the file or change its line ends. UserError if
    the file is missing, malformed, or was damaged or edited.
    """
    fields = read_json(path)
    try:
        intact = "crc32" not in fields or fields.pop("crc32") == _checksum_of(fields)
    except RecursionError:  # nested more deeply than can be written
        intact = False
    if not intact:
        raise UserError(
            f'{path} was damaged or edited, its checksum differs; remove its line "crc32" to accept the edit, or '
            "restore the file from a backup"
        )
    return fields


def _checksum_of(fields):
    return crc32(to_json(fields, separators=(",", ":")))
