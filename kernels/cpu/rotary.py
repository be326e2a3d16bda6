"""Rotary positional encoding, in place: rotates the pairs (i, i + r / 2) of the first r columns of every head."""

from .bfloat16 import read, type_of, write
from .jit import inlined, kernel


@inlined
def rotate_row(x, r, start, heads, width, cos, sin, position, sign):
    """Rotate `heads` heads of row r, from column `start` on, by the angles of a position; backward if sign is -1.

    width: of a head, or None if all of its columns are rotated: the compiler then makes code that is two to four times
    as fast.
    """
    half = cos.shape[1]
    stride = 2 * half if width is None else width
    for head in range(heads):
        left, right = start + head * stride, start + head * stride + half
        for i in range(half):
            a, b, s = read(x, (r, left + i)), read(x, (r, right + i)), sign * sin[position, i]
            write(x, (r, left + i), a * cos[position, i] - b * s)
            write(x, (r, right + i), b * cos[position, i] + a * s)


@kernel
def _rotate(r, x, cos, sin, heads, width, sign):
    """x: rows (B T, .)        cos, sin: (T, r / 2)        width: as of `rotate_row`"""
    rotate_row(x, r, 0, heads, width, cos, sin, r % len(cos), sign)


def stride_of(cos, width):
    return None if width == 2 * cos.shape[1] else width


def rotary_forward(x, cos, sin, heads, width):
    _rotate(len(x), x, cos, sin, heads, stride_of(cos, width), type_of(x)(1))


def rotary_backward(dx, cos, sin, heads, width):
    _rotate(len(dx), dx, cos, sin, heads, stride_of(cos, width), type_of(dx)(-1))
