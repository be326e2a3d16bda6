"""Prompts: of any length, beyond the context, and of a wrong shape."""

import numpy as np
import pytest
from configs import config_of

from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder
from slm_np.nn.gradient_check import shrunk
from slm_np.nn.model import Model
from slm_np.presets import PRESETS, preset

pytestmark = pytest.mark.usefixtures("one_thread")
V, T = 11, 9
TINY = dict(vocab_size=V, block_size=T, n_layer=2, n_hidden=10, n_embd=12, n_head=2)
MODELS = {
    **{name: shrunk(preset(name)[0]) for name in PRESETS},
    "grouped-queries": config_of(**{**TINY, "n_head": 4}, n_kv_head=2, head_dim=6, head="linear", bias=True),
    "no-positions": config_of(**TINY, positions="none", feed_forward="gelu-tanh", head="mlp"),
    "hybrid": config_of(**TINY, pattern="MA", n_inner=10, ssm_state_size=3, bias=True),
    "recurrent-hybrid": config_of(**TINY, pattern="SM", n_inner=10, ssm_state_size=3, recurrence_size=7),
    "logits-from-mamba": config_of(
        **TINY, pattern="M", feed_forward="none", residual=False, head="none", ssm_state_size=1, conv_kernel=3
    ),
}


def made(name, dtype=np.float64):
    """A model whose biases are not zero and whose norms are not one."""
    model = Model(MODELS[name], dtype=dtype)
    size = model.parameters.weights.size
    model.parameters.weights += (0.3 * np.random.default_rng(0).standard_normal(size)).astype(dtype)
    return model


def random_tokens(batch, steps):
    return np.random.default_rng(1).integers(0, V, (batch, steps)).astype(np.int32)


def largest_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_a_long_prompt_is_truncated_or_read_whole(name):
    """Without attention all of it counts: windows of T tokens leave the same state as single steps."""
    model, tokens = made(name), random_tokens(2, 3 * T + 2)
    one, other = Decoder(model, 2), Decoder(model, 2)
    logits = one.read(tokens).copy()
    if not model.config.unlimited_context:
        np.testing.assert_array_equal(logits, other.read(tokens[:, -T:]))
        return
    for position in range(tokens.shape[1]):
        stepped = other.step(tokens[:, position])
    assert largest_error(logits, stepped) <= 1e-9 and largest_error(one.states.memory, other.states.memory) <= 1e-9
    assert largest_error(one.step(tokens[:, 0]), other.step(tokens[:, 0])) <= 1e-9


@pytest.mark.parametrize("name", ["stories", "slim", "grouped-queries", "no-positions"])
def test_decoding_far_beyond_the_context_stays_finite(name):
    """Deeper layers remember what has left the context, so no window gives the same logits."""
    model, tokens = made(name, np.float32), random_tokens(1, 60 * T)
    decoder = Decoder(model)
    decoder.read(tokens[:, :2])
    logits = np.array([decoder.step(tokens[:, position])[0].copy() for position in range(2, tokens.shape[1])])
    assert np.isfinite(logits).all() and np.abs(logits).max() < 1e3
    assert (np.abs(np.diff(logits, axis=0)).max(1) > 0).all()


@pytest.mark.parametrize(
    "tokens",
    [np.zeros((1, 0)), np.zeros((2, 3)), np.zeros((3, 2))],
    ids=["no-token", "two-sequences", "three-sequences"],
)
def test_a_prompt_of_the_wrong_shape_is_refused(tokens):
    with pytest.raises(UserError, match=r"an array of integers of shape \(1, n\) with at least one element"):
        Decoder(made("stories")).read(tokens)
