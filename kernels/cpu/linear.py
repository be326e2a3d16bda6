"""Linear layers: products with a bias and a residual under them, by the faster of two ways."""
from numba import prange

from . import product_blas, product_tile
from .jit import kernel
from .norm import add_to
from .product_blas import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
from .tile import FEATURES, ROWS


def products(out, rows):
    """Tiles in float32 where registers hold 16 numbers; OpenBLAS in float64, on other processors, where it is as fast, and for a few rows."""
    return product_tile if FEATURES.get("avx512f") and out.dtype == "f4" and rows >= 2 * ROWS else product_blas


@kernel
def add_rows(dbias, dout):
    """dbias += sum of the rows of dout, in blocks of columns."""
    rows, columns = dout.shape
    for block in prange((columns + 127) // 128):
        part = slice(block * 128, min(columns, block * 128 + 128))
        for r in range(rows):
            add_to(dbias[part], dout[r, part])


def linear_forward(out, x, weight, bias, residual):
    if bias is None:
        under = NOTHING if residual is None else ADD if residual is out else RESIDUAL  # what lies there already need not be laid
    else:
        under = BIAS if residual is None else BIAS_AND_RESIDUAL
    products(out, len(x)).product(out, x, weight, 0, under, weight[0] if bias is None else bias, out if residual is None else residual)


def linear_backward_input(dx, dout, weight):
    products(dx, len(dout)).product(dx, dout, weight, 1, NOTHING, weight[0], dx)


def linear_backward_weight(dweight, dbias, dout, x):
    products(dweight, len(x)).add_outer_products(dweight, x, dout)
    if dbias is not None:
        add_rows(dbias, dout)


def linear_transposed_forward(out, x, weight):
    products(out, len(x)).product(out, x, weight, 1, NOTHING, weight[0], out)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    products(dweight, len(x)).add_outer_products(dweight, dout, x)
    products(dx, len(x)).product(dx, dout, weight, 0, NOTHING, weight[0], dx)
