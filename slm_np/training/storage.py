"""A run on disk: how it is created, saved and resumed. The files are described in slm_np/formats/checkpoint.py."""

import dataclasses
import math
from pathlib import Path

from slm_np.data.chat_template import DEFAULT
from slm_np.formats import checkpoint, files, metrics, run_config
from slm_np.formats.generation_config import to_generation_config
from slm_np.presets import generation_defaults
from slm_np.training.callbacks import Callback


class Storage(Callback):
    """Writes checkpoints, metrics and the best model of a run to its directory `path`.

    `create` or `resume` comes first. UserError if the disk refuses a write; what was saved before stays intact.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.saved = -1  # the step of the newest checkpoint

    def create(self, trainer, sampling=None, template=None):
        """Make an empty directory a run: tokenizer, generation defaults, chat template, checkpoint of step 0.

        config.json comes last: a directory without it is not a run.
        sampling: SamplingConfig, by default its preset's.   template: ChatTemplate of the base, if any; a run on
        conversations keeps the one of its data instead.
        """
        tokenizer, sampling = trainer.corpus.tokenizer, sampling or generation_defaults(trainer.run.preset)
        if tokenizer is not None:
            tokenizer.save(self.path / "tokenizer.json")
        files.write_json(self.path / "generation_config.json", to_generation_config(sampling))
        if trainer.corpus.train.mask is not None:
            template = DEFAULT
        if template is not None:
            template.save(self.path)
        self.on_save(trainer)
        run_config.write_config(self.path, trainer.run)

    def resume(self, trainer):
        """Bring `trainer` to the state of the newest valid checkpoint. Rows of later steps leave the metrics.

        Raises UserError if there is none.
        """
        found = checkpoint.newest_checkpoint(self.path, trainer.model.parameters.weight, trainer.tensors())
        self.saved = found.step
        trainer.load(found.step, found.state)
        metrics.trim_metrics(self.path, found.step)
        for row in metrics.read_metrics(self.path):
            if "val_loss" in row:
                trainer.evaluated = row["step"]
                trainer.improved(math.nan if row["val_loss"] is None else row["val_loss"])  # null: it had diverged
        run_config.write_config(self.path, trainer.run)

    def on_save(self, trainer):
        """Write checkpoint-STEP, unless it is there.

        `save_checkpoint` makes it durable: all files are written under a temporary name and flushed to disk, then the
        directory is renamed and the rename flushed. When it returns, a crash or a power cut can no longer lose it.
        """
        if self.saved == trainer.updates:
            return
        weights, tensors, counters = trainer.model.parameters.weight, trainer.tensors(), trainer.counters()
        checkpoint.save_checkpoint(self.path, trainer.updates, weights, tensors, counters)
        self.saved = trainer.updates

    def on_fit(self, trainer):
        """Write config.json: whatever happens, the run keeps its number of updates."""
        run_config.write_config(self.path, trainer.run)

    def on_step(self, trainer):
        self.record_tokens(trainer)

    def record_tokens(self, trainer):
        """Write the numbers of tokens into config.json if they became known, as the corpus is complete now."""
        run, building = trainer.run, trainer.corpus.building
        if building and building.corpus and not run.data["tokens"]:
            tokens = [len(building.corpus.train), len(building.corpus.validation)]
            trainer.run = dataclasses.replace(run, data=run.data | dict(tokens=tokens))
            run_config.write_config(self.path, trainer.run)

    def on_log(self, trainer, row):
        metrics.append_metrics(self.path, row)

    def on_evaluation(self, trainer, row, improved):
        if improved:
            metadata = dict(step=row["step"], val_loss=row["val_loss"])
            checkpoint.save_best(self.path, trainer.model.parameters.weight, metadata)
        metrics.append_metrics(self.path, row)
