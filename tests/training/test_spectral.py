"""Spectral norms: estimates by power iteration, their limit, and what both do for a training run."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import small
from configs import config_of
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.nn.model import Model
from slm_np.ops.device import host
from slm_np.presets import BYTE_SSM
from slm_np.training.optimizer import AdamW
from slm_np.training.spectral import SpectralNorms

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(n, scale=1.0, seed=0):
    return (scale * np.random.default_rng([seed, n]).standard_normal((n, n))).astype(np.float32)


def norms_of(*matrices):
    """SpectralNorms of parameters with these matrices."""
    weight = {f"layers.{i}.recurrence.state.weight": matrix for i, matrix in enumerate(matrices)}
    return SpectralNorms(SimpleNamespace(trained=weight | {"layers.0.recurrence.input.weight": np.ones((2, 3))}))


def largest(matrix):
    """The largest singular value."""
    return np.linalg.norm(matrix.astype(float), 2)


def test_spectral_norms_are_the_largest_singular_values():
    matrices = [normal(n, n**-0.5, seed=n) for n in (1, 2, 7, 8, 33, 128)]
    matrices += [3 * np.eye(5, dtype=np.float32), np.zeros((4, 4), np.float32)]
    norms, exact = norms_of(*matrices), [largest(matrix) for matrix in matrices]
    np.testing.assert_allclose(list(norms.update().values()), exact, rtol=1e-2)
    for _ in range(60):
        found = list(norms.update().values())
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    assert (np.array(found) <= np.array(exact) * (1 + 1e-6)).all()


def test_the_estimate_follows_a_matrix_that_changes():
    """It starts from the vectors of the update before, and finds a new largest direction within four updates."""
    a, rng = normal(96, 0.05), np.random.default_rng(2)
    norms = norms_of(a)
    norms.update()
    for _ in range(5):
        u, v = rng.standard_normal((2, 96)).astype(np.float32)
        a += 1.5 * np.linalg.norm(a, 2) * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        found = [norms.update()["layers.0.recurrence.state.weight"] for _ in range(4)]
        assert found[-1] == pytest.approx(np.linalg.norm(a, 2), rel=1e-3)


def test_a_limit_scales_the_matrices_above_it_and_no_others():
    above, below = normal(40, 0.3), normal(40, 0.01)
    before = above.copy(), below.copy()
    norms = norms_of(above, below)
    for _ in range(10):
        norms.update()
    found = list(norms.update(0.9).values())
    assert np.linalg.norm(above, 2) == pytest.approx(0.9, rel=1e-3) and found[0] == 0.9
    np.testing.assert_allclose(above * (before[0][0, 0] / above[0, 0]), before[0], rtol=1e-5)
    np.testing.assert_array_equal(below, before[1])
    assert found[1] == pytest.approx(np.linalg.norm(below, 2), rel=1e-3)


def test_a_matrix_that_is_not_finite_has_the_norm_nan_and_stays_as_it_is():
    a = normal(20)
    norms = norms_of(a)
    a[3, 4] = np.nan
    assert np.isnan(list(norms.update(0.5).values())).all() and np.isnan(a).sum() == 1
    a[3, 4] = 0
    norms.update()
    assert list(norms.update().values())[0] == pytest.approx(np.linalg.norm(a, 2), rel=1e-2)


def test_a_restored_state_continues_with_the_same_bits():
    a = normal(40, 0.2)
    one, two = norms_of(a.copy()), norms_of(a.copy())
    one.update(0.9)
    for name, view in two.state().items():
        assert name == "spectral.layers.0.recurrence.state.weight"
        view[...] = one.state()[name]
    two.matrices["layers.0.recurrence.state.weight"][...] = one.matrices["layers.0.recurrence.state.weight"]
    for _ in range(3):
        assert one.update(0.8) == two.update(0.8)
    for name in one.matrices:
        np.testing.assert_array_equal(one.matrices[name], two.matrices[name])


def test_an_update_allocates_nothing_large():
    norms = norms_of(normal(256, 0.1))
    norms.update(0.9)
    tracemalloc.start()
    try:
        norms.update(0.9)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        norms.update(0.8)
        assert tracemalloc.get_traced_memory()[1] - before < 16 << 10
    finally:
        tracemalloc.stop()


# Training


def trained(limit, updates=40):
    """(losses, spectral norms) of a model trained on 24 tokens over and over, too fast and without clipping."""
    config = config_of(**BYTE_SSM, vocab_size=16, block_size=256, n_layer=2, n_embd=16, recurrence_size=32)
    model = Model(config, seed=1)
    optimizer, spectral = AdamW(model.parameters, 3e-2, 0.01, grad_clip=0.0), SpectralNorms(model.parameters)
    rng = np.random.default_rng(0)
    tokens, losses, norms = np.tile(rng.integers(0, 16, 24, np.int32), 20), [], []
    for _ in range(updates):
        windows = np.stack([tokens[start : start + 257] for start in rng.integers(0, 24, 4)])
        x, y = np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
        losses.append(model.loss_and_gradient(x, y))
        optimizer.step()
        found = spectral.update(limit)
        norms.append([largest(a) for a in spectral.matrices.values()])
        np.testing.assert_allclose(list(found.values()), norms[-1], rtol=1e-2)
    return np.array(losses), np.array(norms)


def test_a_run_diverges_without_a_limit():
    losses, norms = trained(limit=0.0)
    assert norms.max() > 1.5 and not losses[-10:].max() < 1e6  # states of a window of 256 tokens grow without bound


def test_a_run_learns_with_a_limit():
    losses, norms = trained(limit=0.95)
    assert norms.max() < 0.95 * 1.01 and losses[-10:].max() < 0.5 and losses.max() <= losses[0] + 0.5


@pytest.mark.parametrize("limit, low, high", [(0.0, 0.7, 100), (0.6, 0.5, 0.6001)], ids=["free", "limited"])
def test_a_run_logs_the_spectral_norm(limit, low, high, tmp_path):
    settings = dict(pattern="S", positions="none", feed_forward="none", learning_rate=0.05, max_spectral_norm=limit)
    trainer = small.trainer(small.text_file(tmp_path), tmp_path / "run", **settings)
    trainer.train()
    (row,) = [row for row in small.rows(tmp_path / "run") if row["step"] == 12 and "spectral_norms" in row]
    a = trainer.model.parameters.weight["layers.0.recurrence.state.weight"]
    assert low < row["spectral_norms"][0] < high
    assert row["spectral_norms"][0] == pytest.approx(np.linalg.norm(a, 2), rel=0.02)


# On a GPU


def test_a_gpu_estimates_and_limits_the_same_norms(cupy):  # noqa: F811
    matrices = [np.random.default_rng(0).standard_normal((12, 12)), 3 * np.eye(3), 0.1 * np.eye(9)]
    norms = norms_of(*map(cupy.asarray, matrices))
    norms.start()
    norms.launch()
    norms.read()
    assert list(norms.norms.values()) == pytest.approx([largest(matrix) for matrix in matrices], rel=1e-3)
    norms.launch(0.5)
    norms.read()
    assert list(norms.norms.values()) == pytest.approx([0.5, 0.5, 0.1])
    limited = [largest(host(matrix)) for matrix in norms.matrices.values()]
    assert limited == pytest.approx([0.5, 0.5, 0.1], rel=1e-3)
