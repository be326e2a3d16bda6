"""Scratch memory as named views: one function per kernel defines the layout, for the kernel and for the allocation.

A layout is a function `layout(memory, ...)` that calls `carve` once per view and returns (views, rest of the memory).
Kernels compile it and pass a flat array. `elements_of` runs the same function in Python on a count of elements, so the
allocated size always matches the layout.
"""

from numba import types
from numba.extending import overload, register_jitable

ALIGN = 16  # elements: views start at cache lines if the memory does


@register_jitable
def elements(shape):
    """The number of elements of an array of this shape."""
    size = 1
    for length in shape:
        size *= length
    return size


def carve(memory, shape):
    """(a view of the first elements of `memory`, the rest of it)

    In Python, `memory` is a count of the elements used so far, and the result is (shape, the new count).
    """
    return shape, memory + -(-elements(shape) // ALIGN) * ALIGN


@overload(carve)
def _carve(memory, shape):
    def carve_view(memory, shape):
        size = elements(shape)
        return memory[:size].reshape(shape), memory[(size + ALIGN - 1) // ALIGN * ALIGN :]

    return carve_view if isinstance(memory, types.Array) else None


def elements_of(layout, *sizes):
    """The number of elements that `layout` needs for these sizes."""
    return layout(0, *sizes)[1]
