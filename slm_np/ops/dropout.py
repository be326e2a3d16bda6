"""Dropout with a counter-based mask, a function of (key, index), so backward recomputes it (Srivastava et al. 2014)."""

from typing import Any, NamedTuple

import numpy as np

from slm_np.ops.device import kernels_of


class Dropout(NamedTuple):
    """One mask: the rate of dropped elements, and a key of 31 bits or a device array of one that holds it."""

    rate: float
    key: Any


def dropout_forward(out, x, residual, dropout):
    """out = x * kept / (1 - rate) + residual,   kept[i] = hash(key, i) >= rate 2^32

    one shape; residual may be None
    """
    kernels_of(out).dropout_forward(out, x, residual, dropout)


def dropout_backward(dx, dout, dropout):
    """dx = dout * kept / (1 - rate)        (dresidual is dout itself)"""
    kernels_of(dx).dropout_backward(dx, dout, dropout)


def dropout_key(*parts):
    """A 31-bit key from integers such as (seed, step, micro-batch, layer): equal parts give equal masks."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
