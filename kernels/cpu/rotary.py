"""Rotary positions: pairs (i, i + half) of every head turned in place."""

from numba import prange

from .bfloat16 import read, type_of, write
from .jit import inlined, kernel


@inlined
def rotate_row(x, r, first, heads, cos, sin, place, sign):
    """Row r, `heads` heads from column `first` on, turned by the angles of `place`."""
    half = cos.shape[1]
    for head in range(heads):
        left, right = first + head * 2 * half, first + head * 2 * half + half
        for i in range(half):
            a, b, s = read(x, (r, left + i)), read(x, (r, right + i)), sign * sin[place, i]
            write(x, (r, left + i), a * cos[place, i] - b * s)
            write(x, (r, right + i), b * cos[place, i] + a * s)


@kernel
def _rotate(x, cos, sin, heads, sign):
    for r in prange(len(x)):
        rotate_row(x, r, 0, heads, cos, sin, r % len(cos), sign)


def rotary_forward(x, cos, sin, heads):
    _rotate(x, cos, sin, heads, type_of(x)(1))


def rotary_backward(dx, cos, sin, heads):
    _rotate(dx, cos, sin, heads, type_of(dx)(-1))
