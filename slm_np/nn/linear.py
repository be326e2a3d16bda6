"""A linear layer of a given name. Its weight may be frozen, and it may have low-rank adapters (lora.py).

w, g: {name: array} of the weights of its block, as matmuls read them, and of the gradients. Frozen tensors have none.
start: the row of the layer's whole input at which x starts, for a caller that takes a chunk of rows at a time.
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
    """(x, weight) as a matmul reads them. If the weight exists in the compute dtype only, x is cast to it."""
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
    """Accumulate the gradients of weight and bias, or of the adapter's A. Call `backward_input` first."""
    adapter = w.get(f"{name}.lora")
    if adapter is not None:
        lora.backward_weight(adapter, g, a, x, start)
    if f"{name}.weight" in g:
        ops.linear_backward_weight(g[f"{name}.weight"], g.get(f"{name}.bias"), dout, x)


def backward(w, g, a, name, dx, dout, x, start=0):
    """dx = the gradient of x. Accumulates the gradients of the trained tensors."""
    backward_input(w, g, a, name, dx, dout, start)
    backward_weight(w, g, a, name, dout, x, start)
