"""The number of threads that kernels use, and the name of what multiplies."""

import numba

from slm_np.errors import UserError

from .blas import ON_APPLE
from .processor import FEATURES


def use_threads(threads=0):
    """Set the number of threads; 0 means one per core. Returns the number. Raises UserError if it exceeds the cores."""
    cores = numba.config.NUMBA_NUM_THREADS
    if threads > cores:
        raise UserError(
            f"--threads {threads} exceeds the {cores} cores that this process may use; "
            f"give at most {cores}, or set NUMBA_NUM_THREADS"
        )
    numba.set_num_threads(threads or cores)
    return threads or cores


def thread_count():
    """The number of threads that kernels use."""
    return numba.get_num_threads()


def matmul_name():
    """What computes float32 matmuls, such as 'AVX2 register tiles'."""
    if ON_APPLE:
        return "Accelerate"
    known = {"avx512f": "AVX-512 ", "avx2": "AVX2 ", "neon": "NEON "}
    return next((name for feature, name in known.items() if FEATURES.get(feature)), "") + "register tiles"
