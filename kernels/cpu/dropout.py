"""Dropout whose mask is a hash of (key, index).

Backward recomputes the mask instead of storing it, and a resumed run draws the same masks.
"""

import numpy as np

from .bfloat16 import read, type_of, write
from .jit import BLOCK, blocks_of, kernel, row


@row
def kept(index, key, threshold):
    """Whether element `index` is kept: its 32-bit hash with the key is at least `threshold`."""
    x = np.uint32(np.uint32(index) ^ np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) + np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16))) >= np.uint32(threshold)


def threshold_of(rate):
    """The hash below which an element is dropped: rate 2^32."""
    return int(rate * 4294967296.0)


@kernel
def _dropout(block, out, x, residual, has_residual, key, threshold, scale):
    """out = x scale where the element is kept, else 0;  + residual"""
    zero = type_of(x)(0)
    start, stop = block * BLOCK, min(x.size, block * BLOCK + BLOCK)
    out_part, x_part, residual_part = out[start:stop], x[start:stop], residual[start:stop]
    if has_residual:
        for i in range(stop - start):
            value = read(x_part, i) * scale if kept(start + i, key, threshold) else zero
            write(out_part, i, read(residual_part, i) + value)
    else:
        for i in range(stop - start):
            write(out_part, i, read(x_part, i) * scale if kept(start + i, key, threshold) else zero)


def dropout_forward(out, x, residual, dropout):
    rate, key = dropout
    has_residual = residual is not None
    _dropout(
        blocks_of(x),
        out.reshape(-1),
        x.reshape(-1),
        (residual if has_residual else x).reshape(-1),
        has_residual,
        key,
        threshold_of(rate),
        type_of(x)(1 / (1 - rate)),
    )


def dropout_backward(dx, dout, dropout):
    dropout_forward(dx, dout, None, dropout)
