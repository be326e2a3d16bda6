"""A linear layer by its name: its weight may be frozen, and low-rank adapters may be added to it (lora.py).

w, g: {name: array} of its block, as matmuls read them, and their gradients, which frozen tensors do not have.
start: the first row of the layer's input that x holds, for a caller that takes a chunk of rows at a time.
"""

import numpy as np

from slm_np import ops
from slm_np.dtypes import BF16, CastCopy
from slm_np.nn import lora
from slm_np.nn.parameters import FrozenWeight
from slm_np.ops.device import device_of


def packed(weight):
    """The weight as matmuls read it."""
    if not isinstance(weight, FrozenWeight):
        return weight
    ops.convert(weight.full, weight.values)
    device_of(weight.full).kernels.update_cast_copy(weight.copy)
    return weight.copy


def operands(x, weight):
    """(x, weight) as a matmul reads them. A weight that exists in the compute dtype only takes such an input."""
    weight = packed(weight)
    if isinstance(weight, CastCopy) and x.dtype == np.float32:
        short = device_of(x).scratch(x.shape, np.float16 if weight.forward.dtype == np.float16 else BF16)
        ops.convert(short, x)
        return short, weight
    return x, weight


def forward(w, a, name, out, x, residual=None, start=0):
    """out = x W + b + residual        with an adapter, + s D(x) A B

    The adapter's part comes first, so that a 16-bit `out` is rounded once after the larger sum.
    """
    adapter = w.get(f"{name}.lora")
    if adapter is not None:
        lora.forward(adapter, w, a, out, x, residual, start)
        residual = out
    x, weight = operands(x, w[f"{name}.weight"])
    ops.linear_forward(out, x, weight, w.get(f"{name}.bias"), residual)


def backward_input(w, g, a, name, dx, dout, start=0):
    """dx = the gradient of x. With an adapter, the gradient of its B too, and what `backward_weight` needs."""
    adapter, residual = w.get(f"{name}.lora"), None
    if adapter is not None:
        lora.backward_input(adapter, w, g, a, dx, dout, start)
        residual = dx
    ops.linear_backward_input(dx, dout, packed(w[f"{name}.weight"]), residual)


def backward_weight(w, g, a, name, dout, x, start=0):
    """The gradients of weight and bias, or of the adapter's A; `backward_input` came before."""
    adapter = w.get(f"{name}.lora")
    if adapter is not None:
        lora.backward_weight(adapter, g, a, x, start)
    if f"{name}.weight" in g:
        ops.linear_backward_weight(g[f"{name}.weight"], g.get(f"{name}.bias"), dout, x)


def backward(w, g, a, name, dx, dout, x, start=0):
    """dx = the gradient of x, and the gradients of what is trained."""
    backward_input(w, g, a, name, dx, dout, start)
    backward_weight(w, g, a, name, dout, x, start)
