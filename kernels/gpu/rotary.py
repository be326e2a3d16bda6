"""Rotary positions: pairs (i, i + half) of every head turned in place."""

import math

from .source import Kernel
from .vector import SEVERAL, count, variants

# A warp takes a row: its lanes read neighbouring numbers, and finding a pair's head needs only a division of 32 bits.
rotate = Kernel(
    "rotate",
    SEVERAL
    + r"""
extern "C" __global__ void rotate(Operand* x, const Number* cos, const Number* sin, size_t rows, size_t columns, size_t places, int heads, int half, Number sign) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    if (r >= rows) return;
    const size_t place = r % places * half;
    for (int k = COUNT * (threadIdx.x % 32); k < heads * half; k += COUNT * 32) {
        const int i = k % half;
        Operand *left = x + r * columns + 2 * (k - i) + i, *right = left + half;
        const Several<Number> c = several(cos + place + i), s = several(sin + place + i);
        Several<Operand> a = several(left), b = several(right);
        for (int j = 0; j < COUNT; ++j) {
            const Compute u = load(a.at[j]), v = load(b.at[j]), turn = sign * s.at[j];
            a.at[j] = store<Operand>(u * c.at[j] - v * turn);
            b.at[j] = store<Operand>(v * c.at[j] + u * turn);
        }
        several(left) = a;
        several(right) = b;
    }
}""",
    variants=[
        types
        for t in ("float", "double", "bfloat16", "half")
        for types in variants(Operand=t, Number="double" if t == "double" else "float")
    ],
)


def _rotate(x, cos, sin, heads, sign):
    (rows, columns), (places, half) = x.shape, cos.shape
    rotate(
        -(-rows // 8),
        (x, cos, sin, rows, columns, places, heads, half, sign),
        Operand=x,
        Number=cos,
        COUNT=count(math.gcd(half, columns), x, cos, sin),
    )


def rotary_forward(x, cos, sin, heads):
    _rotate(x, cos, sin, heads, 1.0)


def rotary_backward(dx, cos, sin, heads):
    _rotate(dx, cos, sin, heads, -1.0)
