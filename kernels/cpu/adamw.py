"""The optimiser: one sweep over flat memory, and the gradient's norm in blocks of fixed size."""
import numpy as np
from numba import prange

from .jit import kernel

BLOCK = 1 << 15


@kernel
def _squares(partial, x):
    for block in prange(partial.size):
        total = np.float64(0)
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            total += np.float64(x[i]) * np.float64(x[i])
        partial[block] = total


def square_sum_blocks(size):
    return (size + BLOCK - 1) // BLOCK


def square_sum(partial, x):
    _squares(partial, x)
    return float(partial.sum())


@kernel
def adamw(weights, gradients, mean, square, n_decayed, gradient_scale, rate, decay, beta1, beta2, correction1, correction2, eps):
    real = weights.dtype.type
    blend1, blend2 = real(1 - beta1), real(1 - beta2)
    beta1, beta2, gradient_scale, shrink = real(beta1), real(beta2), real(gradient_scale), real(1 - rate * decay)
    step, root, eps = real(rate / correction1), real(1 / np.sqrt(correction2)), real(eps)
    for block in prange((weights.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(weights.size, block * BLOCK + BLOCK)):
            g = gradients[i] * gradient_scale
            m = beta1 * mean[i] + blend1 * g
            v = beta2 * square[i] + blend2 * g * g
            mean[i], square[i], gradients[i] = m, v, real(0)
            weights[i] = weights[i] * (shrink if i < n_decayed else real(1)) - step * m / (np.sqrt(v) * root + eps)
