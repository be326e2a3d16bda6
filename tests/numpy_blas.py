"""The BLAS library in NumPy's wheel, for tests of what calls a BLAS."""

import ctypes
from pathlib import Path

from threadpoolctl import ThreadpoolController

# The Fortran names of gemm in OpenBLAS, as NumPy's wheels spell them: since NumPy 2, and before.
NAMES = [("scipy_sgemm_64_", "scipy_dgemm_64_"), ("sgemm_64_", "dgemm_64_"), ("sgemm_", "dgemm_")]


def numpy_blas():
    """(controller of its threads, path, names of its gemm for float32 and float64), or None without such a library."""
    import numpy  # noqa: F401  loads the library

    libraries = ThreadpoolController().select(user_api="blas")
    for library in libraries.lib_controllers:
        path = library.filepath
        if "numpy" in "".join(Path(path).parts[-3:-1]):
            for names in NAMES:
                if all(hasattr(ctypes.CDLL(path), name) for name in names):
                    return libraries.select(filepath=[path]), path, names
    return None
