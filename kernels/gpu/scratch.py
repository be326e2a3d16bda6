"""Scratch memory beside a kernel's arguments, allocated once per size: captured graphs may hold its address."""

import functools


@functools.cache
def _block(size):
    import cupy  # imported at the first launch: the sources can be read without CuPy

    return cupy.empty(size, "u1")


def scratch(*parts):
    """One uninitialized array for each of `parts`, (elements, NumPy type), all in one block of device memory.

    Sizes are rounded up to powers of two, and all kernels share the block of a size. That is safe because kernels of
    one stream run one after another and none keeps data there for a later call. So use one stream at a time, and make
    one call before capturing a graph.
    """
    sizes = [-(-int(n) * dtype.itemsize // 256) * 256 for n, dtype in parts]
    block = _block(1 << max(0, sum(sizes) - 1).bit_length())
    arrays, start = [], 0
    for (n, dtype), size in zip(parts, sizes):
        arrays.append(block[start : start + int(n) * dtype.itemsize].view(dtype))
        start += size
    return arrays
