"""The interface of one optimizer update: `HostStep` implements it for a CPU, `DeviceStep` for a GPU."""

from typing import NamedTuple


class StepResult(NamedTuple):
    """What an update came to."""

    loss: float  # mean over the update's unmasked targets, in nats
    norm: float  # of the gradient before clipping; NaN if the loss is not finite
    skipped: int  # updates in a row, this one included, that were skipped since loss or gradient were not finite


class Step:
    """An update: `start`, then `gradient` for each micro-batch, then `update`.

    On a GPU these calls return before the work is done. The host synchronizes in `read`, `state` and `load` only.
    """

    def start(self, index, n_targets, learning_rate):
        """Begin update `index`, counted from 0. Its micro-batches together have `n_targets` unmasked targets."""
        raise NotImplementedError

    def gradient(self, tokens, targets, micro):
        """Add the gradient of micro-batch `micro`. tokens, targets: (B, T) int32, which may change afterwards."""
        raise NotImplementedError

    def update(self):
        """Clip the gradient, update the weights and clear the gradient.

        If loss or gradient are not finite, the weights stay and the recurrent state is cleared.
        Returns (loss, norm): floats, or arrays on the device that later updates overwrite.
        """
        raise NotImplementedError

    def read(self, wait=True):
        """The StepResult of the last update. wait=False: None if the host had to synchronize for it."""
        raise NotImplementedError

    def state(self):
        """{name: number} that a checkpoint keeps."""
        raise NotImplementedError

    def load(self, state):
        """Continue from a `state`, after weights and moments were loaded."""
        raise NotImplementedError
