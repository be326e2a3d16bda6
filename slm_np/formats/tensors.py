"""Named tensors in a safetensors file, with a checksum for every byte.

Format: https://github.com/huggingface/safetensors. The metadata in the header hold the CRC-32 of each tensor and of the
header itself. Any safetensors reader can read these files; this one refuses files without checksums.
"""

import contextlib
import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from slm_np.errors import UserError, fault_in
from slm_np.formats.checksum import crc32, with_checksum
from slm_np.formats.files import RESTORE, saving, write_chunks
from slm_np.ops.device import host, put

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
NUMPY_DTYPES = {theirs: np.dtype(ours).newbyteorder("<") for ours, theirs in DTYPES.items()}


class LazyTensor(NamedTuple):
    """A tensor that is made when it is needed, so that not all tensors of a file are in memory at once.

    make    function () -> array of this shape and dtype, the same each time
    """

    shape: tuple
    dtype: np.dtype
    make: Callable


def _header(entries, metadata):
    """The file up to its data: the length of the JSON (8 bytes, little-endian), then JSON, padded to align the data."""
    text = with_checksum({"__metadata__": metadata, **entries}, metadata)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse_header(raw):
    """(entries, metadata, length of the header in bytes) of a file with the bytes `raw` (n,)."""
    end = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    entries = json.loads(raw[8:end].tobytes())
    return entries, entries.pop("__metadata__", None) or {}, end


def encode(tensors, metadata):
    """The chunks of bytes of a file: the header, then each tensor's memory. An iterator.

    tensors: {name: array or LazyTensor}. One at a time is copied, and only if it is on a GPU, lazy, not contiguous or
    not little-endian: once for its checksum, once when it is written.
    """
    # The order of the safetensors library: it aligns all tensors, and the same tensors give the same bytes.
    names = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    entries, checksums, end = {}, {}, 0
    for name in names:
        dtype = np.dtype(tensors[name].dtype)
        if dtype.name not in DTYPES:
            raise SafetensorError(f"safetensors files cannot hold dtype {dtype}, of tensor {name!r}")
        data = _memory(tensors[name])
        start, end = end, end + data.nbytes
        entries[name] = dict(dtype=DTYPES[dtype.name], shape=list(tensors[name].shape), data_offsets=[start, end])
        checksums[f"crc32 {name}"] = crc32(data)
    given = {key: str(value) for key, value in metadata.items()}
    header = _header(entries, {"format": "pt"} | given | checksums)
    return chain([header], (_memory(tensors[name]) for name in names))


def _memory(tensor):
    """The bytes of an array or a LazyTensor as the file holds them: (n,) uint8."""
    array = tensor.make() if isinstance(tensor, LazyTensor) else host(tensor)
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8)


def tensor_names(path):
    """The names of the tensors in a file, none of it verified. UserError if they cannot be read."""
    with _reading(path), open(path, "rb"), safe_open(path, "np") as file:
        return set(file.keys())


@contextlib.contextmanager
def _reading(path):
    """Turn errors inside the block into a UserError about the file `path`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {RESTORE}") from None
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check its permissions, or {RESTORE}"
        ) from error
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:  # KeyError: a type that NumPy lacks
        raise UserError(
            f"{path} is cut short, damaged, or not a safetensors file that this version can read ({fault_in(error)}); "
            f"{RESTORE}"
        ) from None


def open_tensors(path):
    """({name: array}, metadata as strings) of a file of `save_tensors`, every byte verified.

    The arrays are views of the memory-mapped file. Errors as of `load_tensors`.
    """
    with _reading(path):
        with open(path, "rb"), safe_open(path, "np"):  # the library detects truncated and inconsistent files
            raw = np.memmap(path, np.uint8, "r")
        entries, metadata, end = _parse_header(raw)
        tensors = {}
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            tensors[name] = raw[end + start : end + stop].view(NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if "crc32" not in metadata:
        raise UserError(f"{path} has no checksums, so it was not written by slm_np; name a file of one of its runs")
    if _header(entries, metadata) != raw[:end].tobytes():
        raise UserError(f"{path} has a damaged header, its checksum differs; {RESTORE}")
    for name, tensor in tensors.items():
        if crc32(tensor) != metadata.get(f"crc32 {name}"):
            raise UserError(f"{path} is damaged in tensor {name!r}, its checksum differs; {RESTORE}")
    return tensors, {key: value for key, value in metadata.items() if key != "format" and not key.startswith("crc32")}


def save_tensors(path, tensors, metadata, **report):
    """Write {name: array} to a file, atomically.

    tensors   arrays of any shape, stride, byte order and device, or LazyTensors; stored C-contiguous and little-endian
    metadata  {key: value}; values are stored as strings
    report    as of `write_chunks`
    Raises UserError if the file cannot be written (the old file stays), SafetensorError for types that the format
    lacks.
    """
    with saving(path):
        write_chunks(Path(path), encode(tensors, metadata), **report)


def stream_tensors(path, shapes, tensors, metadata):
    """Write float32 tensors to a file as they come, one in memory at a time: the same bytes as of `save_tensors`.

    shapes   {name: shape} of all tensors
    tensors  iterable of (name, array), in any order
    The file has no header until all are written. Raises UserError if it cannot be written.
    """
    entries, sums, end = {}, {}, 0
    for name in sorted(shapes):
        start, end = end, end + 4 * math.prod(shapes[name])
        entries[name] = dict(dtype="F32", shape=list(shapes[name]), data_offsets=[start, end])
        sums[f"crc32 {name}"] = "0" * 8
    given = {"format": "pt"} | {key: str(value) for key, value in metadata.items()}
    first = len(_header(entries, given | sums))
    with saving(path), open(path, "wb") as file:
        for name, array in tensors:
            data = _memory(np.asarray(array, np.float32))
            file.seek(first + entries[name]["data_offsets"][0])
            file.write(data)
            sums[f"crc32 {name}"] = crc32(data)
        file.seek(0)
        file.write(_header(entries, given | sums))


def load_tensors(path, into=None, rename=None):
    """Read a file of `save_tensors` and verify every byte of it. Returns ({name: array}, metadata as strings).

    into    {name: array} to fill instead of new arrays (views of a flat buffer, for example), on any device; names,
            shapes and types must match
    rename  function from a name in the file to the name to use, applied after verification
    Raises UserError, naming the file and the tensor, if the file is missing, truncated, changed in any byte, written by
    another program, or does not match `into`. Then `into` is unchanged.
    """
    tensors, metadata = open_tensors(path)
    if rename is not None:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    return filled(path, tensors, into), metadata


def filled(path, found, into=None):
    """The arrays `found` in the file `path`, copied into those of `into` or into new ones. Errors as `check_match`."""
    if into is None:
        return {name: np.array(tensor) for name, tensor in found.items()}
    check_match(path, found, into)
    for name, array in into.items():
        put(array, found[name])
    return into


def check_match(path, found, wanted):
    """UserError if the arrays `found` in the file and `wanted` differ in a name, a shape or a type."""
    remedy = "restore the settings that it was saved with"
    for name in wanted | found:
        if name not in found:
            raise UserError(f"{path} lacks tensor {name!r}; {remedy}")
        if name not in wanted:
            raise UserError(f"{path} holds the unexpected tensor {name!r}; {remedy}")
        has, needs = found[name], wanted[name]
        if (has.shape, has.dtype) != (needs.shape, needs.dtype):
            raise UserError(
                f"{path} holds tensor {name!r} with shape {has.shape} of {has.dtype}, "
                f"not {needs.shape} of {needs.dtype}; {remedy}"
            )
