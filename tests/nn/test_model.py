"""Whole models: sizes, logits and losses beside a plain model, causality, memory, dropout, chunks of rows."""

import re
import tracemalloc

import numpy as np
import pytest
from configs import config_of
from plain_model import cross_entropy, plain_logits, plain_loss, shapes

from slm_np.errors import UserError
from slm_np.nn import feed_forward, head
from slm_np.nn.gradient_check import TOLERANCE, model_error, shrunk
from slm_np.nn.model import Model, parameter_count
from slm_np.ops import Dropout
from slm_np.presets import PRESETS, preset
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")

V, T = 11, 9
TINY = dict(vocab_size=V, block_size=T, n_layer=2, n_hidden=10)
MODELS = {
    **{name: shrunk(preset(name)[0]) for name in PRESETS},
    "grouped-queries": config_of(**TINY, n_embd=12, n_head=4, n_kv_head=2, head_dim=6, head="linear", bias=True),
    "no-positions": config_of(**TINY, n_embd=12, n_head=2, positions="none", feed_forward="gelu-tanh", head="mlp"),
    "hybrid": config_of(**TINY, n_embd=12, n_head=2, pattern="MA", n_inner=10, ssm_state_size=3, bias=True),
    "three-mixers": config_of(
        **{**TINY, "n_layer": 3},
        n_embd=12,
        n_head=2,
        pattern="SMA",
        feed_forward="none",
        n_inner=20,
        ssm_state_size=5,
        recurrence_size=7,
        positions="none",
    ),
    "logits-from-mamba": config_of(
        **TINY, n_embd=7, pattern="M", feed_forward="none", residual=False, head="none", ssm_state_size=1, conv_kernel=3
    ),
    "attention-only": config_of(
        **TINY, n_embd=7, n_head=1, positions="sinusoidal", feed_forward="none", norm="layernorm"
    ),
}
MODELS |= {
    "smollm3": config_of(**TINY, n_embd=12, n_head=3, n_kv_head=1, pattern="AN", rope_scaling="llama3:4,1,4,6"),
    "gpt-neox": config_of(
        **TINY, n_embd=12, n_head=2, norm="layernorm", feed_forward="gelu", bias=True, parallel=True, rotary_dim=2
    ),
    "gpt-neo": config_of(
        **TINY,
        n_embd=12,
        n_head=2,
        pattern="AL",
        window=3,
        score_scale=1.0,
        qkv_bias="off",
        bias=True,
        positions="learned",
    ),
    "every-attention": config_of(
        **{**TINY, "n_layer": 3}, n_embd=12, n_head=2, head_dim=8, pattern="LAN", window=4, qk_norm=True, qkv_bias="on"
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
both_types = pytest.mark.parametrize(
    "dtype, tolerance",
    [pytest.param(np.float64, 1e-10, marks=pytest.mark.slow), (np.float32, 1e-5)],
    ids=["float64", "float32"],
)


def made(config, dtype=np.float32, seed=0, noise=0.3):
    """A model whose biases are not zero and whose norms are not one."""
    model = Model(config, seed, dtype=dtype)
    size = model.parameters.weights.size
    model.parameters.weights += (noise * np.random.default_rng(seed).standard_normal(size)).astype(dtype)
    return model


def random_tokens(config, batch, steps, seed=0):
    return np.random.default_rng([seed, 1]).integers(0, config.vocab_size, (batch, steps)).astype(np.int32)


def largest_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# Sizes


def test_parameter_counts():
    assert parameter_count(preset("byte-transformer")[0]) == 2424832
    assert parameter_count(preset("gpt2-stories")[0]) == 29995392


@every_model
def test_parameters_are_those_of_the_plain_model(name):
    config = MODELS[name]
    model = Model(config)
    assert {n: w.shape for n, w in model.parameters.weight.items()} == shapes(config)
    assert (
        model.parameters.weights.size
        == parameter_count(config)
        == sum(np.prod(shape) for shape in shapes(config).values())
    )


def test_a_window_beyond_the_context_is_refused():
    with pytest.raises(UserError, match="10 tokens exceed the model's context of 9"):
        Model(MODELS["stories"]).plan(1, T + 1)


# Values


@both_types
@every_model
@pytest.mark.parametrize("steps", [1, T])
def test_logits_and_losses_equal_the_plain_model(name, dtype, tolerance, steps):
    config = MODELS[name]
    model, tokens, targets = (
        made(config, dtype),
        random_tokens(config, 3, steps),
        random_tokens(config, 3, steps, seed=1),
    )
    weights = model.parameters.weight
    logits = plain_logits(config, weights, tokens)
    found = model.logits(tokens)
    assert found.dtype == dtype and found.shape == (3, steps, V)
    assert largest_error(found, logits) <= tolerance
    losses = model.losses(tokens, targets)
    np.testing.assert_allclose(losses, cross_entropy(logits, targets), rtol=tolerance, atol=tolerance)
    loss = plain_loss(config, weights, tokens, targets)
    assert model.loss(tokens, targets) == pytest.approx(loss, rel=tolerance)
    assert model.loss_and_gradient(tokens, targets) == pytest.approx(loss, rel=tolerance)


@both_types
def test_more_rows_than_a_chunk_of_logits(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", 0)
    monkeypatch.setattr(head, "CHUNK_ROWS", 64)
    config = config_of(vocab_size=300, block_size=70, n_layer=1, n_head=2, n_embd=16, n_hidden=24)
    model, tokens, targets = (
        made(config, dtype, noise=0.1),
        random_tokens(config, 11, 70),
        random_tokens(config, 11, 70, seed=1),
    )
    assert model.plan(11, 70).shared["head.logits"].shape == (64, 300)
    assert largest_error(model.logits(tokens), plain_logits(config, model.parameters.weight, tokens)) <= tolerance
    loss = plain_loss(config, model.parameters.weight, tokens, targets)
    assert model.loss(tokens, targets) == pytest.approx(loss, rel=tolerance)
    assert model.loss_and_gradient(tokens, targets) == pytest.approx(loss, rel=tolerance)


@every_model
def test_a_token_changes_no_earlier_logits(name):
    model = made(MODELS[name])
    tokens = random_tokens(MODELS[name], 2, T)
    before = model.logits(tokens)
    for position in (0, 4, T - 1):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % V
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any()


def test_a_token_changes_no_earlier_logits_in_a_long_window():
    config = config_of(vocab_size=V, block_size=200, n_layer=2, n_head=2, n_embd=16, n_hidden=24)
    model, tokens = made(config), random_tokens(config, 1, 200)
    before = model.logits(tokens)
    for position in (63, 64, 130):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % V
        np.testing.assert_array_equal(model.logits(changed)[:, :position], before[:, :position])


# Memory


@every_model
@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropout"])
def test_nothing_stale_is_read_from_the_arena(name, dropped):
    """The bits are the same whether the arena holds NaN before or zeros."""
    config = config_of(**{**MODELS[name].__dict__, "dropout": 0.2 if dropped else 0.0})
    model, tokens, targets = made(config), random_tokens(config, 2, T), random_tokens(config, 2, T, seed=1)
    found = []
    for value in (np.nan, 0.0):
        activations = model.plan(2, T)
        activations.arena.fill(value)
        activations.set_positions(config, 0)
        model.parameters.gradients.fill(0)
        loss = model.loss_and_gradient(tokens, targets, key=(1, 2, 3) if dropped else None)
        gradients = model.parameters.gradients.copy()
        activations.arena.fill(value)
        activations.set_positions(config, 0)
        found.append((loss, gradients, model.loss(tokens, targets), model.logits(tokens)))
    for a, b in zip(*found):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@every_model
def test_micro_batches_add_up_to_the_whole_batch(name, kernel_set):
    config = MODELS[name]
    model, tokens, targets = (
        made(config, np.float64),
        random_tokens(config, 12, T),
        random_tokens(config, 12, T, seed=1),
    )
    loss = model.loss_and_gradient(tokens, targets)
    whole = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    parts = [model.loss_and_gradient(tokens[i : i + 3], targets[i : i + 3], targets.size) for i in range(0, 12, 3)]
    assert sum(parts) == pytest.approx(loss, rel=1e-13)
    assert largest_error(model.parameters.gradients, whole) < 1e-13


@every_model
def test_windows_shorter_than_the_context_add_up_too(name, kernel_set):
    config = MODELS[name]
    model, steps = made(config, np.float64), config.block_size - 2
    tokens, targets = random_tokens(config, 3, steps), random_tokens(config, 3, steps, seed=1)
    model.loss_and_gradient(tokens, targets)
    whole = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    for i in range(3):
        model.loss_and_gradient(tokens[i : i + 1], targets[i : i + 1], targets.size)
    np.testing.assert_allclose(model.parameters.gradients, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_dropout_is_a_function_of_its_key():
    config = config_of(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=12, n_hidden=10, dropout=0.3)
    model, tokens, targets = made(config), random_tokens(config, 2, T), random_tokens(config, 2, T, seed=1)

    def run(key):
        model.parameters.gradients.fill(0)
        return model.loss_and_gradient(tokens, targets, key=key), model.parameters.gradients.tobytes()

    assert run((1, 2, 3)) == run((1, 2, 3))
    assert len({run(key) for key in (None, (1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))}) == 5
    assert run(None)[0] == model.loss_and_gradient(tokens, targets)
    assert run(None)[0] == pytest.approx(model.loss(tokens, targets), rel=1e-6)


def sizes_of(name):
    """The smaller sizes that the preset `name` has."""
    config = preset(name)[0]
    sizes = dict(n_head=1 if config.n_head == 1 else 4, n_hidden=128, recurrence_size=128, head_hidden=128)
    return {field: size for field, size in sizes.items() if field not in config.unused}


@pytest.mark.parametrize("name", PRESETS)
def test_a_warm_training_step_allocates_almost_nothing(name):
    """No array of the model's or the batch's size: less than 64 KiB, where one activation is 128 KiB."""
    config = preset(name, dict(vocab_size=256, n_layer=2, n_embd=64, block_size=64) | sizes_of(name))[0]
    model = Model(config)
    optimizer = AdamW(model.parameters)
    tokens, targets = random_tokens(config, 8, 64), random_tokens(config, 8, 64, seed=1)
    assert model.plan(8, 64).layers[0]["x"].nbytes == 128 << 10 < model.parameters.weights.nbytes

    def step(i):
        model.loss_and_gradient(tokens, targets, key=(1, i, 0))
        optimizer.step(1e-3)

    for i in range(2):
        step(i)
    tracemalloc.start()
    try:
        step(2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_a_model_shows_its_memory_plan():
    table = Model(config_of(n_layer=2, n_embd=16, block_size=8)).plan(3, 8).arena.table()
    assert re.search(r"^layers\.\*\.attention\.qkv +2 x 24 x 48 +saved +[\d.]+ MiB$", table, re.M), table
    assert table.splitlines()[-1].startswith("activations")


# The feed-forward in chunks of rows


@pytest.mark.parametrize(
    "settings", [dict(feed_forward="gelu", bias=True), dict(feed_forward="swiglu", norm="none")], ids=["gelu", "swiglu"]
)
def test_chunks_of_rows_change_rounding_only(settings, monkeypatch, kernel_set):
    config = config_of(**settings, vocab_size=11, block_size=9, n_layer=2, n_embd=12, n_head=2)
    tokens, targets = np.random.default_rng(0).integers(0, 11, (2, 3, 9)).astype(np.int32)
    found = []
    for rows in (27, 5, 1):
        monkeypatch.setattr(feed_forward, "ROWS", rows)
        model = Model(config, seed=3, dtype=np.float64)
        loss = model.loss_and_gradient(tokens, targets)
        found.append((loss, model.parameters.gradients.copy()))
    for loss, gradients in found[1:]:
        assert abs(loss - found[0][0]) < 1e-13
        np.testing.assert_allclose(gradients, found[0][1], rtol=1e-10, atol=1e-14)


def test_the_gradient_in_chunks_of_rows_with_dropout(monkeypatch, kernel_set):
    """Backward draws each chunk's mask again, and no two chunks share one."""
    monkeypatch.setattr(feed_forward, "ROWS", 5)
    config = config_of(feed_forward="gelu", dropout=0.3, vocab_size=11, block_size=9, n_layer=2, n_embd=12, n_head=2)
    assert max(model_error(config).values()) <= TOLERANCE
    keys = [own.key for _, own in feed_forward.chunks(18, 5, Dropout(0.3, 7))]
    assert len(set(keys)) == len(keys) == 4
