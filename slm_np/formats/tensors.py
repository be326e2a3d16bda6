"""Safetensors files with checksums."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from slm_np.errors import UserError
from slm_np.formats.files import MEND, saving, stamped, write_bytes
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


def _header(entries, metadata):
    """A safetensors file up to its data: length (8 bytes, little-endian), then stamped JSON, padded so that the data are aligned."""
    text = stamped({"__metadata__": metadata, **entries}, metadata)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _split(raw):
    """(entries, metadata, length of the header) of the safetensors file whose bytes (n,) are `raw`."""
    end = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    entries = json.loads(raw[8:end].tobytes())
    return entries, entries.pop("__metadata__", None) or {}, end


def encode(tensors, metadata):
    """The chunks of a safetensors file: its header and each tensor's memory, copied only if it is not contiguous and little-endian."""
    arrays = {
        name: np.asarray(host(tensor), tensor.dtype.newbyteorder("<"), order="C") for name, tensor in tensors.items()
    }
    entries, end = {}, 0
    for name in sorted(
        arrays, key=lambda name: (-arrays[name].itemsize, name)
    ):  # the library's order: all is aligned, and the same tensors give the same bytes
        array = arrays[name]
        if array.dtype.name not in DTYPES:
            raise SafetensorError(f"dtype {array.dtype} of tensor {name!r} is not one of the format's")
        entries[name] = dict(
            dtype=DTYPES[array.dtype.name], shape=list(array.shape), data_offsets=[end, end + array.nbytes]
        )
        end += array.nbytes
    chunks = {name: arrays[name].reshape(-1).view(np.uint8) for name in entries}
    sums = {f"crc32 {name}": f"{zlib.crc32(array):08x}" for name, array in chunks.items()}
    return [
        _header(entries, {"format": "pt"} | {key: str(value) for key, value in metadata.items()} | sums),
        *chunks.values(),
    ]


def _decode(path):
    """(tensors, metadata) of a file of `_encode`, every byte verified. The tensors are views of the file, which is mapped, not read into memory."""
    try:
        with open(path, "rb"), safe_open(path, "np"):  # the library finds what is cut short or contradicts itself
            raw = np.memmap(path, np.uint8, "r")
        entries, metadata, end = _split(raw)
        tensors = {
            name: raw[end:][slice(*entry["data_offsets"])].view(_dtype(entry["dtype"])).reshape(entry["shape"])
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); make it readable or {MEND}") from error
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that NumPy lacks
        raise UserError(
            f"{path} is cut short, damaged or no safetensors file that this version can read ({error}); {MEND}"
        ) from None
    if "crc32" not in metadata:
        raise UserError(f"{path} was not written by slm_np, it carries no checksums; name a file of one of its runs")
    if _header(entries, metadata) != raw[:end].tobytes():
        raise UserError(f"{path} has a damaged header, its checksum differs; {MEND}")
    for name, tensor in tensors.items():
        if f"{zlib.crc32(tensor):08x}" != metadata.get(f"crc32 {name}"):
            raise UserError(f"{path} is damaged in tensor {name!r}, its checksum differs; {MEND}")
    return tensors, {key: value for key, value in metadata.items() if key != "format" and not key.startswith("crc32")}


def _dtype(name):
    """The little-endian NumPy type that the format calls `name`. KeyError if there is none."""
    return np.dtype({code: numpys for numpys, code in DTYPES.items()}[name]).newbyteorder("<")


def save_tensors(path, tensors, metadata):
    """Write {name: array} as a safetensors file with checksums, atomically.

    path      replaced only by a whole new file
    tensors   arrays of any shape, stride, byte order and device; stored C-contiguous and little-endian
    metadata  {key: value}; values are stored as strings
    Format: https://github.com/huggingface/safetensors, with the CRC-32 of each tensor and of the header among the metadata.
    Raises UserError if the disk refuses (the old file stays), SafetensorError for types that the format lacks.
    """
    with saving(path):
        write_bytes(Path(path), *encode(tensors, metadata))


def load_tensors(path, into=None):
    """Read a file of `save_tensors` and verify every byte of it. Returns ({name: array}, metadata as strings).

    into  {name: array} to fill instead of new ones (views of a flat buffer, say), of any device; names, shapes and types must agree
    Raises UserError, naming the file and the tensor, if it is missing, cut short, changed in any byte, written by another program or
    does not hold what `into` wants, which is then as it was.
    """
    tensors, metadata = _decode(path)
    found = wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if into is not None:
        wanted = {name: (array.shape, array.dtype) for name, array in into.items()}
    for name in wanted | found:
        if name not in found or name not in wanted:
            raise UserError(
                f"{path} {'lacks' if name in wanted else 'holds the unexpected'} tensor {name!r}; "
                "use the config.json that it was saved with"
            )
        if found[name] != wanted[name]:
            (shape, kind), (other_shape, other_kind) = found[name], wanted[name]
            raise UserError(
                f"{path} holds tensor {name!r} with shape {shape} of {kind}, not {other_shape} of {other_kind}; "
                "use the config.json that it was saved with"
            )
    if into is None:
        return {name: np.array(tensor) for name, tensor in tensors.items()}, metadata
    for name, array in into.items():
        put(array, tensors[name])
    return into, metadata
