"""Compressed data and other encodings as blocks of UTF-8 bytes. A block is small, however far the data expand."""

import bz2
import codecs
import lzma
import sys
import zlib

from slm_np.data.text_files import BLOCK
from slm_np.errors import UserError, imported

ZSTD_BLOCK = 1 << 10  # compressed bytes at a time for zstd, which can expand them 32,000 times


def unpacked(blocks, method, path):
    """Yield the bytes that compressed `blocks` contain. method: a name in `file_kinds.COMPRESSED`, or lzma.

    Several streams in a row are read one after the other, and zeros after the last one are ignored, as by gzip -d.
    UserError, which names `path`, if the data are damaged or end too early.
    """
    new, decompress, errors = _decompressor(method, path)
    if method == "zstd":
        blocks = (block[at : at + ZSTD_BLOCK] for block in blocks for at in range(0, len(block), ZSTD_BLOCK))
    decoder, empty = None, True
    try:
        for block in blocks:
            while block:
                if decoder is None:
                    if not empty and not block.strip(b"\0"):
                        break
                    decoder, empty = new(), False
                for data in decompress(decoder, block):
                    if data:
                        yield data
                block = b""
                if decoder.eof:
                    block, decoder = decoder.unused_data, None
    except errors as error:
        raise UserError(f"{path} is damaged ({_reason(error)} in its {method} data); get it again") from None
    if decoder is not None:
        raise UserError(f"{path} is incomplete: its {method} data end too early; get it again")


def _decompressor(method, path):
    """(function () -> decoder, function (decoder, block) -> iterable of bytes, exceptions for damaged data)."""
    if method == "gzip":
        return lambda: zlib.decompressobj(31), _by_tail, zlib.error
    if method == "bzip2":
        return bz2.BZ2Decompressor, _by_length, (OSError, ValueError)
    if method in ("xz", "lzma"):
        return lzma.LZMADecompressor, _by_length, lzma.LZMAError
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdDecompressor, _by_length, zstd.ZstdError
    zstandard = imported("zstandard", f"{path}, which zstd compressed,", "slm_np[zst]")
    return (
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        lambda decoder, block: [decoder.decompress(block)],
        zstandard.ZstdError,
    )


def _by_tail(decoder, block):
    data = b"more"
    while not decoder.eof and (block or data):
        data = decoder.decompress(block, BLOCK)
        yield data
        block = decoder.unconsumed_tail


def _by_length(decoder, block):
    yield decoder.decompress(block, BLOCK)
    while not decoder.eof and not decoder.needs_input:
        yield decoder.decompress(b"", BLOCK)


def _reason(error):
    return (str(error) or type(error).__name__).strip().rstrip(".").lower()


def decoded(blocks, encoding, path):
    """Yield text in `encoding` as UTF-8, without its byte-order mark. UserError, which names `path`, if it is not."""
    decoder, position = codecs.getincrementaldecoder(encoding)(), 0
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
            position += len(block)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise UserError(
            f"{path} starts with the mark of {encoding.upper()}, but is not in that encoding ({error.reason} near byte "
            f"{position:,}); save it in UTF-8"
        ) from None
