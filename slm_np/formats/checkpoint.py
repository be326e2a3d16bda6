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
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from slm_np.errors import UserError
from slm_np.formats.files import MEND, read_bytes, saving, stamped, sync_folder, write_bytes
from slm_np.formats.tensors import encode, load_tensors, save_tensors


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
    with saving(final):
        _sweep(run, "tmp")  # first, as what a kill has left may be the room that is needed
        try:
            write_bytes(temporary / "model.safetensors", *encode(model_tensors, {"step": step}))
            write_bytes(temporary / "optimizer.safetensors", *encode(optimizer_tensors, {"step": step}))
            state = {**state, "step": step}
            write_bytes(temporary / "trainer_state.json", stamped(state, state))
            if final.exists():  # a folder cannot replace another in one call; until the second rename, `newest_checkpoint` finds it aside
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(final, aside)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(run)
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
    raw = read_bytes(file := Path(path) / "trainer_state.json")
    try:
        state = json.loads(raw.decode("utf-8"))
        intact = stamped(state, state) == raw
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
