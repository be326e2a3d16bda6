"""The gradient scaler, with overflows injected: updates are those of the unscaled gradient, and none is made of one that overflowed."""

import numpy as np
import pytest

from slm_np.nn.parameters import Parameters, Tensor
from slm_np.training.optimizer import AdamW
from slm_np.training.scaler import GradientScaler


def made(**settings):
    parameters = Parameters([Tensor("weight", (3, 5))])
    parameters.initialize(1)
    return parameters, AdamW(parameters, 1e-2, grad_clip=0.5), GradientScaler(**settings)


def gradient(i):
    return np.random.default_rng(i).standard_normal((3, 5)).astype(np.float32)


@pytest.mark.parametrize("size", [0.01, 10.0])  # clipped and not
def test_an_update_is_that_of_the_unscaled_gradient(size):
    (scaled, optimizer, scaler), (plain, twin, _) = made(scale=1024.0), made()
    for i in range(5):
        scaled.gradient["weight"][...], plain.gradient["weight"][...] = (
            size * gradient(i) * scaler.scale,
            size * gradient(i),
        )
        assert scaler.step(optimizer) == pytest.approx(twin.step(), rel=1e-6)
        np.testing.assert_allclose(scaled.weights, plain.weights, rtol=1e-6)
        assert not scaled.gradients.any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_overflow_is_left_out_and_halves_the_scale(bad):
    parameters, optimizer, scaler = made(scale=4.0)
    before, moments = parameters.weights.copy(), optimizer.mean.copy()
    parameters.gradient["weight"][...] = gradient(0)
    parameters.gradient["weight"][1, 2] = bad
    assert not np.isfinite(scaler.step(optimizer))
    np.testing.assert_array_equal(parameters.weights, before)
    np.testing.assert_array_equal(optimizer.mean, moments)
    assert scaler.scale == 2.0 and optimizer.updates == 0 and not parameters.gradients.any()
    for _ in range(3):
        parameters.gradient["weight"][0, 0] = bad
        scaler.step(optimizer)
    assert scaler.scale == 1.0  # no lower


def test_the_scale_grows_after_good_updates_in_a_row():
    parameters, optimizer, scaler = made(scale=8.0, interval=3)
    scales = []
    for i, overflow in enumerate([0, 0, 1, 0, 0, 0, 0, 0, 0]):
        parameters.gradient["weight"][...] = np.inf if overflow else gradient(i)
        scaler.step(optimizer)
        scales.append(scaler.scale)
    assert scales == [8, 8, 4, 4, 4, 8, 8, 8, 16]


def test_float16_gradients_that_would_vanish_survive():
    small = np.float32(2.0**-26)  # below half of float16's least number
    parameters, optimizer, scaler = made(scale=2.0**16)
    assert np.float16(small) == 0
    parameters.gradient["weight"][...] = np.float16(small * scaler.scale)
    assert scaler.step(optimizer) == pytest.approx(small * 15**0.5)


def test_it_goes_on_from_its_state():
    _, optimizer, scaler = made(scale=8.0, interval=3)
    scaler.step(optimizer)
    other = GradientScaler(interval=3)
    other.load(scaler.state())
    assert (other.scale, other.good) == (8.0, 1)
