"""Rotary positions: pairs (i, i + half) of every head turned in place."""
from numba import prange

from .jit import kernel


@kernel
def _rotate(x, cos, sin, heads, sign):
    rows, places, half = x.shape[0], cos.shape[0], cos.shape[1]
    for r in prange(rows):
        place = r % places
        for head in range(heads):
            left, right = head * 2 * half, head * 2 * half + half
            for i in range(half):
                a, b, s = x[r, left + i], x[r, right + i], sign * sin[place, i]
                x[r, left + i] = a * cos[place, i] - b * s
                x[r, right + i] = b * cos[place, i] + a * s


def rotary_forward(x, cos, sin, heads):
    _rotate(x, cos, sin, heads, x.dtype.type(1))


def rotary_backward(dx, cos, sin, heads):
    _rotate(dx, cos, sin, heads, dx.dtype.type(-1))
