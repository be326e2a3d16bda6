"""Matrix products by cuBLAS for row-major arrays, on CuPy's current device and stream.

float32 is multiplied in float32, never in TF32, so that it stays the reference; 16-bit operands are summed in float32 to the end, parts of a sum
that cuBLAS splits over the GPU among them. cuBLAS gives the same bits every run on one kind of GPU while one stream works.
"""

import ctypes
import functools

from .cublas import gemm_ex

# What cuBLAS' C interface calls them: types (cudaDataType), types of sums (cublasComputeType_t), operations, the way (its own choice).
R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
SUM_32F, SUM_64F = 68, 70
AS_IT_LIES, TRANSPOSED, BEST = 0, 1, -1

# (operands' type, output's type, sums' type, type of alpha and beta) by the letters of A's, B's and C's types
PRODUCTS = {
    "fff": (R_32F, R_32F, SUM_32F, ctypes.c_float),
    "ddd": (R_64F, R_64F, SUM_64F, ctypes.c_double),
    "HHf": (R_16BF, R_32F, SUM_32F, ctypes.c_float),
    "HHH": (R_16BF, R_16BF, SUM_32F, ctypes.c_float),
    "eef": (R_16F, R_32F, SUM_32F, ctypes.c_float),
    "eee": (R_16F, R_16F, SUM_32F, ctypes.c_float),
}


@functools.lru_cache(maxsize=256)
def host_number(kind, value):
    """(address, number): a number in the host's memory, where cuBLAS reads it during the call. The caller holds on to the number until then."""
    number = kind(value)
    return ctypes.addressof(number), number


def row_stride(x):
    """From one row of x to the next, in numbers. ValueError where a row's numbers do not lie side by side."""
    rows, columns = x.shape
    down, along = x.strides
    if columns > 1 and along != x.itemsize:
        raise ValueError(f"a product takes rows whose numbers lie side by side, not strides {x.strides} of {x.dtype}")
    return down // x.itemsize if rows > 1 else columns  # one row may be given any stride


def gemm(c, a, b, transpose_a=False, transpose_b=False, alpha=1.0, beta=0.0):
    """C = alpha op(A) op(B) + beta C        C (m, n), op(A) (m, k), op(B) (k, n); op transposes where the flag is set

    A and B are both of float32, float64, bfloat16 (uint16) or float16, C is of their type or, for the two 16-bit types, of float32. Rows may lie
    apart, as those of a view. With beta = 0, C is not read. TypeError for other types, ValueError for shapes that do not fit.

    cuBLAS counts in columns, so it is asked for the transpose: C^T = op(B)^T op(A)^T.
    """
    kinds = PRODUCTS.get(a.dtype.char + b.dtype.char + c.dtype.char)
    if kinds is None:
        raise TypeError(f"no product of {a.dtype} and {b.dtype} gives {c.dtype}")
    (m, k), (inner, n) = a.shape[::-1] if transpose_a else a.shape, b.shape[::-1] if transpose_b else b.shape
    if inner != k or c.shape != (m, n):
        raise ValueError(f"a product of {(m, k)} and {(inner, n)} does not fit {c.shape}")
    operand, output, sums, kind = kinds
    (alpha, one), (beta, other) = host_number(kind, alpha), host_number(kind, beta)
    gemm_ex(
        TRANSPOSED if transpose_b else AS_IT_LIES,
        TRANSPOSED if transpose_a else AS_IT_LIES,
        n,
        m,
        k,
        alpha,
        b.data.ptr,
        operand,
        row_stride(b),
        a.data.ptr,
        operand,
        row_stride(a),
        beta,
        c.data.ptr,
        output,
        row_stride(c),
        sums,
        BEST,
    )
