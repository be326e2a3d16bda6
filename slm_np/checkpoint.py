"""Checkpoints: a run is a folder that survives kills, full disks and flipped bytes, and holds no code (no pickle).

    run/config.json               what rebuilds the model: `RunConfig`
    run/tokenizer.json            text to tokens (absent for bare token files)
    run/generation_config.json    the run's defaults for sampling
    run/model.safetensors         the best model so far; its metadata name the step and the validation loss
    run/metrics.jsonl             one JSON object a line
    run/checkpoint-<step>/        model.safetensors, optimizer.safetensors, trainer_state.json: what resuming needs

Whatever is written grows under a temporary name, is flushed to disk and only then renamed, so that a name shows the old state or the new
one, never a part. Temporaries are called `<name>.tmp-<process>`, a checkpoint moved aside by one of the same step `<name>.old-<process>`.
Failures to write are a `UserError` that names the path and the cause.
"""
import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, near

FORMAT = 1
DTYPES = {name: np.dtype(code) for name, code in dict(
    F64="<f8", F32="<f4", F16="<f2", I64="<i8", I32="<i4", I16="<i2", I8="i1", U64="<u8", U32="<u4", U16="<u2", U8="u1", BOOL="?").items()}
MEND = "restore it from a copy or use an older checkpoint"


# Atomic writes

@contextlib.contextmanager
def _saving(path):
    """An OSError inside becomes a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); the previous checkpoint is intact, "
                        "so make room or make the folder writable and resume, or choose another --out-dir") from error


def _sync_folder(folder):
    # A rename lasts through a power cut once its folder is on disk. Windows and some network disks cannot flush a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(path, chunks):
    """Replace the file `path` by the concatenated byte `chunks`, or raise OSError and leave it as it was."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _read(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); make it readable or {MEND}") from error


# JSON

def _json(value, **style):
    return json.dumps(value, default=np.generic.item, **style).encode("ascii")  # NumPy's scalars become Python's


def _stamped(document, inside):
    """`document` as JSON, after the dict `inside` it has got the CRC-32 of everything else as its last entry.

    A reader parses the bytes, stamps what it got and compares with the bytes: no change of any byte passes, not even of white space.
    """
    inside.pop("crc32", None)
    inside["crc32"] = f"{zlib.crc32(_json(document, separators=(',', ':'))):08x}"
    return _json(document, separators=(",", ":"))


def write_json(path, fields):
    """Write the dict `fields` as readable JSON, atomically. UserError if the disk refuses."""
    with _saving(path):
        _write(Path(path), [_json(fields, indent=2), b"\n"])


def read_json(path):
    """The dict in the JSON file `path`. UserError if it is missing, unreadable, broken or not an object."""
    try:
        fields = json.loads(_read(Path(path)))
        if not isinstance(fields, dict):
            raise ValueError("it is no object in braces")
        return fields
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken JSON ({error}); mend it by hand or {MEND}") from None


# Tensors

def _bytes(array):
    return array.reshape(-1).view(np.uint8)


def _header(tensors, metadata):
    """Length (8 bytes, little-endian), then JSON padded with spaces to a multiple of 8, so that the data after it are aligned."""
    text = _stamped({"__metadata__": metadata, **tensors}, metadata)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensors(path, tensors, metadata):
    # np.asarray, as np.ascontiguousarray would turn shape () into (1,). The widest types come first: each tensor stays aligned.
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    arrays = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    codes, entries, begin = {dtype: code for code, dtype in DTYPES.items()}, {}, 0
    for name, array in arrays.items():
        assert array.flags.c_contiguous, name
        if array.dtype not in codes:
            raise TypeError(f"tensor {name!r} of type {array.dtype} cannot be stored")
        entries[name] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    sums = {f"crc32 {name}": f"{zlib.crc32(_bytes(array)):08x}" for name, array in arrays.items()}
    metadata = {"format": "pt"} | {key: str(value) for key, value in metadata.items()} | sums
    _write(path, [_header(entries, metadata), *map(_bytes, arrays.values())])


def save_tensors(path, tensors, metadata):
    """Write {name: array} as a safetensors file with checksums, atomically: the one writer of such files.

    path      replaced only by a whole new file
    tensors   arrays of any shape, stride and byte order; stored C-contiguous and little-endian
    metadata  {key: value}; values are stored as strings
    Format: https://github.com/huggingface/safetensors, with the CRC-32 of each tensor and of the header among the metadata. The file is
    written here and not by that library because its numpy writer takes strided arrays for contiguous ones, says nothing of disk errors
    that Python could act on, and cannot flush.
    Raises UserError if the disk refuses (the old file stays), TypeError for types without a code in `DTYPES`.
    """
    with _saving(path):
        _write_tensors(Path(path), tensors, metadata)


def load_tensors(path, expected=None, into=None, dtype="float32"):
    """Read a file of `save_tensors` and verify every byte of it. Returns ({name: array}, metadata as strings).

    expected  {name: shape} that the file must hold, no more and no less, all of type `dtype`
    into      {name: C-contiguous array} to fill instead of new ones (views of a flat buffer, say); names, shapes and types must agree.
              On an error they may be partly filled.
    Raises UserError, naming the file and the tensor, if it is missing, cut short, changed in any byte, written by another program or
    does not hold what is expected.
    """
    try:
        with open(path, "rb") as file:
            return _load_tensors(path, file, os.fstat(file.fileno()).st_size, expected, into, np.dtype(dtype))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); make it readable or {MEND}") from error


def _load_tensors(path, file, size, expected, into, dtype):
    length = int.from_bytes(start := file.read(8), "little")
    if size < 8 or length > size - 8:
        raise UserError(f"{path} is cut short or no safetensors file ({size} bytes); {MEND}")
    start += file.read(length)
    try:
        header = json.loads(start[8:].decode("utf-8"))
        metadata = header.pop("__metadata__", {})
        ours = "crc32" in metadata
        intact = ours and _header(header, metadata) == start
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} has a damaged header or is no safetensors file; {MEND}") from None
    if not ours:
        raise UserError(f"{path} was not written by slm_np, it carries no checksums; name a file of one of its runs")
    if not intact:
        raise UserError(f"{path} has a damaged header, its checksum differs; {MEND}")

    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path} holds tensor {name!r} of type {entry['dtype']}, which this version cannot read; upgrade slm_np")
    if (whole := len(start) + sum(math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize for entry in header.values())) != size:
        raise UserError(f"{path} has {size} bytes where its header promises {whole}; {MEND}")
    if into is not None:
        wanted = {name: (array.shape, array.dtype) for name, array in into.items()}
    elif expected is not None:
        wanted = {name: (tuple(shape), dtype) for name, shape in expected.items()}
    else:
        wanted = {name: (tuple(entry["shape"]), DTYPES[entry["dtype"]]) for name, entry in header.items()}
    for name in [*wanted, *header]:
        if name not in header or name not in wanted:
            raise UserError(f"{path} {'lacks' if name in wanted else 'holds the unexpected'} tensor {name!r}; "
                            "use the config.json that it was saved with")
        shape, kind = tuple(header[name]["shape"]), DTYPES[header[name]["dtype"]]
        if (shape, kind) != wanted[name]:
            raise UserError(f"{path} holds tensor {name!r} with shape {shape} of {kind.name}, not {wanted[name][0]} of {wanted[name][1].name}; "
                            "use the config.json that it was saved with")

    tensors = {}
    for name, entry in header.items():
        array = np.empty(entry["shape"], DTYPES[entry["dtype"]]) if into is None else into[name]
        if not array.flags.c_contiguous:
            raise ValueError(f"the array to fill with tensor {name!r} is not C-contiguous")
        if file.readinto(_bytes(array)) != array.nbytes or f"{zlib.crc32(_bytes(array)):08x}" != metadata[f"crc32 {name}"]:
            raise UserError(f"{path} is damaged in tensor {name!r}, its checksum differs; {MEND}")
        tensors[name] = array
    return tensors, {key: value for key, value in metadata.items() if key != "format" and not key.startswith("crc32")}


# Checkpoints to resume from

@dataclass(frozen=True)
class Checkpoint:
    """A training state after `step` updates: {name: array} of the model and of the optimizer's moments, and the trainer's `state`."""
    path: Path
    step: int
    model: dict
    optimizer: dict
    state: dict


def save_checkpoint(run_dir, step, model_tensors, optimizer_tensors, state, keep=2):
    """Write `run_dir/checkpoint-<step>/`, then remove all but it and the `keep - 1` before it.

    state  anything JSON can hold that resuming needs: counters, random state, data cursor
    Later checkpoints go as well: whoever saves `step` resumed before them, because they were damaged. At no moment would a kill leave the
    run without a loadable checkpoint, if it had one. Raises UserError if the disk refuses; the earlier checkpoints still load then.
    """
    run = Path(run_dir)
    final = run / f"checkpoint-{step}"
    temporary, aside = (run / f"{final.name}.{kind}-{os.getpid()}" for kind in ("tmp", "old"))
    with _saving(final):
        _sweep(run, "tmp")  # first, as what a kill has left may be the room that is needed
        try:
            _write_tensors(temporary / "model.safetensors", model_tensors, {"step": step})
            _write_tensors(temporary / "optimizer.safetensors", optimizer_tensors, {"step": step})
            state = {**state, "step": step}
            _write(temporary / "trainer_state.json", [_stamped(state, state)])
            if final.exists():  # a folder cannot replace another in one call; until the second rename, `newest_checkpoint` finds it aside
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(final, aside)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(run)
    # What cannot be removed now costs only room, and the next save tries again.
    places = [path for _, in_place, path in _checkpoints(run) if in_place]
    latest = places.index(final)
    for path in places[:latest] + places[latest + keep:]:
        shutil.rmtree(path, ignore_errors=True)
    _sweep(run, "old")


def _checkpoints(run):
    """[(step, not moved aside, path)], newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)(\.old-\d+)?", path.name, re.ASCII), path) for path in run.iterdir()]
    return sorted(((int(match[1]), match[2] is None, path) for match, path in found if match), reverse=True)


def _sweep(run, kind):
    with contextlib.suppress(OSError):
        for path in run.iterdir():
            if re.fullmatch(rf".+\.{kind}-\d+", path.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def load_checkpoint(path, model=None, optimizer=None):
    """The `Checkpoint` in the folder `path`, every byte verified. `model`, `optimizer`: {name: array} to fill, as `into` of `load_tensors`.

    Raises UserError if a file is missing or damaged, or if the files are of different steps.
    """
    raw = _read(file := Path(path) / "trainer_state.json")
    try:
        state = json.loads(raw.decode("utf-8"))
        intact = _stamped(state, state) == raw
    except (ValueError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{file} is damaged, its checksum differs; {MEND}")
    del state["crc32"]
    parts = []
    for name, into in (("model", model), ("optimizer", optimizer)):
        tensors, metadata = load_tensors(file := Path(path) / f"{name}.safetensors", into=into)
        if metadata.get("step") != str(state["step"]):
            raise UserError(f"{file} is of step {metadata.get('step')}, trainer_state.json beside it of {state['step']}; {MEND}")
        parts.append(tensors)
    return Checkpoint(Path(path), state["step"], *parts, state)


def newest_checkpoint(run_dir, model=None, optimizer=None):
    """The newest valid `Checkpoint` of a run; damaged ones are passed over with a line on stderr. UserError if there is none.

    `model` and `optimizer` as in `load_checkpoint`.
    """
    try:
        reason, found = "none has been saved there", _checkpoints(Path(run_dir))
    except OSError as error:
        reason, found = error.strerror or error, []
    for _, _, path in found:
        try:
            return load_checkpoint(path, model, optimizer)
        except UserError as error:
            reason = str(error)
            print(f"slm_np: passing over a checkpoint: {reason}", file=sys.stderr)
    raise UserError(f"no checkpoint to resume from in {run_dir} ({reason}); name a run that has one, or train a new one")


# The best model

def save_best(run_dir, tensors, metadata):
    """Replace the run's best model. metadata: step and val_loss at least. UserError if the disk refuses; the old one stays."""
    save_tensors(Path(run_dir) / "model.safetensors", tensors, metadata)


def load_best(run_dir, expected=None, into=None):
    """(tensors, metadata) of the run's best model; arguments and errors as in `load_tensors`."""
    path = Path(run_dir) / "model.safetensors"
    if not os.path.exists(path):
        raise UserError(f"{run_dir} holds no model.safetensors yet; train it until its first evaluation, or name another run")
    return load_tensors(path, expected, into)


# The run's settings

@dataclass(frozen=True)
class RunConfig:
    """What config.json holds. data: {"fingerprint": ..., "source": ...} of the training tokens."""
    model: ModelConfig
    train: TrainConfig
    preset: str = ""
    data: dict = dataclasses.field(default_factory=dict)


def write_config(run_dir, config):
    """Write the `RunConfig` as run_dir/config.json, atomically. UserError if the disk refuses."""
    write_json(Path(run_dir) / "config.json", {"model_type": "slm_np", "format": FORMAT, **dataclasses.asdict(config)})


def read_config(run_dir):
    """The `RunConfig` of a run. UserError if `run_dir` is no run of ours or a newer one, or if its config.json is broken or has unknown fields."""
    path = Path(run_dir) / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"config.json missing: {run_dir} is not a run of slm_np; name a folder that `--out-dir` made")
    fields = read_json(path)
    kind, version = fields.pop("model_type", None), fields.pop("format", None)
    if kind != "slm_np" or type(version) is not int:
        raise UserError(f"{path} has model_type {kind!r} and format {version!r}, so {run_dir} is not a run of slm_np; name one that is")
    if version > FORMAT:
        raise UserError(f"{path} is of format {version}, this version reads up to {FORMAT}; upgrade slm_np")
    for name, kind in dict(model=dict, train=dict, preset=str, data=dict).items():
        if not isinstance(fields.get(name), kind):
            raise UserError(f"{path} has {fields.get(name)!r} for {name!r}; it must be {'a string' if kind is str else 'an object in braces'}")

    def build(kind, given):
        known = [field.name for field in dataclasses.fields(kind)]
        for name in given:
            if name not in known:
                raise UserError(f"{path} has the unknown field {name!r}; remove it or upgrade slm_np ({near(name, known)})")
        try:
            return kind(**given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    fields["model"], fields["train"] = build(ModelConfig, fields["model"]), build(TrainConfig, fields["train"])
    return build(RunConfig, fields)


# Metrics

def append_metrics(run_dir, row):
    """Add the dict `row` as a line to metrics.jsonl, flushed to the OS. UserError if the disk refuses."""
    path = Path(run_dir) / "metrics.jsonl"
    with _saving(path), open(path, "ab") as file:
        file.write(_json(row) + b"\n")


def read_metrics(run_dir):
    """The rows of metrics.jsonl as dicts, [] without the file. Lines that a kill tore are left out."""
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in _read(path).split(b"\n") if os.path.exists(path) else []:
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line.decode("utf-8")), dict):
                rows.append(row)
    return rows


def trim_metrics(run_dir, step):
    """Drop torn lines and rows of steps after `step` from metrics.jsonl, atomically: call it on resuming from `step`."""
    path = Path(run_dir) / "metrics.jsonl"
    if os.path.exists(path):
        with _saving(path):
            _write(path, [b"".join(_json(row) + b"\n" for row in read_metrics(run_dir) if row.get("step", 0) <= step)])
