"""The parameters: one list of tensors, one flat buffer, named views into it.

The tensors that decay come first, so that the optimizer's sweep, the gradient norm, clipping and counting need no loop
over names.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from slm_np import arguments
from slm_np.errors import UserError
from slm_np.ops.device import CPU, host, put


class Tensor(NamedTuple):
    """A parameter before it exists.

    init      "normal" for N(0, scale^2), "uniform" for U(-scale, scale), "ones", "zeros", or a function of
              (generator, shape)
    scale     standard deviation or bound of the initial values
    matmul    whether matmuls read it, so that it has a cast copy in mixed precision
    decay     whether weight decay may apply to it
    """

    name: str
    shape: tuple
    init: str | Callable = "normal"
    scale: float = 0.02
    matmul: bool = False
    decay: bool = True


def matmul_weight(config, name, shape, fan_in, residual=False):
    """A weight of a linear layer. Projections onto the residual branch start smaller, by 1 / sqrt(2 L)  (GPT-2)."""
    if config.init == "uniform":
        return Tensor(name, shape, "uniform", fan_in**-0.5, True)
    return Tensor(
        name, shape, "normal", config.init_std / (2 * config.n_layer) ** 0.5 if residual else config.init_std, True
    )


def decays(tensor, rule):
    """Whether weight decay applies: to all tensors, or under "matrices" to those with two axes that are not exempt."""
    return rule == "all" or len(tensor.shape) > 1 and tensor.decay


def count(tensors):
    """Number of parameters."""
    return sum(math.prod(t.shape) for t in tensors)


class Views(dict):
    """Named views into a flat buffer. Kernels read the buffer, so no view can be replaced by another array."""

    def __setitem__(self, name, value):
        raise UserError(f"{name} is a view of the model's memory; write into it: weight[{name!r}][...] = values")

    def __reduce__(self):
        return dict, (dict(self),)


class Parameters(arguments.Fixed):
    """Flat `weights` and `gradients` of one layout, with views `weight[name]` and `gradient[name]`.

    The first `n_decayed` elements decay. matmul_weight[name] is a weight as matmuls read it: the view itself or, where
    `compute_dtype` is a 16-bit type, its CastCopy. Call `update_cast_copies` after writing to the weights.
    A copy, also by pickle, has its own arrays.
    """

    FIXED = ("weights", "gradients")

    def __init__(self, tensors, decay="matrices", dtype=np.float32, compute_dtype=None, device=CPU):
        self.tensors, self.decay, self.compute_dtype, self.device = list(tensors), decay, compute_dtype, device
        ordered = sorted(self.tensors, key=lambda t: not decays(t, decay))
        self.n_decayed = count(t for t in ordered if decays(t, decay))
        self.weights = device.arrays.zeros(count(ordered), dtype)
        self.gradients = device.arrays.zeros_like(self.weights)
        self.weight, self.gradient = (Views(self.views(flat, ordered)) for flat in (self.weights, self.gradients))
        mixed = compute_dtype is not None and compute_dtype != self.weights.dtype
        copies = {
            t.name: device.kernels.cast_copy(self.weight[t.name], compute_dtype) for t in ordered if mixed and t.matmul
        }
        self.cast_copies, self.matmul_weight = list(copies.values()), {**self.weight, **copies}

    def __copy__(self):
        return copy.deepcopy(self)

    def __getstate__(self):
        arrays = host(self.weights), host(self.gradients)
        return self.tensors, self.decay, self.weights.dtype, self.compute_dtype, self.device, *arrays

    def __setstate__(self, state):
        *settings, weights, gradients = state
        self.__init__(*settings)
        put(self.weights, weights)
        put(self.gradients, gradients)
        self.update_cast_copies()

    def full_precision(self):
        """The same weights and gradients, which matmuls read without casting."""
        shared = object.__new__(type(self))
        shared.__dict__.update(self.__dict__, matmul_weight=self.weight, compute_dtype=None, cast_copies=[])
        return shared

    def update_cast_copies(self):
        """Make the copies in the compute dtype follow the weights."""
        for cast_copy in self.cast_copies:
            self.device.kernels.update_cast_copy(cast_copy)

    @staticmethod
    def views(flat, tensors):
        """Named views into a flat buffer of this layout."""
        views, start = {}, 0
        for t in tensors:
            size = math.prod(t.shape)
            views[t.name] = flat[start : start + size].reshape(t.shape)
            start += size
        return views

    def like(self, flat):
        """Named views into another flat buffer of the same layout, such as a moment."""
        return self.views(flat, [Tensor(name, view.shape) for name, view in self.weight.items()])

    def initialize(self, seed):
        """Fill the weights.

        Every tensor has its own Philox counter: its values depend on the seed and its index only.
        """
        for index, t in enumerate(self.tensors):
            view = self.weight[t.name]
            draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))
            if t.init == "normal":
                put(view, draw.normal(0.0, t.scale, t.shape))
            elif t.init == "uniform":
                put(view, draw.uniform(-t.scale, t.scale, t.shape))
            elif callable(t.init):
                put(view, t.init(draw, t.shape))
            else:
                view.fill(1 if t.init == "ones" else 0)
        self.update_cast_copies()


def within(views, prefix):
    """The views whose names start with `prefix.`, under the rest of their names."""
    return {name[len(prefix) + 1 :]: view for name, view in views.items() if name.startswith(prefix + ".")}
