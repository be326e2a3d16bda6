"""In-place sum: the gradient of a residual branch without a norm."""

from numba import prange

from .jit import BLOCK, kernel
from .norm import add_to


@kernel
def _add(total, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
        add_to(total[part], x[part])


def accumulate(total, x):
    _add(total.reshape(-1), x.reshape(-1))
