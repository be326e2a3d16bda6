"""Callbacks: what a run does besides computing, such as writing files and printing lines."""


class Callback:
    """The Trainer calls these methods of each of its callbacks, in order, and continues when they return.

    Each does nothing here; a subclass defines those that it needs. An exception ends the run.
    trainer: the Trainer that calls.   row: {name: value}, a line of metrics.jsonl.
    """

    def on_start(self, trainer):
        """`Trainer.train` starts at step `trainer.updates`."""

    def on_fit(self, trainer):
        """The number of updates, `trainer.max_iters`, is fitted to `fit_time` and is fixed from now on."""

    def on_log(self, trainer, row):
        """Every `log_interval` updates and after a skipped one: the loss, the learning rate and the speed."""

    def on_step(self, trainer):
        """Update `trainer.updates` is done, or skipped. Comes after `on_log` of the same update."""

    def on_evaluation(self, trainer, row, improved):
        """The losses of all splits. improved: whether the validation loss is the lowest so far."""

    def on_left_out(self, trainer, ranks):
        """A round has ended without these ranks, which were late."""

    def on_save(self, trainer):
        """It is time for a checkpoint."""

    def on_stop_request(self, trainer):
        """A signal asked to stop after this step. Called from the signal handler, possibly in the middle of a print."""

    def on_end(self, trainer):
        """`Trainer.train` ends: the run is finished, was interrupted or failed."""
