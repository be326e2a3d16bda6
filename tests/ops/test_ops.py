"""Ops that are more than one kernel: the fused head, tables of positions, dropout keys."""

import math

import numpy as np
import pytest
from kernel_cases import assert_exact, assert_precise, fused_head, normal

from slm_np import ops
from slm_np.kernels import numpy as numpy_kernels

pytestmark = pytest.mark.usefixtures("one_thread")


def empty(shape, like):
    return np.full(shape, np.nan, like.dtype)


def head_in_numpy(x, weight, targets, scale, start):
    """The same by the ops that it is made of, all rows at a time."""
    logits, losses, dx, dweight = empty((len(x), len(weight)), x), empty(len(x), x), empty(x.shape, x), weight * 0
    numpy_kernels.linear_transposed_forward(logits, x, weight)
    numpy_kernels.softmax_cross_entropy_backward(logits, losses, logits, targets, scale)
    numpy_kernels.linear_transposed_backward(dx, dweight, logits, x, weight)
    return dict(forward=losses, backward=losses, dx=dx, dweight=dweight + weight.dtype.type(start))


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(
    "n, d, vocabulary, rows, size",
    [
        (7, 5, 11, 1, 1.0),
        (7, 5, 11, 3, 1.0),
        (7, 5, 11, 7, 1.0),
        (7, 5, 11, 9, 1.0),
        (1, 7, 11, 4, 1.0),
        (70, 130, 257, 64, 1.0),
        (9, 64, 130, 9, 4.0),
    ],
)
def test_the_fused_head_equals_the_ops_it_is_made_of(n, d, vocabulary, rows, size, masked):
    x, weight = normal(n, d, scale=size), normal(vocabulary, d)
    targets = np.random.default_rng(5).integers(0, vocabulary, n).astype(np.int32)
    if masked:
        targets[np.arange(n) % 3 != 1] = -1
    scale = 1 / max(1, (targets >= 0).sum())
    wide = x.astype(np.float64), weight.astype(np.float64)
    exact, single = head_in_numpy(*wide, targets, scale, 1), head_in_numpy(x, weight, targets, scale, 0)
    assert_exact(fused_head(ops, *wide, targets, rows, scale, 1), exact)
    exact["dweight"] = exact["dweight"] - 1
    assert_precise(fused_head(ops, x, weight, targets, rows, scale, 0), single, exact)


def test_tables_of_positions_are_computed_in_float64():
    """So that late positions are exact in float32 as well."""
    cos, sin, table = np.empty((13, 4), np.float32), np.empty((13, 4), np.float32), np.empty((2, 3))
    ops.rotary_table(cos, sin, 100.0, 100_000)
    for t in range(13):
        for i in range(4):
            angle = (100_000 + t) * 100.0 ** (-2 * i / 8)
            assert cos[t, i] == np.float32(math.cos(angle)) and sin[t, i] == np.float32(math.sin(angle))
    ops.sinusoidal_table(table)
    np.testing.assert_allclose(table, [[0, 1, 0], [math.sin(1), math.cos(1), math.sin(10000 ** (-2 / 3))]], rtol=1e-14)


def test_dropout_keys_of_different_parts_differ():
    parts = [
        (seed, step, micro, site) for seed in range(3) for step in range(20) for micro in range(3) for site in range(5)
    ]
    keys = [ops.dropout_key(*p) for p in parts]
    assert keys == [ops.dropout_key(*p) for p in parts]
    assert len(set(keys)) == len(keys) and 0 <= min(keys) and max(keys) < 1 << 31
