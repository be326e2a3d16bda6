"""The header of a GGUF file: its metadata, and where its tensors lie. Every size is checked before it is used.

Layout, little-endian, of versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
    "GGUF", version (uint32), number of tensors (uint64), number of metadata entries (uint64)
    entry    key (string), type of the value (uint32), value
    tensor   name (string), number of dimensions (uint32), dimensions (uint64 each, the fastest first),
             type (uint32), offset into the data (uint64)
    data     starts at the next multiple of general.alignment
A string is its length in bytes (uint64) and its UTF-8. An array is the type of its elements, their number (uint64), and
the elements. The package gguf has a reader, too. It takes seconds for a large vocabulary, reads beyond the end of a
truncated file, and loops over lengths that a damaged one claims.
"""

import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_np.errors import UserError, imported
from slm_np.words import counted

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # struct's letters
SMALLEST = {STRING: 8, ARRAY: 12} | {kind: struct.calcsize(letter) for kind, letter in NUMBERS.items()}  # bytes
MOST_DIMENSIONS = 4
AGAIN = "copy or download it again"


class Tensor(NamedTuple):
    """Where a tensor lies. shape: the slowest dimension first, as in NumPy.   offset, size: in bytes, of the file."""

    kind: object  # gguf.GGMLQuantizationType
    shape: tuple
    offset: int
    size: int


class Header(NamedTuple):
    path: Path
    metadata: dict  # {key: number, bool, string, or a list of these}
    tensors: dict  # {name: Tensor}


class _Damaged(Exception):
    """What is wrong with a file, as the end of a sentence about it."""


def gguf_package():
    """The module `gguf`, which is an extra. UserError if it is missing."""
    return imported("gguf", "a GGUF file", "slm_np[gguf]")


def read_header(path):
    """The `Header` of the file `path`. UserError if it is unreadable, truncated, damaged, or no GGUF file."""
    path, gguf = Path(path), gguf_package()
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        if start[:4] != MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not start with GGUF; name one that does, or {AGAIN}")
        content = np.memmap(path, np.uint8, "r").data
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a GGUF file") from None
    try:
        return _header(path, _Cursor(content), gguf)
    except _Damaged as error:
        raise UserError(f"{path} is cut short or damaged: {error}; {AGAIN}") from None


def _header(path, cursor, gguf):
    cursor.take(4, "its version")
    version = cursor.number("I", "its version")
    if version not in VERSIONS:
        is_swapped = version >= 1 << 16 and not version & 0xFFFF
        kind = "big-endian GGUF file" if is_swapped else f"GGUF file of version {version}"
        raise UserError(f"{path} is a {kind}; only little-endian files of the versions 2 and 3 are supported")
    n_tensors, n_entries = cursor.count(24, "tensors"), cursor.count(13, "metadata entries")
    metadata, tensors = {}, {}
    for _ in range(n_entries):
        key = cursor.string("a key of the metadata")
        if key in metadata:
            raise _Damaged(f"the metadata contains {_shown(key)} twice")
        metadata[key] = cursor.value(cursor.number("I", _shown(key)), _shown(key))
    if metadata.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{path} is one of {metadata['split.count']} parts of a model, and only whole models are supported; "
            "join them with llama-gguf-split --merge"
        )
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment is {_shown(alignment)}, not a power of two")
    for _ in range(n_tensors):
        name, tensor = _tensor(cursor, gguf)
        if name in tensors:
            raise _Damaged(f"it has the tensor {_shown(name)} twice")
        tensors[name] = tensor
    data = -(-cursor.at // alignment) * alignment
    for name, tensor in tensors.items():
        tensors[name] = moved = tensor._replace(offset=data + tensor.offset)
        if tensor.offset % alignment or moved.offset + moved.size > len(cursor.content):
            raise _Damaged(
                f"the tensor {_shown(name)} lies at bytes {moved.offset:,} to {moved.offset + moved.size:,} of "
                f"{len(cursor.content):,}"
            )
    return Header(path, metadata, tensors)


def _tensor(cursor, gguf):
    """(name, Tensor) of the next tensor. Its offset is still into the data."""
    name = cursor.string("the name of a tensor")
    n_dimensions = cursor.number("I", _shown(name))
    if not 0 < n_dimensions <= MOST_DIMENSIONS:
        raise _Damaged(f"the tensor {_shown(name)} has {n_dimensions} dimensions")
    shape = tuple(cursor.number("Q", _shown(name)) for _ in range(n_dimensions))[::-1]
    number, offset = cursor.number("I", _shown(name)), cursor.number("Q", _shown(name))
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise _Damaged(f"the tensor {_shown(name)} has the unknown type {number}") from None
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if not all(0 < n < 1 << 40 for n in shape) or shape[-1] % per_block:
        raise _Damaged(f"the tensor {_shown(name)} has the shape {shape}, which is not one of type {kind.name}")
    return name, Tensor(kind, shape, offset, math.prod(shape) // per_block * block_bytes)


def read_tensor(header, name):
    """The tensor `name` of a file, dequantized to float32."""
    tensor = header.tensors[name]
    rows = _bytes_of(header, name).reshape(*tensor.shape[:-1], -1)
    with np.errstate(invalid="ignore", over="ignore"):
        return gguf_package().dequantize(rows, tensor.kind).reshape(tensor.shape)


def same_tensor(header, one, other):
    """Whether two tensors have the same shape, type and bytes."""
    a, b = header.tensors[one], header.tensors[other]
    return a[:2] == b[:2] and np.array_equal(_bytes_of(header, one), _bytes_of(header, other))


def _bytes_of(header, name):
    tensor = header.tensors[name]
    return np.memmap(header.path, np.uint8, "r", tensor.offset, (tensor.size,)).view(np.ndarray)


def check_readable(header, name):
    """UserError if the tensor `name` is of a type that cannot be dequantized."""
    gguf, kind = gguf_package(), header.tensors[name].kind
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise UserError(
            f"{header.path} has tensors of type {kind.name}, such as {name}, which cannot be read; "
            "choose a file in F16, BF16, Q8_0, Q4_0 or a K-quantization"
        ) from None


class _Cursor:
    """Reads a buffer from its start. Each method names `what` it reads, for `_Damaged` at the end of the buffer."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def take(self, n, what):
        if n > len(self.content) - self.at:
            raise _Damaged(f"it has {counted(len(self.content), 'byte')} and ends within {what}")
        self.at += n
        return self.content[self.at - n : self.at]

    def number(self, letter, what):
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter), what))[0]

    def count(self, smallest, what):
        """A number of things that take at least `smallest` bytes each."""
        n = self.number("Q", f"the number of {what}")
        if n > (len(self.content) - self.at) // smallest:
            raise _Damaged(f"{n:,} {what} do not fit into {counted(len(self.content), 'byte')}")
        return n

    def string(self, what):
        try:
            return str(self.take(self.number("Q", what), what), "utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is not UTF-8") from None

    def value(self, kind, key):
        if kind == STRING:
            return self.string(key)
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], key)
        if kind == ARRAY:
            inner = self.number("I", key)
            if inner != ARRAY and inner in SMALLEST:
                return self._array(inner, key)
            kind = inner
        raise _Damaged(f"{key} has values of the unknown type {kind}")

    def _array(self, kind, key):
        n = self.count(SMALLEST[kind], f"elements of {key}")
        if kind == STRING:
            return [self.string(key) for _ in range(n)]
        return list(struct.unpack(f"<{n}{NUMBERS[kind]}", self.take(n * SMALLEST[kind], key)))


def _shown(name):
    text = repr(name)
    return text if len(text) <= 80 else text[:77] + "..."
