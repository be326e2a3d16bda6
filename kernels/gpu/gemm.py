"""Matmuls of row-major arrays with cuBLAS, on CuPy's current device and stream.

float32 is multiplied in float32, never in TF32, because it is the reference. 16-bit inputs are accumulated in float32
to the end, also where cuBLAS splits a sum over the GPU. On one kind of GPU, with one stream, cuBLAS returns the same
bits in every run.
"""

import ctypes
import functools

from .cublas import gemm_ex

# cuBLAS' C constants: types (cudaDataType), accumulation types (cublasComputeType_t), operations, algorithm
R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
COMPUTE_32F, COMPUTE_64F = 68, 70
OP_N, OP_T, DEFAULT_ALGORITHM = 0, 1, -1

# (type of A and B, type of C, accumulation type, C type of alpha and beta) by the type letters of A, B and C
TYPES = {
    "fff": (R_32F, R_32F, COMPUTE_32F, ctypes.c_float),
    "ddd": (R_64F, R_64F, COMPUTE_64F, ctypes.c_double),
    "HHf": (R_16BF, R_32F, COMPUTE_32F, ctypes.c_float),
    "HHH": (R_16BF, R_16BF, COMPUTE_32F, ctypes.c_float),
    "eef": (R_16F, R_32F, COMPUTE_32F, ctypes.c_float),
    "eee": (R_16F, R_16F, COMPUTE_32F, ctypes.c_float),
}


@functools.lru_cache(maxsize=256)
def host_scalar(c_type, value):
    """A scalar in host memory, where cuBLAS reads it during a call."""
    return c_type(value)


def row_stride(x):
    """Elements from one row of x (N, D) to the next. Raises ValueError if the elements of a row are not contiguous."""
    rows, columns = x.shape
    down, along = x.strides
    if columns > 1 and along != x.itemsize:
        raise ValueError(f"a matmul needs rows with contiguous elements, not strides {x.strides} of {x.dtype}")
    return down // x.itemsize if rows > 1 else columns  # a single row may have any stride


def gemm(c, a, b, transpose_a=False, transpose_b=False, alpha=1.0, beta=0.0):
    """C = alpha op(A) op(B) + beta C        C (m, n), op(A) (m, k), op(B) (k, n); op transposes where the flag is set

    A and B are both float32, float64, bfloat16 (uint16) or float16; C has their type or, for the 16-bit types, float32.
    Rows may be strided, as in a view of columns. With beta = 0, C is not read. Raises TypeError for other types,
    ValueError for shapes that do not match.

    cuBLAS is column-major, so it computes the transpose: C^T = op(B)^T op(A)^T.
    """
    types = TYPES.get(a.dtype.char + b.dtype.char + c.dtype.char)
    if types is None:
        raise TypeError(f"matmul of {a.dtype} and {b.dtype} into {c.dtype} is not supported")
    (m, k), (inner, n) = a.shape[::-1] if transpose_a else a.shape, b.shape[::-1] if transpose_b else b.shape
    if inner != k or c.shape != (m, n):
        raise ValueError(f"matmul of {(m, k)} and {(inner, n)} does not match the output's shape {c.shape}")
    input_type, output_type, accumulation_type, c_type = types
    alpha, beta = host_scalar(c_type, alpha), host_scalar(c_type, beta)
    gemm_ex(
        OP_T if transpose_b else OP_N,
        OP_T if transpose_a else OP_N,
        n,
        m,
        k,
        ctypes.addressof(alpha),
        b.data.ptr,
        input_type,
        row_stride(b),
        a.data.ptr,
        input_type,
        row_stride(a),
        ctypes.addressof(beta),
        c.data.ptr,
        output_type,
        row_stride(c),
        accumulation_type,
        DEFAULT_ALGORITHM,
    )
