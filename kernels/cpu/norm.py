"""RMSNorm and LayerNorm: rows in parallel; the weight's gradient in blocks of columns, so that no two threads add to one place."""

import numpy as np
from numba import prange

from .bfloat16 import read, write
from .jit import inlined, kernel, row
from .math import maximum
from .microkernel_f32 import LANES
from .vector import load_some, multiply_add, spread, store_some

COLUMNS, ROWS = 64, 64  # of what a thread adds up at a time: it stays in the nearest cache


@row
def add_to(total, dout):
    for c in range(total.size):
        total[c] += read(dout, c)


@row
def add_weight_gradient(dweight, dbias, has_bias, dout, x, mean, has_mean, rstd, width, first, last):
    """dweight += sum_n dout * (x - mean) rstd,   dbias += sum_n dout: columns `first` to `last`, whose sums stay in registers. dout, x: flat."""
    for start in range(0, rstd.size, ROWS):
        for j in range(first, last, LANES):
            n = min(LANES, last - j)
            slanted, plain = load_some(dweight, j, n), load_some(dbias, j, n)
            for r in range(start, min(rstd.size, start + ROWS)):
                d, value = load_some(dout, r * width + j, n), load_some(x, r * width + j, n)
                if has_mean:
                    value = value - spread(mean, r)
                slanted = multiply_add(d, value * spread(rstd, r), slanted)
                plain = plain + d
            store_some(dweight, j, slanted, n)
            if has_bias:
                store_some(dbias, j, plain, n)


# Rows are addressed without slices, which would count references once a row.
@inlined
def rmsnorm_row(out, x, r, weight, eps):
    """Row r of the norm; returns rstd."""
    width, total = x.shape[1], x.dtype.type(0)
    for c in range(width):
        total += x[r, c] * x[r, c]
    scale = x.dtype.type(1 / np.sqrt(total / width + eps))
    for c in range(width):
        write(out, (r, c), x[r, c] * scale * weight[c])
    return scale


@inlined
def layernorm_row(out, x, r, weight, bias, has_bias, eps):
    """Row r of the norm; returns its mean and rstd.

    The sum of elements far from zero has a rounding error as large as their deviations from the mean may be. So deviations are taken
    from a first mean, and their own mean corrects it. Source: T. Chan, G. Golub, R. LeVeque, Algorithms for Computing the Sample
    Variance, The American Statistician 37, 1983.
    """
    width, share, total = x.shape[1], x.dtype.type(1 / x.shape[1]), x.dtype.type(0)
    for c in range(width):
        total += x[r, c]
    first = total * share
    rest, square = x.dtype.type(0), x.dtype.type(0)
    for c in range(width):
        rest += x[r, c] - first
        square += (x[r, c] - first) * (x[r, c] - first)
    correction = rest * share
    centre, square = first + correction, maximum(square - rest * correction, x.dtype.type(0))
    scale = x.dtype.type(1 / np.sqrt(square / width + eps))
    if has_bias:
        for c in range(width):
            write(out, (r, c), (x[r, c] - centre) * scale * weight[c] + bias[c])
    else:
        for c in range(width):
            write(out, (r, c), (x[r, c] - centre) * scale * weight[c])
    return centre, scale


@kernel
def rmsnorm_forward(out, rstd, x, weight, eps):
    for r in prange(len(x)):
        rstd[r] = rmsnorm_row(out, x, r, weight, eps)


@kernel
def _rmsnorm_backward(dx, dweight, dout, flat_dout, x, flat_x, weight, rstd):
    rows, width = x.shape
    for r in prange(rows):
        scale, total = rstd[r], x.dtype.type(0)
        for c in range(width):
            total += dout[r, c] * weight[c] * x[r, c]
        mean = total * scale * scale / x.dtype.type(width)
        for c in range(width):
            dx[r, c] += scale * (dout[r, c] * weight[c] - x[r, c] * mean)
    for block in prange((width + COLUMNS - 1) // COLUMNS):
        add_weight_gradient(
            dweight,
            dweight,
            False,
            flat_dout,
            flat_x,
            rstd,
            False,
            rstd,
            width,
            block * COLUMNS,
            min(width, block * COLUMNS + COLUMNS),
        )


@kernel
def _layernorm_forward(out, mean, rstd, x, weight, bias, has_bias, eps):
    for r in prange(len(x)):
        mean[r], rstd[r] = layernorm_row(out, x, r, weight, bias, has_bias, eps)


@kernel
def _layernorm_backward(dx, dweight, dbias, has_bias, dout, flat_dout, x, flat_x, weight, mean, rstd):
    rows, width = x.shape
    for r in prange(rows):
        centre, scale = mean[r], rstd[r]
        sum_dy, sum_dy_xhat = x.dtype.type(0), x.dtype.type(0)
        for c in range(width):
            g = dout[r, c] * weight[c]
            sum_dy += g
            sum_dy_xhat += g * (x[r, c] - centre)
        mean_dy = sum_dy / x.dtype.type(width)
        mean_dy_xhat = sum_dy_xhat * (scale * scale / x.dtype.type(width))
        for c in range(width):
            dx[r, c] += scale * (dout[r, c] * weight[c] - mean_dy - (x[r, c] - centre) * mean_dy_xhat)
    for block in prange((width + COLUMNS - 1) // COLUMNS):
        add_weight_gradient(
            dweight,
            dbias,
            has_bias,
            flat_dout,
            flat_x,
            mean,
            True,
            rstd,
            width,
            block * COLUMNS,
            min(width, block * COLUMNS + COLUMNS),
        )


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    _rmsnorm_backward(dx, dweight, dout, dout.reshape(-1), x, x.reshape(-1), weight, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    _layernorm_forward(out, mean, rstd, x, weight, weight if bias is None else bias, bias is not None, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    _layernorm_backward(
        dx,
        dweight,
        dweight if dbias is None else dbias,
        dbias is not None,
        dout,
        dout.reshape(-1),
        x,
        x.reshape(-1),
        weight,
        mean,
        rstd,
    )
