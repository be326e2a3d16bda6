"""CRC-32 checksums, and JSON documents that contain their own."""

import zlib

from slm_np.formats.files import to_json


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
