"""Activations, elementwise. Each backward turns x into dx and dout into `out`, the activation again."""

import math

import numpy as np

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


def scaled_erfc(s):
    """erfc(z) e^(z^2), smooth in s = (8 / (1 + 0.4 z) - 5) / 3, which is 1 at z = 0 and -1 at z = 7.5"""
    z = (8 / (3 * s + 5) - 1) / 0.4
    return math.erfc(z) * math.exp(z * z)


# NumPy has no erf. This Chebyshev series of `scaled_erfc` replaces it, with an error of 2e-15.
ERFC = np.polynomial.chebyshev.chebinterpolate(np.vectorize(scaled_erfc), 16)


def normal(x):
    """(P, p) of the normal distribution: P(x) = (1 + erf(x / sqrt 2)) / 2,   p(x) = e^(-x^2/2) / sqrt(2 pi)"""
    e, z = np.exp(-x * x / 2), np.abs(x) * math.sqrt(0.5)
    terms = ERFC[np.abs(ERFC) > np.finfo(x.dtype).eps / 4].astype(x.dtype)  # float32 needs fewer
    tail = e * np.polynomial.chebyshev.chebval((8 / (1 + 0.4 * z) - 5) / 3, terms) / 2  # P(-|x|)
    return np.where(x > 0, 1 - tail, tail), e / math.sqrt(2 * math.pi)


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
