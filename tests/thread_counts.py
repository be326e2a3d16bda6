"""Whether results depend on the number of threads."""

import numba
import numpy as np
import pytest

from slm_np.ops.device import CPU

CORES = numba.config.NUMBA_NUM_THREADS
several = pytest.mark.skipif(CORES < 2, reason="this process may use only one core")


def over_threads(function):
    """Assert that function() -> arrays gives the same bits for every number of threads."""
    before, expected = CPU.kernels.thread_count(), None
    try:
        for threads in range(1, CORES + 1):
            CPU.use_threads(threads)
            found = [np.array(x) for x in function()]
            expected = expected or found
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                assert np.isfinite(a).all()
                different = f"output {i} with {threads} threads: {(a != b).sum()} of {a.size} elements differ"
                assert a.tobytes() == b.tobytes(), different
    finally:
        CPU.use_threads(before)
