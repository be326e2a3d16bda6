"""Dropout whose mask is a function of (key, index): drawn again in backward instead of stored, the same on every replay."""

import numpy as np
from numba import prange

from .bfloat16 import read, type_of, write
from .jit import BLOCK, kernel, row


@row
def kept(index, key, threshold):
    """Whether value `index` survives: a 32-bit hash of index and key, compared with the share that is dropped."""
    x = np.uint32(np.uint32(index) ^ np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) + np.uint32(key))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16))) >= np.uint32(threshold)


def threshold_of(rate):
    return int(rate * 4294967296.0)


@kernel
def _dropout(out, x, residual, has_residual, key, threshold, scale):
    zero = type_of(x)(0)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        low, high = block * BLOCK, min(x.size, block * BLOCK + BLOCK)
        out_part, x_part, residual_part = out[low:high], x[low:high], residual[low:high]
        if has_residual:
            for i in range(high - low):
                write(
                    out_part,
                    i,
                    read(residual_part, i) + (read(x_part, i) * scale if kept(low + i, key, threshold) else zero),
                )
        else:
            for i in range(high - low):
                write(out_part, i, read(x_part, i) * scale if kept(low + i, key, threshold) else zero)


def dropout_forward(out, x, residual, dropout):
    (rate, key), under = dropout, x if residual is None else residual
    _dropout(
        out.reshape(-1),
        x.reshape(-1),
        under.reshape(-1),
        residual is not None,
        key,
        threshold_of(rate),
        type_of(x)(1 / (1 - rate)),
    )


def dropout_backward(dx, dout, dropout):
    dropout_forward(dx, dout, None, dropout)
