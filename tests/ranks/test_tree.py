"""The sum over virtual ranks: one tree for any number of processes, and its rounding to bfloat16."""

import numpy as np
import pytest
import threads_world

from slm_np.ops.device import CPU
from slm_np.ranks.tree import TreeSum, round_bfloat16

V, LENGTH = 8, 1003  # no number of ranks but 1 divides the length


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def summands(n=V, length=LENGTH):
    """(n, length) float32 of very different sizes, so that the order of additions shows."""
    draw = np.random.default_rng(5)
    return (draw.standard_normal((n, length)) * 10.0 ** draw.integers(-4, 4, (n, length))).astype(np.float32)


def nearest_bfloat16(value):
    """The bfloat16 nearest to a float32, of two as near the even one, from the distances to both neighbors."""
    if not np.isfinite(value):
        return np.float32(value)
    below = int(bits(value)) & 0xFFFF0000
    candidates = []
    for upper in (below >> 16, (below >> 16) + 1):
        x = np.array([upper << 16], np.uint32).view(np.float32)[0]
        size = 2.0**128 if np.isinf(x) else abs(float(x))  # infinity stands for the next power of two
        candidates.append((abs(size - abs(float(value))), upper & 1, x))
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def rounded_explicitly(x):
    return np.array([nearest_bfloat16(value) for value in x], np.float32)


def tree(values, rounded=False):
    """The sum of a list of arrays by the definition: that of its first half plus that of its second."""
    if len(values) == 1:
        total = values[0]
    else:
        half = len(values) // 2
        total = tree(values[:half], rounded) + tree(values[half:], rounded)
    return rounded_explicitly(total) if rounded else total


def tree_sum(values, add, rounded=False):
    """The sum of the rows of `values` by TreeSum."""
    buffer = np.zeros(values.shape[1], np.float32)
    total = TreeSum(buffer, len(values), add, rounded)
    for value in values:
        buffer += value
        total.push()
    return buffer


def over_ranks(n, values, add, rounded=False):
    """[(the sum of the rows of `values`, bytes sent)] of each of n ranks that exchange their parts."""
    each = len(values) // n

    def run(world):
        buffer = tree_sum(values[world.rank * each : (world.rank + 1) * each], add, rounded)
        world.reduce(buffer, add, rounded)
        return buffer, world.sent

    return threads_world.in_ranks(n, run)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_the_sum_is_that_of_an_explicit_tree(kernel_set, one_thread, n):
    values = summands(n)
    np.testing.assert_array_equal(bits(tree_sum(values, CPU.kernels.accumulate)), bits(tree(values)))


def test_the_order_of_additions_shows_in_this_data():
    """Otherwise the other tests would pass with any order."""
    values = summands()
    serial = values[0]
    for value in values[1:]:
        serial = serial + value
    assert (bits(serial) != bits(tree(values))).sum() > LENGTH // 10


@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_any_split_over_ranks_gives_the_same_bits(kernel_set, one_thread, n, rounded):
    values = summands()
    expected = bits(tree(values, rounded))
    for rank, (found, sent) in enumerate(over_ranks(n, values, CPU.kernels.accumulate, rounded)):
        np.testing.assert_array_equal(bits(found), expected, err_msg=f"rank {rank}")
        own = LENGTH * (rank + 1) // n - LENGTH * rank // n
        assert sent == (LENGTH - own + (n - 1) * own) * (2 if rounded else 4)
    if rounded:
        assert (expected & 0xFFFF == 0).all() and (expected != bits(tree(values))).any()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ranks_without_a_chunk_of_a_short_gradient(numpy_kernels, n):
    values = summands(8, 3)
    for found, _ in over_ranks(n, values, CPU.kernels.accumulate):
        np.testing.assert_array_equal(bits(found), bits(tree(values)))


def test_a_sum_starts_anew_after_the_last_summand(numpy_kernels):
    values, buffer = summands(), np.zeros(LENGTH, np.float32)
    total = TreeSum(buffer, 4, CPU.kernels.accumulate)
    for update in (values[:4], values[4:]):
        for i, value in enumerate(update):
            buffer += value
            total.push()
            assert buffer.any() == (i == 3)
        np.testing.assert_array_equal(bits(buffer), bits(tree(update)))
        buffer.fill(0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_nan_and_infinity_of_one_virtual_rank_reach_all(numpy_kernels, n, rounded):
    values = summands()
    values[5, 17], values[2, 18], values[1, 19], values[6, 19] = np.nan, -np.inf, np.inf, -np.inf
    for found, _ in over_ranks(n, values, CPU.kernels.accumulate, rounded):
        assert np.flatnonzero(np.isnan(found)).tolist() == [17, 19] and found[18] == -np.inf


def test_rounding_to_bfloat16():
    draw = np.random.default_rng(3)
    # Every upper half with a lower half below, at and above a tie.
    upper = draw.permutation(1 << 16)[:4000].astype(np.uint32) << np.uint32(16)
    x = np.concatenate([upper | np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)
    edges = [0.0, -0.0, np.inf, -np.inf, 1.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45, -1e-45]
    x = np.concatenate([x[~np.isnan(x)], np.array(edges, np.float32)])
    found = x.copy()
    round_bfloat16(found)
    np.testing.assert_array_equal(bits(found), bits(rounded_explicitly(x)))


@pytest.mark.parametrize("pattern", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_rounding_keeps_nan(pattern):
    """Quiet ones, which arithmetic returns."""
    x = np.array([pattern, 0x3F800000], np.uint32).view(np.float32)
    round_bfloat16(x)
    assert np.isnan(x[0]) and x[1] == 1.0 and (bits(x) & 0xFFFF == 0).all()
