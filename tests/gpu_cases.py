"""Runs GPU kernels on NumPy arrays, and compares them with the NumPy set as tests/kernels/test_kernel_sets.py does."""

import numpy as np
from kernel_cases import Kernels, assert_exact, assert_precise

from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels


def case_id(case):
    return case.id.replace(" ", "-")


def assert_as_numpy(arrays, case):
    """The results of a case are NumPy's in float64, and as precise as NumPy's in float32. arrays: CuPy"""
    exact = Kernels(numpy_kernels, np.float64, start=1).results(case)
    assert_exact(Kernels(gpu, np.float64, start=1, arrays=arrays).results(case), exact)
    exact, single = (Kernels(numpy_kernels, dtype).results(case) for dtype in (np.float64, np.float32))
    assert_precise(Kernels(gpu, np.float32, arrays=arrays).results(case), single, exact, case.cancels)


def run_on_gpu(name, *arguments):
    """Run a kernel on device copies of the NumPy arrays among its arguments, and copy the results back into them."""
    import cupy

    copies = {id(x): (x, cupy.asarray(x)) for x in arguments if isinstance(x, np.ndarray)}
    getattr(gpu, name)(*[copies[id(x)][1] if id(x) in copies else x for x in arguments])
    for x, device in copies.values():
        x[...] = cupy.asnumpy(device)
