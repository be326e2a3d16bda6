"""Rotary positional encoding: rotates the pairs (i, i + w / 2) of every head in place."""

from .bfloat16 import read, type_of, write
from .jit import inlined, kernel


@inlined
def rotate_row(x, r, start, heads, cos, sin, position, sign):
    """Rotate `heads` heads of row r, from column `start` on, by the angles of a position; backward if sign is -1."""
    half = cos.shape[1]
    for head in range(heads):
        left, right = start + head * 2 * half, start + head * 2 * half + half
        for i in range(half):
            a, b, s = read(x, (r, left + i)), read(x, (r, right + i)), sign * sin[position, i]
            write(x, (r, left + i), a * cos[position, i] - b * s)
            write(x, (r, right + i), b * cos[position, i] + a * s)


@kernel
def _rotate(r, x, cos, sin, heads, sign):
    """x: rows (B T, .)        cos, sin: (T, w / 2)"""
    rotate_row(x, r, 0, heads, cos, sin, r % len(cos), sign)


def rotary_forward(x, cos, sin, heads):
    _rotate(len(x), x, cos, sin, heads, type_of(x)(1))


def rotary_backward(dx, cos, sin, heads):
    _rotate(len(dx), dx, cos, sin, heads, type_of(dx)(-1))
