"""Softmax cross-entropy, row by row.

The gradient may overwrite the logits. A row with a negative target is masked: its loss and its gradient are 0.
"""

import numpy as np
from numba.extending import overload

from .bfloat16 import write
from .jit import exact, kernel, unsigned
from .math import exp, maximum

SPAN = 512  # exponentials summed in the lanes of a register at a time: longer sums lose more bits of small terms


@exact
def log_sum(total, largest, at_target):
    """log(total) + (largest - at_target). Adding `largest` first would lose the low bits of log(total)."""
    return np.log(total) + (largest - at_target)


def scale_row(out, x, factor):
    """out = factor x. If both have the same type, they are the same row, and x is scaled in place."""


@overload(scale_row, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _scale_row(out, x, factor):
    if out == x:

        def scaled(out, x, factor):
            for v in range(x.size):
                x[v] *= factor
    else:

        def scaled(out, x, factor):
            for v in range(x.size):
                write(out, v, x[v] * factor)

    return scaled


@kernel
def _softmax_cross_entropy(r, dlogits, losses, logits, targets, scale, with_gradient):
    rows, vocab_size = logits.shape
    target = targets[r]
    if target < 0:
        losses[r] = 0
        if with_gradient:
            dlogits[r] = 0
        return
    largest = logits[r, 0]
    for v in range(vocab_size):
        largest = maximum(largest, logits[r, v])
    at_target = logits[r, target]
    total = logits.dtype.type(0)
    if with_gradient:
        for start in range(0, vocab_size, SPAN):
            part = logits.dtype.type(0)
            for i in range(min(SPAN, vocab_size - start)):
                v = unsigned(start) + unsigned(i)
                e = exp(logits[r, v] - largest)
                logits[r, v] = e
                part += e
            total += part
        factor = scale / total
        logits[r, target] -= total  # times `factor`, this subtracts `scale`
        scale_row(dlogits[r], logits[r], factor)
        dlogits[r, vocab_size:] = 0  # the padding, which the matmul reads too
    else:
        for start in range(0, vocab_size, SPAN):
            part = logits.dtype.type(0)
            for i in range(min(SPAN, vocab_size - start)):
                v = unsigned(start) + unsigned(i)
                part += exp(logits[r, v] - largest)
            total += part
    losses[r] = log_sum(total, largest, at_target)


def softmax_cross_entropy_forward(losses, logits, targets):
    _softmax_cross_entropy(len(logits), logits, losses, logits, targets, logits.dtype.type(0), False)


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    _softmax_cross_entropy(len(logits), dlogits, losses, logits, targets, logits.dtype.type(scale), True)
