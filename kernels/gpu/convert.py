"""From one storage type to another."""

from .source import Kernel, grid
from .vector import SEVERAL, count, variants

rounded = Kernel(
    "convert",
    SEVERAL
    + r"""
extern "C" __global__ void convert(Out* out, const In* x, size_t n) {
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        const Several<In> v = several(x + i);
        Several<Out> y;
        for (int j = 0; j < COUNT; ++j) y.at[j] = store<Out>(load(v.at[j]));
        several(out + i) = y;
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
    several = count(out.size, out, x)
    rounded(grid(out.size // several), (out, x, out.size), Out=out, In=x, COUNT=several)
