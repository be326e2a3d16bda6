"""What a `.bin` file contains, recognized by its bytes: llm.c's header is read, what is not uint16 ids is refused.

A headerless file of ids says nothing of its dtype. Without a meta.json it counts as uint16, unless its contents show
that it is something else. The checks look at samples spread through the file.
"""

import struct
from typing import NamedTuple

import numpy as np

from slm_np.data import file_kinds
from slm_np.data.files import opened
from slm_np.errors import UserError
from slm_np.words import counted

HEADER = 1024  # bytes of llm.c's header: 256 int32, of which the first are magic, version and number of tokens
LLM_C = {(20240520, 1): "uint16", (20240801, 7): "uint32"}  # {(magic, version): dtype}, of GPT-2 and Llama 3
LLM_C_MAGICS = range(20240101, 20300101)  # of its other files, such as checkpoints: dates
PARTS, PART = 16, 1 << 16  # the number of samples, and their bytes
FEW = 16  # pairs of uint16 below which they show nothing
CONTROL = (*range(9), *range(14, 27), *range(28, 32), 127)  # bytes that no text has
HIGH = 16  # bound of the upper halves of uint32 ids, as no vocabulary has 2^20 tokens

# (first bytes, what the file is, what to do)
IDS = "give a file of token ids, or a text"
UNPACK = "unpack it first"
SIGNATURES = (
    (b"\x93NUMPY", "a NumPy array (.npy)", "{numpy}"),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint or a .npz", IDS),
    (b"GGUF", "a model in the format GGUF", IDS),
    (b"tjgg", "a model of llama.cpp", IDS),
    (b"fmgg", "a model of llama.cpp", IDS),
    (b"lmgg", "a model of ggml", IDS),
    (b"24ka", "a llama2.c checkpoint", "convert it with: python -m slm_np.convert {path}"),
    (b"PAR1", "a Parquet file", "write its text column to a .txt or .jsonl file"),
    (b"ARROW1", "an Arrow file", "write its text column to a .txt or .jsonl file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", IDS),
    (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "an old PyTorch checkpoint", IDS),
)
NUMPY = 'write its ids as a .bin file: numpy.load("{path}").astype("<u2").tofile("train.bin"), or "<u4" above 65,535'
FROM_FILE = 'numpy.fromfile("{{path}}", "{old}").astype("{new}").tofile("train.bin")'
UINT16, UINT32 = '{{"dtype": "uint16"}}', '{{"dtype": "uint32"}}'


class Layout(NamedTuple):
    """Where the ids of a `.bin` file are."""

    dtype: str  # uint16 or uint32
    start: int  # bytes before the first id


def layout(path, size, declared, flag):
    """The `Layout` of a `.bin` file of `size` bytes.

    declared: the dtype that its meta.json gives, which is trusted, or None.   flag: the flag that named the file.
    UserError, with what to do, if the file is of another kind, or not what its header says.
    """
    with opened(path) as file:
        head = file.read(HEADER)
    found = _llm_c(path, size, head, declared, flag)
    if found or declared:
        return found or Layout(declared, 0)
    samples = _samples(path, size)
    other = _kind(head, samples[-1][-1:], size) or _unlike_uint16(samples, size)
    if other:
        what, remedy = other
        remedy = remedy.format(numpy=NUMPY.format(path=path), path=path, meta=path.with_name("meta.json"))
        raise UserError(f"{flag} {path} is {what}; {remedy}")
    return Layout("uint16", 0)


def _llm_c(path, size, head, declared, flag):
    """The `Layout` of a file with llm.c's header, or None if it has none."""
    if len(head) < HEADER:
        return None
    magic, version, tokens = struct.unpack("<3i", head[:12])
    dtype = LLM_C.get((magic, version))
    if dtype is None:
        if magic in LLM_C_MAGICS and 0 < version < 100:
            raise UserError(
                f"{flag} {path} has the header of an llm.c file of another kind (magic {magic}, version {version}); "
                "give the token files that llm.c's data scripts wrote"
            )
        if struct.unpack(">2i", head[:8]) in LLM_C:
            raise UserError(f"{flag} {path} is a token file of llm.c in big-endian order; write it in little-endian")
        return None
    if declared not in (None, dtype):
        raise UserError(
            f"{flag} {path} has {dtype} ids by its llm.c header, but the meta.json beside it says {declared}; "
            "remove that dtype"
        )
    width = np.dtype(dtype).itemsize
    if HEADER + tokens * width != size:
        raise UserError(
            f"{flag} {path} has room for {counted((size - HEADER) // width, 'token')}, but its llm.c header says "
            f"{tokens:,}, so it is incomplete or damaged; copy it again"
        )
    return Layout(dtype, HEADER)


def _kind(head, last, size):
    """(what, remedy) of a file of another kind by its first bytes and its last one, or None."""
    for start, what, remedy in SIGNATURES:
        if head.startswith(start):
            return what, remedy
    if compressed := file_kinds.compression(head, ""):
        return f"compressed with {compressed}", UNPACK
    if head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5") and head[2:3] in b"\x95}(]c" and last == b".":
        return "a Python pickle", IDS
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < min(size, 1 << 27):
        return "a model in the format safetensors", IDS
    if size == _llama2_c_size(head):
        return "a llama2.c checkpoint", "convert it with: python -m slm_np.convert {path}"
    return None


def _llama2_c_size(head):
    """The bytes of a llama2.c checkpoint of version 0 whose header is `head`, or None if it cannot be one."""
    if len(head) < 28:
        return None
    dim, hidden, layers, heads, kv_heads, vocab, steps = sizes = struct.unpack("<7i", head[:28])
    if min(*sizes[:5], abs(vocab), steps) < 1 or dim % heads:
        return None
    kv = kv_heads * (dim // heads)
    layer = 2 * dim + 2 * dim * dim + 2 * dim * kv + 3 * dim * hidden
    tables = abs(vocab) * dim * (1 + (vocab < 0)) + dim + 2 * steps * (dim // heads // 2)
    return 28 + 4 * (layers * layer + tables)


def _samples(path, size):
    """[bytes, ...] spread through a file, up to its end, or all of a small one. Each starts at a multiple of 8."""
    with opened(path) as file:
        if size <= PARTS * PART:
            return [file.read()]
        found = []
        for i in range(PARTS):
            file.seek((size - PART) * i // (PARTS - 1) // 8 * 8)
            found.append(file.read(PART + 8 * (i == PARTS - 1)))
        return found


def _unlike_uint16(samples, size):
    """(what, remedy) of a file of text, or of ids other than uint16, by its samples. None if nothing shows that."""
    if size >= 8 * FEW and all(map(_is_text, samples)):
        return "text, not token ids", "give it a name that does not end in .bin"
    halves = [np.frombuffer(sample[: len(sample) // 4 * 4], "<u2") for sample in samples]
    halves = np.concatenate(halves).reshape(-1, 2)
    if len(halves) < FEW or not halves.any():
        return None
    return (size % 4 == 0 and _unlike_16_bits(halves, size)) or _unlike_order(halves)


def _is_text(sample):
    """Whether bytes are text in UTF-8, whose characters the ends may cut, or in an encoding of one byte a letter."""
    if any(byte in sample for byte in CONTROL):
        return False
    letters = sample.decode("utf-8", "replace")[4:-4]
    return "\ufffd" not in letters or sum(byte > 127 for byte in sample[:1000]) < min(len(sample), 1000) / 4


def _unlike_order(halves):
    """`_unlike_uint16` for ids of one or two bytes, as uint16 (N, 2)."""
    low, high = halves & 0xFF, halves >> 8
    if not low.any():
        return "made of 16-bit ids in big-endian order", 'write them in little-endian, with astype("<u2") in NumPy'
    are_bytes = len(np.unique(low)) >= FEW and low.max() < 128 and np.count_nonzero(high) >= high.size / 4
    if len(halves) >= 4 * FEW and are_bytes:
        return "made of 8-bit ids", f"convert it: {FROM_FILE.format(old='u1', new='<u2')}"
    return None


def _unlike_16_bits(halves, size):
    """`_unlike_uint16` for ids of four or eight bytes, as the halves of uint32 (N, 2)."""
    low, high = halves[:, 0], halves[:, 1]
    swapped = halves.byteswap()
    if _are_upper_halves(swapped[:, 0], swapped[:, 1]):
        return "made of 32-bit ids in big-endian order", 'write them in little-endian, with astype("<u4") in NumPy'
    negative = (high == 0xFFFF) & (low >= 0x8000)
    if not _are_upper_halves(np.where(negative, 0, high), np.where(negative, 0, low)):
        return None
    if negative.any():
        return "made of 32-bit ids, some of them negative", "remove those, and write the others as uint16 or uint32"
    words = halves.view("<u4").reshape(-1)
    if size % 8 == 0 and len(words) >= 2 * FEW and not words[1::2].any():
        convert = FROM_FILE.format(old="<i8", new="<u4")
        return "made of 64-bit ids", f"convert it: {convert}, and write {UINT32} into a meta.json beside it"
    most = "0" if not high.any() else f"at most {high.max()}"
    return (
        f"made of 32-bit ids, it seems, since every second 16-bit number is {most}",
        f"write {UINT32} into {{meta}}, or {UINT16} if they are 16-bit ids",
    )


def _are_upper_halves(high, low):
    """Whether (high, low) are the halves of uint32 ids rather than pairs of uint16 ids, which would look alike."""
    if not high.any():
        return bool(low.any())
    return len(high) >= 4 * FEW and high.max() < HIGH and np.count_nonzero(low >= HIGH) >= len(low) / 4
