"""The optimiser: one sweep over flat memory, and the gradient's norm in blocks of fixed size."""

import numpy as np
from numba import prange

from .jit import kernel, row

BLOCK = 1 << 15


@row
def squares_block(x):
    total = np.float64(0)
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def _squares(partial, x):
    for block in prange(partial.size):
        partial[block] = squares_block(x[block * BLOCK : min(x.size, block * BLOCK + BLOCK)])


def square_sum_blocks(size):
    return (size + BLOCK - 1) // BLOCK


def square_sum(partial, x):
    _squares(partial, x)
    return float(partial.sum())


@row
def adamw_block(
    weights, gradients, mean, square, gradient_scale, beta1, blend1, beta2, blend2, shrink, step, root, eps
):
    for i in range(weights.size):
        g = gradients[i] * gradient_scale
        m = beta1 * mean[i] + blend1 * g
        v = beta2 * square[i] + blend2 * g * g
        mean[i], square[i], gradients[i] = m, v, 0
        weights[i] = weights[i] * shrink - step * m / (np.sqrt(v) * root + eps)


@kernel
def adamw(
    weights,
    gradients,
    mean,
    square,
    n_decayed,
    gradient_scale,
    rate,
    decay,
    beta1,
    beta2,
    correction1,
    correction2,
    eps,
):
    real = weights.dtype.type
    blend1, blend2 = real(1 - beta1), real(1 - beta2)
    beta1, beta2, gradient_scale, shrink = real(beta1), real(beta2), real(gradient_scale), real(1 - rate * decay)
    step, root, eps = real(rate / correction1), real(1 / np.sqrt(correction2)), real(eps)
    for block in prange((weights.size + BLOCK - 1) // BLOCK):
        low, high = block * BLOCK, min(weights.size, block * BLOCK + BLOCK)
        border = max(low, min(high, n_decayed))
        for part, keep in ((slice(low, border), shrink), (slice(border, high), real(1))):
            adamw_block(
                weights[part],
                gradients[part],
                mean[part],
                square[part],
                gradient_scale,
                beta1,
                blend1,
                beta2,
                blend2,
                keep,
                step,
                root,
                eps,
            )
