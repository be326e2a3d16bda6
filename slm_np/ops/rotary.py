"""Rotary position embedding (Su et al. 2021). Sizes: T steps, N = B T, w head width."""

import numpy as np

from slm_np.ops.device import kernels_of, put


def rotary_forward(x, cos, sin, heads):
    """Rotate each pair (x_i, x_(i+w/2)) by its position's angle: x_i cos - x_(i+w/2) sin,   x_(i+w/2) cos + x_i sin

    x (N, heads w or more), in place: only the first `heads` heads of a row, queries and then keys.   cos, sin (T, w/2)
    """
    kernels_of(x).rotary_forward(x, cos, sin, heads)


def rotary_backward(dx, cos, sin, heads):
    """Rotate dx by the opposite angles, in place: the transpose of a rotation is its inverse."""
    kernels_of(dx).rotary_backward(dx, cos, sin, heads)


def rotary_table(cos, sin, theta, start=0):
    """cos, sin (T, w/2) of the angles (start + t) theta^(-2i/w), in float64 so that late positions stay exact"""
    steps, half = cos.shape
    angle = np.arange(start, start + steps)[:, None] * theta ** (-np.arange(half) / half)  # (T, w / 2)
    put(cos, np.cos(angle))
    put(sin, np.sin(angle))
