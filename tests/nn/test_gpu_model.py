"""Models on a GPU, or on the fake one, beside the same models on the CPU: losses, gradients, states, updates."""

import math

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.config import LoraConfig, ModelConfig
from slm_np.dtypes import BF16
from slm_np.nn.model import Model, States
from slm_np.ops.device import CPU, device, host, put
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(vocab_size=13, block_size=6, n_layer=1, n_embd=16)
ATTENTION, FEED_FORWARD = dict(n_head=2), dict(n_hidden=20)
MODELS = {
    "default": dict(**ATTENTION, **FEED_FORWARD),
    "gpt2": dict(
        **ATTENTION,
        **FEED_FORWARD,
        positions="learned",
        norm="layernorm",
        feed_forward="gelu-tanh",
        bias=True,
        dropout=0.2,
    ),
    "llama": dict(**ATTENTION, **FEED_FORWARD, positions="rotary", feed_forward="swiglu", n_kv_head=1, head="linear"),
    "qwen3": dict(n_head=2, head_dim=6, n_kv_head=1, **FEED_FORWARD, qk_norm=True, qkv_bias="on", rotary_dim=4),
    "windows": dict(
        **ATTENTION, **FEED_FORWARD, pattern="LAN", n_layer=3, window=2, score_scale=0.7, rope_scaling="llama3:8,1,4,64"
    ),
    "parallel": dict(**ATTENTION, **FEED_FORWARD, parallel=True, norm="layernorm", feed_forward="gelu", bias=True),
    "byte-transformer": dict(
        **ATTENTION, **FEED_FORWARD, positions="sinusoidal", norm="layernorm", feed_forward="gelu", head="mlp"
    ),
    "mamba": dict(pattern="M", positions="none", feed_forward="none", bias=True, ssm_state_size=5, n_inner=24),
    "byte-ssm": dict(
        pattern="S",
        positions="none",
        feed_forward="none",
        head="none",
        norm="none",
        residual=False,
        n_layer=2,
        recurrence_size=12,
    ),
    "hybrid": dict(
        **ATTENTION,
        **FEED_FORWARD,
        pattern="MAS",
        n_layer=3,
        positions="rotary",
        dropout=0.1,
        ssm_state_size=4,
        n_inner=16,
        recurrence_size=12,
    ),
}
KEY = 1, 2, 3


@pytest.fixture
def cuda(cupy):  # noqa: F811
    """The GPU's Device."""
    return device("cuda")


def config(name):
    return ModelConfig(**{**SMALL, **MODELS[name]})


def batch(seed=0):
    """(tokens, targets) of two sequences, with one target masked."""
    tokens, targets = np.random.default_rng(seed).integers(0, 13, (2, 2, 6), np.int32)
    targets[0, 3] = -1
    return tokens, targets


def with_nan(model):
    """The model, its arena filled with NaN except for the positional tables."""
    activations = model.plan(2, model.config.block_size)
    activations.arena.fill(np.nan)
    activations.set_positions(model.config, 0)
    return model


def loss_and_gradients(model):
    """(loss, NumPy array of all gradients) of `batch`."""
    model.parameters.gradients.fill(0)
    loss = model.loss_and_gradient(*batch(), key=KEY if model.config.dropout else None)
    return loss, host(model.parameters.gradients).copy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 2e-4)], ids=["float64", "float32"])
def test_loss_logits_and_gradients_equal_the_cpus(cuda, name, dtype, tolerance):
    exact = Model(config(name), 3, dtype=np.float64)
    model = with_nan(Model(config(name), 3, dtype=dtype, device=cuda))
    (loss, expected), (found_loss, found) = loss_and_gradients(exact), loss_and_gradients(model)
    assert found_loss == pytest.approx(loss, rel=tolerance)
    views = model.parameters.like(found)
    for key, view in exact.parameters.like(expected).items():
        atol = tolerance * max(1e-3, np.abs(view).max())
        np.testing.assert_allclose(views[key], view, rtol=0, atol=atol, err_msg=key)
    if dtype == np.float64:  # the rest is as in float32
        return
    tokens, targets = batch()
    assert model.loss(tokens, targets) == pytest.approx(exact.loss(tokens, targets), rel=tolerance)
    np.testing.assert_allclose(host(model.logits(tokens)), exact.logits(tokens), rtol=0, atol=tolerance)
    again = loss_and_gradients(model)
    assert again[0] == found_loss
    np.testing.assert_array_equal(again[1], found)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "windows", "hybrid", "byte-ssm"])
@pytest.mark.parametrize("compute_dtype", [BF16, np.dtype(np.float16)], ids=["bf16", "fp16"])
def test_16_bit_gradients_align_with_exact(cuda, name, compute_dtype):
    exact = Model(config(name), 3, dtype=np.float64)
    model = with_nan(Model(config(name), 3, compute_dtype=compute_dtype, device=cuda))
    (loss, expected), (found_loss, found) = loss_and_gradients(exact), loss_and_gradients(model)
    assert found_loss == pytest.approx(loss, rel=3e-3)
    assert found @ expected / math.sqrt((found @ found) * (expected @ expected)) > 1 - 1e-4
    assert model.full_precision().loss(*batch()) == pytest.approx(exact.loss(*batch()), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mamba", "hybrid", "byte-ssm"])
@pytest.mark.parametrize("compute_dtype", [None, BF16, np.dtype(np.float16)], ids=["fp32", "bf16", "fp16"])
def test_gradients_of_adapters_equal_the_cpus(cuda, name, compute_dtype):
    targets = "all,dt_proj,out_proj" if "M" in config(name).letters else "all"
    found, lora = [], LoraConfig(lora_rank=2, lora_dropout=0.2, lora_targets=targets)
    for where, dtype in ((CPU, None), (cuda, compute_dtype)):
        model = Model(config(name), 3, device=where, compute_dtype=dtype, lora=lora)
        weights = 0.1 * np.random.default_rng(0).standard_normal(model.parameters.weights.size).astype(np.float32)
        put(model.parameters.weights, weights)  # B of an adapter starts as zeros
        model.parameters.update_cast_copies()
        found.append((model.loss_and_gradient(*batch(), key=KEY), host(model.parameters.gradients)))
    (loss, expected), (found_loss, gradients) = found
    assert found_loss == pytest.approx(loss, rel=3e-3 if compute_dtype else 1e-5)
    cosine = gradients @ expected / math.sqrt((gradients @ gradients) * (expected @ expected))
    assert cosine > 1 - (3e-3 if compute_dtype else 1e-6)


def test_recurrent_states_pass_from_window_to_window(cuda):
    recurrent = dict(pattern="MS", n_layer=2, ssm_state_size=4, n_inner=16, recurrence_size=12)
    found = []
    for where in (CPU, cuda):
        model = Model(ModelConfig(**{**SMALL, **FEED_FORWARD, **recurrent}), 3, device=where)
        states = States(model, 2)
        losses = [model.loss_and_gradient(*batch(seed), states=states) for seed in range(3)]
        found.append([losses, host(states.memory), host(model.parameters.gradients)])
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_adamw_equals_the_cpus(cuda):
    found = []
    for where in (CPU, cuda):
        model = Model(config("default"), 3, dtype=np.float64, device=where)
        optimizer = AdamW(model.parameters, 1e-2, grad_clip=0.1)
        for _ in range(3):
            model.loss_and_gradient(*batch())
            norm = optimizer.step()
        found.append((norm, host(model.parameters.weights)))
    (norm, weights), (gpu_norm, gpu_weights) = found
    assert norm == pytest.approx(gpu_norm, rel=1e-12)
    np.testing.assert_allclose(gpu_weights, weights, rtol=1e-10, atol=1e-14)
