"""Rows of attention's scores: softmax, its derivative, dropout."""

import numpy as np

from .dropout import kept
from .jit import row
from .math import exp, maximum


@row
def softmax_row(scores, length, scale):
    """scores[:length] = softmax(scale * scores[:length]); returns log sum exp."""
    largest, total = scores[0], scores.dtype.type(0)
    for j in range(length):
        largest = maximum(largest, scores[j])
    for j in range(length):
        e = exp((scores[j] - largest) * scale)
        scores[j] = e
        total += e
    inverse = scores.dtype.type(1) / total
    for j in range(length):
        scores[j] *= inverse
    return np.log(total) + largest * scale


@row
def probability_row(p, length, lse, scale):
    """Scores p[:length] become their probabilities again, from forward's log sum exp."""
    for j in range(length):
        p[j] = exp(p[j] * scale - lse)


@row
def softmax_backward_row(dp, p, length):
    """dp[:length] becomes p * (dp - sum p dp)."""
    mean = p.dtype.type(0)
    for j in range(length):
        mean += p[j] * dp[j]
    for j in range(length):
        dp[j] = p[j] * (dp[j] - mean)


@row
def drop_row(values, length, index, key, threshold, keep_scale):
    """Dropout of values[:length], elements `index`... of the mask."""
    for j in range(length):
        values[j] = values[j] * keep_scale if kept(index + j, key, threshold) else values.dtype.type(0)
