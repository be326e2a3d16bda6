"""Dropout. Its mask is a hash of (key, index), so backward recomputes the mask of forward."""

import numpy as np


def hashed(index, key):
    """Uniform 32-bit integers from indices and a key, all uint32."""
    x = index ^ key
    x = (x ^ x >> 16) * np.uint32(0x21F0AAAD)
    x = (x ^ x >> 15) * np.uint32(0xD35A2D97)
    x = (x ^ x >> 15) + key
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16


def dropout_mask(x, start, dropout):
    """1 / (1 - rate) where an element of x is kept, else 0. Its index counts from `start`. Without dropout: just 1."""
    if dropout is None:
        return 1
    rate, key = dropout
    index = np.arange(x.size, dtype=np.uint32) + np.uint32(start % 2**32)
    kept = hashed(index, np.asarray(key, np.uint32)) >= np.uint32(rate * 2**32)
    return kept.reshape(x.shape) * x.dtype.type(1 / (1 - rate))


def dropout_forward(out, x, residual, dropout):
    dropped = x * dropout_mask(x, 0, dropout)
    out[...] = dropped if residual is None else dropped + residual


def dropout_backward(dx, dout, dropout):
    dx[...] = dout * dropout_mask(dout, 0, dropout)
