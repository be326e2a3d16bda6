"""RMSNorm and LayerNorm of rows, and RMSNorm of the heads of queries and keys.

Threads split the rows. For the weight's gradient they split the columns instead, so that no two threads add to the same
element.
"""

import numpy as np

from .bfloat16 import convert_block, read, write
from .jit import inlined, kernel, row
from .math import maximum
from .microkernel_f32 import LANES
from .vector import load_some, multiply_add, spread, store_some

COLUMNS, ROWS = 64, 64  # the block that a thread sums at a time: it stays in the first-level cache


@row
def add_to(total, dout):
    """total += dout, one row"""
    for c in range(total.size):
        total[c] += read(dout, c)


@kernel
def _weight_gradient(block, dweight, dbias, has_bias, dout, x, mean, has_mean, rstd, width):
    """dweight += sum_n dout * (x - mean) * rstd,   dbias += sum_n dout,   for a block of columns

    dout, x: flat (N * width,)   Without `has_mean`, the mean is 0. The sums of a block of rows stay in registers.
    """
    start, stop = block * COLUMNS, min(width, block * COLUMNS + COLUMNS)
    for first_row in range(0, rstd.size, ROWS):
        for j in range(start, stop, LANES):
            n = min(LANES, stop - j)
            sum_dy_xhat, sum_dy = load_some(dweight, j, n), load_some(dbias, j, n)
            for r in range(first_row, min(rstd.size, first_row + ROWS)):
                d, value = load_some(dout, r * width + j, n), load_some(x, r * width + j, n)
                if has_mean:
                    value = value - spread(mean, r)
                sum_dy_xhat = multiply_add(d, value * spread(rstd, r), sum_dy_xhat)
                sum_dy = sum_dy + d
            store_some(dweight, j, sum_dy_xhat, n)
            if has_bias:
                store_some(dbias, j, sum_dy, n)


# These two index rows directly, because a slice costs a reference count per row.
@inlined
def rmsnorm_row(out, x, r, weight, eps):
    """Normalize row r of x into `out`. Returns rstd."""
    width, total = x.shape[1], x.dtype.type(0)
    for c in range(width):
        total += x[r, c] * x[r, c]
    scale = x.dtype.type(1 / np.sqrt(total / width + eps))
    for c in range(width):
        write(out, (r, c), x[r, c] * scale * weight[c])
    return scale


@inlined
def layernorm_row(out, x, r, weight, bias, has_bias, eps):
    """Normalize row r of x into `out`. Returns (mean, rstd).

    If the mean is far from zero, the rounding error of the row's sum can be as large as the deviations from the mean.
    So the deviations are taken from a first estimate of the mean, and the mean of the deviations corrects it.

    Source: T. Chan, G. Golub, R. LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37,
    1983.
    """
    width, inverse_width, sum_x = x.shape[1], x.dtype.type(1 / x.shape[1]), x.dtype.type(0)
    for c in range(width):
        sum_x += x[r, c]
    estimate = sum_x * inverse_width
    sum_deviation, sum_square = x.dtype.type(0), x.dtype.type(0)
    for c in range(width):
        sum_deviation += x[r, c] - estimate
        sum_square += (x[r, c] - estimate) * (x[r, c] - estimate)
    correction = sum_deviation * inverse_width
    center, sum_square = estimate + correction, maximum(sum_square - sum_deviation * correction, x.dtype.type(0))
    scale = x.dtype.type(1 / np.sqrt(sum_square / width + eps))
    if has_bias:
        for c in range(width):
            write(out, (r, c), (x[r, c] - center) * scale * weight[c] + bias[c])
    else:
        for c in range(width):
            write(out, (r, c), (x[r, c] - center) * scale * weight[c])
    return center, scale


@kernel
def _rmsnorm_forward(r, out, rstd, x, weight, eps):
    rstd[r] = rmsnorm_row(out, x, r, weight, eps)


@kernel
def _rmsnorm_backward(r, dx, dout, x, weight, rstd):
    width, scale, total = x.shape[1], rstd[r], x.dtype.type(0)
    for c in range(width):
        total += dout[r, c] * weight[c] * x[r, c]
    mean = total * scale * scale / x.dtype.type(width)
    for c in range(width):
        dx[r, c] += scale * (dout[r, c] * weight[c] - x[r, c] * mean)


@kernel
def _layernorm_forward(r, out, mean, rstd, x, weight, bias, has_bias, eps):
    mean[r], rstd[r] = layernorm_row(out, x, r, weight, bias, has_bias, eps)


@kernel
def _layernorm_backward(r, dx, dout, x, weight, mean, rstd):
    width, center, scale = x.shape[1], mean[r], rstd[r]
    sum_dy, sum_dy_xhat = x.dtype.type(0), x.dtype.type(0)
    for c in range(width):
        g = dout[r, c] * weight[c]
        sum_dy += g
        sum_dy_xhat += g * (x[r, c] - center)
    mean_dy = sum_dy / x.dtype.type(width)
    mean_dy_xhat = sum_dy_xhat * (scale * scale / x.dtype.type(width))
    for c in range(width):
        dx[r, c] += scale * (dout[r, c] * weight[c] - mean_dy - (x[r, c] - center) * mean_dy_xhat)


def rmsnorm_forward(out, rstd, x, weight, eps):
    _rmsnorm_forward(len(x), out, rstd, x, weight, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    _rmsnorm_backward(len(x), dx, dout, x, weight, rstd)
    if dweight is None:
        return
    blocks, width = -(-x.shape[1] // COLUMNS), x.shape[1]
    _weight_gradient(blocks, dweight, dweight, False, dout.reshape(-1), x.reshape(-1), rstd, False, rstd, width)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    has_bias = bias is not None
    _layernorm_forward(len(x), out, mean, rstd, x, weight, bias if has_bias else weight, has_bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    _layernorm_backward(len(x), dx, dout, x, weight, mean, rstd)
    if dweight is None:
        return
    blocks, width, has_bias = -(-x.shape[1] // COLUMNS), x.shape[1], dbias is not None
    dbias = dbias if has_bias else dweight
    _weight_gradient(blocks, dweight, dbias, has_bias, dout.reshape(-1), x.reshape(-1), mean, True, rstd, width)


# Norms of heads: rows are queries | keys | values, and each head of queries and keys is normed by itself


@inlined
def head_norm(out, x, r, start, weight, eps):
    """Norm the head of row r of x that begins at column `start` into `out`, which may be x. Returns rstd."""
    width, total = weight.size, weight.dtype.type(0)
    for c in range(width):
        total += read(x, (r, start + c)) * read(x, (r, start + c))
    scale = weight.dtype.type(1 / np.sqrt(total / width + eps))
    for c in range(width):
        write(out, (r, start + c), read(x, (r, start + c)) * scale * weight[c])
    return scale


@kernel
def _head_norm_forward(r, out, rstd, qkv, q_weight, k_weight, heads, kv_heads, eps):
    width = q_weight.size
    for head in range(heads + kv_heads):
        weight = q_weight if head < heads else k_weight
        rstd[r, head] = head_norm(out, qkv, r, head * width, weight, eps)
    values = (heads + kv_heads) * width
    convert_block(out[r, values:], qkv[r, values:])


@kernel
def _head_norm_backward(r, dqkv, dout, q_weight, k_weight, rstd, heads, kv_heads):
    width = q_weight.size
    for head in range(heads + kv_heads):
        weight, scale, total = q_weight if head < heads else k_weight, rstd[r, head], q_weight.dtype.type(0)
        part = slice(head * width, head * width + width)
        x, dy = dqkv[r, part], dout[r, part]
        for c in range(width):
            total += read(dy, c) * weight[c] * read(x, c)
        mean = total * scale * scale / weight.dtype.type(width)
        for c in range(width):
            write(x, c, scale * (read(dy, c) * weight[c] - read(x, c) * mean))
    values = (heads + kv_heads) * width
    convert_block(dqkv[r, values:], dout[r, values:])


@kernel
def _head_weight_gradient(block, dq_weight, dk_weight, dout, qkv, rstd, heads, kv_heads):
    """dq_weight += sum of dout * x * rstd over rows and query heads, dk_weight over key heads, for a block of columns

    dout, qkv: (N, (H + 2 K) w)   Even blocks are of queries, odd ones of keys. The heads of a row are summed first, so
    that rounding errors grow with the rows alone.
    """
    width, start, is_key = dq_weight.size, block // 2 * LANES, block % 2
    stop = min(width, start + LANES)
    total = (dk_weight if is_key else dq_weight)[start:stop]
    first, last = (heads, heads + kv_heads) if is_key else (0, heads)
    for r in range(len(qkv)):
        for c in range(total.size):
            of_row = total.dtype.type(0)
            for head in range(first, last):
                i = head * width + start + c
                of_row += read(dout, (r, i)) * read(qkv, (r, i)) * rstd[r, head]
            total[c] += of_row


def head_norm_forward(
    out,
    rstd,
    qkv,
    q_weight,
    k_weight,
    heads,
    kv_heads,
    eps,
):
    _head_norm_forward(
        len(qkv),
        out,
        rstd,
        qkv,
        q_weight,
        k_weight,
        heads,
        kv_heads,
        eps,
    )


def head_norm_backward(
    qkv,
    dq_weight,
    dk_weight,
    dout,
    q_weight,
    k_weight,
    rstd,
    heads,
    kv_heads,
):
    blocks = 2 * -(-q_weight.size // LANES)
    _head_weight_gradient(
        blocks,
        dq_weight,
        dk_weight,
        dout,
        qkv,
        rstd,
        heads,
        kv_heads,
    )
    _head_norm_backward(
        len(qkv),
        qkv,
        dout,
        q_weight,
        k_weight,
        rstd,
        heads,
        kv_heads,
    )
