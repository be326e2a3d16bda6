"""Row functions of attention: softmax of a row of scores, its derivative, and dropout."""

import numpy as np

from .dropout import kept
from .jit import row
from .math import exp_scaled, maximum


@row
def softmax_row(scores, length, scale):
    """scores[:length] = softmax(scale * scores[:length]). Returns log sum exp(scale * scores)."""
    largest, total = scores[0], scores.dtype.type(0)
    for j in range(length):
        largest = maximum(largest, scores[j])
    for j in range(length):
        e = exp_scaled(scores[j] - largest, scale)
        scores[j] = e
        total += e
    inverse = scores.dtype.type(1) / total
    for j in range(length):
        scores[j] *= inverse
    return np.log(total) + largest * scale


@row
def probability_row(p, length, lse, scale):
    """p[:length] = exp(scale * p[:length] - lse): recompute the probabilities from the scores and forward's lse."""
    shift = lse / scale
    for j in range(length):
        p[j] = exp_scaled(p[j] - shift, scale)


@row
def softmax_backward_row(dp, p, length):
    """dp[:length] = p * (dp - sum_j p_j dp_j)"""
    mean = p.dtype.type(0)
    for j in range(length):
        mean += p[j] * dp[j]
    for j in range(length):
        dp[j] = p[j] * (dp[j] - mean)


@row
def drop_row(values, length, index, key, threshold, keep_scale):
    """Apply dropout to values[:length] in place. `index` is the first element's index in the mask."""
    for j in range(length):
        values[j] = values[j] * keep_scale if kept(index + j, key, threshold) else values.dtype.type(0)
