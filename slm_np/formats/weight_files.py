"""The weights of other programs: safetensors files, perhaps in shards, read and written one tensor at a time.

Unlike tensors.py, which reads the files of runs, this knows no checksums: a file is checked for being complete.
"""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from slm_np.arguments import shown
from slm_np.dtypes import bf16_to_f32, f32_to_bf16
from slm_np.errors import UserError, fault_in
from slm_np.formats.files import read_json

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of a file's tensors at most, unless a single one is larger
AGAIN = "copy it again from its source"  # the end of the messages about damaged files
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Types that are read: bytes of an element, and their type in NumPy. bfloat16 has none.
READ = dict(F64=np.dtype("<f8"), F32=np.dtype("<f4"), F16=np.dtype("<f2"), BF16=np.dtype("<u2"))
# Types that are written: the name in config.json, the name in the file, bytes of an element.
WRITTEN = dict(f32=("float32", "F32", 4), f16=("float16", "F16", 2), bf16=("bfloat16", "BF16", 2))


class WeightFile:
    """A safetensors file, memory-mapped. Raises UserError if it is missing, truncated or not one."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            with open(path, "rb"), safe_open(path, "np"):  # the library detects truncated and inconsistent files
                self._raw = np.memmap(path, np.uint8, "r")
            self._start = 8 + int.from_bytes(self._raw[:8].tobytes(), "little")
            self._entries = json.loads(self._raw[8 : self._start].tobytes())
            self._entries.pop("__metadata__", None)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
        except (SafetensorError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is cut short or not a safetensors file ({fault_in(error)}); {AGAIN}") from None

    @property
    def names(self):
        return self._entries.keys()

    def shape(self, name):
        return tuple(self._entries[name]["shape"])

    def kind(self, name):
        """The type of a tensor as the file names it: F32, BF16, ..."""
        return self._entries[name]["dtype"]

    def size(self, name):
        """Elements of a tensor."""
        return math.prod(self.shape(name))

    def read(self, name):
        """A tensor in float32, float16 or float64. UserError for other types, and for NaN and infinite values."""
        entry = self._entries[name]
        kind, (start, stop) = entry["dtype"], entry["data_offsets"]
        if kind not in READ:
            raise UserError(
                f"{self.path} holds tensor {name!r} of type {kind}, and only {', '.join(READ)} are supported; "
                "choose a model that is not quantized"
            )
        values = self._raw[self._start + start : self._start + stop].view(READ[kind])
        array = bf16_to_f32(values) if kind == "BF16" else values
        if not np.isfinite(array).all():
            raise UserError(f"{self.path} holds NaN or infinite values in tensor {name!r}; {AGAIN}")
        return array.reshape(entry["shape"])


def open_weights(directory, stem="model"):
    """{tensor: its WeightFile} of a directory: of STEM.safetensors, or of the shards that its index names.

    Raises UserError if it has none, or one of them is damaged, missing or not what the index says.
    """
    directory = Path(directory)
    if os.path.lexists(directory / FILE):
        file = WeightFile(directory / FILE)
        return dict.fromkeys(file.names, file)
    if not os.path.lexists(directory / INDEX):
        raise _no_weights(directory)
    index = directory / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(one, str) for one in places.values()):
        raise UserError(f"{index} has {shown(places)} for 'weight_map'; it must be an object of file names; {AGAIN}")
    files = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or name in (".", "..") or "\\" in name:
            raise UserError(f"{index} names {name!r}, which is not a file beside it; {AGAIN}")
        if not os.path.isfile(directory / name):  # not of pathlib, which raises for a name that is too long
            raise UserError(f"{index} names {name}, which is missing; copy all its shards from their source")
        files[name] = WeightFile(directory / name)
    for tensor, name in places.items():
        if tensor not in files[name].names:
            raise UserError(f"{index} says that {name} holds {tensor!r}, but it does not; {AGAIN}")
    return {tensor: files[name] for tensor, name in places.items()}


def _no_weights(directory):
    """The UserError for a directory without safetensors files."""
    pickled = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickled:
        return UserError(
            f"{directory / pickled[0]} is a pickle, which may run any code, so it is not read; convert it in Python: "
            f"transformers.AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained('NEW')"
        )
    return UserError(f"{directory} has settings but no {FILE}; copy that file from where the settings come from")


def write_weights(directory, layout, tensors, dtype, report=lambda n: None, file=FILE):
    """Write tensors into the directory: model.safetensors or, above SHARD_BYTES, shards and their index.

    layout   {name: shape} of all tensors
    tensors  iterable of (name, array) in any order
    dtype    of the file: a key of WRITTEN
    report   function (n), called when n more bytes are written
    file     name of a single file
    Raises UserError for values that the type cannot hold. The directory is the caller's to remove then.
    """
    _, _, itemsize = WRITTEN[dtype]
    shards = _shards({name: itemsize * math.prod(shape) for name, shape in layout.items()})
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [file]
    with contextlib.ExitStack() as stack:
        places = {}  # {tensor: (open file, offset)}
        for name, shard in zip(names, shards):
            out = stack.enter_context(open(directory / name, "wb"))
            header, offsets = _header({tensor: layout[tensor] for tensor in shard}, dtype)
            out.write(header)
            places |= {tensor: (out, len(header) + offset) for tensor, offset in offsets.items()}
        for tensor, array in tensors:
            out, offset = places.pop(tensor)
            out.seek(offset)
            report(out.write(memoryview(cast(tensor, array, dtype)).cast("B")))
    assert not places, f"tensors without values: {sorted(places)}"
    if len(shards) > 1:
        total = sum(itemsize * math.prod(shape) for shape in layout.values())
        index = dict(
            metadata=dict(total_size=total),
            weight_map={tensor: name for name, shard in zip(names, shards) for tensor in shard},
        )
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def cast(name, array, dtype):
    """An array as the file holds it: contiguous and little-endian. UserError for values beyond float16."""
    if dtype == "bf16":
        return np.ascontiguousarray(f32_to_bf16(array), "<u2")
    if dtype == "f32":
        return np.ascontiguousarray(array, "<f4")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, "<f2")
    if np.isinf(found).any():
        raise UserError(f"tensor {name!r} has values beyond 65,504, the largest of float16; use --dtype bf16 or f32")
    return found


def _shards(sizes):
    """Lists of names, in order, with up to SHARD_BYTES in each. sizes: {name: bytes}"""
    shards, room = [[]], SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _header(shapes, dtype):
    """(bytes of a file up to its data, {name: offset in the data}). shapes: {name: shape}"""
    _, kind, itemsize = WRITTEN[dtype]
    entries, offsets, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for name, shape in shapes.items():
        offsets[name], end = end, end + itemsize * math.prod(shape)
        entries[name] = dict(dtype=kind, shape=list(shape), data_offsets=[offsets[name], end])
    text = json.dumps(entries).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
