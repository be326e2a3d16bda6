"""Softmax cross-entropy, row by row: logits become their gradient in place. A row whose target is negative is not counted."""
import numpy as np
from numba import prange

from .elementary import exp, maximum
from .jit import exact, kernel


@exact
def log_sum(total, largest, at_target):
    """log(total) + largest - at_target. Reordered, it would lose what is small beside `largest`."""
    return np.log(total) + (largest - at_target)


@kernel
def _softmax_cross_entropy(losses, logits, targets, scale, with_gradient):
    rows, pieces = logits.shape
    for r in prange(rows):
        target = targets[r]
        if target < 0:
            losses[r] = 0
            if with_gradient:
                logits[r, :] = 0
            continue
        largest = logits[r, 0]
        for v in range(pieces):
            largest = maximum(largest, logits[r, v])
        at_target = logits[r, target]
        total = logits.dtype.type(0)
        if with_gradient:
            for v in range(pieces):
                e = exp(logits[r, v] - largest)
                logits[r, v] = e
                total += e
            factor = scale / total
            for v in range(pieces):
                logits[r, v] *= factor
            logits[r, target] -= scale
        else:
            for v in range(pieces):
                total += exp(logits[r, v] - largest)
        losses[r] = log_sum(total, largest, at_target)


def softmax_cross_entropy_forward(losses, logits, targets):
    _softmax_cross_entropy(losses, logits, targets, logits.dtype.type(0), False)


def softmax_cross_entropy_backward(losses, logits, targets, scale):
    _softmax_cross_entropy(losses, logits, targets, logits.dtype.type(scale), True)
