"""Training steps that the host does not wait for: on a GPU a step is captured as CUDA graphs, which all later steps replay.

What an update hangs on (is its loss finite, how long is its gradient, is it made at all) is decided on the device, in a record of a few numbers
that the host reads when there is something to tell. What the host says anew for every micro-batch (tokens, learning rate, dropout keys) goes
into one block of the device's memory, where the captured kernels look for it.
"""

import math

import numpy as np

from slm_np.kernels.gpu.graph import CapturedGraph, HostInputs
from slm_np.ops.device import host, put


def each(keys, take):
    """`Model.keys` with take(key) in the place of every key."""
    return [each(key, take) if isinstance(key, (list, tuple)) else key if key is None else take(key) for key in keys]


class DeviceStep:
    """Steps of a model on a GPU: `gradient` for each micro-batch, then `update`; `read` waits for them and says what the last one came to.

    optimizer: the AdamW whose moments and settings these are.   spectral: SpectralNorms, held below `limit`.   shape: (B, T)
    carried: States, if windows go on from each other.   scaler: the GradientScaler that float16 wants, or None.
    """

    def __init__(self, model, optimizer, spectral, shape, limit=0.0, carried=None, scaler=None):
        import cupy

        from slm_np.kernels.gpu import step

        self.model, self.optimizer, self.spectral, self.limit, self.carried, self.scaler, self.step = (
            model,
            optimizer,
            spectral,
            limit,
            carried,
            scaler,
            step,
        )
        self.activations = model.plan(*shape)  # the graphs hold its addresses
        places = []
        each(model.keys((0,)), places.append)
        self.inputs = HostInputs(
            cupy,
            dict(
                given=((len(step.INPUTS),), np.float64),
                tokens=(shape, np.int32),
                targets=(shape, np.int32),
                keys=((max(1, len(places)),), np.uint32),
            ),
        )
        places = iter(range(len(places)))
        self.keys = each(model.keys((0,)), lambda key: self.entry(self.inputs.device["keys"], next(places)))
        self.record, self.scalars = cupy.zeros(len(step.RECORD), np.float64), cupy.zeros(len(step.SCALARS), model.dtype)
        self.batch, self.finish = CapturedGraph(cupy), CapturedGraph(cupy)
        self.write(0)

    @staticmethod
    def entry(array, place):
        """The array of one number at a place."""
        return array[place : place + 1]

    def gradient(self, tokens, targets, key, count, rate, first):
        """Add the gradient of a micro-batch, as `Model.loss_and_gradient` does. tokens, targets: the host's.   rate: of the update.   first: of its micro-batches"""
        if not self.begun:
            self.spectral.begin()
            self.begun = True
        keys = []
        each(self.model.keys(key), keys.append)
        self.inputs.fill(given=(rate, 1 / max(1, count), first), tokens=tokens, targets=targets, keys=keys or 0)
        self.batch(self.launch_gradient)

    def launch_gradient(self):
        model, given, tokens, targets = (
            self.model,
            *(self.inputs.device[name] for name in ("given", "tokens", "targets")),
        )
        self.step.begin_batch(self.record, self.scalars, given)
        normed = model.forward(self.activations, tokens, self.keys, self.carried and self.carried.layers)
        model.backward(self.activations, tokens, targets.reshape(-1), normed, self.scalar("loss_gradient"), self.keys)
        self.step.add_losses(self.record, self.activations.shared["head.losses"], given)

    def update(self):
        """The update, if loss and gradient are finite. Returns both, the loss and the gradient's norm, as arrays that later steps overwrite."""
        self.finish(self.launch_update)
        return self.field("loss"), self.field("norm")

    def launch_update(self):
        optimizer, scaler, p = self.optimizer, self.scaler, self.optimizer.parameters
        optimizer.kernels.square_sum(optimizer.partial, p.gradients)
        optimizer.kernels.clip_scale(self.scalars[:2], optimizer.partial, optimizer.grad_clip, self.field("scale"))
        self.step.finish_update(
            self.record,
            self.scalars,
            self.inputs.device["given"],
            optimizer.beta1,
            optimizer.beta2,
            *((scaler.growth, scaler.backoff, scaler.interval, scaler.lowest) if scaler else (1, 1, 0, 1)),
        )
        optimizer.kernels.adamw(
            p.weights,
            p.gradients,
            optimizer.mean,
            optimizer.square,
            p.n_decayed,
            self.scalar("clip"),
            self.scalar("rate"),
            optimizer.weight_decay,
            optimizer.beta1,
            optimizer.beta2,
            self.scalar("correction1"),
            self.scalar("correction2"),
            optimizer.eps,
        )
        self.spectral.launch(self.limit)
        p.pack()
        if self.carried:
            self.step.zero_if_not_finite(self.carried.memory, self.record)  # what is not finite would stay so

    def scalar(self, name):
        return self.entry(self.scalars, self.step.SCALARS.index(name))

    def field(self, name):
        return self.entry(self.record, self.step.RECORD.index(name))

    def read(self):
        """(loss, norm, updates left out in a row) after the last step; `optimizer`, `scaler` and `spectral` know what it came to, too."""
        found = dict(zip(self.step.RECORD, host(self.record).tolist()))
        self.optimizer.updates = int(found["updates"])
        if self.scaler:
            self.scaler.load(found)
        self.spectral.read()
        return found["loss"], found["norm"], int(found["bad"])

    def write(self, bad):
        """Go on from what `optimizer`, `scaler` and `spectral` hold, after so many updates left out in a row."""
        scale, good = (self.scaler.scale, self.scaler.good) if self.scaler else (1, 0)
        put(self.record, (math.nan, math.nan, self.optimizer.updates, bad, scale, good))
        self.begun = False
