"""AdamW over flat arrays, and the sum of squares for the gradient's norm. Blocks keep temporaries in the cache."""

import numpy as np

BLOCK = 1 << 15  # elements


def square_sum_blocks(size):
    return -(-size // BLOCK)


def square_sum(partial, x):
    """sum x^2, in float64        partial (square_sum_blocks(size),)   x (size,)"""
    for i in range(len(partial)):
        block = x[i * BLOCK : (i + 1) * BLOCK].astype(np.float64)
        partial[i] = block @ block
    return float(partial.sum())


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
    """m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   g = 0,   with c = 1 - beta^t the corrections:

    w = (1 - rate decay) w - rate (m / c1) / (sqrt(v / c2) + eps).   Only the first `n_decayed` weights decay.
    """
    weights[:n_decayed] *= 1 - rate * decay
    for start in range(0, weights.size, BLOCK):
        w, g, m, v = (x[start : start + BLOCK] for x in (weights, gradients, mean, square))  # views
        g *= gradient_scale
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        w -= rate / correction1 * m / (np.sqrt(v) / correction2**0.5 + eps)
    gradients.fill(0)
