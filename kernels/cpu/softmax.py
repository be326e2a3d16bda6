"""Rows of attention's scores: softmax, its derivative, dropout."""

import numpy as np

from .dropout import kept
from .jit import row
from .math import exp, maximum


@row
def softmax_row(scores, length, reach, scale):
    """Probabilities of scale * scores[:length] in their place, those up to `reach` zero; returns log sum exp."""
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
    scores[length:reach] = 0
    return np.log(total) + largest * scale


@row
def probability_row(p, length, reach, log_sum, scale):
    """Scores p[:length] become the probabilities they were in forward."""
    for j in range(length):
        p[j] = exp(p[j] * scale - log_sum)
    p[length:reach] = 0


@row
def softmax_backward_row(dp, p, length, reach):
    """dp[:length] becomes p * (dp - sum p dp), those up to `reach` zero."""
    mean = p.dtype.type(0)
    for j in range(length):
        mean += p[j] * dp[j]
    for j in range(length):
        dp[j] = p[j] * (dp[j] - mean)
    dp[length:reach] = 0


@row
def drop_row(values, length, index, key, threshold, keep_scale):
    for j in range(length):
        values[j] = values[j] * keep_scale if kept(index + j, key, threshold) else values.dtype.type(0)
