"""The residual stream's gradient where nothing normalises: a sum in place."""
from numba import prange

from .jit import kernel

BLOCK = 8192


@kernel
def _add(total, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            total[i] += x[i]


def accumulate(total, x):
    _add(total.reshape(-1), x.reshape(-1))
