"""Activations, elementwise. Each backward turns x into dx and dout into `out`, the activation again."""

import math

import numpy as np

from .normal import normal_cdf

CUBIC = math.sqrt(2 / math.pi)


def sigmoid(x):
    """1 / (1 + e^-x)"""
    e = np.exp(-np.abs(x))  # at most 1: nothing overflows
    return np.where(x >= 0, 1, e) / (1 + e)


def silu_forward(out, x):
    out[...] = x * sigmoid(x)


def silu_backward(x, dout):
    s = sigmoid(x)
    out, slope = x * s, s * (1 + x * (1 - s))
    x[...], dout[...] = dout * slope, out


def normal(x):
    """(P, p) of the standard normal: P(x) = (1 + erf(x / sqrt 2)) / 2,   p(x) = P'(x) = e^(-x^2/2) / sqrt(2 pi)"""
    return normal_cdf(x), np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_forward(out, x):
    out[...] = x * normal(x)[0]


def gelu_backward(x, dout):
    distribution, density = normal(x)
    out, slope = x * distribution, distribution + x * density
    x[...], dout[...] = dout * slope, out


def gelu_tanh_forward(out, x):
    out[...] = x * sigmoid(2 * CUBIC * (x + 0.044715 * x * x * x))


def gelu_tanh_backward(x, dout):
    s = sigmoid(2 * CUBIC * (x + 0.044715 * x * x * x))
    out, slope = x * s, s * (1 + x * (1 - s) * 2 * CUBIC * (1 + 3 * 0.044715 * x * x))
    x[...], dout[...] = dout * slope, out


def swiglu_forward(out, x):
    gate, up = np.split(x, 2, axis=1)  # (N, F) each
    out[...] = gate * sigmoid(gate) * up


def swiglu_backward(x, dout):
    gate, up = np.split(x, 2, axis=1)  # (N, F) each, views
    s = sigmoid(gate)
    silu, slope = gate * s, s * (1 + gate * (1 - s))
    gate[...], up[...], dout[...] = dout * up * slope, dout * silu, silu * up
