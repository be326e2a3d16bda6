"""Checkpoints: what a run saves to resume from, and its best model.

The layout of a run's directory, and what verifies each file:

    run/run.json                  the settings, from which the model is rebuilt: `RunConfig`. It makes the directory a
                                  run. It has a checksum of itself, and those of the small files marked with *
    run/model.safetensors         the best model so far; its metadata hold the step and the validation loss, and
                                  checksums of each tensor and of themselves
    run/tokenizer.json *          from text to tokens and back; absent for runs on token files
    run/chat_template.json *      how a conversation becomes text; only if the run trains on conversations
    run/generation_config.json    the run's sampling defaults, with a checksum of themselves
    run/metrics.jsonl             what the run logs, one JSON object per line. Nothing depends on it: no checksum
    run/checkpoint-<step>/        what resuming needs:
        model.safetensors             the weights; verified as the best model
        optimizer.safetensors         both moments of AdamW, spectral vectors, recurrent states; verified likewise
        trainer_state.json            counters, also of evaluations; with a checksum of itself
        tokenizer.json, chat_template.json    copies, to restore those of the run
    run/lock                      exists while a process writes to the run, which holds it locked (directories.py)

The directory is one of Hugging Face's, too: transformers reads the model, tokenizer.json, generation_config.json and
the files that are made for it (interchange.py):

    run/config.json *             the architecture, if a class of transformers computes it. Then model.safetensors has
                                  the names and layouts of that class, otherwise ours (layouts.py)
    run/tokenizer_config.json *   the special tokens and the context length
    run/chat_template.jinja *     the template of chat_template.json

A run survives kills, power cuts, full disks and flipped bytes, and contains no code (no pickle). Whatever is loaded is
verified first. A damaged checkpoint is skipped, a lost or damaged tokenizer.json or chat_template.json is restored from
a checkpoint, files that only transformers reads are made again, and a lost or damaged best model is replaced by the
next evaluation; each time a line on stderr says so. Other damage is refused by the name of the file. To edit run.json
or generation_config.json by hand, remove its line "crc32".

In formats 1 to 3 config.json held what run.json holds, and the best model had our names. In formats 1 and 2 it and
generation_config.json have no checksums, and those of other programs have none either: they are taken as they are. Such
a run becomes one of this format when it is resumed: first its best model is written in the new layout, which is
recognized by its names, then run.json, from which on the old config.json does not count, then the other files.

The best model is only replaced by one of a lower validation loss than the metadata of model.safetensors tell. What
`patience` counts is in trainer_state.json, so a resumed run repeats what it did before.

run.json is written last when a run starts: it makes the directory a run. What changes later is filled under the name
`<name>.tmp-<process>`, flushed to disk and renamed, and then its directory is flushed, so that a name shows the old
content or the new one. The exception is metrics.jsonl, which grows by lines.

A checkpoint has several files, so the same is done to its directory: the files are filled in
`checkpoint-<step>.tmp-<process>`, and `save_checkpoint` renames that to `checkpoint-<step>`, after it has moved an old
checkpoint of the same step to `checkpoint-<step>.old-<process>`. The checkpoint is durable after the flush of `run/`
that follows the renames.

Checkpoints are device-independent: arrays on a GPU are copied to the host to be written, and filled from the file.
Failures to write are a `UserError` that names the path and the cause.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from slm_np.errors import UserError
from slm_np.formats.checksum import with_checksum
from slm_np.formats.files import RESTORE, read_bytes, saving, write_bytes, write_chunks
from slm_np.formats.format1 import tensor_name
from slm_np.formats.layouts import OurLayout
from slm_np.formats.tensors import encode, load_tensors, open_tensors, save_tensors, tensor_names
from slm_np.paths import sync

STATE = "trainer_state.json"
OURS = OurLayout()


@dataclass(frozen=True)
class Checkpoint:
    """A training state after `step` updates.

    model      {name: array} of the weights
    optimizer  {name: array} of the optimizer's moments and the trainer's other tensors
    state      the trainer's counters, as a dict
    """

    path: Path
    step: int
    model: dict
    optimizer: dict
    state: dict


def save_checkpoint(run_dir, step, model_tensors, optimizer_tensors, state, copies=None, keep=2):
    """Write `run_dir/checkpoint-<step>/`, then remove all checkpoints but this one and the `keep - 1` before it.

    state   a dict for JSON with whatever else resuming needs, such as counters
    copies  {name: bytes} of the run's files of which the checkpoint keeps a copy
    Checkpoints of later steps are removed too: they were damaged, or the run would have resumed from them. If the run
    had a valid checkpoint, a kill at any moment leaves it with one. Raises UserError if the checkpoint cannot be
    written; earlier checkpoints are then intact.
    """
    run = Path(run_dir)
    final = run / f"checkpoint-{step}"
    temporary, aside = (run / f"{final.name}.{kind}-{os.getpid()}" for kind in ("tmp", "old"))
    with saving(final):
        _remove_leftovers(run, "tmp")  # first: what a kill has left may take the space that is needed
        try:
            write_chunks(temporary / "model.safetensors", encode(model_tensors, {"step": step}))
            write_chunks(temporary / "optimizer.safetensors", encode(optimizer_tensors, {"step": step}))
            for name, content in (copies or {}).items():
                write_bytes(temporary / name, content)
            write_bytes(temporary / STATE, _encoded(state, step))
            if final.exists():
                # A directory cannot replace another in one call. Until the second rename `newest_checkpoint` finds the
                # old one under its other name.
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(final, aside)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(run)
    # What cannot be removed now only takes space, and the next save tries again.
    paths = [path for _, in_place, path in _checkpoints(run) if in_place]  # newest first
    saved = paths.index(final)
    for path in paths[:saved] + paths[saved + keep :]:
        shutil.rmtree(path, ignore_errors=True)
    _remove_leftovers(run, "old")


def update_state(run_dir, step, state):
    """Replace the counters of the checkpoint of `step`, atomically, after an evaluation at that step."""
    path = Path(run_dir) / f"checkpoint-{step}"
    with saving(path):
        write_bytes(path / STATE, _encoded(state, step))


def _encoded(state, step):
    state = {**state, "step": step}
    return with_checksum(state, state)


def _checkpoints(run):
    """[(step, whether it is in place and not moved aside, path)], newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)(\.old-\d+)?", path.name, re.ASCII), path) for path in run.iterdir()]
    return sorted(((int(match[1]), match[2] is None, path) for match, path in found if match), reverse=True)


def remove_leftovers(run_dir, found):
    """Remove what a kill has left of a run whose newest valid `Checkpoint` is `found`. The lock of the run is held."""
    run = Path(run_dir)
    for place in (run, *(path for _, _, path in _checkpoints(run))):
        _remove_leftovers(place, "tmp")
    if found.path == run / f"checkpoint-{found.step}":  # otherwise it was moved aside, and is still needed
        _remove_leftovers(run, "old")


def _remove_leftovers(run, kind):
    """Remove all files and directories `NAME.KIND-PROCESS` of a run, as far as possible."""
    with contextlib.suppress(OSError):
        for path in run.iterdir():
            if re.fullmatch(rf".+\.{kind}-\d+", path.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def load_checkpoint(path, model=None, optimizer=None):
    """The `Checkpoint` in the directory `path`, every byte verified.

    model, optimizer    {name: array} to fill, as `into` of `load_tensors`
    Raises UserError if a file is missing or damaged, or if the files are of different steps.
    """
    raw = read_bytes(file := Path(path) / STATE)
    try:
        state = json.loads(raw.decode("utf-8"))
        intact = with_checksum(state, state) == raw and type(state["step"]) is int and state["step"] >= 0
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{file} is damaged, its checksum differs; {RESTORE}")
    del state["crc32"]
    loaded = []
    for name, into in (("model", model), ("optimizer", optimizer)):
        tensors, metadata = load_tensors(file := Path(path) / f"{name}.safetensors", into, tensor_name)
        if metadata.get("step") != str(state["step"]):
            raise UserError(
                f"{file} is of step {metadata.get('step')}, but trainer_state.json beside it of step {state['step']}; "
                f"{RESTORE}"
            )
        loaded.append(tensors)
    return Checkpoint(Path(path), state["step"], *loaded, state)


def newest_checkpoint(run_dir, model=None, optimizer=None):
    """The newest valid `Checkpoint` of a run. Damaged ones are skipped, each with a line on stderr.

    `model` and `optimizer` as in `load_checkpoint`. Raises UserError if there is no valid checkpoint.
    """
    try:
        reason, found = "it has saved none", _checkpoints(Path(run_dir))
    except OSError as error:
        reason, found = error.strerror or error, []
    for _, _, path in found:
        try:
            return load_checkpoint(path, model, optimizer)
        except UserError as error:
            reason = str(error)
            print(f"slm_np: skipping a checkpoint: {reason}", file=sys.stderr)
    raise UserError(
        f"no checkpoint to resume from in {run_dir} ({reason}); name a run that has one, or train a new one"
    )


def copies_of(run_dir, name):
    """The copies of the run's file `name` that its checkpoints keep, newest first."""
    with contextlib.suppress(OSError):
        return [file for _, _, path in _checkpoints(Path(run_dir)) if (file := path / name).is_file()]
    return []


def save_best(run_dir, tensors, metadata, layout=OURS, **report):
    """Replace the run's best model, atomically.

    tensors   {our name: array}
    metadata  at least step and val_loss
    layout    how the file holds the tensors, see layouts.py. Here and below, by default under our names
    report    as of `write_chunks`
    Raises UserError if it cannot be written; the old one stays.
    """
    save_tensors(Path(run_dir) / layout.file, layout.to_file(tensors), metadata, **report)


def load_best(run_dir, into=None, layout=OURS):
    """({our name: array}, metadata) of the run's best model. `into` and errors as in `load_tensors`."""
    path = Path(run_dir) / layout.file
    if not os.path.exists(path):
        raise UserError(
            f"{run_dir} holds no {layout.file} yet; train it until its first evaluation, or name another run"
        )
    found, metadata = open_tensors(path)
    return layout.from_file(path, found, into), metadata


def translate_best(run_dir, layout):
    """Write the run's best model in `layout` if its file has another one, as of an earlier version.

    Raises UserError if it is missing or damaged, or cannot be written; the file stays as it was.
    """
    if not layout.holds(tensor_names(Path(run_dir) / layout.file)):
        tensors, metadata = load_best(run_dir, layout=layout)
        save_best(run_dir, tensors, metadata, layout)


def best_loss(run_dir, layout=OURS):
    """(validation loss, step) of the run's best model, which is verified. (inf, -1) if its loss is unknown.

    Raises UserError if it is missing or damaged.
    """
    _, metadata = open_tensors(Path(run_dir) / layout.file)
    try:
        loss, step = float(metadata["val_loss"]), int(metadata["step"])
        return (math.inf, -1) if math.isnan(loss) else (loss, step)
    except (KeyError, ValueError):
        return math.inf, -1
