"""Linear layers: products with a bias and a residual under them. float32 and float64 by the faster of two ways, bfloat16 by tiles of pairs."""

from numba import prange

from slm_np.dtypes import BF16, CastCopy

from . import gemm_bf16, gemm_blas, gemm_f32
from .gemm_blas import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
from .jit import kernel
from .microkernel_f32 import ROWS
from .norm import add_to
from .processor import FEATURES


def gemm_of(out, rows):
    """Tiles in float32 where registers hold 16 numbers; OpenBLAS in float64, on other processors, where it is as fast, and for a few rows."""
    return gemm_f32 if FEATURES.get("avx512f") and out.dtype == "f4" and rows >= 2 * ROWS else gemm_blas


@kernel
def add_rows(dbias, dout):
    """dbias += sum of the rows of dout, in blocks of columns."""
    rows, columns = dout.shape
    for block in prange((columns + 127) // 128):
        part = slice(block * 128, min(columns, block * 128 + 128))
        for r in range(rows):
            add_to(dbias[part], dout[r, part])


def multiply(out, a, weight, transpose, bias=None, residual=None):
    """out = a W or a W^T, + bias + residual        weight: an array, or `CastCopy`"""
    if bias is None:
        under = (
            NOTHING if residual is None else ADD if residual is out else RESIDUAL
        )  # what lies there already need not be laid
    else:
        under = BIAS if residual is None else BIAS_AND_RESIDUAL
    rounded = isinstance(weight, CastCopy)
    values = weight.weight if rounded else weight
    bias, residual = values[0] if bias is None else bias, out if residual is None else residual
    if rounded:
        gemm_bf16.product(out, a, weight.backward if transpose else weight.forward, under, bias, residual)
    else:
        gemm_of(out, len(a)).product(out, a, weight, transpose, under, bias, residual)


def add_outer(dweight, a, b):
    """dweight += a^T b"""
    (gemm_bf16 if a.dtype == BF16 else gemm_of(dweight, len(a))).add_outer_products(dweight, a, b)


def linear_forward(out, x, weight, bias, residual):
    multiply(out, x, weight, 0, bias, residual)


def linear_backward_input(dx, dout, weight):
    multiply(dx, dout, weight, 1)


def linear_backward_weight(dweight, dbias, dout, x):
    add_outer(dweight, x, dout)
    if dbias is not None:
        add_rows(dbias, dout)


def linear_transposed_forward(out, x, weight):
    multiply(out, x, weight, 1)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    add_outer(dweight, dout, x)
    multiply(dx, dout, weight, 0)
