"""The check of a gemm by a random projection: correct products pass, one wrong tile or element does not."""

import numpy as np
import pytest

from slm_np.kernels.cpu import gemm_bf16
from slm_np.kernels.cpu.gemm_check import projection, projection_error
from slm_np.kernels.cpu.microkernel_f32 import NOTHING

SHAPES = pytest.mark.parametrize(
    "m, k, n", [(1, 2, 1), (64, 32, 48), (192, 384, 1536), (96, 1536, 384), (96, 4096, 640), (48, 384, 8192)]
)


def truncated(x):
    """x as float32, truncated to values that bfloat16 holds."""
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def pairs(x):
    """int32 pairs of neighbors along a row: (m, k) float32 as (m, k / 2)."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16).view(np.int32)


def matrices(m, k, n, seed=0):
    """A (m, k) and B (k, n)"""
    rng = np.random.default_rng([seed, m, k, n])
    return truncated(rng.standard_normal((m, k))), truncated(rng.standard_normal((k, n)) * 0.02)


def summed_by_32(a, b, c):
    """C + A B in the summation order of AMX tiles: 32 terms of k at a time are added to C."""
    for start in range(0, a.shape[1], 32):
        c = c + a[:, start : start + 32] @ b[start : start + 32]
    return c


@SHAPES
def test_correct_products_pass_and_one_wrong_tile_fails(m, k, n):
    a, b = matrices(m, k, n)
    c = summed_by_32(a, b, np.float32(0))
    assert max(projection_error(c, a, b, seed) for seed in range(5)) < 0.5
    rng = np.random.default_rng(1)
    for seed in range(5):
        i, j = rng.integers(0, max(1, m - 16), 2)[0], rng.integers(0, max(1, n - 16))
        tile = np.s_[i : i + 16, j : j + 16]
        lost, partial, swapped = c.copy(), c.copy(), c.copy()
        lost[tile] = 0
        partial[tile] -= a[i : i + 16, -32:] @ b[-32:, j : j + 16]  # without one of its sums of 32 terms
        assert projection_error(lost, a, b, seed) > 5
        assert projection_error(partial, a, b, seed) > (2 if k < 4096 else 1)
        swapped[tile] = swapped[tile][::-1]
        assert m == 1 or projection_error(swapped, a, b, seed) > 5


def test_every_choice_of_signs_detects_one_wrong_element():
    a, b = matrices(64, 256, 512)
    c = a @ b
    size = np.linalg.norm(a[5]) * np.linalg.norm(b)
    for seed in range(20):
        wrong = c.copy()
        wrong[5, 7] += 2e-5 * size
        assert projection_error(c, a, b, seed) < 1 < projection_error(wrong, a, b, seed)


def test_the_largest_possible_rounding_errors_are_tolerated():
    """Every element is off by the bound of its sum's rounding error, with signs independent of the projection's."""
    m, k, n = 256, 320, 512
    a, b = matrices(m, k, n)
    exact = a.astype(float) @ b
    bound = (18 + k / 32) * 2.0**-24 * (np.abs(a).astype(float) @ np.abs(b))
    worst = exact + bound * np.random.default_rng([3, 3]).choice([-1, 1], exact.shape)
    errors = [projection_error(worst, a, b, seed) for seed in range(20)]
    assert 0.1 < max(errors) < 1


def test_pairs_and_floats_give_the_same_error():
    a, b = matrices(70, 64, 90)
    c = a @ b
    c[3, 4] += 0.01
    expected = projection_error(c, a, b, (1, 2))
    packed = np.ascontiguousarray(pairs(b.T).T)  # (k / 2, n), the layout that tiles read
    for left, right in (
        (pairs(a), packed),
        (pairs(a), pairs(b.T).T),
        (a, packed),
        (pairs(a), b),
        (a.astype(float), np.asfortranarray(b)),
    ):
        assert projection_error(c, left, right, (1, 2)) == pytest.approx(expected, rel=1e-9)


def test_a_product_that_accumulates():
    a, b = matrices(96, 256, 128)
    before = np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)
    c = summed_by_32(a, b, before)
    for seed in range(5):
        projected = projection(before, seed)
        assert projection_error(c, a, b, seed, projected) < 0.5 < 5 < projection_error(c, a, b, seed)
        wrong = c.copy()
        wrong[32:48, 16:32] = before[32:48, 16:32]
        assert projection_error(wrong, a, b, seed, projected) > 5


def test_nan_and_infinity():
    a, b = matrices(40, 32, 50)
    c = a @ b
    broken = c.copy()
    broken[7, 9] = np.nan
    assert projection_error(broken, a, b, 0) == np.inf
    broken[7, 9] = -np.inf
    assert projection_error(broken, a, b, 0) == np.inf
    a[7, 3] = np.nan  # now row 7 is NaN in the correct product too
    assert projection_error(a @ b, a, b, 0) < 1
    c[8, 9] = 77  # an error in another row is still found
    assert projection_error(c, a, b, 0) > 1
    b[3, 3] = np.inf
    assert projection_error(c, a, b, 0) == 0


def test_zeros_and_denormals():
    a, b = np.zeros((5, 32), np.float32), np.zeros((32, 7), np.float32)
    assert projection_error(a @ b, a, b, 0) == 0
    a[:], b[:] = 2.0**-80, 2.0**-60  # each product is denormal, so that tiles flush it to zero
    assert projection_error(np.zeros((5, 7), np.float32), a, b, 0) < 1
    a[:] = 2.0**-40
    assert projection_error(np.zeros((5, 7), np.float32), a, b, 0) > 1


def test_arguments_do_not_change():
    a, b = (pairs(x) for x in matrices(32, 64, 64))
    c, before = np.zeros((32, 64), np.float32), [a.copy(), b.copy()]
    projection_error(c, a, b.T, 0)
    assert (a == before[0]).all() and (b == before[1]).all() and not c.any()


# Watched products of gemm_bf16


@pytest.fixture
def amx(monkeypatch):
    """A machine with AMX, where products can be watched."""
    monkeypatch.setattr(gemm_bf16, "AMX", True)


def bfloat16(x):
    """x as bfloat16, truncated."""
    return (truncated(x).view(np.uint32) >> 16).astype(np.uint16)


def linear_layer(m=70, k=67, n=90, padding=0):
    """Functions that multiply x W, dy W^T and x^T dy with float32 results. padding: zeros after each row of dy."""
    rng = np.random.default_rng(0)
    x, dy, w = rng.standard_normal((m, k)), rng.standard_normal((m, n)), rng.standard_normal((k, n)).astype(np.float32)
    x, dy = bfloat16(x), np.pad(bfloat16(dy), ((0, 0), (0, padding)))
    weight = gemm_bf16.cast_copy(w)
    gemm_bf16.update_cast_copy(weight)
    out, dx, dw = np.zeros((m, n), np.float32), np.zeros((m, k), np.float32), np.full((k, n), 0.5, np.float32)
    return [
        lambda: gemm_bf16.matmul(out, x, weight.forward, NOTHING, w[0], out),
        lambda: gemm_bf16.matmul(dx, dy, weight.backward, NOTHING, w[0], dx),
        lambda: gemm_bf16.add_outer_products(dw, x, dy),
    ]


each_product = pytest.mark.parametrize("which", range(3), ids=["x-W", "dy-WT", "xT-dy"])


@pytest.mark.parametrize("padding", [0, 6, 38])
@each_product
def test_a_correct_watched_product_passes(amx, which, padding):
    multiply = linear_layer(padding=padding)[which]
    gemm_bf16.watch_matmul(0)
    multiply()
    assert 0 < gemm_bf16.watched_error() < 1


@each_product
def test_a_wrong_watched_product_fails(amx, which, monkeypatch):
    name = "_outer_products" if which == 2 else "_gemm"
    kernel = getattr(gemm_bf16, name)

    def lose_a_tile(tasks, c, *rest):
        kernel(tasks, c, *rest)
        c[3:19, 5:21] = 0

    monkeypatch.setattr(gemm_bf16, name, lose_a_tile)
    multiply = linear_layer()[which]
    gemm_bf16.watch_matmul(1)
    multiply()  # skipped, as the product after it is watched
    assert gemm_bf16.WATCH.error == 0
    multiply()
    assert gemm_bf16.watched_error() > 1


def test_nothing_is_watched_without_amx(monkeypatch):
    monkeypatch.setattr(gemm_bf16, "AMX", False)
    gemm_bf16.watch_matmul(0)
    linear_layer()[0]()
    assert gemm_bf16.watched_error() == 0
