"""Rotary positional encoding, in place: rotates the pairs (i, i + r / 2) of the first r columns of every head."""

from .bfloat16 import read, type_of, write
from .jit import inlined, kernel


@inlined
def rotate_row(x, r, start, heads, width, cos, sin, position, sign):
    """Rotate `heads` heads of row r, from column `start` on, by the angles of a position; backward if sign is -1."""
    half = cos.shape[1]
    for head in range(heads):
        left, right = start + head * width, start + head * width + half
        for i in range(half):
            a, b, s = read(x, (r, left + i)), read(x, (r, right + i)), sign * sin[position, i]
            write(x, (r, left + i), a * cos[position, i] - b * s)
            write(x, (r, right + i), b * cos[position, i] + a * s)


@kernel
def _rotate(r, x, cos, sin, heads, width, sign):
    """x: rows (B T, .)        cos, sin: (T, r / 2)        width: of a head"""
    rotate_row(x, r, 0, heads, width, cos, sin, r % len(cos), sign)


def rotary_forward(x, cos, sin, heads, width):
    _rotate(len(x), x, cos, sin, heads, width, type_of(x)(1))


def rotary_backward(dx, cos, sin, heads, width):
    _rotate(len(dx), dx, cos, sin, heads, width, type_of(dx)(-1))
