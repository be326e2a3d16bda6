"""Devices: an array knows its own, and values pass between host and device."""

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.ops.device import CPU, device, device_of, host, kernels_of, number, put


def test_an_array_of_the_gpu_belongs_to_its_device(cupy):  # noqa: F811
    cuda = device("cuda")
    x = cuda.arrays.zeros((2, 3), np.float32)
    assert device_of(x) is cuda and kernels_of(x) is cuda.kernels and cuda.arrays is cupy
    put(x, [1, 2, 3])
    assert host(x).tolist() == [[1, 2, 3]] * 2
    assert number(x[1, 2:]) == 3.0


def test_a_numpy_array_belongs_to_the_cpu():
    x = np.zeros(1)
    assert device("cpu") is device_of(x) is CPU and kernels_of(x) is CPU.kernels and host(x) is x
    put(x, [2])
    assert x.tolist() == [2]
    assert number(np.float32([3])) == number(3) == number(np.float64(3)) == 3.0


def test_other_arrays_have_no_device():
    with pytest.raises(TypeError, match="NumPy or CuPy"):
        device_of([1.0])
