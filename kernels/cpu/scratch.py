"""Scratch memory as named views: one function lays them out, both for a kernel and for whoever allocates the memory.

A layout is a plain function `layout(memory, ...)` that calls `carve` once per view and returns (views, rest of the memory). Kernels
compile it, memory being a flat array. `elements_of` runs it in Python on a count instead, so that both agree by construction.
"""

from numba import types
from numba.extending import overload, register_jitable

ALIGN = 16  # elements: a view begins where a cache line does, if the memory does


@register_jitable
def elements(shape):
    size = 1
    for length in shape:
        size *= length
    return size


def carve(memory, shape):
    """(a view of the first elements of `memory`, the rest)        Given a count instead: (shape, the count after it)"""
    return shape, memory + -(-elements(shape) // ALIGN) * ALIGN


@overload(carve)
def _carve(memory, shape):
    def carve_view(memory, shape):
        size = elements(shape)
        return memory[:size].reshape(shape), memory[(size + ALIGN - 1) // ALIGN * ALIGN :]

    return carve_view if isinstance(memory, types.Array) else None


def elements_of(layout, *sizes):
    """Elements of memory that `layout` divides."""
    return layout(0, *sizes)[1]
