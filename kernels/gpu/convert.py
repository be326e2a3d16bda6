"""Conversion from one storage type to another."""

from .source import Kernel, grid
from .vector import VECTOR, variants, vector_size

convert_kernel = Kernel(
    "convert",
    VECTOR
    + r"""
extern "C" __global__ void convert(Out* out, const In* x, size_t n) {
    for (size_t i = first_element(); i < n; i += element_stride()) {
        const Vector<In> v = vector(x + i);
        Vector<Out> y;
        for (int j = 0; j < VEC; ++j) y.at[j] = store<Out>(load(v.at[j]));
        vector(out + i) = y;
    }
}""",
    variants=[
        types
        for a, b in (
            ("bfloat16", "float"),
            ("half", "float"),
            ("float", "bfloat16"),
            ("float", "half"),
            ("double", "float"),
            ("float", "double"),
        )
        for types in variants(Out=a, In=b)
    ],
)


def convert(out, x):
    vec = vector_size(out.size, out, x)
    convert_kernel(grid(out.size // vec), (out, x, out.size), Out=out, In=x, VEC=vec)
