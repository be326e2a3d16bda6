"""Decoding: cached steps equal the whole text for every choice of the trunk, with the same bits in any company and for any number of threads."""

import itertools
import tracemalloc

import numba
import numpy as np
import pytest

from slm_np.config import ModelConfig
from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder, shares
from slm_np.nn.model import Model
from slm_np.presets import PRESETS, preset

TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}
T, V = 9, 13
SMALL = dict(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=16, n_hidden=10)
several = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this process may use one core only")


def made(dtype=np.float64, **settings):
    """A model that has opinions: biases and norms too."""
    model = Model(ModelConfig(**{**SMALL, **settings}), seed=3, dtype=dtype)
    draw = np.random.default_rng(4)
    for name, view in model.parameters.weight.items():
        view[...] = draw.normal(
            float("norm.weight" in name),
            0.3
            if view.ndim == 1
            else 0.6 * view.shape[0 if "head" not in name and "embedding" not in name else 1] ** -0.5,
            view.shape,
        )
    return model


def text(batch, steps, pieces=V, seed=0):
    return np.random.default_rng(seed).integers(0, pieces, (batch, steps), np.int32)


def decoded(decoder, tokens, prompt):
    """Logits at each place from the prompt's last on, (B, places, V)."""
    return np.stack(
        [decoder.read(tokens[:, :prompt]).copy()]
        + [decoder.step(tokens[:, place]).copy() for place in range(prompt, tokens.shape[1])],
        axis=1,
    )


def fill(decoder, value):
    for array in (*decoder.buffers, decoder.memory, decoder.logits):
        array.fill(value)


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * max(1, np.abs(expected).max())


# Cached steps equal the whole text

CHOICES = {
    **{
        f"{positions}-{norm}": dict(positions=positions, norm=norm, bias=norm == "layernorm")
        for positions, norm in itertools.product(
            ("none", "sinusoidal", "learned", "rotary"), ("none", "layernorm", "rmsnorm")
        )
    },
    **{
        f"{activation}{'-bias' * bias}": dict(feed_forward=activation, bias=bias)
        for activation, bias in itertools.product(("none", "silu", "gelu", "gelu-tanh", "swiglu"), (False, True))
    },
    **{
        f"{head}-head{'-bias' * bias}": dict(head=head, bias=bias, head_hidden=7)
        for head, bias in itertools.product(("tied", "linear", "mlp"), (False, True))
    },
    **{
        f"{heads}-heads-{groups}-groups-of-{width}": dict(n_head=heads, n_kv_head=groups, head_dim=width)
        for heads, groups, width in ((1, 1, 6), (6, 3, 2), (4, 1, 10), (3, 3, 4))
    },
    **{
        f"mixers-{pattern}{'-' * bool(kind)}{kind}": dict(
            pattern=pattern,
            feed_forward=kind or "none",
            bias=bias,
            n_inner=inner,
            ssm_state_size=3,
            recurrence_size=states,
        )
        for pattern, kind, bias, inner, states in (
            ("M", "", False, 10, 5),
            ("M", "swiglu", True, 200, 5),
            ("S", "", False, 10, 7),
            ("S", "gelu", True, 10, 200),
            ("MA", "silu", False, 10, 5),
            ("SM", "", True, 130, 130),
        )
    },
    **{
        f"no-residual-{pattern}-{head}": dict(
            pattern=pattern, residual=False, norm=norm, feed_forward="none", head=head, init="uniform"
        )
        for pattern, norm, head in (
            ("S", "none", "none"),
            ("M", "rmsnorm", "none"),
            ("A", "none", "none"),
            ("AS", "layernorm", "linear"),
        )
    },
    "no-residual-feed-forward": dict(pattern="SM", residual=False, feed_forward="swiglu"),
    "filter-of-one": dict(pattern="M", conv_kernel=1),
    "longer-filter": dict(pattern="M", conv_kernel=7),
    "layernorm-without-bias": dict(norm="layernorm"),
    "odd-widths": dict(n_embd=7, n_head=1, n_hidden=5, positions="none", head="mlp", head_hidden=3),
    "several-shares": dict(n_embd=24, n_hidden=200, feed_forward="swiglu", bias=True),
    "one-layer": dict(n_layer=1),
    "one-token": dict(block_size=1),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_choice(name, dtype, one_thread):
    model = made(dtype, **CHOICES[name])
    steps = model.config.block_size
    tokens = text(3, steps)
    expected, decoder = model.logits(tokens), Decoder(model, 3)
    for prompt in {1, min(4, steps), steps}:
        fill(decoder, np.nan)
        assert_near(decoded(decoder, tokens, prompt), expected[:, prompt - 1 :], dtype)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, one_thread):
    """With its own widths and vocabulary, cut to two layers and a short context."""
    config = preset(name, dict(n_layer=2, block_size=24))[0]
    model, tokens = Model(config, seed=1), text(2, 24, config.vocab_size)
    model.parameters.weights *= 3
    assert_near(decoded(Decoder(model, 2), tokens, 5), model.logits(tokens)[:, 4:], np.float32)


def test_more_places_than_a_table_of_angles_holds(one_thread, monkeypatch):
    monkeypatch.setattr("slm_np.inference.decoder.ROWS", 4)
    for positions in ("rotary", "sinusoidal"):
        model, tokens = made(positions=positions), text(2, T)
        assert_near(decoded(Decoder(model, 2), tokens, 2), model.logits(tokens)[:, 1:], np.float64)


# Beyond the context


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_absolute_positions_read_the_last_tokens_again(positions, one_thread):
    model, tokens = made(positions=positions), text(2, 3 * T)
    for place, logits in enumerate(decoded(Decoder(model, 2), tokens, 3).swapaxes(0, 1), 3):
        assert_near(logits, model.logits(tokens[:, max(0, place - T) : place])[:, -1], np.float64)


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_one_sliding_layer_sees_the_last_tokens(positions, one_thread, monkeypatch):
    """Angles go on rising, but scores depend on their differences only."""
    monkeypatch.setattr(
        "slm_np.inference.decoder.ROWS", 5
    )  # does not divide T: tables and caches turn at different places
    model, tokens = made(positions=positions, n_layer=1, n_kv_head=2), text(2, 5 * T)
    for place, logits in enumerate(decoded(Decoder(model, 2), tokens, 2).swapaxes(0, 1), 2):
        assert_near(logits, model.logits(tokens[:, max(0, place - T) : place])[:, -1], np.float64)


# The same bits


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True),
        dict(head="mlp", n_kv_head=2),
    ],
    ids=["llama", "gpt2", "grouped"],
)
def test_a_text_is_the_same_alone_and_beside_others(settings, one_thread):
    model, tokens = made(np.float32, **settings), text(5, 3 * T)
    decoders = [Decoder(model, batch) for batch in (1, 2, 5)]
    for place in range(
        T if "positions" in settings else 3 * T
    ):  # beyond the context absolute positions read, whose products may round otherwise
        alone, *others = (decoder.step(tokens[: decoder.batch, place]).copy() for decoder in decoders)
        for logits in others:
            assert logits[0].tobytes() == alone[0].tobytes()


@several
@pytest.mark.parametrize(
    "settings",
    [
        dict(n_embd=96, n_head=6, n_hidden=328),
        dict(n_embd=90, n_head=3, n_hidden=327, feed_forward="gelu", bias=True, head="mlp", n_kv_head=1),
    ],
    ids=["swiglu", "gelu-mlp"],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_bits_for_any_number_of_threads(settings, dtype, threads):
    model, tokens = made(dtype, vocab_size=301, **settings), text(3, 2 * T, 301)
    found = []
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        threads(count)
        found.append(decoded(Decoder(model, 3), tokens, 2))
    for other in found[1:]:
        assert np.isfinite(other).all() and other.tobytes() == found[0].tobytes()


def test_shares_follow_from_the_model_alone():
    assert [shares(n) for n in (1, 63, 128, 768, 5000)] == [1, 1, 2, 12, 16]


# Memory, bad input


@pytest.mark.parametrize("positions", ["rotary", "none", "learned"])
def test_a_warm_step_allocates_almost_nothing(positions, one_thread):
    model = made(np.float32, n_embd=64, n_hidden=256, block_size=64, vocab_size=4099, positions=positions)
    decoder, tokens = Decoder(model, 4), text(4, 8)
    decoded(decoder, tokens, 3)
    tracemalloc.start()
    try:
        decoder.step(tokens[:, 0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 10 < decoder.logits.nbytes


def test_weights_may_change_between_steps(one_thread):
    """The step reads the model's own weights, not a copy."""
    model, tokens = made(), text(1, T)
    decoder = Decoder(model)
    decoder.read(tokens[:, :2])
    model.parameters.weights *= 0.5
    assert_near(decoded(decoder, tokens, 3), model.logits(tokens)[:, 2:], np.float64)


@pytest.mark.parametrize("bad", [-1, V, 2**31 - 1])
def test_ids_outside_the_vocabulary_are_refused(bad, one_thread):
    decoder = Decoder(made(), 2)
    decoder.read(np.zeros((2, 1)))
    with pytest.raises(UserError, match=f"not all in the vocabulary of {V}"):
        decoder.step(np.array([0, bad]))
    with pytest.raises(UserError, match="not all in the vocabulary"):
        decoder.read(np.array([[0, bad], [1, 1]]))
