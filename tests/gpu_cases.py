"""GPU kernels on NumPy arrays, and one case compared with the NumPy set as in tests/kernels/test_kernel_sets.py."""

import numpy as np
from kernel_cases import Kernels, OnDevice, assert_exact, assert_precise

from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels

on_gpu = OnDevice(gpu)  # the kernels, for NumPy arrays


def case_id(case):
    return case.id.replace(" ", "-")


def assert_as_numpy(arrays, case):
    """The results of a case are NumPy's in float64, and as precise as NumPy's in float32. arrays: CuPy"""
    exact = Kernels(numpy_kernels, np.float64, start=1).results(case)
    assert_exact(Kernels(gpu, np.float64, start=1, arrays=arrays).results(case), exact)
    exact, single = (Kernels(numpy_kernels, dtype).results(case) for dtype in (np.float64, np.float32))
    assert_precise(Kernels(gpu, np.float32, arrays=arrays).results(case), single, exact, case.cancels)
