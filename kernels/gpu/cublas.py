"""cuBLAS on CuPy's current stream, also while that is captured, which CuPy's own calls refuse (14.2: "calling cuBLAS API during stream capture").

It is the library that CuPy has loaded, called by its C names, with a handle and a workspace of our own: a captured graph then allocates nothing, and
nobody else's calls change the mathematics.
"""

import ctypes
import functools
import os
from ctypes import c_int, c_longlong, c_size_t, c_void_p

EXACT = 16  # the default mathematics, which has no TF32, and no sum may be cut to a 16-bit output's type before it is complete
WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for a Hopper GPU; older ones take less
FACTORS = [
    c_void_p,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_void_p,
]  # handle, whether A and B are transposed, m, n, k, alpha
C_TYPES = dict(
    cublasGemmEx=[*FACTORS, *[c_void_p, c_int, c_int] * 2, c_void_p, c_void_p, c_int, c_int, c_int, c_int],
    cublasGemmStridedBatchedEx=[
        *FACTORS,
        *[c_void_p, c_int, c_int, c_longlong] * 2,
        c_void_p,
        c_void_p,
        c_int,
        c_int,
        c_longlong,
        c_int,
        c_int,
        c_int,
    ],
    cublasSetStream_v2=[c_void_p, c_void_p],
    cublasSetWorkspace_v2=[c_void_p, c_void_p, c_size_t],
    cublasSetMathMode=[c_void_p, c_int],
)


class Cublas:
    """The library, opened; the first use is to be before a stream is captured."""

    def __init__(self, cupy):
        self.current_stream, self.error, self.stream = cupy.cuda.get_current_stream, cupy.cuda.cublas.CUBLASError, None
        # CuPy's module is linked to the library, whose names are found through it; Windows knows a library that is loaded by its own name.
        library = ctypes.CDLL(
            cupy.cuda.cublas.__file__
            if os.name == "posix"
            else f"cublas64_{cupy.cuda.runtime.runtimeGetVersion() // 1000}.dll"
        )
        self.functions = {name: getattr(library, name) for name in C_TYPES}
        for name, function in self.functions.items():
            function.argtypes, function.restype = C_TYPES[name], c_int
        self.handle, self.workspace = cupy.cuda.cublas.create(), cupy.empty(WORKSPACE, "u1")
        self.ask("cublasSetMathMode", EXACT)

    def ask(self, name, *arguments):
        """The function of that C name, of the arguments after the handle. CUBLASError if it fails."""
        status = self.functions[name](self.handle, *arguments)
        if status:
            raise self.error(status)

    def launch(self, name, *arguments):
        """The same on CuPy's current stream."""
        stream = self.current_stream().ptr
        if stream != self.stream:
            self.ask("cublasSetStream_v2", stream)  # which takes the workspace away
            self.ask("cublasSetWorkspace_v2", self.workspace.data.ptr, self.workspace.nbytes)
            self.stream = stream
        self.ask(name, *arguments)


@functools.cache
def opened(cupy):
    return Cublas(cupy)


def gemm_ex(*arguments):
    """cublasGemmEx, of the arguments after the handle."""
    import cupy

    opened(cupy).launch("cublasGemmEx", *arguments)


def gemm_strided_batched_ex(*arguments):
    """cublasGemmStridedBatchedEx, of the arguments after the handle."""
    import cupy

    opened(cupy).launch("cublasGemmStridedBatchedEx", *arguments)
