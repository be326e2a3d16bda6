"""A run on disk: how it is created, saved and resumed. The files are described in slm_np/formats/checkpoint.py."""

import contextlib
import dataclasses
import math
import os
import sys
from pathlib import Path

from slm_np.data.chat_template import DEFAULT
from slm_np.errors import UserError
from slm_np.formats import checkpoint, directories, files, metrics, run_config
from slm_np.formats.checksum import crc32, read_settings, write_settings
from slm_np.formats.generation_config import to_generation_config
from slm_np.formats.interchange import interchange_files, token_ids
from slm_np.formats.layouts import layout_of
from slm_np.formats.runs import own_files, small_files, template_of, tokenizer_of
from slm_np.paths import OLD_RUN, RUN, has_old_settings
from slm_np.presets import generation_defaults
from slm_np.training.callbacks import Callback


def _is_count(value):
    return type(value) is int and value >= 0


def _is_finite(value):
    return type(value) in (int, float) and 0 <= value < math.inf


# The counters of a checkpoint: {name: whether a value is one}, in groups. Of the first all have to be there. A run of
# another precision lacks the second, one of version 0.3 or before the third.
COUNTERS = (
    dict(optimizer_updates=_is_count, bad_steps=_is_count, elapsed=_is_finite),
    dict(scale=_is_finite, good=_is_count),
    dict(best=lambda x: x is None or _is_finite(x), stale=_is_count, evaluated=lambda x: x == -1 or _is_count(x)),
)


def check_counters(found):
    """UserError if the Checkpoint `found` lacks a counter, or has one that is not a number."""
    for group in COUNTERS:
        if group is not COUNTERS[0] and group.keys().isdisjoint(found.state):
            continue
        for name, fits in group.items():
            if not fits(found.state.get(name, "")):
                raise UserError(
                    f"{found.path / checkpoint.STATE} has no {name!r}, or a bad one, so it was not written by slm_np; "
                    f"{files.RESTORE}"
                )


class Storage(Callback):
    """Writes checkpoints, metrics and the best model of a run to its directory `path`.

    `create` or `resume` comes first. UserError if the disk refuses a write; what was saved before stays intact.

    The best model on disk is only ever replaced by one with a lower validation loss, which its own metadata tell. The
    trainer's `best` may be higher after a resume, since it is that of the checkpoint: the updates up to the best model
    are then made again.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.saved = -1  # the step of the newest checkpoint
        self.counters = {}  # that are in it
        self.lowest = math.inf  # validation loss of the best model on disk
        self.files = {}  # {name: bytes} of tokenizer.json and chat_template.json; each checkpoint has a copy
        self.interchange = {}  # {name: bytes} of the files for other programs
        self.layout = None  # of the best model's file

    def create(self, trainer, sampling=None, template=None):
        """Make an empty directory a run: its small files, checkpoint of step 0.

        run.json comes last: a directory without it is not a run.
        sampling: SamplingConfig, by default its preset's.   template: the chat template of the base, if any; a run on
        conversations has the default one otherwise.
        """
        tokenizer, sampling = trainer.corpus.tokenizer, sampling or generation_defaults(trainer.run.preset)
        if trainer.corpus.train.mask is not None:
            template = template or DEFAULT
        self.files = own_files(tokenizer, template)
        self.describe(trainer.run, tokenizer, template)
        for name, content in (self.files | self.interchange).items():
            files.write_file(self.path / name, content)
        write_settings(self.path / "generation_config.json", to_generation_config(sampling, **token_ids(tokenizer)))
        self.on_save(trainer)
        self.write_config(trainer)

    def resume(self, trainer):
        """Bring `trainer` to the state of the newest valid checkpoint. Rows of later steps leave the metrics.

        Raises UserError if there is none.
        """
        run, was_old = run_config.read_config(self.path), not (self.path / RUN).is_file()
        self.files = small_files(self.path, run, trainer.corpus.tokenizer)
        tokenizer = trainer.corpus.tokenizer or tokenizer_of(self.path, run)
        self.describe(trainer.run, tokenizer, template_of(self.path, run))
        found = checkpoint.newest_checkpoint(self.path, trainer.model.parameters.trained, trainer.tensors())
        checkpoint.remove_leftovers(self.path, found)
        if found.path.name == f"checkpoint-{found.step}":
            self.saved, self.counters = found.step, found.state
        check_counters(found)
        trainer.load(found.step, found.state)
        if "evaluated" in found.state:
            metrics.trim_metrics(self.path, found.step, trainer.evaluated)
        else:
            self.count_evaluations(trainer)
        if self.find_best(trainer):
            checkpoint.translate_best(self.path, self.layout)
        if was_old:
            self.add_token_ids(tokenizer)
        self.write_config(trainer)
        self.write_interchange()

    def add_token_ids(self, tokenizer):
        """Add the ids of special tokens to generation_config.json of an older format, unless it is damaged."""
        path = self.path / "generation_config.json"
        try:
            fields = read_settings(path)
        except UserError:
            return
        write_settings(path, token_ids(tokenizer) | fields)

    def describe(self, run, tokenizer, template):
        """Set the layout of the best model and the files for other programs of `run` (RunConfig)."""
        self.layout, self.interchange = layout_of(run), interchange_files(run, tokenizer, template)

    def write_interchange(self):
        """Write the files for other programs that are missing or differ from those on disk."""
        for name, content in self.interchange.items():
            path = self.path / name
            if not path.is_file() or files.read_bytes(path) != content:
                files.write_file(path, content)
        if has_old_settings(self.path):  # of a model that no class of transformers computes
            with files.saving(self.path / OLD_RUN):
                os.unlink(self.path / OLD_RUN)

    def count_evaluations(self, trainer):
        """Set the trainer's counters of evaluations by its metrics, for a checkpoint of version 0.3 or before.

        Where the metrics are lost, the best model tells the lowest loss.
        """
        metrics.trim_metrics(self.path, trainer.updates, trainer.updates)
        for row in metrics.read_metrics(self.path):
            if "val_loss" in row:
                trainer.evaluated = row["step"]
                trainer.improved(math.nan if row["val_loss"] is None else row["val_loss"])  # null: it had diverged
        with contextlib.suppress(UserError):
            lowest, step = checkpoint.best_loss(self.path, self.layout)
            if step < trainer.updates:
                trainer.best = min(trainer.best, lowest)

    def find_best(self, trainer):
        """Find the validation loss of the best model on disk. Returns whether there is one.

        If that model is lost or damaged, a line on stderr says so and the next evaluation saves another one. A run that
        has ended is evaluated once more for that.
        """
        try:
            self.lowest, _ = checkpoint.best_loss(self.path, self.layout)
            return True
        except UserError as error:
            if trainer.best == math.inf and not (self.path / self.layout.file).exists():
                return False  # there was no evaluation yet, or none with a finite loss
            print(f"slm_np: {error}; the next evaluation saves another best model", file=sys.stderr)
            if trainer.evaluated == trainer.updates:
                self.forget_evaluation(trainer)
            return False

    def forget_evaluation(self, trainer):
        """Undo the trainer's last evaluation, which was at this step, so that it is made again."""
        metrics.trim_metrics(self.path, trainer.updates, trainer.updates - 1)
        trainer.evaluated = -1
        if trainer.stale:
            trainer.stale -= 1
        else:
            trainer.best = math.inf  # that loss was the lowest

    def write_config(self, trainer):
        """Write run.json, with the checksums of the run's other files."""
        sums = {name: crc32(content) for name, content in (self.files | self.interchange).items()}
        directories.check_in_place(self.path)
        trainer.run = dataclasses.replace(trainer.run, files=sums)
        run_config.write_config(self.path, trainer.run)

    def on_save(self, trainer):
        """Write checkpoint-STEP, unless it is there.

        `save_checkpoint` makes it durable: all files are written under a temporary name and flushed to disk, then the
        directory is renamed and the rename flushed. When it returns, a crash or a power cut can no longer lose it.
        """
        if self.saved == trainer.updates:
            return
        directories.check_in_place(self.path)
        weights, tensors, counters = trainer.model.parameters.trained, trainer.tensors(), trainer.counters()
        checkpoint.save_checkpoint(self.path, trainer.updates, weights, tensors, counters, self.files)
        self.saved, self.counters = trainer.updates, counters

    def on_fit(self, trainer):
        """Write run.json: whatever happens, the run keeps its number of updates."""
        self.write_config(trainer)

    def on_step(self, trainer):
        self.record_tokens(trainer)

    def record_tokens(self, trainer):
        """Write the numbers of tokens into run.json if they became known, as the corpus is complete now."""
        run, building = trainer.run, trainer.corpus.building
        if building and building.corpus and not run.data["tokens"]:
            tokens = [len(building.corpus.train), len(building.corpus.validation)]
            trainer.run = dataclasses.replace(run, data=run.data | dict(tokens=tokens))
            self.write_config(trainer)

    def on_log(self, trainer, row):
        directories.check_in_place(self.path)
        metrics.append_metrics(self.path, row)

    def on_evaluation(self, trainer, row, improved):
        """Keep the best model and the row; a checkpoint that was saved at this step gets the new counters."""
        directories.check_in_place(self.path)
        if row["val_loss"] < self.lowest:
            metadata = dict(step=row["step"], val_loss=row["val_loss"])
            checkpoint.save_best(self.path, trainer.model.parameters.trained, metadata, self.layout)
            self.lowest = row["val_loss"]
        metrics.append_metrics(self.path, row)
        if self.saved == trainer.updates:
            checkpoint.update_state(self.path, self.saved, self.counters | trainer.evaluation_counters())
