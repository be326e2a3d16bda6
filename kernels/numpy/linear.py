"""Linear layers. Sizes: N rows, D inputs, E outputs, V tokens of the vocabulary."""

import numpy as np


def linear_forward(out, x, weight, bias, residual):
    result = x @ weight  # (N, E)
    if bias is not None:
        result += bias
    if residual is not None:  # it may be `out` itself
        result += residual
    out[...] = result


def linear_backward_input(dx, dout, weight, residual=None):
    result = dout @ weight.T  # (N, D)
    if residual is not None:  # it may be `dx` itself
        result += residual
    dx[...] = result


def linear_backward_weight(dweight, dbias, dout, x):
    dweight += x.T @ dout
    if dbias is not None:
        dbias += dout.sum(0)


def linear_transposed_forward(out, x, weight):
    np.matmul(x, weight.T, out=out)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    dout = dout[:, : len(weight)]  # (N, V): its rows may be longer
    np.matmul(dout, weight, out=dx)
    if dweight is not None:
        dweight += dout.T @ x
