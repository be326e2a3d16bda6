"""The residual stream's gradient where nothing normalises: a sum in place."""

from .source import Kernel, grid
from .vector import SEVERAL, count, variants

add = Kernel(
    "accumulate",
    SEVERAL
    + r"""
extern "C" __global__ void accumulate(Number* total, const In* x, size_t n) {
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        Several<Number> sum = several(total + i);
        const Several<In> v = several(x + i);
        for (int j = 0; j < COUNT; ++j) sum.at[j] += load(v.at[j]);
        several(total + i) = sum;
    }
}""",
    variants=[
        types
        for t in ("float", "double", "bfloat16", "half")
        for types in variants(Number="double" if t == "double" else "float", In=t)
    ],
)


def accumulate(total, x):
    several = count(total.size, total, x)
    add(grid(total.size // several), (total, x, total.size), Number=total, In=x, COUNT=several)
