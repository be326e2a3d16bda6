"""Updates on a GPU, captured as CUDA graphs and replayed. The host synchronizes only when it reads a result.

The device itself decides whether loss and gradient are finite, how far to clip and whether to update: these values are
in `record` and `scalars`, see kernels/gpu/step.py. What the host sets for each micro-batch (tokens, learning rate,
dropout keys) is in one block of device memory at fixed addresses, which the captured kernels read.
"""

import math

import numpy as np

from slm_np.kernels.gpu.graph import CapturedGraph, HostInputs
from slm_np.nn.dropout import keys_of, map_keys
from slm_np.nn.model import model_backward, model_forward
from slm_np.ops.device import host, put
from slm_np.training.scaler import GradientScaler
from slm_np.training.step import Step, StepResult


class DeviceStep(Step):
    """Updates of a model on a GPU; same parameters as `HostStep`.

    scaler: GradientScaler; None makes one if the model multiplies float16
    """

    def __init__(
        self,
        model,
        optimizer,
        spectral,
        shape,
        seed=0,
        max_spectral_norm=0.0,
        states=None,
        scaler=None,
    ):
        import cupy

        from slm_np.kernels.gpu import step

        self.model, self.optimizer, self.spectral, self.states = model, optimizer, spectral, states
        self.seed, self.max_spectral_norm, self.kernels = seed, max_spectral_norm, step
        self.scaler = GradientScaler() if scaler is None and model.compute_dtype == np.float16 else scaler
        self.activations = model.plan(*shape)  # the graphs hold its addresses
        dropout = model.dropout((0,))
        n_keys = len(keys_of(dropout))
        self.inputs = HostInputs(
            cupy,
            dict(
                given=((len(step.INPUTS),), np.float64),
                tokens=(shape, np.int32),
                targets=(shape, np.int32),
                keys=((max(1, n_keys),), np.uint32),
            ),
        )
        indices = iter(range(n_keys))
        self.dropout = map_keys(dropout, lambda key: self.element(self.inputs.device["keys"], next(indices)))
        self.record, self.scalars = cupy.zeros(len(step.RECORD), np.float64), cupy.zeros(len(step.SCALARS), model.dtype)
        self.batch, self.finish = CapturedGraph(cupy), CapturedGraph(cupy)
        self.write_record(0)

    @staticmethod
    def element(array, index):
        """One element of a device array, as an array (1,)."""
        return array[index : index + 1]

    def scalar(self, name):
        return self.element(self.scalars, self.kernels.SCALARS.index(name))

    def field(self, name):
        return self.element(self.record, self.kernels.RECORD.index(name))

    def start(self, index, n_targets, learning_rate):
        self.index, self.n_targets, self.learning_rate = index, n_targets, learning_rate
        if not self.started:
            self.spectral.start()
            self.started = True

    def gradient(self, tokens, targets, micro):
        keys = keys_of(self.model.dropout((self.seed, self.index, micro)))
        given = self.learning_rate, 1 / max(1, self.n_targets), micro == 0
        self.inputs.fill(given=given, tokens=tokens, targets=targets, keys=keys or 0)
        self.batch(self.launch_gradient)

    def launch_gradient(self):
        model, inputs, states = self.model, self.inputs.device, self.states
        self.kernels.begin_batch(self.record, self.scalars, inputs["given"])
        normed = model_forward(model, self.activations, inputs["tokens"], self.dropout, states)
        targets, scale = inputs["targets"].reshape(-1), self.scalar("loss_gradient")
        model_backward(model, self.activations, inputs["tokens"], targets, normed, scale, self.dropout)
        self.kernels.add_losses(self.record, self.activations.shared["head.losses"], inputs["given"])

    def update(self):
        self.finish(self.launch_update)
        return self.field("loss"), self.field("norm")

    def launch_update(self):
        optimizer, scaler, p = self.optimizer, self.scaler, self.optimizer.parameters
        optimizer.kernels.square_sum(optimizer.partial, p.gradients)
        optimizer.kernels.clip_scale(self.scalars[:2], optimizer.partial, optimizer.grad_clip, self.field("scale"))
        self.kernels.finish_update(
            self.record,
            self.scalars,
            self.inputs.device["given"],
            optimizer.beta1,
            optimizer.beta2,
            *((scaler.growth, scaler.backoff, scaler.interval, scaler.lowest) if scaler else (1, 1, 0, 1)),
        )
        optimizer._launch(*map(self.scalar, ("clip", "rate", "correction1", "correction2")))
        self.spectral.launch(self.max_spectral_norm)
        p.update_cast_copies()
        if self.states:
            self.kernels.zero_if_not_finite(self.states.memory, self.record)  # a state that is not finite would stay so

    def read(self, wait=True):
        """Also brings `optimizer`, `scaler` and `spectral` up to date."""
        if not wait:
            return None
        record = dict(zip(self.kernels.RECORD, host(self.record).tolist()))
        self.optimizer.updates = int(record["updates"])
        if self.scaler:
            self.scaler.load(record)
        self.spectral.read()
        return StepResult(record["loss"], record["norm"], int(record["bad"]))

    def state(self):
        skipped = self.read().skipped
        scale = self.scaler.state() if self.scaler else {}
        return dict(optimizer_updates=self.optimizer.updates, bad_steps=skipped, **scale)

    def load(self, state):
        self.optimizer.updates = state["optimizer_updates"]
        if self.scaler and "scale" in state:  # a run of another precision has none
            self.scaler.load(state)
        self.write_record(state["bad_steps"])

    def write_record(self, skipped):
        scale, good = (self.scaler.scale, self.scaler.good) if self.scaler else (1, 0)
        put(self.record, (math.nan, math.nan, self.optimizer.updates, skipped, scale, good))
        self.started = False
