"""Memory that a kernel needs beside its arguments. It is taken at the first call of a size and kept, so a captured graph may hold its address."""

import functools


@functools.cache
def _room(size):
    import cupy  # first needed here, so that these kernels can be read without CuPy

    return cupy.empty(size, "u1")


def scratch(*parts):
    """An array for each of `parts`, (numbers, NumPy type), one after another in one block of device memory; what they hold is undefined.

    Blocks of one size, rounded up to a power of two, are one block for all kernels: kernels of one stream run one after another, and none
    leaves anything there for a later call. So use one stream at a time, and let a kernel set's sizes be called once before a graph is captured.
    """
    sizes = [-(-int(n) * dtype.itemsize // 256) * 256 for n, dtype in parts]
    room = _room(1 << max(0, sum(sizes) - 1).bit_length())
    found, start = [], 0
    for (n, dtype), size in zip(parts, sizes):
        found.append(room[start : start + int(n) * dtype.itemsize].view(dtype))
        start += size
    return found
