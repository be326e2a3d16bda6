"""Linear layers: matmuls whose output is prefilled with the bias and the residual.

float32 and float64 use register tiles, or Accelerate on Apple's processors, and bfloat16 tiles of pairs.
"""

from slm_np.dtypes import BF16, CastCopy

from . import blas, gemm_bf16
from .jit import kernel
from .microkernel_f32 import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
from .norm import add_to

if blas.ON_APPLE:
    from . import gemm_blas as gemm

    blas.bind(blas.ACCELERATE, ("sgemm_", "dgemm_"))
else:
    from . import gemm_f32 as gemm


COLUMNS = 128  # of dbias per task


@kernel
def _add_rows(block, dbias, dout):
    """dbias += sum_n dout, for a block of columns"""
    rows, columns = dout.shape
    part = slice(block * COLUMNS, min(columns, block * COLUMNS + COLUMNS))
    for r in range(rows):
        add_to(dbias[part], dout[r, part])


def multiply(out, a, weight, transpose, bias=None, residual=None):
    """out = a op(W) + bias + residual        op(W) = W^T if `transpose`, else W   weight: an array or a CastCopy"""
    if bias is not None:
        prefill = BIAS if residual is None else BIAS_AND_RESIDUAL
    elif residual is None:
        prefill = NOTHING
    else:
        prefill = ADD if residual is out else RESIDUAL  # ADD: `out` already holds the residual
    is_copy = isinstance(weight, CastCopy)
    values = weight.weight if is_copy else weight
    # Kernels take arrays, not None. They only read the ones that `prefill` names.
    bias, residual = values[0] if bias is None else bias, out if residual is None else residual
    if is_copy:
        gemm_bf16.matmul(out, a, weight.backward if transpose else weight.forward, prefill, bias, residual)
    else:
        gemm.matmul(out, a, weight, transpose, prefill, bias, residual)


def add_outer(dweight, a, b):
    """dweight += a^T b"""
    (gemm_bf16 if a.dtype == BF16 else gemm).add_outer_products(dweight, a, b)


def linear_forward(out, x, weight, bias, residual):
    multiply(out, x, weight, 0, bias, residual)


def linear_backward_input(dx, dout, weight, residual=None):
    multiply(dx, dout, weight, 1, None, residual)


def linear_backward_weight(dweight, dbias, dout, x):
    add_outer(dweight, x, dout)
    if dbias is not None:
        _add_rows(-(-len(dbias) // COLUMNS), dbias, dout)


def linear_transposed_forward(out, x, weight):
    multiply(out, x, weight, 1)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    if dweight is not None:
        add_outer(dweight, dout, x)
    multiply(dx, dout, weight, 0)
