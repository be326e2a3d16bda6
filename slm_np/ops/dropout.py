"""Dropout (Srivastava et al. 2014) with a mask that is a function of (key, index), so that backward draws the same one again."""

import numpy as np

from slm_np.ops.device import kernels_of


def dropout_forward(out, x, residual, dropout):
    """out = x * kept / (1 - share) + residual,   kept[i] = hash(key, i) >= share 2^32        all one shape; `residual` may be None"""
    kernels_of(out).dropout_forward(out, x, residual, dropout)


def dropout_backward(dx, dout, dropout):
    """dx = dout * kept / (1 - share)        (d residual is dout itself)"""
    kernels_of(dx).dropout_backward(dx, dout, dropout)


def dropout_key(*parts):
    """A 31-bit key from integers such as (seed, step, micro-batch, place): the same parts give the same mask."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
