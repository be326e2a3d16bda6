"""The parameters: one list of tensors, one flat buffer for the trained ones, named views into it.

The tensors that decay come first, so that the optimizer's sweep, the gradient norm, clipping and counting need no loop
over names. Frozen tensors have no gradients and no moments. In mixed precision, frozen tensors that matmuls read exist
in the compute dtype only.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from slm_np import arguments
from slm_np.dtypes import CastCopy
from slm_np.errors import UserError
from slm_np.ops.device import CPU, host, put

SMALLER_MODEL = "choose a smaller --n-layer, --n-embd or --vocab-size"


class Tensor(NamedTuple):
    """A parameter before it exists.

    init      "normal" for N(0, scale^2), "uniform" for U(-scale, scale), "ones", "zeros", or a function of
              (generator, shape)
    scale     standard deviation or bound of the initial values
    matmul    whether matmuls read it, so that it has a cast copy in mixed precision
    decay     whether weight decay may apply to it
    trained   whether it is trained; a frozen tensor has no gradient
    """

    name: str
    shape: tuple
    init: str | Callable = "normal"
    scale: float = 0.02
    matmul: bool = False
    decay: bool = True
    trained: bool = True


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


class FrozenWeight(NamedTuple):
    """A frozen weight (D, E) of a block that is stored in bfloat16. Numba's kernels read panels.

    The panels are packed at every use, into memory that all weights of its shape share. So the weight takes 2 bytes per
    element instead of the 4 of its panels for x W and for dout W^T. Packing takes 1/16 of the time of a matmul of 2,048
    rows.
    """

    values: Any
    full: Any  # (D, E) float32 scratch
    copy: CastCopy  # of `full`

    @property
    def shape(self):
        return self.values.shape


class Views(dict):
    """Named views into a flat buffer. Kernels read the buffer, so no view can be replaced by another array."""

    def __setitem__(self, name, value):
        raise UserError(f"{name} is a view of the model's memory; write into it: weight[{name!r}][...] = values")

    def __reduce__(self):
        return dict, (dict(self),)


def frozen_bytes(tensors, dtype, compute_dtype, device):
    """Bytes of frozen tensors, and of the panels that FrozenWeights share."""
    total, shapes = 0, set()
    for tensor in tensors:
        size = math.prod(tensor.shape)
        if compute_dtype in (None, dtype) or not tensor.matmul:
            total += size * np.dtype(dtype).itemsize
        elif device.cast_copies == 1 or not is_packed_on_use(tensor):
            total += size * np.dtype(compute_dtype).itemsize * device.cast_copies
        else:
            total += size * np.dtype(compute_dtype).itemsize
            shapes.add(tensor.shape)
    shared = np.dtype(np.float32).itemsize + device.cast_copies * np.dtype(compute_dtype or dtype).itemsize
    return total + shared * sum(map(math.prod, shapes))


def is_packed_on_use(tensor):
    """Whether a frozen weight is a block's: blocks compute one after another, so their panels share memory."""
    return tensor.name.startswith("layers.")


class Parameters(arguments.Fixed):
    """Flat `weights` and `gradients` of the trained tensors, with views `trained[name]` and `gradient[name]`.

    The first `n_decayed` elements decay. weight[name] is any tensor, frozen ones included: an array or, for a frozen
    one that exists in the compute dtype only, a FrozenWeight or a CastCopy. matmul_weight[name] is a weight as matmuls
    read it: weight[name] or, where `compute_dtype` is a 16-bit type, its CastCopy. Call `update_cast_copies` after
    writing to the weights. The gradients are allocated when they are first asked for. A copy, also by pickle, has its
    own arrays.
    """

    FIXED = ("weights", "gradients")
    owner = None  # the Parameters with which these share their gradients

    def __init__(self, tensors, decay="matrices", dtype=np.float32, compute_dtype=None, device=CPU):
        self.tensors, self.decay, self.compute_dtype, self.device = list(tensors), decay, compute_dtype, device
        trained = sorted((t for t in self.tensors if t.trained), key=lambda t: not decays(t, decay))
        frozen = [t for t in self.tensors if not t.trained]
        self.n_decayed = count(t for t in trained if decays(t, decay))
        self.weights = device.arrays.zeros(count(trained), dtype)
        self.trained = Views(self.views(self.weights, trained))
        mixed = compute_dtype is not None and compute_dtype != self.weights.dtype
        cast_only = {t.name: t for t in frozen if mixed and t.matmul}  # in the compute dtype only
        full = [t for t in frozen if t.name not in cast_only]
        self.frozen = device.arrays.zeros(count(full), dtype)
        self.shared = {}  # {shape: CastCopy} that FrozenWeights are packed into
        self.cast_only = {name: self._cast_only(t) for name, t in cast_only.items()}
        self.weight = Views({**self.trained, **self.views(self.frozen, full), **self.cast_only})
        copies = {
            t.name: device.kernels.cast_copy(self.trained[t.name], compute_dtype) for t in trained if mixed and t.matmul
        }
        self.cast_copies, self.matmul_weight = list(copies.values()), {**self.weight, **copies}

    def _cast_only(self, tensor):
        """Memory for a frozen weight that exists in the compute dtype only."""
        arrays, kernels = self.device.arrays, self.device.kernels
        if self.device.cast_copies == 1:  # its matmuls read one layout, which is the plain one
            values = arrays.zeros(tensor.shape, self.compute_dtype)
            return CastCopy(values, values, values)
        if not is_packed_on_use(tensor):
            row = np.zeros((1, tensor.shape[1]), np.float32)  # matmuls read the copies only
            return kernels.cast_copy(np.broadcast_to(row, tensor.shape), self.compute_dtype)._replace(weight=row)
        if tensor.shape not in self.shared:
            full = arrays.zeros(tensor.shape, np.float32)
            self.shared[tensor.shape] = kernels.cast_copy(full, self.compute_dtype)
        shared = self.shared[tensor.shape]
        return FrozenWeight(arrays.zeros(tensor.shape, self.compute_dtype), shared.weight, shared)

    @functools.cached_property
    def gradients(self):
        """The flat gradients of the trained tensors. They are allocated here, since inference needs none."""
        if self.owner is not None:
            return self.owner.gradients
        self.device.check_memory(
            self.weights.nbytes, f"the gradient of {self.weights.size:,} parameters", SMALLER_MODEL
        )
        return self.device.arrays.zeros_like(self.weights)

    @functools.cached_property
    def gradient(self):
        """{name: view} into `gradients`."""
        return Views(self.like(self.gradients))

    def __copy__(self):
        return copy.deepcopy(self)

    def __getstate__(self):
        gradients = host(self.gradients) if "gradients" in (self.owner or self).__dict__ else None
        cast_only = [[host(array) for array in self._arrays(one)] for one in self.cast_only.values()]
        settings = self.tensors, self.decay, self.weights.dtype, self.compute_dtype, self.device
        return *settings, host(self.weights), gradients, host(self.frozen), cast_only

    def __setstate__(self, state):
        *settings, weights, gradients, frozen, cast_only = state
        self.__init__(*settings)
        put(self.weights, weights)
        put(self.frozen, frozen)
        if gradients is not None:
            put(self.gradients, gradients)
        for one, arrays in zip(self.cast_only.values(), cast_only):
            for array, values in zip(self._arrays(one), arrays):
                put(array, values)
        self.update_cast_copies()

    @staticmethod
    def _arrays(weight):
        """The arrays that hold a frozen weight in the compute dtype."""
        return [weight.values] if isinstance(weight, FrozenWeight) else list(weight[1:])

    def full_precision(self):
        """The same weights and gradients. Matmuls read full weights, or cast copies where only these exist."""
        shared = object.__new__(type(self))
        shared.__dict__.update(self.__dict__, matmul_weight=self.weight, compute_dtype=None, cast_copies=[])
        shared.owner = self.owner or self
        return shared

    def update_cast_copies(self):
        """Make the copies in the compute dtype follow the weights."""
        for cast_copy in self.cast_copies:
            self.device.kernels.update_cast_copy(cast_copy)

    def fill(self, name, values):
        """Set a tensor, trained or frozen, to `values` in host memory. Call `update_cast_copies` afterwards."""
        cast = self.cast_only.get(name)
        if cast is None:
            put(self.weight[name], values)
            return
        values = self.device.arrays.asarray(np.ascontiguousarray(values, np.float32))
        if isinstance(cast, FrozenWeight):
            self.device.kernels.convert(cast.values, values)
        else:
            self.device.kernels.update_cast_copy(cast._replace(weight=values))

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
        """Named views of the trained tensors into another flat buffer of the same layout, such as a moment."""
        return self.views(flat, [Tensor(name, view.shape) for name, view in self.trained.items()])

    def initialize(self, seed, trained_only=False):
        """Fill the weights. trained_only: the frozen ones stay.

        Every tensor has its own Philox counter: its values depend on the seed and its index only.
        """
        for index, t in enumerate(self.tensors):
            if t.trained or not trained_only:
                self.fill(t.name, initial_values(t, seed, index))
        self.update_cast_copies()


def initial_values(tensor, seed, index):
    """The initial values of a tensor."""
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))
    if tensor.init == "normal":
        return draw.normal(0.0, tensor.scale, tensor.shape)
    if tensor.init == "uniform":
        return draw.uniform(-tensor.scale, tensor.scale, tensor.shape)
    if callable(tensor.init):
        return tensor.init(draw, tensor.shape)
    return np.broadcast_to(1.0 if tensor.init == "ones" else 0.0, tensor.shape)


def within(views, prefix):
    """The views whose names start with `prefix.`, under the rest of their names."""
    return {name[len(prefix) + 1 :]: view for name, view in views.items() if name.startswith(prefix + ".")}
