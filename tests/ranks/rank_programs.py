"""Programs that tests start in several ranks by mpiexec: `python rank_programs.py NAME WORDS`.

Each is a function of the flags for `slm_np.train`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from slm_np import train
from slm_np.cli import launch
from slm_np.ranks.current import world
from slm_np.training import trainer as trainer_module


class Counted(trainer_module.Trainer):
    """A Trainer that writes what this process computed and sent in its updates to `counts-RANK.json`."""

    def train(self):
        calls, step, gradient = [], self.step, self.model.loss_and_gradient
        begun, folder = [], Path(os.environ["COUNTS"])

        def counted(tokens, *others):
            calls.append(tokens.tolist())
            return gradient(tokens, *others)

        def measured():
            sent = self.world.sent
            result = step()
            begun.append(self.world.sent - sent)
            return result

        self.step, self.model.loss_and_gradient = measured, counted
        super().train()
        found = dict(calls=calls, sent=begun, parameters=len(self.model.parameters.gradients), updates=self.updates)
        (folder / f"counts-{self.world.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def count(words):
    trainer_module.Trainer = Counted
    train.main(words)


def differ(words):
    """One weight of the last rank changes in its last bit in the fifth update; weights are compared every 4 updates."""
    trainer_module.COMPARED = 4
    step = trainer_module.Trainer.step

    def changing(self):
        result = step(self)
        if self.updates == 5 and self.world.rank == self.world.size - 1:
            weights = self.model.parameters.weights
            weights[3] = np.nextafter(weights[3], np.float32(9.0))
        return result

    trainer_module.Trainer.step = changing
    train.main(words)


def version(words):
    """The last rank has another version of the package."""
    if world().rank == world().size - 1:
        launch.__version__ = "0.0.1"
    train.main(words)


def fail(words):
    """The last rank has a bug in its third update."""
    step = trainer_module.Trainer.step

    def failing(self):
        if self.updates == 2 and self.world.rank == self.world.size - 1:
            raise ZeroDivisionError("a bug")
        return step(self)

    trainer_module.Trainer.step = failing
    train.main(words)


def full(words):
    """The disk is full when the first checkpoint after the start is saved."""
    from slm_np.training.storage import Storage

    save = Storage.on_save

    def refused(self, trainer):
        if trainer.updates:
            raise OSError(28, "No space left on device", "checkpoint")
        save(self, trainer)

    Storage.on_save = refused
    train.main(words)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[sys.argv[1]](sys.argv[2:])
