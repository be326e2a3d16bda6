"""A fake cuBLAS for tests: a library with the C functions that the engine calls, computed by NumPy. Column-major."""

import ctypes
import functools
from typing import NamedTuple

import cuda_emulator
import numpy as np
from fake_cuda import Stream, counts, memory_at, refuse, state, stream_of, submit

TYPES = {  # by cudaDataType; 14 is bfloat16
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    14: np.dtype(np.uint16),
}
SUPPORTED = {
    (0, 0, 68),
    (1, 1, 70),
    (2, 2, 68),
    (2, 0, 68),
    (14, 14, 68),
    (14, 0, 68),
}  # types of A and B, of C, of sums


class CUBLASError(RuntimeError):
    """Raised by CuPy for a status that is not 0. If a callback raised an exception, its message is that exception."""

    error = None

    def __init__(self, status):
        self.status = status
        super().__init__(CUBLASError.error or status)
        CUBLASError.error = None


class Gemm(NamedTuple):
    """The arguments of cublasGemmStridedBatchedEx after the handle."""

    transa: int
    transb: int
    m: int
    n: int
    k: int
    alpha: int
    A: int
    Atype: int
    lda: int
    strideA: int
    B: int
    Btype: int
    ldb: int
    strideB: int
    beta: int
    C: int
    Ctype: int
    ldc: int
    strideC: int
    batch: int
    compute: int
    algo: int


def matrix(address, rows, columns, leading, batch, stride, kind, what):
    """A view (batch, rows, columns) of column-major matrices whose columns are `leading` elements apart."""
    dtype = TYPES[kind]
    if leading < max(1, rows):
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE")
    end = (batch - 1) * abs(stride) + (columns - 1) * leading + rows
    memory = memory_at(address, max(0, end) * dtype.itemsize, f"cuBLAS' {what}")
    whole = memory.buffer[address - memory.address :]
    whole = whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(
        whole, (batch, rows, columns), [dtype.itemsize * n for n in (stride, 1, leading)]
    )


def widened(x, dtype):
    """x in the accumulation dtype."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(dtype)


def to_bfloat16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FFF, (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def gemm(stream, g):
    """C = alpha op(A) op(B) + beta C on a stream."""
    if g.Atype != g.Btype or (g.Atype, g.Ctype, g.compute) not in SUPPORTED:
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED")
    if g.Atype == 14 and not cuda_emulator.settings.tensor_cores:
        raise CUBLASError("CUBLAS_STATUS_ARCH_MISMATCH")
    if min(g.m, g.n, g.k) < 0 or g.batch < 0 or {g.transa, g.transb} - {0, 1}:
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE")
    if 0 in (g.m, g.n, g.batch):
        return
    dtype, c_type = (
        (np.dtype(np.float64), ctypes.c_double) if g.compute == 70 else (np.dtype(np.float32), ctypes.c_float)
    )
    alpha, beta = (c_type.from_address(address).value for address in (g.alpha, g.beta))
    a_shape, b_shape = (g.k, g.m) if g.transa else (g.m, g.k), (g.n, g.k) if g.transb else (g.k, g.n)
    a = matrix(g.A, *a_shape, g.lda, g.batch, g.strideA, g.Atype, "A")
    b = matrix(g.B, *b_shape, g.ldb, g.batch, g.strideB, g.Btype, "B")
    c = matrix(g.C, g.m, g.n, g.ldc, g.batch, g.strideC, g.Ctype, "C")
    counts.launches += 1

    def multiply():
        left, right = a.swapaxes(1, 2) if g.transa else a, b.swapaxes(1, 2) if g.transb else b
        with np.errstate(all="ignore"):
            result = dtype.type(alpha) * np.matmul(widened(left, dtype), widened(right, dtype))
            if beta:
                result += dtype.type(beta) * widened(c, dtype)
            c[...] = to_bfloat16(result) if g.Ctype == 14 else result

    submit(multiply, stream)


# The library

SHIM = r"""
typedef const void* In;
typedef long long Long;
typedef int Gemm(void*, int, int, int, int, int, In, In, int, int, Long, In, int, int, Long, In, void*, int, int, Long,
                 int, int, int);
typedef int Set(int, void*, void*, unsigned long);
static Gemm* gemm;
static Set* set;
extern "C" {
void fake_cublas(void* g, void* s) { gemm = (Gemm*)g, set = (Set*)s; }
int cublasSetStream_v2(void* handle, void* stream) { return set(0, handle, stream, 0); }
int cublasSetWorkspace_v2(void* handle, void* workspace, unsigned long size) { return set(1, handle, workspace, size); }
int cublasSetMathMode(void* handle, int mode) { return set(2, handle, 0, mode); }
int cublasGemmStridedBatchedEx(void* handle, int transa, int transb, int m, int n, int k, In alpha,
                               In A, int Atype, int lda, Long strideA, In B, int Btype, int ldb, Long strideB, In beta,
                               void* C, int Ctype, int ldc, Long strideC, int batch, int compute, int algo) {
    return gemm(handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta,
                C, Ctype, ldc, strideC, batch, compute, algo);
}
int cublasGemmEx(void* handle, int transa, int transb, int m, int n, int k, In alpha, In A, int Atype, int lda,
                 In B, int Btype, int ldb, In beta, void* C, int Ctype, int ldc, int compute, int algo) {
    return gemm(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta,
                C, Ctype, ldc, 0, 1, compute, algo);
}
}"""
INT, LONG, POINTER = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
MATRIX = [INT, INT, LONG]  # type, leading dimension, stride
GEMM_ARGUMENTS = [POINTER, *[INT] * 5, POINTER, *[POINTER, *MATRIX] * 2, POINTER, POINTER, *MATRIX, *[INT] * 3]
GEMM_TYPE = ctypes.CFUNCTYPE(INT, *GEMM_ARGUMENTS)
SET_TYPE = ctypes.CFUNCTYPE(INT, INT, POINTER, POINTER, ctypes.c_ulong)
handles = {}  # {handle: (stream, whether it has its own workspace)}


def returns_status(function):
    """A callback that returns 0, or another status if the function raised: `CUBLASError` then repeats the exception."""

    def wrapped(*arguments):
        try:
            function(*arguments)
        except Exception as error:
            CUBLASError.error = error
            return getattr(error, "status", None) if isinstance(getattr(error, "status", None), int) else 14
        return 0

    return wrapped


@GEMM_TYPE
@returns_status
def on_gemm(handle, *arguments):
    stream, has_workspace = handles[handle]
    if stream.is_capturing() and not has_workspace:
        refuse("cuBLAS allocates its workspace", stream)
    g = Gemm(*arguments)
    gemm(stream, g._replace(A=g.A or 0, B=g.B or 0, C=g.C or 0))


@SET_TYPE
@returns_status
def on_set(what, handle, pointer, size):
    if what == 0:
        handles[handle] = stream_of(pointer or 0), False  # setting a stream resets the workspace
    elif what == 1:
        memory_at(pointer, size, "cuBLAS' workspace")
        handles[handle] = handles[handle][0], True


@functools.lru_cache(maxsize=None)
def library_path():
    """The path of the compiled library."""
    path = str(cuda_emulator.compiled_library(SHIM, "-O1"))
    ctypes.CDLL(path).fake_cublas(ctypes.cast(on_gemm, POINTER), ctypes.cast(on_set, POINTER))
    return path


def create():
    """A new handle."""
    refuse("cuBLAS is opened", state.stream)
    handle = len(handles) + 2
    handles[handle] = Stream.null, False
    return handle
