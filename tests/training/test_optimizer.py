"""AdamW against a plain float64 version, clipping, weight decay, and gradients that are not finite."""

import math

import numpy as np
import pytest

from slm_np.nn.parameters import Parameters, Tensor
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
TENSORS = [
    Tensor("bias", (70,)),
    Tensor("matrix", (1100, 61)),
    Tensor("norm", (7,)),
    Tensor("row", (1, 33)),
    Tensor("cube", (3, 4, 5)),
]
MATRICES = {"matrix", "row", "cube"}


def parameters(dtype, decay="matrices"):
    found = Parameters(TENSORS, decay, dtype)
    found.weights[:] = np.random.default_rng(1).standard_normal(found.weights.size)
    return found


def plain_adamw(weight, gradient, m, v, step, rate, beta1, beta2, eps, decay):
    """(weight, m, v) after update `step`, counted from 1, as in the docstring of AdamW."""
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    update = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return weight - rate * (update + decay * weight), m, v


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 1e6])
def test_ten_updates_follow_the_formula(dtype, tolerance, decay, grad_clip):
    p = parameters(dtype, decay)
    optimizer = AdamW(p, 0.1, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-6, grad_clip=grad_clip)
    weights = {name: w.astype(float) for name, w in p.weight.items()}
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    rng = np.random.default_rng(2)
    for update in range(1, 11):
        p.gradients[:] = rng.standard_normal(p.gradients.size) * 10.0 ** rng.integers(-3, 2)
        gradients = {name: gradient.astype(float) for name, gradient in p.gradient.items()}
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        scale = min(1, grad_clip / (norm + 1e-6)) if grad_clip else 1
        rate = 0.1 / update
        assert optimizer.step(rate) == pytest.approx(norm, rel=1e-12)
        assert not p.gradients.any() and optimizer.updates == update
        for name in weights:
            weight_decay = 0.3 if decay == "all" or name in MATRICES else 0.0
            weights[name], m[name], v[name] = plain_adamw(
                weights[name],
                scale * gradients[name],
                m[name],
                v[name],
                update,
                rate,
                0.8,
                0.9,
                1e-6,
                weight_decay,
            )
        state = optimizer.state()
        for name in weights:
            for found, expected in (
                (p.weight[name], weights[name]),
                (state[f"mean.{name}"], m[name]),
                (state[f"square.{name}"], v[name]),
            ):
                np.testing.assert_allclose(
                    found,
                    expected,
                    rtol=tolerance,
                    atol=tolerance * np.abs(expected).max(),
                    err_msg=f"{name}, update {update}",
                )


def test_the_rate_given_at_construction_is_the_default():
    one, other = parameters(np.float32), parameters(np.float32)
    for p in (one, other):
        p.gradients[:] = 1
    AdamW(one, 0.02).step()
    AdamW(other, 0.5).step(0.02)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_clipping_scales_the_whole_gradient():
    """With beta1 = 0 the first moment is the clipped gradient."""
    for grad_clip, scale in ((0.0, 1.0), (5.1, 1.0), (2.5, 2.5 / (5 + 1e-6)), (1e-8, 1e-8 / (5 + 1e-6))):
        p = Parameters([Tensor("a", (2,)), Tensor("b", (1, 1))], dtype=np.float64)
        p.gradient["a"][:], p.gradient["b"][:] = (3, 0), 4
        optimizer = AdamW(p, beta1=0.0, grad_clip=grad_clip)
        assert optimizer.step() == 5
        np.testing.assert_allclose(optimizer.state()["mean.a"], [3 * scale, 0], rtol=1e-15)
        np.testing.assert_allclose(optimizer.state()["mean.b"], [[4 * scale]], rtol=1e-15)


def test_only_decayed_tensors_shrink_without_gradient():
    p = parameters(np.float64)
    before = p.weights.copy()
    AdamW(p, 0.1, weight_decay=0.5).step()
    for name, w in p.weight.items():
        np.testing.assert_allclose(w, p.like(before)[name] * (0.95 if name in MATRICES else 1), rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 40000, -1])
def test_a_gradient_that_is_not_finite_updates_nothing(bad, index):
    p = parameters(np.float32)
    optimizer = AdamW(p)
    p.gradients[:] = 1
    optimizer.step()
    kept = [x.copy() for x in (p.weights, optimizer.mean, optimizer.square)]
    p.gradients[:] = 1
    p.gradients[index] = bad
    assert not math.isfinite(optimizer.step())
    assert not p.gradients.any() and optimizer.updates == 1
    for found, before in zip((p.weights, optimizer.mean, optimizer.square), kept):
        np.testing.assert_array_equal(found, before)


def test_the_norm_of_large_and_small_gradients():
    """Squares are summed in float64, where those of float32 neither overflow nor vanish."""
    p = parameters(np.float32)
    for value in (1e30, 1e-30):
        p.gradients[:] = value
        assert AdamW(p).gradient_norm() == pytest.approx(
            float(np.float32(value)) * math.sqrt(p.gradients.size), rel=1e-12
        )


def test_state_consists_of_views():
    p = parameters(np.float32)
    optimizer = AdamW(p)
    assert set(optimizer.state()) == {f"{role}.{t.name}" for role in ("mean", "square") for t in TENSORS}
    for view in optimizer.state().values():
        view[...] = 3
    assert (optimizer.mean == 3).all() and (optimizer.square == 3).all()
