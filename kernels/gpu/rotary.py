"""Rotary positions: the pairs (i, i + half) of the first columns of every head are rotated in place."""

import math

from .source import Kernel
from .vector import VECTOR, variants, vector_size

# One row per warp: its lanes read neighboring elements, and finding a pair's head takes only a 32-bit division.
rotate_kernel = Kernel(
    "rotate",
    VECTOR
    + r"""
extern "C" __global__ void rotate(Storage* x, const Real* cos, const Real* sin, size_t rows, size_t columns,
                                  size_t positions, int heads, int width, int half, Real sign) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    if (r >= rows) return;
    const size_t angles = r % positions * half;
    for (int k = VEC * (threadIdx.x % 32); k < heads * half; k += VEC * 32) {
        const int i = k % half;
        Storage *left = x + r * columns + (size_t)(k / half) * width + i, *right = left + half;
        const Vector<Real> c = vector(cos + angles + i), s = vector(sin + angles + i);
        Vector<Storage> a = vector(left), b = vector(right);
        for (int j = 0; j < VEC; ++j) {
            const Accum u = load(a.at[j]), v = load(b.at[j]), signed_sin = sign * s.at[j];
            a.at[j] = store<Storage>(u * c.at[j] - v * signed_sin);
            b.at[j] = store<Storage>(v * c.at[j] + u * signed_sin);
        }
        vector(left) = a;
        vector(right) = b;
    }
}""",
    variants=[
        types
        for t in ("float", "double", "bfloat16", "half")
        for types in variants(Storage=t, Real="double" if t == "double" else "float")
    ],
)


def _rotate(x, cos, sin, heads, width, sign):
    (rows, columns), (positions, half) = x.shape, cos.shape
    rotate_kernel(
        -(-rows // 8),
        (x, cos, sin, rows, columns, positions, heads, width, half, sign),
        Storage=x,
        Real=cos,
        VEC=vector_size(math.gcd(half, width, columns), x, cos, sin),
    )


def rotary_forward(x, cos, sin, heads, width):
    _rotate(x, cos, sin, heads, width, 1.0)


def rotary_backward(dx, cos, sin, heads, width):
    _rotate(dx, cos, sin, heads, width, -1.0)
