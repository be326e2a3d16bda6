"""Linear layers: the products of a block, x W + b, x (N, D), W (D, E); size N x D x E.

Operations: 2 N D E forward, 4 N D E backward. PyTorch stores W as (E, D). The vocabulary's product stands in kernel_loss.py.
"""

import numpy as np
from kernel_bench import F, autograd, bench, call, empty_like, normal, pair
from shapes import products

from slm_np import ops


def linear(x, weight, bias):
    out = x @ weight
    out += bias
    return [out]


def linear_backward(dout, x, weight):
    return dout @ weight.T, x.T @ dout, dout.sum(0)


def product_cases(n, d, e):
    x, weight, bias, dout = normal(n, d), normal(d, e), normal(e), normal(n, e)
    out, dx, dweight, dbias = empty_like(dout, x, weight, bias)
    yield from pair(
        "linear",
        f"{n} x {d} x {e}",
        "GFLOP/s",
        (2 * n * d * e, 4 * n * d * e),
        (
            call(ops.linear_forward, 1, out, x, weight, bias, None),
            call(ops.linear_backward, 3, dx, dweight, dbias, dout, x, weight),
        ),
        (lambda: linear(x, weight, bias), lambda: linear_backward(dout, x, weight)),
        autograd(lambda x, w, b: F.linear(x, w.T, b), (x, np.asfortranarray(weight), bias), dout),
    )  # w.T lies in rows of (E, D)


def cases(config, batch):
    for n, d, e, _ in products(config, batch)[:-1]:
        yield from product_cases(n, d, e)


if __name__ == "__main__":
    bench(cases)
