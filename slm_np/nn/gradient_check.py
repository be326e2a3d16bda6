"""Check gradients against finite differences, in float64.

For an input x, a random unit direction d and a scalar function f, the gradient g is right if

    <g, d> = (f(x + eps d) - f(x - eps d)) / (2 eps)

Outputs that an op overwrites are filled with NaN before, and those that it accumulates into with ones, so that the
check covers both promises.
"""

import dataclasses
from typing import Callable, NamedTuple

import numpy as np

from slm_np.nn.model import Model

EPS, TOLERANCE = 1e-5, 1e-7


def directional_error(function, inputs, gradients, rng):
    """The largest |analytic - numeric| / max(1, |analytic|) over directions in each input alone and in all together.

    function() -> float reads the arrays `inputs`, which are changed and restored. gradients: arrays of their shapes.
    """
    worst = 0.0
    for moved in [[i] for i in range(len(inputs))] + ([range(len(inputs))] if len(inputs) > 1 else []):
        directions = [rng.standard_normal(inputs[i].shape) for i in moved]
        length = np.sqrt(sum((d * d).sum() for d in directions))
        originals, values = [inputs[i].copy() for i in moved], []
        for sign in (1, -1):
            for i, x, d in zip(moved, originals, directions):
                inputs[i][...] = x + sign * EPS / length * d
            values.append(function())
        for i, x in zip(moved, originals):
            inputs[i][...] = x
        numeric = (values[0] - values[1]) / (2 * EPS)
        analytic = sum(float((gradients[i] * d).sum()) for i, d in zip(moved, directions)) / length
        error = abs(analytic - numeric) / max(1.0, abs(analytic))
        worst = max(worst, error if error == error else np.inf)
    return worst


class Case(NamedTuple):
    """An op on given inputs: forward(*inputs) -> out, backward(dout, *inputs) -> the gradient of each input."""

    name: str
    inputs: list
    forward: Callable
    backward: Callable
    scaled: bool = False  # the op takes one scale for all outputs instead of a dout

    def error(self):
        """The `directional_error` of the scalar <dout, out> for a random dout."""
        rng = np.random.default_rng(0)
        out = self.forward(*self.inputs)
        dout = np.full(out.shape, 0.7) if self.scaled else rng.standard_normal(out.shape)
        gradients = self.backward(dout.copy(), *self.inputs)
        return directional_error(lambda: float((self.forward(*self.inputs) * dout).sum()), self.inputs, gradients, rng)


def overwritten(shape):
    """An output that an op must overwrite: all NaN."""
    return np.full(shape, np.nan)


def accumulated(function, *shapes):
    """The gradients that function(*outputs) adds to outputs of these shapes, which are ones before."""
    outputs = [np.ones(shape) for shape in shapes]
    function(*outputs)
    return [output - 1 for output in outputs]


def shrunk(config, **changes):
    """The same architecture at a size that finite differences can afford."""
    heads, width = min(config.n_head, 2), 8 if config.n_head == 1 else 12
    small = dict(
        vocab_size=11,
        block_size=9,
        n_layer=2,
        n_embd=width,
        n_hidden=10,
        n_head=heads,
        head_dim=width // heads,
        n_kv_head=heads,
        head_hidden=7,
        recurrence_size=6,
        n_inner=10,
        ssm_state_size=3,
        time_step_rank=2,
        window=4,
        rotary_dim=2 if config.rotary_dim else 0,
    )
    small = {name: value for name, value in small.items() if name not in config.unused}
    return dataclasses.replace(config, **small | changes)


def model_error(config):
    """{tensor name: error} of the gradient of a model's loss, and under "" the error in all tensors together.

    All passes draw the same dropout masks.
    """
    rng = np.random.default_rng(0)
    model = Model(config, seed=0, dtype=np.float64)
    parameters = model.parameters
    parameters.weights += 0.3 * rng.standard_normal(parameters.weights.size)  # no zero biases, no equal norms
    shape = (2, config.block_size)
    tokens, targets = (rng.integers(0, config.vocab_size, shape) for _ in range(2))
    model.plan(*shape).arena.fill(np.nan)
    model.activations.set_positions(config, 0)
    key = (0, 1, 0) if config.dropout else None

    def loss():
        return model.loss_and_gradient(tokens, targets, key=key)

    parameters.gradients.fill(1)
    loss()
    gradients = parameters.gradients - 1
    named = parameters.like(gradients)
    errors = {name: directional_error(loss, [view], [named[name]], rng) for name, view in parameters.weight.items()}
    errors[""] = directional_error(loss, [parameters.weights], [gradients], rng)
    return errors
