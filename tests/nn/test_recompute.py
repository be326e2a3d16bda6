"""Recomputation in backward: the same bits as with saved activations, in less memory."""

import tracemalloc

import numpy as np
import pytest
from configs import config_of

from slm_np import ops
from slm_np.config import LoraConfig
from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.nn.arena import ALIGN, planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.gradient_check import shrunk
from slm_np.nn.model import Model, plan
from slm_np.presets import PRESETS, preset

pytestmark = pytest.mark.usefixtures("one_thread")

V, B, T = 11, 3, 9
TINY = dict(vocab_size=V, block_size=T, n_layer=3, n_embd=12, n_head=2, n_hidden=10, recurrence_size=7, n_inner=20)
MODELS = {
    **{name: shrunk(preset(name)[0]) for name in PRESETS},
    "attention": config_of(**TINY, head="linear", bias=True),
    "mamba": config_of(**TINY, pattern="M", head="mlp"),
    "recurrence": config_of(**TINY, pattern="S", norm="layernorm"),
    "three-mixers": config_of(**TINY, pattern="SMA", positions="none", feed_forward="gelu"),
    "no-feed-forward": config_of(**TINY, pattern="AMS", feed_forward="none", positions="learned"),
    "windows": config_of(**TINY, pattern="LAN", window=4, qk_norm=True, rotary_dim=4, qkv_bias="on", score_scale=1.0),
    "parallel": config_of(**TINY, pattern="AM", parallel=True, bias=True, norm="layernorm"),
    "no-residuals": config_of(**TINY, pattern="MA", residual=False, norm="none"),
    "logits-from-the-mixer": config_of(**TINY, pattern="MS", feed_forward="none", residual=False, head="none"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def ids(config, seed, steps=T):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (B, min(steps, config.block_size)))


def gradient(config, recompute, key=None, compute_dtype=None, lora=None):
    """(losses, gradients) of two micro-batches. Their gradients add up, and the arena holds NaN before each."""
    model = Model(config, 3, compute_dtype=compute_dtype, recompute=recompute, lora=lora)
    weights = model.parameters.weights  # biases that are not zero, norms that are not one
    weights += 0.3 * np.random.default_rng(3).standard_normal(weights.size, weights.dtype)
    model.parameters.update_cast_copies()
    losses = []
    for micro in range(2):
        tokens, targets = ids(config, micro), ids(config, 10 + micro)
        activations = model.plan(*tokens.shape)
        assert activations.recompute == recompute
        activations.arena.fill(np.nan)
        activations.set_positions(config, 0)
        losses.append(model.loss_and_gradient(tokens, targets, 2 * targets.size, key and (*key, micro)))
    return losses, model.parameters.gradients


def assert_same_gradient(config, **options):
    (losses, saved), (again, recomputed) = (gradient(config, recompute, **options) for recompute in (False, True))
    assert losses == again and np.isfinite(losses).all()
    np.testing.assert_array_equal(saved, recomputed)
    assert np.isfinite(saved).all() and saved.any()


@every_model
@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropout"])
def test_the_gradient_is_the_same_to_the_bit(name, dropped):
    config = config_of(**{**MODELS[name].__dict__, "dropout": 0.2 if dropped else 0.0})
    assert_same_gradient(config, key=(1, 2) if dropped else None)


@every_model
def test_the_gradient_is_the_same_with_the_numpy_kernels(name, numpy_kernels):
    assert_same_gradient(config_of(**{**MODELS[name].__dict__, "dropout": 0.2}), key=(1, 2))


@pytest.mark.parametrize("name", ["attention", "mamba", "recurrence", "no-feed-forward", "windows", "parallel"])
def test_the_gradient_is_the_same_in_bfloat16(name):
    config = config_of(**{**MODELS[name].__dict__, "dropout": 0.2})
    assert_same_gradient(config, key=(1, 2), compute_dtype=BF16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "mamba", "windows", "parallel"])
def test_the_gradient_of_adapters_is_the_same_in_bfloat16(name):
    lora = LoraConfig(lora_rank=2, lora_dropout=0.2)
    assert_same_gradient(MODELS[name], key=(1, 2), compute_dtype=BF16, lora=lora)


@pytest.mark.parametrize("name", ["mamba", "recurrence", "logits-from-the-mixer"])
def test_windows_continue_from_the_same_states(name):
    """Forward advances the states, and backward starts the window again from where they were."""
    config, found = MODELS[name], []
    for recompute in (False, True):
        model = Model(config, 3, recompute=recompute)
        states = model.states(B)
        losses = [
            model.loss_and_gradient(ids(config, window), ids(config, 10 + window), key=(1, window), states=states)
            for window in range(3)
        ]
        found.append((losses, model.parameters.gradients, states.memory))
    assert found[1][2].any()
    for saved, recomputed in zip(*found):
        np.testing.assert_array_equal(saved, recomputed)


def test_states_and_activations_of_a_model_that_saves_are_refused():
    config = MODELS["mamba"]
    model, other = Model(config, recompute=True), Model(config)
    tokens = ids(config, 0)
    with pytest.raises(UserError, match="states are of another model"):
        model.loss_and_gradient(tokens, tokens, states=other.states(B))
    with pytest.raises(UserError, match="activations are planned for another model"):
        model.forward(other.plan(*tokens.shape), tokens, model_dropout(config))


@every_model
def test_one_more_layer_takes_the_memory_of_its_input(name):
    """Counted from where every mixer of the pattern has occurred."""
    config = MODELS[name]
    n = len(config.pattern)
    sizes = []
    for layers in (2 * n, 3 * n):
        more = config_of(**{**config.__dict__, "n_layer": layers})
        sizes.append([planned_bytes(plan(more, B, T, recompute=recompute), np.float32) for recompute in (False, True)])
    saved, recomputed = np.subtract(sizes[1], sizes[0])
    assert recomputed == n * -(-4 * B * T * config.n_embd // ALIGN) * ALIGN < saved


def multiplications(monkeypatch, call):
    """Multiplications in the matmuls of call()."""
    counts = []

    def counting(function, times, indices):
        def counted(*args):
            counts.append(times * len(args[indices[0]]) * args[indices[1]].size)
            return function(*args)

        return counted

    with monkeypatch.context() as patch:
        for name, times, indices in (  # of an array with a row per token, and of the weight
            ("linear_forward", 1, (1, 2)),
            ("linear_backward", 2, (3, 5)),
            ("linear_backward_input", 1, (1, 2)),
            ("linear_backward_weight", 1, (2, 0)),
        ):
            patch.setattr(ops, name, counting(getattr(ops, name), times, indices))
        call()
    return sum(counts)


@pytest.mark.parametrize("name", ["attention", "mamba", "three-mixers", "no-feed-forward", "parallel"])
def test_recomputation_costs_less_than_a_forward(monkeypatch, name):
    """Neither the last block nor the last layer of a feed-forward is computed again."""
    config = MODELS[name]
    saving, recomputing = Model(config), Model(config, recompute=True)
    tokens = ids(config, 0)
    saving.loss(tokens, tokens)  # first calls may run further ops, to compile them
    for model in (saving, recomputing):
        model.loss_and_gradient(tokens, tokens)
    forward = multiplications(monkeypatch, lambda: saving.loss(tokens, tokens))
    more, less = (
        multiplications(monkeypatch, lambda model=model: model.loss_and_gradient(tokens, tokens))
        for model in (recomputing, saving)
    )
    assert less < more < less + forward
    if name == "attention":
        layers, skipped = config.n_layer, tokens.size * config.n_hidden * config.n_embd
        assert more - less == (layers - 1) * (forward // layers - skipped)


def test_losses_alone_save_nothing_for_backward():
    """They reuse an arena that is planned for backward, and need a smaller one otherwise."""
    config = MODELS["attention"]
    model, tokens = Model(config), ids(config, 0)
    loss, small = model.loss(tokens, tokens), model.activations.arena.n_bytes
    assert small == planned_bytes(plan(config, B, T, recompute=True), np.float32)
    assert model.loss_and_gradient(tokens, tokens) == loss
    large = model.activations
    assert large.arena.n_bytes > small
    assert model.loss(tokens, tokens) == loss
    model.logits(tokens)
    assert model.activations is large


@pytest.mark.parametrize("name", ["attention", "mamba", "three-mixers"])
def test_a_warm_gradient_allocates_almost_nothing(name):
    """Less than 64 KiB, where one activation takes 128 KiB."""
    config = config_of(**{**MODELS[name].__dict__, "block_size": 64, "n_embd": 64, "dropout": 0.1})
    model = Model(config, recompute=True)
    tokens = np.zeros((8, 64), np.int32)
    for _ in range(2):
        model.loss_and_gradient(tokens, tokens, key=(1,))
    assert model.activations.layers[0]["x"].nbytes == 128 << 10
    tracemalloc.start()
    try:
        model.loss_and_gradient(tokens, tokens, key=(1,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10
