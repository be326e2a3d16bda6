"""The check of a product by a random projection: right products pass, one wrong tile or number does not."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import small

from slm_np import train
from slm_np.kernels.cpu import gemm_bf16 as product_pairs
from slm_np.kernels.cpu.gemm_blas import NOTHING
from slm_np.kernels.cpu.gemm_check import projection, projection_error
from slm_np.training import matmul_check

SHAPES = pytest.mark.parametrize(
    "m, k, n", [(1, 2, 1), (64, 32, 48), (192, 384, 1536), (96, 1536, 384), (96, 4096, 640), (48, 384, 8192)]
)


def bfloat16(x):
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def pairs(x):
    """The int32 of two neighbours along a row."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16).view(np.int32)


def operands(m, k, n, seed=0):
    rng = np.random.default_rng([seed, m, k, n])
    return bfloat16(rng.standard_normal((m, k))), bfloat16(rng.standard_normal((k, n)) * 0.02)


def summed_by_32(a, b, c):
    """A product in the order of tiles: 32 terms of k at a time are added to C."""
    for start in range(0, a.shape[1], 32):
        c = c + a[:, start : start + 32] @ b[start : start + 32]
    return c


@SHAPES
def test_right_products_pass_and_one_wrong_tile_does_not(m, k, n):
    a, b = operands(m, k, n)
    c = summed_by_32(a, b, np.float32(0))
    assert max(projection_error(c, a, b, seed) for seed in range(5)) < 0.5
    rng = np.random.default_rng(1)
    for seed in range(5):
        i, j = rng.integers(0, max(1, m - 16), 2)[0], rng.integers(0, max(1, n - 16))
        tile = np.s_[i : i + 16, j : j + 16]
        lost, partial, swapped = c.copy(), c.copy(), c.copy()
        lost[tile] = 0
        partial[tile] -= a[i : i + 16, -32:] @ b[-32:, j : j + 16]  # one of its sums of 32
        assert projection_error(lost, a, b, seed) > 5
        assert projection_error(partial, a, b, seed) > (2 if k < 4096 else 1)
        swapped[tile] = swapped[tile][::-1]
        assert m == 1 or projection_error(swapped, a, b, seed) > 5


def test_no_sign_hides_one_wrong_number():
    a, b = operands(64, 256, 512)
    c = a @ b
    size = np.linalg.norm(a[5]) * np.linalg.norm(b)
    for seed in range(20):
        wrong = c.copy()
        wrong[5, 7] += 2e-5 * size
        assert projection_error(c, a, b, seed) < 1 < projection_error(wrong, a, b, seed)


def test_the_tolerance_holds_for_the_worst_that_rounding_may_do():
    """Every number wrong by all that the bound of its sum allows, with signs that know nothing of the projection's."""
    m, k, n = 256, 320, 512
    a, b = operands(m, k, n)
    exact = a.astype(float) @ b
    bound = (18 + k / 32) * 2.0**-24 * (np.abs(a).astype(float) @ np.abs(b))
    worst = exact + bound * np.random.default_rng([3, 3]).choice([-1, 1], exact.shape)
    errors = [projection_error(worst, a, b, seed) for seed in range(20)]
    assert 0.1 < max(errors) < 1


def test_pairs_are_the_numbers_they_hold():
    a, b = operands(70, 64, 90)
    c = a @ b
    c[3, 4] += 0.01
    expected = projection_error(c, a, b, (1, 2))
    packed = np.ascontiguousarray(pairs(b.T).T)  # (k/2, n), as tiles read it
    for left, right in (
        (pairs(a), packed),
        (pairs(a), pairs(b.T).T),
        (a, packed),
        (pairs(a), b),
        (a.astype(float), np.asfortranarray(b)),
    ):
        assert projection_error(c, left, right, (1, 2)) == pytest.approx(expected, rel=1e-9)


def test_a_product_added_to_what_was_there():
    a, b = operands(96, 256, 128)
    before = np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)
    c = summed_by_32(a, b, before)
    for seed in range(5):
        laid = projection(before, seed)
        assert projection_error(c, a, b, seed, laid) < 0.5 < 5 < projection_error(c, a, b, seed)
        wrong = c.copy()
        wrong[32:48, 16:32] = before[32:48, 16:32]
        assert projection_error(wrong, a, b, seed, laid) > 5


def test_what_is_not_finite():
    a, b = operands(40, 32, 50)
    c = a @ b
    broken = c.copy()
    broken[7, 9] = np.nan
    assert projection_error(broken, a, b, 0) == np.inf
    broken[7, 9] = -np.inf
    assert projection_error(broken, a, b, 0) == np.inf
    a[7, 3] = np.nan  # now the product is what it should be
    assert projection_error(a @ b, a, b, 0) < 1
    c[8, 9] = 77  # and another row's error is still found
    assert projection_error(c, a, b, 0) > 1
    b[3, 3] = np.inf
    assert projection_error(c, a, b, 0) == 0


def test_zeros_and_denormal_numbers():
    a, b = np.zeros((5, 32), np.float32), np.zeros((32, 7), np.float32)
    assert projection_error(a @ b, a, b, 0) == 0
    a[:], b[:] = 2.0**-80, 2.0**-60  # each product is a denormal number that a tile takes for zero
    assert projection_error(np.zeros((5, 7), np.float32), a, b, 0) < 1
    a[:] = 2.0**-40
    assert projection_error(np.zeros((5, 7), np.float32), a, b, 0) > 1


def test_operands_stay_as_they_are():
    a, b = (pairs(x) for x in operands(32, 64, 64))
    c, kept = np.zeros((32, 64), np.float32), [a.copy(), b.copy()]
    projection_error(c, a, b.T, 0)
    assert (a == kept[0]).all() and (b == kept[1]).all() and not c.any()


# In training


@pytest.fixture
def tiles(monkeypatch):
    """A machine whose products are watched."""
    monkeypatch.setattr(product_pairs, "AMX", True)


def multiplied(m=70, k=67, n=90, longer=0):
    """Each kind of product with a float32 result, as (name, function). longer: zeros after each row of dy."""
    rng = np.random.default_rng(0)
    a, b, w = rng.standard_normal((m, k)), rng.standard_normal((m, n)), rng.standard_normal((k, n)).astype(np.float32)
    a, b = (np.ascontiguousarray(bfloat16(x).view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
    b = np.pad(b, ((0, 0), (0, longer)))
    weight = product_pairs.cast_copy(w)
    product_pairs.update_cast_copy(weight)
    out, dx, dw = np.zeros((m, n), np.float32), np.zeros((m, k), np.float32), np.full((k, n), 0.5, np.float32)
    return [
        ("x W", lambda: product_pairs.product(out, a, weight.forward, NOTHING, w[0], out)),
        ("dy W^T", lambda: product_pairs.product(dx, b, weight.backward, NOTHING, w[0], dx)),
        ("x^T dy", lambda: product_pairs.add_outer_products(dw, a, b)),
    ]


@pytest.mark.parametrize("longer", [0, 6, 38])
@pytest.mark.parametrize("kind", range(3))
def test_a_watched_product_that_is_right(tiles, kind, longer):
    _, product = multiplied(longer=longer)[kind]
    product_pairs.watch_matmul(0)
    product()
    assert 0 < product_pairs.watched_error() < 1


@pytest.mark.parametrize("kind", range(3))
def test_a_watched_product_that_is_wrong(tiles, kind, monkeypatch):
    name = "_outer_products" if kind == 2 else "_product"
    kernel = getattr(product_pairs, name)

    def wrong(c, *rest):
        kernel(c, *rest)
        c[3:19, 5:21] = 0  # a tile is lost

    monkeypatch.setattr(product_pairs, name, wrong)
    _, product = multiplied()[kind]
    product_pairs.watch_matmul(1)
    product()  # not this one
    product_pairs.WATCH.error = 0.0
    product()
    assert product_pairs.watched_error() > 1


def test_nothing_is_watched_without_tiles(monkeypatch):
    monkeypatch.setattr(product_pairs, "AMX", False)
    product_pairs.watch_matmul(0)
    multiplied()[0][1]()
    assert product_pairs.watched_error() == 0


def test_an_update_in_fifty_is_watched(monkeypatch):
    errors, asked = iter([0.5, 3.0]), []
    monkeypatch.setattr(
        matmul_check,
        "kernels_of",
        lambda array: SimpleNamespace(watch_matmul=asked.append, watched_error=lambda: next(errors)),
    )
    for update in range(50):
        matmul_check.watch_matmul(None, update)
        matmul_check.check_watched_matmul(None, update)
    matmul_check.watch_matmul(None, 50)
    with pytest.raises(matmul_check.WrongMatmul, match="a matmul of update 50 is wrong by 3 times"):
        matmul_check.check_watched_matmul(None, 50)
    assert asked == [0, 1]


def test_a_wrong_product_sends_the_run_back_without_amx(tmp_path, monkeypatch, capsys):
    started = {}

    class Gone(BaseException):
        pass

    def execve(program, words, environment):
        started.update(words=words, environment=environment)
        raise Gone

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(
        matmul_check,
        "kernels_of",
        lambda array: SimpleNamespace(watch_matmul=lambda number: None, watched_error=lambda: 9.0),
    )
    with pytest.raises(Gone):
        train.main([*small.flags(small.text_file(tmp_path)), "--out-dir", str(tmp_path / "run")])
    assert (
        started["words"][1:] == ["-m", "slm_np.train", "--resume", str(tmp_path / "run")]
        and started["environment"]["SLM_NP_AMX"] == "0"
    )
    assert "AMX is switched off for this run, which goes back to its last checkpoint" in capsys.readouterr().err
    run = small.command("train", "--resume", str(tmp_path / "run"), cwd=tmp_path)
    assert run.returncode == 0, run.stderr  # what was saved can be gone on with
