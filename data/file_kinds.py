"""What a file contains, by its first bytes: compressed data, text in UTF-16, or something other than text."""

import codecs

from slm_np.data.segments import ESCAPED

COMPRESSED = {  # {name: (first bytes, suffixes)}
    "gzip": ((b"\x1f\x8b\x08",), (".gz", ".tgz")),
    "bzip2": (tuple(b"BZh%d\x31\x41\x59\x26\x53\x59" % level for level in range(1, 10)), (".bz2", ".tbz2", ".tbz")),
    "xz": ((b"\xfd7zXZ\0",), (".xz", ".txz")),
    "zstd": (
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
        (".zst", ".zstd", ".tzst"),
    ),
}
SUFFIXES = (".lzma", *(suffix for _, suffixes in COMPRESSED.values() for suffix in suffixes))
LZMA = b"]\0\0"  # starts files of the old format .lzma, which have no magic number
PARQUET = b"PAR1"
ENCODINGS = {  # UTF-32 first, since its mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNPACK = "unpack it, and give the files inside or their folder"
LEAVE_OUT = "leave it out, for example by a glob such as *.txt"
EXPORT = "save it as plain text"
TEXTUAL = (b"%PDF-", b"{\\rtf")  # no text starts so by chance
# (offset, bytes there, what such a file is, what to do)
OTHERS = (
    (0, b"PK\x03\x04", "a ZIP archive (or a file of an office program)", f"{UNPACK}, or {EXPORT}"),
    (0, b"PK\x05\x06", "an empty ZIP archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (0, b"\x1f\x9d", "compressed by compress (.Z)", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed by LZ4", UNPACK),
    (0, b"LZIP\x01", "compressed by lzip", UNPACK),
    (0, b"%PDF-", "a PDF", EXPORT),
    (0, b"{\\rtf", "an RTF document", EXPORT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an office program", EXPORT),
    (0, b"\x89PNG\r\n\x1a\n", "an image (PNG)", LEAVE_OUT),
    (0, b"\xff\xd8\xff", "an image (JPEG)", LEAVE_OUT),
    (0, b"GIF87a", "an image (GIF)", LEAVE_OUT),
    (0, b"GIF89a", "an image (GIF)", LEAVE_OUT),
    (0, b"II*\0", "an image (TIFF)", LEAVE_OUT),
    (0, b"MM\0*", "an image (TIFF)", LEAVE_OUT),
    (8, b"WEBP", "an image (WebP)", LEAVE_OUT),
    (8, b"WAVE", "a sound (WAV)", LEAVE_OUT),
    (4, b"ftyp", "a video (MP4)", LEAVE_OUT),
    (0, b"OggS", "a sound (Ogg)", LEAVE_OUT),
    (0, b"fLaC", "a sound (FLAC)", LEAVE_OUT),
    (0, b"ID3\x03", "a sound (MP3)", LEAVE_OUT),
    (0, b"ID3\x04", "a sound (MP3)", LEAVE_OUT),
    (0, b"SQLite format 3\0", "an SQLite database", "export its text, for example as CSV for --documents csv:COLUMN"),
    (0, b"\x7fELF", "a program", LEAVE_OUT),
    (0, b"\x93NUMPY", "an array of NumPy", "give text, or a .bin file of token ids"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its text"),
    (0, b"ARROW1", "an Arrow file", "save it as Parquet or JSON lines"),
    (0, b"GGUF", "a model (GGUF)", LEAVE_OUT),
    (8, b'{"', "a model (safetensors)", LEAVE_OUT),
    *(
        (0, b"\x80" + bytes([version]), "a pickle of Python", "save it as text or JSON lines")
        for version in range(2, 6)
    ),
)


def compression(head, suffix):
    """The name in `COMPRESSED` of what compressed a file with these first bytes, "lzma", or None."""
    found = next((name for name, (starts, _) in COMPRESSED.items() if head.startswith(starts)), None)
    return found or ("lzma" if suffix == ".lzma" and head.startswith(LZMA) else None)


def encoding(head):
    """The codec for the byte-order mark that a file starts with: utf-8-sig, utf-16, utf-32, or None without one."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    return next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None)


def no_text(block, offset=0):
    """(what, remedy) if a block of bytes at `offset` of a file shows that it is not text, else None."""
    if offset == 0:
        for at, magic, what, remedy in OTHERS:
            if block[at : at + len(magic)] == magic and (
                magic in TEXTUAL or not is_text(magic) or b"\0" in block[:512]
            ):
                return what, remedy
    at = block.find(b"\0")
    if at < 0:
        return None
    zeros = [block[start::2].count(0) / max(1, len(block[start::2])) for start in (0, 1)]
    if max(zeros) > 0.4 > 0.1 > min(zeros):
        return "text in UTF-16 without a byte-order mark", "save it in UTF-8"
    return f"binary (byte {offset + at:,} is zero)", "give text, or pass --binary to read it byte by byte"


def is_text(magic):
    """Whether a text might start with these bytes."""
    return magic.isascii() and magic.decode().isprintable()


def share_not_utf8(block):
    """The share of bytes in a block that are not UTF-8. Characters cut at its ends do not count."""
    text = block.decode("utf-8", "surrogateescape")
    return len(ESCAPED.findall(text, 3, max(3, len(text) - 3))) / max(1, len(block))
