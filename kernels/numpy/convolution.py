"""A causal depthwise convolution followed by silu. Sizes: B batch, T steps, E channels, K taps."""

import numpy as np

from .activation import sigmoid, silu_forward


def convolve(x, past, weight, bias):
    """(seen, p): p_t = bias + sum_k weight[k] seen[t + k]        seen (B, K - 1 + T, E): past, then x   p (B, T, E)"""
    batch, _, channels = past.shape
    seen = np.concatenate((past, x[:, :channels].reshape(batch, -1, channels)), axis=1)
    steps = seen.shape[1] - len(weight) + 1
    return seen, bias + sum(weight[k] * seen[:, k : k + steps] for k in range(len(weight)))


def convolution_forward(out, x, past, weight, bias):
    silu_forward(out, convolve(x, past, weight, bias)[1].reshape(out.shape))


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    seen, p = convolve(x, past, weight, bias)
    steps, s = p.shape[1], sigmoid(p)
    dp = dout.reshape(p.shape) * s * (1 + p * (1 - s))  # silu'(p)
    dseen = np.zeros_like(seen)
    for k in range(len(weight)):  # p_t read seen[t + k] through weight[k]
        dseen[:, k : k + steps] += weight[k] * dp
        dweight[k] += (dp * seen[:, k : k + steps]).sum((0, 1))
    dbias += dp.sum((0, 1))
    x[:, : len(bias)] = dseen[:, len(weight) - 1 :].reshape(dout.shape)  # the past has no gradient
    dout[...] = (p * s).reshape(dout.shape)
