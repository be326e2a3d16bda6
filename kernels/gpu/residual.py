"""Gradients of a residual connection: total += x."""

from .source import Kernel, grid
from .vector import VECTOR, variants, vector_size

accumulate_kernel = Kernel(
    "accumulate",
    VECTOR
    + r"""
extern "C" __global__ void accumulate(Real* total, const In* x, size_t n) {
    for (size_t i = first_element(); i < n; i += element_stride()) {
        Vector<Real> sum = vector(total + i);
        const Vector<In> v = vector(x + i);
        for (int j = 0; j < VEC; ++j) sum.at[j] += load(v.at[j]);
        vector(total + i) = sum;
    }
}""",
    variants=[
        types
        for t in ("float", "double", "bfloat16", "half")
        for types in variants(Real="double" if t == "double" else "float", In=t)
    ],
)


def accumulate(total, x):
    vec = vector_size(total.size, total, x)
    accumulate_kernel(grid(total.size // vec), (total, x, total.size), Real=total, In=x, VEC=vec)
