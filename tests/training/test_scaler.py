"""Loss scaling on a GPU, or its emulator: updates are those of the unscaled gradient, and an overflow skips one."""

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.config import ModelConfig
from slm_np.nn.model import Model
from slm_np.ops.device import CPU, device, host, put
from slm_np.training.device_step import DeviceStep
from slm_np.training.optimizer import AdamW
from slm_np.training.scaler import GradientScaler
from slm_np.training.spectral import SpectralNorms

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = ModelConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4)


def model(on):
    return Model(CONFIG, 3, device=on)


@pytest.fixture
def step(cupy):  # noqa: F811
    """step(**settings of the scaler): a DeviceStep whose gradients a test provides."""

    def make(**settings):
        made = model(device("cuda"))
        optimizer, spectral = AdamW(made.parameters, grad_clip=0.5), SpectralNorms(made.parameters)
        return DeviceStep(made, optimizer, spectral, (2, 4), scaler=GradientScaler(**settings))

    return make


def gradients(seed, size=1.0):
    return size * np.random.default_rng(seed).standard_normal(model(CPU).parameters.weights.size).astype(np.float32)


def updated(step, scaled_gradients, rate=1e-2):
    """The StepResult after an update with these gradients of the scaled loss."""
    step.inputs.fill(given=(rate, 1, 1))
    put(step.field("loss"), 0.5)
    put(step.model.parameters.gradients, scaled_gradients)
    step.update()
    return step.read()


@pytest.mark.parametrize("size", [0.001, 10.0], ids=["not clipped", "clipped"])
def test_an_update_is_that_of_the_unscaled_gradient(step, size):
    scaled, plain = step(scale=1024.0), model(CPU)
    optimizer = AdamW(plain.parameters, 1e-2, grad_clip=0.5)
    for i in range(5):
        plain.parameters.gradients[:] = gradients(i, size)
        found = updated(scaled, gradients(i, size) * 1024)
        assert found.norm == pytest.approx(optimizer.step(), rel=1e-6) and found.skipped == 0
        np.testing.assert_allclose(
            host(scaled.model.parameters.weights), plain.parameters.weights, rtol=1e-5, atol=1e-7
        )
        assert not host(scaled.model.parameters.gradients).any()
    assert scaled.optimizer.updates == 5


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_overflow_skips_the_update_and_halves_the_scale(step, bad):
    scaled = step(scale=4.0)
    before, moments = host(scaled.model.parameters.weights).copy(), host(scaled.optimizer.mean).copy()
    overflow = gradients(0)
    overflow[7] = bad
    assert not np.isfinite(updated(scaled, overflow).norm)
    np.testing.assert_array_equal(host(scaled.model.parameters.weights), before)
    np.testing.assert_array_equal(host(scaled.optimizer.mean), moments)
    assert scaled.scaler.scale == 2.0 and scaled.optimizer.updates == 0
    assert not host(scaled.model.parameters.gradients).any()
    skipped = [updated(scaled, overflow).skipped for _ in range(3)]
    assert scaled.scaler.scale == 1.0  # the lowest
    assert skipped == [0, 1, 2]  # it counts once the scale cannot be lowered


def test_the_scale_grows_after_good_updates_in_a_row(step):
    scaled, scales = step(scale=8.0, interval=3), []
    for i, overflow in enumerate([0, 0, 1, 0, 0, 0, 0, 0, 0]):
        updated(scaled, np.full_like(gradients(i), np.inf) if overflow else gradients(i))
        scales.append(scaled.scaler.scale)
    assert scales == [8, 8, 4, 4, 4, 8, 8, 8, 16]


def test_small_float16_gradients_survive(step):
    scaled, small = step(scale=2.0**16), np.float32(2.0**-26)  # below half of the smallest float16
    assert np.float16(small) == 0
    gradient = np.full_like(gradients(0), np.float16(small * 2**16))
    assert updated(scaled, gradient).norm == pytest.approx(small * gradient.size**0.5)


def test_it_continues_from_its_state(step):
    scaled, other = step(scale=8.0, interval=3), step(interval=3)
    updated(scaled, gradients(0))
    other.load(scaled.state())
    assert (other.scaler.scale, other.scaler.good, other.optimizer.updates) == (8.0, 1, 1)
    for _ in range(2):
        updated(other, gradients(0))
    assert other.scaler.scale == 16.0
