"""The arrays decide the device: which module makes them, which kernel set serves them, and how their numbers come and go.

A model is made of the arrays of one module, NumPy or CuPy, and reads the same for both. What else differs on a GPU, a training step that
nobody waits for, is `slm_np.training.device_step`.
"""

import functools
import math
import sys

import numpy as np


@functools.cache
def cpu_kernels():
    """The Numba kernels, imported and, on a cold cache, compiled when first needed: `--help` must not wait for a compiler."""
    from slm_np.kernels import cpu

    cpu.compile_kernels()
    return cpu


@functools.cache
def gpu_kernels():
    """The CUDA kernels, each of which is compiled when first launched."""
    from slm_np.kernels import gpu

    return gpu


def arrays_for(device):
    """The module that makes a device's arrays: NumPy for "cpu", CuPy for "cuda". UserError with what is missing, if that is not to be had.

    What this thread has the GPU do is from then on in the engine's stream.
    """
    if device == "cpu":
        return np
    from slm_np.kernels.gpu.device import use_device

    use_device()
    import cupy

    stream_of(cupy).use()
    return cupy


@functools.cache
def stream_of(cupy):
    """The one stream of all work: kernels share scratch, and CUDA's default stream cannot be captured."""
    return cupy.cuda.Stream()


def arrays_of(array):
    """The module that made `array`. Raises TypeError for an array of neither."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # whose arrays these are is loaded by now
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"no kernels for {type(array).__name__}: ops take NumPy or CuPy arrays")


def kernels_of(array):
    """Kernel set for `array`. Raises TypeError for an array no kernel set knows."""
    return cpu_kernels() if arrays_of(array) is np else gpu_kernels()


def host(array):
    """The numbers of an array as NumPy's: the array itself or, of a GPU's, a copy, for which the host waits."""
    return array if arrays_of(array) is np else array.get()


def put(target, source):
    """target[...] = source, numbers of the host, for a whole array of any device. `source` may change afterwards."""
    if arrays_of(target) is np:
        target[...] = source
    else:
        target.set(np.ascontiguousarray(np.broadcast_to(source, target.shape), target.dtype))


def number(x):
    """A number, or the only one of an array, as Python's. For that of a GPU the host waits."""
    return float(x) if isinstance(x, (int, float)) else float(host(x).item())


def memory(arrays, size, align):
    """`size` bytes that begin at a multiple of `align`, uninitialised."""
    if arrays is not np:
        return arrays.empty(size, np.uint8)  # CUDA's blocks begin at multiples of 256
    block = np.empty(size + align, np.uint8)
    return block[-block.ctypes.data % align :]


def at_once(arrays, rows, cached, most=math.inf):
    """How many of `rows` rows a loop takes at once: on a CPU `cached`, whose scratch stays in its cache; on a GPU, where few and long
    kernels are better, `most`."""
    return min(rows, cached if arrays is np else most)


def whole_lines(columns):
    """Numbers from row to row of so many columns, where every row begins a line of memory: products of two bytes a number read it as it lies."""
    return -(-columns // 64) * 64


def row_length(arrays, columns):
    """Numbers from row to row of so many columns that a product writes in float32: on a CPU no more than there are."""
    return columns if arrays is np else whole_lines(columns)


def columns(x, room, filled=True):
    """The first columns of x (N, .) as an operand or result of products: on a GPU, where rows may lie apart, those themselves; on a CPU `room`
    (N, so many), to which they are copied unless they are yet to be made."""
    first = x[:, : room.shape[1]]
    if arrays_of(x) is not np:
        return first
    if filled:
        room[...] = first
    return room
