"""How long a run will take, before its first update: one gradient and one evaluated batch are timed.

There is no estimate on a GPU: calls return before their work is done, and the first ones capture graphs.
"""

import time

import numpy as np

from slm_np.progress import duration
from slm_np.training.fitting import interval_of
from slm_np.words import counted

LONG = 2.0  # seconds after which one trial is enough: the first one has cold caches and new pages of memory


def estimate(trainer):
    """A line about how long the rest of a run will take; None if its time is given or cannot be known."""
    config, updates = trainer.config, trainer.max_iters
    if trainer.model.device.name != "cpu" or config.max_seconds or updates is None or updates <= trainer.updates:
        return None
    micro, batch = time_of(lambda: gradient(trainer)), time_of(lambda: trainer.model.loss(*batch_like(trainer)))
    left, interval = updates - trainer.updates, interval_of(config.eval_interval, updates)
    evaluations = updates // interval - trainer.updates // interval + (updates % interval != 0)
    evaluations += trainer.updates == 0 and bool(trainer.run.base)
    update, n_batches = micro * len(trainer.deal.own), config.eval_iters * config.batch_size / trainer.deal.rows
    seconds = left * update + evaluations * len(trainer.evaluated_batches) * n_batches / trainer.world.size * batch
    each = f"{update:.2f}" if update < 10 else f"{update:,.0f}"
    return (
        f"time: about {duration(seconds)} on this machine, for {counted(left, 'update')} of {each} s and "
        f"{counted(evaluations, 'evaluation')}"
    )


def time_of(run):
    """Seconds of run(): of the second time if the first was short."""
    for _ in range(2):
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        if seconds > LONG:
            break
    return seconds


def batch_like(trainer):
    """Tokens and targets of the shape of a micro-batch."""
    return np.zeros_like(trainer.tokens), np.zeros_like(trainer.targets)


def gradient(trainer):
    """The gradient of a micro-batch, which is discarded."""
    trainer.model.loss_and_gradient(*batch_like(trainer), key=(0,))
    trainer.model.parameters.gradients.fill(0)
