"""Recurrent states: windows that continue from them equal one long window, in training and in decoding."""

import gc
import types

import numpy as np
import pytest
from configs import config_of

from slm_np.inference.decoder import Decoder
from slm_np.nn.model import Model, States
from slm_np.presets import MAMBA

pytestmark = pytest.mark.usefixtures("one_thread", "kernel_set")
SMALL = dict(MAMBA, vocab_size=23, block_size=40, n_layer=2, n_embd=24)
MODELS = {
    "mamba": dict(),
    "one-state": dict(ssm_state_size=1, conv_kernel=1),
    "longer-convolution": dict(conv_kernel=9, n_inner=17),
    "recurrence": dict(pattern="S", recurrence_size=10),
    "both": dict(pattern="MS", recurrence_size=9, feed_forward="swiglu", bias=True),
    "bare-recurrence": dict(pattern="S", norm="none", residual=False, head="none", recurrence_size=12),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name="mamba", dtype=np.float64, **settings):
    """A model whose biases are not zero and whose norms are not one."""
    model = Model(config_of(**{**SMALL, **MODELS[name], **settings}), 3, dtype=dtype)
    size = model.parameters.weights.size
    model.parameters.weights += (0.1 * np.random.default_rng(4).standard_normal(size)).astype(dtype)
    return model


def random_tokens(batch, steps, seed=0):
    return np.random.default_rng([seed, 2]).integers(0, SMALL["vocab_size"], (batch, steps)).astype(np.int32)


def array_bytes(holder):
    """Bytes of all arrays that an object holds, itself or through others. A traced count includes the test runner's."""
    found, left = {}, [holder]
    while left:
        one = left.pop()
        if id(one) not in found and not callable(one) and not isinstance(one, types.ModuleType):
            found[id(one)] = one
            left += gc.get_referents(one)
    return sum(one.nbytes for one in found.values() if isinstance(one, np.ndarray))


def assert_near(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


@every_model
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_windows_one_after_the_other_equal_one_long_window(name, steps):
    model, tokens = made(name), random_tokens(2, 40)
    states, decoder = States(model, 2), Decoder(model, 2)
    logits = model.logits(tokens)
    losses = model.losses(tokens, tokens).copy()
    for start in range(0, 40, steps):
        window = np.ascontiguousarray(tokens[:, start : start + steps])
        loss = model.loss_and_gradient(window, window, states=states)
        assert loss == pytest.approx(losses[:, start : start + steps].mean(), rel=1e-10)
    assert_near(decoder.read(tokens), logits[:, -1], 1e-9)
    assert_near(decoder.states.memory, states.memory, 1e-9)
    states.clear()
    assert not states.memory.any()


@every_model
def test_decoding_token_by_token_leaves_the_state_of_the_window(name):
    model, tokens = made(name), random_tokens(3, 35)
    stepped, read = Decoder(model, 3), Decoder(model, 3)
    logits = model.logits(tokens)
    for position in range(35):
        assert_near(stepped.step(tokens[:, position]), logits[:, position], 1e-9)
    read.read(tokens)
    assert_near(stepped.states.memory, read.states.memory, 1e-9)


@every_model
def test_gradients_stop_at_the_start_of_a_window(name):
    """The state from which a window continues counts as a constant."""
    model, first, second = made(name), random_tokens(2, 30), random_tokens(2, 9, seed=5)
    states, p = States(model, 2), model.parameters
    model.loss_and_gradient(first, first, states=states)
    kept = states.memory.copy()
    p.gradients.fill(0)
    model.loss_and_gradient(second, second, states=states)
    gradient, direction = p.gradients.copy(), np.random.default_rng(0).standard_normal(p.weights.size)
    direction /= np.linalg.norm(direction)
    values = []
    for sign in (1, -1):
        p.weights += sign * 1e-5 * direction
        states.memory[:] = kept
        values.append(model.loss_and_gradient(second, second, states=states))
        p.weights -= sign * 1e-5 * direction
    assert gradient @ direction == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_decoding_takes_the_same_memory_at_any_length():
    model, tokens = made(dtype=np.float32), random_tokens(1, 300)
    decoder = Decoder(model, 1)
    assert decoder.states.memory.nbytes == 4 * 2 * (16 + 3) * 48
    decoder.step(tokens[:, 0])
    early = array_bytes(decoder)
    for position in range(1, 300):  # far beyond the context
        logits = decoder.step(tokens[:, position])
    assert array_bytes(decoder) == early > model.parameters.weights.nbytes and np.isfinite(logits).all()
    assert_near(logits, made(dtype=np.float32, block_size=300).logits(tokens)[:, -1], 1e-4)
