"""AdamW in one pass over flat memory, and the squared gradient norm.

The norm is summed in blocks of fixed size, so it does not depend on the number of threads.
"""

import numpy as np

from .jit import kernel, row

BLOCK = 1 << 15  # elements per task


@row
def square_sum_block(x):
    """Sum of squares, in float64."""
    total = np.float64(0)
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def _square_sums(block, partial, x):
    partial[block] = square_sum_block(x[block * BLOCK : min(x.size, block * BLOCK + BLOCK)])


def square_sum_blocks(size):
    """Elements of `partial` for an array of `size` elements."""
    return (size + BLOCK - 1) // BLOCK


def square_sum(partial, x):
    _square_sums(partial.size, partial, x)
    return float(partial.sum())


@row
def adamw_block(
    weights,
    gradients,
    mean,
    square,
    gradient_scale,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    shrink,
    step,
    root,
    eps,
):
    """m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   w = w shrink - step m / (sqrt(v) root + eps),   then g = 0

    shrink: 1 - rate decay        step: rate / correction1        root: 1 / sqrt(correction2)
    """
    for i in range(weights.size):
        g = gradients[i] * gradient_scale
        m = beta1 * mean[i] + one_minus_beta1 * g
        v = beta2 * square[i] + one_minus_beta2 * g * g
        mean[i], square[i], gradients[i] = m, v, 0
        weights[i] = weights[i] * shrink - step * m / (np.sqrt(v) * root + eps)


@kernel
def _adamw(
    block,
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
    dtype = weights.dtype.type
    one_minus_beta1, one_minus_beta2 = dtype(1 - beta1), dtype(1 - beta2)
    beta1, beta2, gradient_scale, shrink = dtype(beta1), dtype(beta2), dtype(gradient_scale), dtype(1 - rate * decay)
    step, root, eps = dtype(rate / correction1), dtype(1 / np.sqrt(correction2)), dtype(eps)
    start, stop = block * BLOCK, min(weights.size, block * BLOCK + BLOCK)
    boundary = max(start, min(stop, n_decayed))
    for part, factor in ((slice(start, boundary), shrink), (slice(boundary, stop), dtype(1))):
        adamw_block(
            weights[part],
            gradients[part],
            mean[part],
            square[part],
            gradient_scale,
            beta1,
            one_minus_beta1,
            beta2,
            one_minus_beta2,
            factor,
            step,
            root,
            eps,
        )


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
    _adamw(
        -(-weights.size // BLOCK),
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
    )
