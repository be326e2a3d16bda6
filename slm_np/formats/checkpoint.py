"""Checkpoints: a run is a folder that survives kills, full disks and flipped bytes, and holds no code (no pickle).

    run/config.json               what rebuilds the model: `RunConfig`
    run/tokenizer.json            text to tokens (absent for bare token files)
    run/generation_config.json    the run's defaults for sampling
    run/model.safetensors         the best model so far; its metadata name the step and the validation loss
    run/metrics.jsonl             one JSON object a line
    run/checkpoint-<step>/        model.safetensors, optimizer.safetensors, trainer_state.json: what resuming needs

Whatever is written grows under a temporary name, is flushed to disk and only then renamed, so that a name shows the old state or the new
one, never a part. Arrays of a GPU are written from copies and filled from the file: a checkpoint knows no device. Temporaries are called `<name>.tmp-<process>`, a checkpoint moved aside by one of the same step `<name>.old-<process>`.
Failures to write are a `UserError` that names the path and the cause.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, near
from slm_np.ops.device import host, put

FORMAT = 1
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
MEND = "restore it from a copy or use an older checkpoint"


# Atomic writes


@contextlib.contextmanager
def _saving(path):
    """An OSError inside becomes a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); the previous checkpoint is intact, "
            "so make room or make the folder writable and resume, or choose another --out-dir"
        ) from error


def _sync_folder(folder):
    # A rename lasts through a power cut once its folder is on disk. Windows and some network disks cannot flush a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(path, *chunks):
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
        return Path(path).read_bytes()
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
        _write(Path(path), _json(fields, indent=2), b"\n")


def read_json(path):
    """The dict in the JSON file `path`. UserError if it is missing, unreadable, broken or not an object."""
    try:
        fields = json.loads(_read(path))
        if not isinstance(fields, dict):
            raise ValueError("it is no object in braces")
        return fields
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken JSON ({error}); mend it by hand or {MEND}") from None


# Tensors


def _header(entries, metadata):
    """A safetensors file up to its data: length (8 bytes, little-endian), then stamped JSON, padded so that the data are aligned."""
    text = _stamped({"__metadata__": metadata, **entries}, metadata)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _split(raw):
    """(entries, metadata, length of the header) of the safetensors file whose bytes (n,) are `raw`."""
    end = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    entries = json.loads(raw[8:end].tobytes())
    return entries, entries.pop("__metadata__", None) or {}, end


def _encode(tensors, metadata):
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
    with _saving(path):
        _write(Path(path), *_encode(tensors, metadata))


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
            _write(temporary / "model.safetensors", *_encode(model_tensors, {"step": step}))
            _write(temporary / "optimizer.safetensors", *_encode(optimizer_tensors, {"step": step}))
            state = {**state, "step": step}
            _write(temporary / "trainer_state.json", _stamped(state, state))
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
    for path in places[:latest] + places[latest + keep :]:
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
            raise UserError(
                f"{file} is of step {metadata.get('step')}, trainer_state.json beside it of {state['step']}; {MEND}"
            )
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
    raise UserError(
        f"no checkpoint to resume from in {run_dir} ({reason}); name a run that has one, or train a new one"
    )


# The best model


def save_best(run_dir, tensors, metadata):
    """Replace the run's best model. metadata: step and val_loss at least. UserError if the disk refuses; the old one stays."""
    save_tensors(Path(run_dir) / "model.safetensors", tensors, metadata)


def load_best(run_dir, into=None):
    """(tensors, metadata) of the run's best model; `into` and errors as of `load_tensors`."""
    path = Path(run_dir) / "model.safetensors"
    if not os.path.exists(path):
        raise UserError(
            f"{run_dir} holds no model.safetensors yet; train it until its first evaluation, or name another run"
        )
    return load_tensors(path, into)


# The run's settings


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds. data: {"fingerprint": ..., "source": ...} of the training tokens. base: of a finetuned run, what it started from."""

    model: ModelConfig
    train: TrainConfig
    preset: str = ""
    data: dict = dataclasses.field(default_factory=dict)
    base: dict = dataclasses.field(default_factory=dict)


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
        raise UserError(
            f"{path} has model_type {kind!r} and format {version!r}, so {run_dir} is not a run of slm_np; name one that is"
        )
    if version > FORMAT:
        raise UserError(f"{path} is of format {version}, this version reads up to {FORMAT}; upgrade slm_np")
    fields.setdefault("base", {})
    for name, kind in dict(model=dict, train=dict, preset=str, data=dict, base=dict).items():
        if not isinstance(fields.get(name), kind):
            raise UserError(
                f"{path} has {fields.get(name)!r} for {name!r}; it must be {'a string' if kind is str else 'an object in braces'}"
            )

    def build(kind, given):
        known = [field.name for field in dataclasses.fields(kind)]
        for name in given:
            if name not in known:
                raise UserError(
                    f"{path} has the unknown field {name!r}; remove it or upgrade slm_np ({near(name, known)})"
                )
        try:
            return kind(**given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    fields["model"], fields["train"] = build(ModelConfig, fields["model"]), build(TrainConfig, fields["train"])
    return build(RunConfig, fields)


# Metrics


def _line(row):
    """`row` as a line of strict JSON, which has no NaN and no infinity: they become null."""
    return _json(json.loads(_json(row), parse_constant=lambda constant: None)) + b"\n"


def append_metrics(run_dir, row):
    """Add the dict `row` as a line to metrics.jsonl, flushed to the OS; NaN and infinity become null. UserError if the disk refuses."""
    path = Path(run_dir) / "metrics.jsonl"
    with _saving(path), open(path, "ab") as file:
        file.write(_line(row))


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
            _write(path, b"".join(_line(row) for row in read_metrics(run_dir) if row.get("step", 0) <= step))
