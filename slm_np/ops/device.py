"""The arrays decide the device: one function returns the kernel set that serves an array."""
import functools

import numpy as np


@functools.cache
def cpu_kernels():
    """The Numba kernels, imported and, on a cold cache, compiled when first needed: `--help` must not wait for a compiler."""
    from slm_np.kernels import cpu
    cpu.compile_kernels()
    return cpu


def kernels_of(array):
    """Kernel set for `array`. Raises TypeError for an array no kernel set knows."""
    if isinstance(array, np.ndarray):
        return cpu_kernels()
    raise TypeError(f"no kernels for {type(array).__name__}: ops take NumPy arrays")
