"""Rotary positions (Su et al. 2021). Sizes: N = B T tokens, w width of a head."""

import numpy as np

from slm_np.ops.device import kernels_of, put


def rotary_forward(x, cos, sin, heads):
    """(x_i, x_(i+w/2)) turned by the angle of its place, in place: x_i cos - x_(i+w/2) sin,   x_(i+w/2) cos + x_i sin

    x (N, at least heads w): only the first `heads` heads of a row turn, queries and then keys.   cos, sin (T, w/2)
    """
    kernels_of(x).rotary_forward(x, cos, sin, heads)


def rotary_backward(dx, cos, sin, heads):
    """dx turned back by the same angles, in place: a rotation's transpose is its inverse."""
    kernels_of(dx).rotary_backward(dx, cos, sin, heads)


def rotary_table(cos, sin, theta, first=0):
    """cos, sin (T, w/2) of the angles (first + t) theta^(-2i/w), computed in float64 so that far places stay exact."""
    steps, half = cos.shape
    angle = np.arange(first, first + steps)[:, None] * theta ** (-np.arange(half) / half)
    put(cos, np.cos(angle))
    put(sin, np.sin(angle))
