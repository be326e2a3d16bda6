"""Dropout whose mask is a function of (key, index): drawn again in backward instead of stored, the same on every replay and on every device."""

from .source import Kernel, grid
from .vector import SEVERAL, count, variants

dropout_kernel = Kernel(
    "dropout",
    SEVERAL
    + r"""
extern "C" __global__ void dropout(Out* out, const In* x, const Residual* residual, size_t n, Scalar<unsigned> key, unsigned threshold, Compute scale) {
    const unsigned k = key();
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        const Several<In> v = several(x + i);
        Several<Residual> under = {};
        if (residual) under = several(residual + i);
        Several<Out> y;
        for (int j = 0; j < COUNT; ++j)
            y.at[j] = store<Out>(load(under.at[j]) + (hash(k, i + j) >= threshold ? load(v.at[j]) * scale : Compute(0)));
        several(out + i) = y;
    }
}""",
    variants=[
        types
        for out, x, residual in (
            ("float", "float", "float"),
            ("double", "double", "double"),
            ("float", "bfloat16", "float"),
            ("bfloat16", "float", "bfloat16"),
            ("bfloat16", "bfloat16", "bfloat16"),
            ("float", "half", "float"),
            ("half", "float", "half"),
            ("half", "half", "half"),
        )
        for types in variants(Out=out, In=x, Residual=residual)
    ],
)


def threshold_of(rate):
    return int(rate * 4294967296.0)


def dropout_forward(out, x, residual, dropout):
    """dropout: (rate, key). The key is a number, or a device array of one uint32 that a captured graph reads."""
    (rate, key), per_thread = dropout, count(out.size, out, x, residual)
    dropout_kernel(
        grid(out.size // per_thread),
        (out, x, residual, out.size, key, threshold_of(rate), 1 / (1 - rate)),
        Out=out,
        In=x,
        Residual=out if residual is None else residual,
        COUNT=per_thread,
    )


def dropout_backward(dx, dout, dropout):
    dropout_forward(dx, dout, None, dropout)
