"""Decoding on a GPU, or on its emulator: steps equal whole sequences, replayed graphs equal plain launches."""

import gc

import fake_cupy
import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.config import LoraConfig, ModelConfig
from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.inference import positions
from slm_np.inference.decoder import Decoder
from slm_np.inference.gpu_step import GpuStep
from slm_np.nn.model import Model
from slm_np.ops.device import device, host

emulated = pytest.mark.skipif(fake_cupy.real() is not None, reason="only the emulator counts")
T, V = 9, 13
CHOICES = {
    "llama": dict(n_kv_head=2),
    "qwen3": dict(n_kv_head=2, head_dim=6, qk_norm=True, qkv_bias="on"),
    "neox": dict(parallel=True, rotary_dim=2, norm="layernorm", feed_forward="gelu", bias=True, head="linear"),
    "neo": dict(pattern="AL", window=3, score_scale=1.0, positions="learned", norm="layernorm"),
    "smollm3": dict(pattern="AN", rope_scaling="llama3:8,1,4,64"),
    "gpt2": dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True, head="tied"),
    "byte-transformer": dict(
        positions="sinusoidal", norm="none", feed_forward="silu", head="mlp", head_hidden=7, n_head=1
    ),
    "no-positions": dict(positions="none", head="linear"),
    "mamba": dict(pattern="M", feed_forward="none", n_inner=10, ssm_state_size=3),
    "convolution-of-one": dict(pattern="M", feed_forward="none", conv_kernel=1, n_inner=10, ssm_state_size=3),
    "byte-ssm": dict(
        pattern="S", norm="none", feed_forward="none", residual=False, head="none", init="uniform", recurrence_size=7
    ),
    "hybrid": dict(pattern="SMA", n_layer=3, n_inner=10, ssm_state_size=3, recurrence_size=7),
    "one-token": dict(block_size=1),
}


@pytest.fixture
def gpu(cupy):  # noqa: F811
    return device("cuda")


def made(gpu, dtype=np.float64, options=None, **settings):
    """A model with large weights, so that logits differ. options: further arguments of Model"""
    defaults = dict(vocab_size=V, block_size=T, n_layer=2, n_embd=16)
    if not set("ALN").isdisjoint(settings.get("pattern", "A")):
        defaults["n_head"] = 4
    if settings.get("feed_forward") != "none":
        defaults["n_hidden"] = 10
    model = Model(ModelConfig(**{**defaults, **settings}), seed=3, dtype=dtype, device=gpu, **(options or {}))
    model.parameters.weights *= 3
    return model


def tokens_of(batch, steps):
    return np.random.default_rng(0).integers(0, V, (batch, steps), np.int32)


def decoded(decoder, tokens, prompt):
    """Logits at each position from the prompt's last on, (B, positions, V)."""
    found = [decoder.read(tokens[:, :prompt]).copy()]
    found += [decoder.step(tokens[:, position]).copy() for position in range(prompt, tokens.shape[1])]
    return np.stack(found, axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CHOICES)
def test_steps_equal_the_whole_sequence(gpu, name, dtype):
    model = made(gpu, dtype, **CHOICES[name])
    steps = model.config.block_size
    tokens = tokens_of(2, steps)
    expected, decoder = host(model.logits(tokens)), Decoder(model, 2)
    assert type(decoder.token_step) is GpuStep
    for prompt in (min(4, steps), 1):
        found = decoded(decoder, tokens, prompt)
        assert type(found) is np.ndarray and found.dtype == dtype
        tolerance = 1e-9 if dtype == np.float64 else 1e-4
        np.testing.assert_allclose(found, expected[:, prompt - 1 :], atol=tolerance * np.abs(expected).max())
    assert steps == 1 or decoder.token_step.graph.graph is not None


@pytest.mark.parametrize("kind", ["rotary", "none", "learned", "sinusoidal"])
def test_beyond_the_context(gpu, kind, monkeypatch):
    """One sliding layer attends to the newest T tokens; with absolute positions these are read again."""
    monkeypatch.setattr(positions, "ROWS", 5)  # tables and caches wrap around at different positions
    model, tokens = made(gpu, positions=kind, n_layer=1, n_kv_head=2), tokens_of(2, 2 * T + 3)
    for position, logits in enumerate(decoded(Decoder(model, 2), tokens, 3).swapaxes(0, 1), 3):
        expected = host(model.logits(tokens[:, max(0, position - T) : position]))[:, -1]
        np.testing.assert_allclose(logits, expected, atol=1e-9 * np.abs(expected).max())


def test_a_window_beyond_the_context(gpu):
    """A token attends to the newest tokens of its window, wherever the ring holds them."""
    model, tokens = made(gpu, pattern="L", window=4, n_layer=1), tokens_of(2, 2 * T + 3)
    for position, logits in enumerate(decoded(Decoder(model, 2), tokens, 6).swapaxes(0, 1), 6):
        expected = host(model.logits(tokens[:, max(0, position - T) : position]))[:, -1]
        np.testing.assert_allclose(logits, expected, atol=1e-9 * np.abs(expected).max())


def test_replayed_steps_have_the_bits_of_plain_ones(gpu):
    model, tokens = made(gpu, np.float32), tokens_of(2, T)
    replayed, plain = Decoder(model, 2), Decoder(model, 2)
    plain.token_step.graph.captures = False
    assert decoded(replayed, tokens, 2).tobytes() == decoded(plain, tokens, 2).tobytes()
    assert replayed.token_step.graph.graph is not None and plain.token_step.graph.graph is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_frozen_weights_in_16_bits_are_decoded_by_a_graph(gpu, name):
    """As for the samples of a run that trains adapters."""
    options, tokens = dict(compute_dtype=BF16, lora=LoraConfig(lora_rank=2)), tokens_of(2, T)
    model = made(gpu, np.float32, options, **CHOICES[name])
    expected, decoder = host(model.logits(tokens)), Decoder(model, 2)
    np.testing.assert_allclose(decoded(decoder, tokens, 3), expected[:, 2:], atol=0.01 * np.abs(expected).max())
    assert decoder.token_step.graph.graph is not None


def test_weights_may_change_between_steps(gpu):
    """A captured step reads the model's own weights, not a copy."""
    model, tokens = made(gpu), tokens_of(1, T)
    decoder = Decoder(model)
    decoded(decoder, tokens[:, :5], 2)
    model.parameters.weights *= 0.5
    np.testing.assert_allclose(decoded(decoder, tokens, 3), host(model.logits(tokens))[:, 2:], atol=1e-9)


@emulated
def test_a_step_synchronizes_once_and_allocates_nothing(gpu):
    decoder, tokens = Decoder(made(gpu, np.float32), 2), tokens_of(2, T)
    decoded(decoder, tokens[:, :5], 2)
    before = dict(vars(fake_cupy.counts))
    decoder.step(tokens[:, 5])
    after = vars(fake_cupy.counts)
    assert after["allocations"] == before["allocations"]
    assert after["synchronizations"] - before["synchronizations"] <= 2  # for the logits, and the input's last copy


@emulated
def test_memory_is_freed_at_once(gpu):
    """Not at the next garbage collection: until then it would be missing where memory is checked."""
    used, model = gpu.arrays.get_default_memory_pool().used_bytes, made(gpu, np.float32)
    decoded(Decoder(model, 2), tokens_of(2, T), 2)  # kernels keep the scratch that they allocate first
    gc.disable()
    try:
        before = used()
        decoded(Decoder(model, 2), tokens_of(2, T), 2)
        assert used() == before
    finally:
        gc.enable()


def test_the_device_must_have_the_memory(gpu, monkeypatch):
    model = made(gpu)
    monkeypatch.setattr("slm_np.kernels.gpu.device.free_bytes", lambda: 1000)
    with pytest.raises(UserError, match="generating 3 sequences at once needs .* of the GPU's memory"):
        Decoder(model, 3)
