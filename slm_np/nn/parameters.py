"""The parameters: one list of tensors, one flat buffer, named views into it.

The tensors that decay come first, so that the optimiser, the gradient's norm, clipping and counting need no loop over names.
"""

import functools
import math
from typing import Callable, NamedTuple, Union

import numpy as np

from slm_np.dtypes import BF16
from slm_np.ops.device import kernels_of, put


class Tensor(NamedTuple):
    """What is known of a tensor before it exists. `law`: "normal", N(0, spread^2), "uniform", U(-spread, spread), "ones", "zeros", or a function
    of (random generator, shape). `multiplies`: whether products take it. `decay`: whether rule "matrices" may take it for a matrix that decays."""

    name: str
    shape: tuple
    law: Union[str, Callable] = "normal"
    spread: float = 0.02
    multiplies: bool = False
    decay: bool = True


def weight(config, name, shape, fan_in, residual=False):
    """A matrix of a product under the configuration's initialisation. Projections that write to the stream start smaller, by 1 / sqrt(2 L)."""
    if config.init == "uniform":
        return Tensor(name, shape, "uniform", fan_in**-0.5, True)
    return Tensor(
        name, shape, "normal", config.init_std / (2 * config.n_layer) ** 0.5 if residual else config.init_std, True
    )


def decays(tensor, rule):
    """Whether weight decay applies: under rule "matrices" to tensors with two axes or more that are not exempt, under "all" to every one."""
    return rule == "all" or len(tensor.shape) > 1 and tensor.decay


def count(tensors):
    """Number of parameters."""
    return sum(math.prod(t.shape) for t in tensors)


class Parameters:
    """Flat `weights` and `gradients` of one layout, with views `weight[name]` and `gradient[name]`; `n_decayed` come first.

    operand[name] is a weight as products take it: the view itself or, where `operand` is a shorter type, a copy in that, which `pack` makes
    anew; whoever writes to the weights calls it. arrays: the module that makes the buffers.
    """

    def __init__(self, tensors, decay="matrices", dtype=np.float32, operand=None, arrays=np):
        self.tensors = list(tensors)
        ordered = sorted(self.tensors, key=lambda t: not decays(t, decay))
        self.n_decayed = count(t for t in ordered if decays(t, decay))
        self.weights = arrays.zeros(count(ordered), dtype)
        self.gradients = arrays.zeros_like(self.weights)
        self.weight, self.gradient = self.views(self.weights, ordered), self.views(self.gradients, ordered)
        self.kernels = kernels_of(self.weights)
        rounds = operand is not None and operand != self.weights.dtype
        packed = self.kernels.packed if operand == BF16 else functools.partial(self.kernels.packed, operand=operand)
        packed = {t.name: packed(self.weight[t.name]) for t in ordered if rounds and t.multiplies}
        self.packed, self.operand = list(packed.values()), self.weight | packed

    def pack(self):
        """Make what products take follow the weights."""
        for operand in self.packed:
            self.kernels.update_cast_copy(operand)

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

    def initialise(self, seed):
        """Fill the weights. Every tensor has a counter of its own, so its numbers depend on the seed and its place only."""
        for place, t in enumerate(self.tensors):
            view = self.weight[t.name]
            draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, place, 0]))
            if t.law == "normal":
                put(view, draw.normal(0.0, t.spread, t.shape))
            elif t.law == "uniform":
                put(view, draw.uniform(-t.spread, t.spread, t.shape))
            elif callable(t.law):
                put(view, t.law(draw, t.shape))
            else:
                view.fill(1 if t.law == "ones" else 0)
        self.pack()


def within(views, prefix):
    """The views whose name starts with `prefix.`, under the rest of their name."""
    return {name[len(prefix) + 1 :]: view for name, view in views.items() if name.startswith(prefix + ".")}
