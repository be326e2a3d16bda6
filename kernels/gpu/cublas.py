"""cuBLAS called through its C interface on CuPy's current stream, which works while a graph is captured.

CuPy's own wrappers refuse that (14.2: "calling cuBLAS API during stream capture"). This uses the library that CuPy
has loaded, with a handle and a workspace of its own, so a captured graph allocates nothing and other code cannot
change the math mode.
"""

import ctypes
import functools
import os
from ctypes import c_int, c_longlong, c_size_t, c_void_p

# CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no TF32, and parts of a split sum are not rounded to 16 bits
EXACT = 16
WORKSPACE = 32 << 20  # bytes: NVIDIA's recommendation for Hopper; older GPUs need less

SHAPE = [c_void_p, c_int, c_int, c_int, c_int, c_int, c_void_p]  # handle, transpose of A and of B, m, n, k, alpha
MATRIX = [c_void_p, c_int, c_int]  # address, type, leading dimension
BATCHED = [*MATRIX, c_longlong]  # the same and the stride from matrix to matrix
SIGNATURES = dict(
    cublasGemmEx=[*SHAPE, *MATRIX, *MATRIX, c_void_p, *MATRIX, c_int, c_int],
    cublasGemmStridedBatchedEx=[*SHAPE, *BATCHED, *BATCHED, c_void_p, *BATCHED, c_int, c_int, c_int],
    cublasSetStream_v2=[c_void_p, c_void_p],
    cublasSetWorkspace_v2=[c_void_p, c_void_p, c_size_t],
    cublasSetMathMode=[c_void_p, c_int],
)


class Cublas:
    """The library with one handle. Create it before a stream is captured."""

    def __init__(self, cupy):
        self.current_stream, self.error, self.stream = cupy.cuda.get_current_stream, cupy.cuda.cublas.CUBLASError, None
        # CuPy's extension module links to the library, so its symbols are found through that file. On Windows a loaded
        # library is found by its own name.
        library = ctypes.CDLL(
            cupy.cuda.cublas.__file__
            if os.name == "posix"
            else f"cublas64_{cupy.cuda.runtime.runtimeGetVersion() // 1000}.dll"
        )
        self.functions = {name: getattr(library, name) for name in SIGNATURES}
        for name, function in self.functions.items():
            function.argtypes, function.restype = SIGNATURES[name], c_int
        self.handle, self.workspace = cupy.cuda.cublas.create(), cupy.empty(WORKSPACE, "u1")
        self.call("cublasSetMathMode", EXACT)

    def call(self, name, *arguments):
        """Call a C function with the handle and these arguments. Raises CUBLASError if it fails."""
        status = self.functions[name](self.handle, *arguments)
        if status:
            raise self.error(status)

    def launch(self, name, *arguments):
        """The same on CuPy's current stream."""
        stream = self.current_stream().ptr
        if stream != self.stream:
            self.call("cublasSetStream_v2", stream)  # this resets the workspace to the library's own
            self.call("cublasSetWorkspace_v2", self.workspace.data.ptr, self.workspace.nbytes)
            self.stream = stream
        self.call(name, *arguments)


@functools.cache
def cublas_for(cupy):
    return Cublas(cupy)


def gemm_ex(*arguments):
    """cublasGemmEx, with the arguments after the handle."""
    import cupy

    cublas_for(cupy).launch("cublasGemmEx", *arguments)


def gemm_strided_batched_ex(*arguments):
    """cublasGemmStridedBatchedEx, with the arguments after the handle."""
    import cupy

    cublas_for(cupy).launch("cublasGemmStridedBatchedEx", *arguments)
