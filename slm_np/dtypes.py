"""Data types by name, bfloat16 among them, and a weight beside its copies in the compute dtype."""

from typing import Any, NamedTuple

import numpy as np

BF16 = np.dtype(np.uint16)  # bfloat16: the upper sixteen bits of a float32. NumPy has no such type.
BF16_NAN = 0x7FC0


class CastCopy(NamedTuple):
    """A matmul weight (D, E) and its copies in the compute dtype, which the optimizer's update invalidates.

    weight    float32
    forward   the copy that x W reads, in the layout of the kernel set
    backward  the copy that dout W^T reads; the same array where one layout serves both
    """

    weight: Any
    forward: Any
    backward: Any

    @property
    def shape(self):
        return self.weight.shape

    @property
    def size(self):
        return self.weight.size

    @property
    def nbytes(self):
        """Size of the copy that a matmul reads, in bytes."""
        return self.forward.nbytes


def bf16_to_f32(bits):
    """bfloat16 numbers, as uint16, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x):
    """float32 numbers as the bits of bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), BF16_NAN, rounded).astype(np.uint16)
