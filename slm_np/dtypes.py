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
