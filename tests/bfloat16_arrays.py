"""bfloat16 arrays for tests: rounding by its definition, arrays with guards around them, cast copies of weights.

NumPy has no bfloat16, so that uint16 arrays hold its bits.
"""

import numpy as np

from slm_np.dtypes import BF16
from slm_np.kernels.cpu import gemm_bf16


def widened(x):
    """bfloat16 as float32, which holds it exactly. float32 as it is."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x


def to_bfloat16(x):
    """x rounded to bfloat16, to nearest even, by comparing distances in float64."""
    x = np.asarray(x, np.float32)
    below = x.view(np.uint32) >> 16  # the bits of the neighbor toward zero
    with np.errstate(invalid="ignore"):
        exact, *neighbors = (z.view(np.float32).astype(np.float64) for z in (x, below << 16, below + 1 << 16))
        beyond = below & 0x7FFF == 0x7F7F  # above the largest finite value, the next one would be 2^128: infinity
        neighbors[1] = np.where(beyond, np.copysign(2.0**128, exact), neighbors[1])
        down, up = (np.abs(exact - neighbor) for neighbor in neighbors)
    above = (up < down) | ((up == down) & (below % 2 == 1))
    return np.where(np.isnan(x), 0x7FC0, np.where(np.isinf(x), below, below + above)).astype(BF16)


def nearest(x):
    """x rounded to bfloat16, as float64."""
    return widened(to_bfloat16(x)).astype(np.float64)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def norm(x):
    """The Euclidean norm of all elements, in float64."""
    return np.linalg.norm(np.asarray(x, np.float64).reshape(-1))


def poisoned(*arrays):
    """Set every bit, which makes each float32, bfloat16 and pair a NaN. Returns the first array."""
    for array in arrays:
        array.view(np.uint8).fill(0xFF)
    return arrays[0]


def guarded(x, dtype=BF16):
    """x, or an array of NaN in the shape x, between two arrays of NaN: (all three, the middle one)."""
    shape = x if isinstance(x, tuple) else x.shape
    whole = poisoned(np.empty((3, *shape), dtype))
    if shape is not x:
        whole[1] = to_bfloat16(x) if dtype == BF16 else x
    return whole, whole[1]


def assert_guards_untouched(*wholes):
    for whole in wholes:
        assert (whole[[0, 2]].view(np.uint8) == 0xFF).all()


def unpair(pairs):
    """Rows of pairs (K / 2, n) as bfloat16 rows (K, n)."""
    return pairs.view(BF16).reshape(*pairs.shape, 2).transpose(0, 2, 1).reshape(2 * len(pairs), -1)


def assert_cast_copies_match(parameters):
    """The cast copies of a model's parameters are its current weights, rounded."""
    assert len(parameters.cast_copies) > 3
    for copy in parameters.cast_copies:
        for panels, weight in ((copy.forward, copy.weight), (copy.backward, copy.weight.T)):
            found = unpair(gemm_bf16.unpacked(panels, weight.shape[1]))[: len(weight)]
            np.testing.assert_array_equal(found, to_bfloat16(weight))
        assert np.shares_memory(copy.weight, parameters.weights)
