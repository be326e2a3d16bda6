"""Dropout whose mask is a function of (key, index): recomputed in backward, the same on every device and replay."""

from .source import Kernel, grid
from .vector import VECTOR, variants, vector_size

dropout_kernel = Kernel(
    "dropout",
    VECTOR
    + r"""
extern "C" __global__ void dropout(Out* out, const In* x, const Residual* residual, size_t n,
                                   Scalar<unsigned> key, unsigned threshold, Accum scale) {
    const unsigned k = key();
    for (size_t i = first_element(); i < n; i += element_stride()) {
        const Vector<In> v = vector(x + i);
        Vector<Residual> r = {};
        if (residual) r = vector(residual + i);
        Vector<Out> y;
        for (int j = 0; j < VEC; ++j)
            y.at[j] = store<Out>(
                load(r.at[j]) + (hash(k, i + j) >= threshold ? load(v.at[j]) * scale : Accum(0)));
        vector(out + i) = y;
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
    """Elements whose 32-bit hash is below it are dropped."""
    return int(rate * 4294967296.0)


def dropout_forward(out, x, residual, dropout):
    """dropout: (rate, key). The key is a number, or a device array of one uint32 that a captured graph reads."""
    (rate, key), vec = dropout, vector_size(out.size, out, x, residual)
    dropout_kernel(
        grid(out.size // vec),
        (out, x, residual, out.size, key, threshold_of(rate), 1 / (1 - rate)),
        Out=out,
        In=x,
        Residual=out if residual is None else residual,
        VEC=vec,
    )


def dropout_backward(dx, dout, dropout):
    dropout_forward(dx, dout, None, dropout)
