"""RMSNorm and LayerNorm of the residual stream (N, D).

Bytes: forward reads x and writes out; backward reads dout, x and dx and writes dx. Ours adds to the stream's gradient, PyTorch's makes a new one.
"""

import numpy as np
from kernel_bench import F, autograd, bench, call, empty_like, normal, pair

from slm_np import ops

EPS = 1e-5


def rmsnorm(x, weight):
    return [x / np.sqrt((x * x).mean(1, keepdims=True) + EPS) * weight]


def rmsnorm_backward(dout, x, weight, rstd):
    g, xhat = dout * weight, x * rstd[:, None]
    return rstd[:, None] * (g - xhat * (g * xhat).mean(1, keepdims=True)), (dout * xhat).sum(0)


def layernorm(x, weight, bias):
    return [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS) * weight + bias]


def layernorm_backward(dout, x, weight, mean, rstd):
    g, xhat = dout * weight, (x - mean[:, None]) * rstd[:, None]
    return (
        rstd[:, None] * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True)),
        (dout * xhat).sum(0),
        dout.sum(0),
    )


def rmsnorm_cases(x, dout, weight):
    out, dx, dweight, rstd = empty_like(x, x, weight, x[:, 0])
    ours = call(ops.rmsnorm_forward, 1, out, rstd, x, weight, EPS)
    ours()  # backward wants its rstd
    return pair(
        "rmsnorm",
        "{} x {}".format(*x.shape),
        "GB/s",
        (2 * x.nbytes, 4 * x.nbytes),
        (ours, call(ops.rmsnorm_backward, 2, dx, dweight, dout, x, weight, rstd)),
        (lambda: rmsnorm(x, weight), lambda: rmsnorm_backward(dout, x, weight, rstd)),
        autograd(lambda x, w: F.rms_norm(x, w.shape, w, EPS), (x, weight), dout),
    )


def layernorm_cases(x, dout, weight, bias):
    out, dx, dweight, dbias, mean, rstd = empty_like(x, x, weight, bias, x[:, 0], x[:, 0])
    ours = call(ops.layernorm_forward, 1, out, mean, rstd, x, weight, bias, EPS)
    ours()
    return pair(
        "layernorm",
        "{} x {}".format(*x.shape),
        "GB/s",
        (2 * x.nbytes, 4 * x.nbytes),
        (ours, call(ops.layernorm_backward, 3, dx, dweight, dbias, dout, x, weight, mean, rstd)),
        (lambda: layernorm(x, weight, bias), lambda: layernorm_backward(dout, x, weight, mean, rstd)),
        autograd(lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS), (x, weight, bias), dout),
    )


def cases(config, batch):
    n, d = batch * config.block_size, config.n_embd
    x, dout, weight, bias = normal(n, d), normal(n, d), normal(d), normal(d)
    return rmsnorm_cases(x, dout, weight) + layernorm_cases(x, dout, weight, bias)


if __name__ == "__main__":
    bench(cases)
