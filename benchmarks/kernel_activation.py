"""The feed-forward's activations on (N, F); swiglu reads (N, 2 F).

Bytes: forward reads x and writes out; backward reads dout and x and writes dx and out (ours in place, on copies whose time counts), which ours and NumPy make again while PyTorch has kept it.
"""

import numpy as np
from kernel_bench import F, autograd, bench, call, empty_like, normal, pair
from scipy.special import ndtr

from slm_np import ops

SLOPE, CUBIC = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)


def silu(x, dout=None):
    s = 1 / (1 + np.exp(-x))
    return [x * s] if dout is None else [dout * s * (1 + x * (1 - s)), x * s]


def gelu(x, dout=None):
    below = ndtr(x)
    return (
        [x * below]
        if dout is None
        else [dout * (below + x * np.exp(-0.5 * x * x) * np.float32((2 * np.pi) ** -0.5)), x * below]
    )


def gelu_tanh(x, dout=None):
    t = np.tanh(SLOPE * (x + CUBIC * x * x * x))
    out = 0.5 * x * (1 + t)
    return [out] if dout is None else [dout * 0.5 * (1 + t + x * (1 - t * t) * SLOPE * (1 + 3 * CUBIC * x * x)), out]


def swiglu(x, dout=None):
    gate, up = np.split(x, 2, 1)
    if dout is None:
        return [silu(gate)[0] * up]
    dgate, active = silu(gate, dout * up)
    return [np.concatenate((dgate, dout * active), 1), active * up]


ACTIVATIONS = {
    silu: lambda x: F.silu(x),
    gelu: lambda x: F.gelu(x),
    gelu_tanh: lambda x: F.gelu(x, approximate="tanh"),
    swiglu: lambda x: F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
}


def activation_cases(n, width, activation, in_torch):
    name = activation.__name__
    x, dout = normal(n, 2 * width if name == "swiglu" else width), normal(n, width)
    out, again, dx = empty_like(dout, dout, x)

    def backward():
        dx[:], again[:] = x, dout
        getattr(ops, f"{name}_backward")(dx, again)
        return dx, again

    yield from pair(
        name,
        f"{n} x {width}",
        "GB/s",
        (x.nbytes + out.nbytes, 2 * x.nbytes + 2 * out.nbytes),
        (call(getattr(ops, f"{name}_forward"), 1, out, x), backward),
        (lambda: activation(x), lambda: activation(x, dout)),
        autograd(in_torch, (x,), dout),
    )


def cases(config, batch):
    for activation, in_torch in ACTIVATIONS.items():
        yield from activation_cases(batch * config.block_size, config.n_hidden, activation, in_torch)


if __name__ == "__main__":
    bench(cases)
