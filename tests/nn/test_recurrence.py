"""The dense linear recurrence as a mixer: its gradient through all time steps, initial weights, causality, PyTorch."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from configs import config_of

from slm_np import ops
from slm_np.nn.gradient_check import TOLERANCE, Case, accumulated, model_error
from slm_np.nn.mixers import recurrence
from slm_np.nn.model import Model, parameter_count
from slm_np.ops.device import kernels_of
from slm_np.presets import BYTE_SSM
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(vocab_size=13, block_size=9, n_layer=2, n_head=1, n_embd=7, n_hidden=10, recurrence_size=11)
MODELS = {
    "byte-ssm": dict(SMALL, **BYTE_SSM),
    "byte-ssm-one-layer": {**SMALL, **BYTE_SSM, "n_layer": 1},
    "byte-ssm-wider-than-its-vocabulary": {**SMALL, **BYTE_SSM, "vocab_size": 3, "recurrence_size": 40},
    "residual": dict(SMALL, pattern="S", positions="none", feed_forward="none"),
    "residual-feed-forward": dict(
        SMALL, pattern="S", positions="none", norm="layernorm", bias=True, feed_forward="swiglu", head="linear"
    ),
    "no-residual-but-a-head": {**SMALL, **BYTE_SSM, "head": "mlp"},
    "attention-too": dict(SMALL, pattern="SA", n_embd=8),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name, dtype=np.float32, **changes):
    return Model(config_of(**{**MODELS[name], **changes}), seed=3, dtype=dtype)


def random_tokens(config, batch, steps, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, steps), np.int32)


# The gradient of the op


def scratch_of(batch, width):
    return np.full(kernels_of(np.empty(0)).linear_recurrence_scratch(batch, width), np.nan)


def op_case(backward, steps=32, batch=2, width=6):
    """The op with this backward. A is so large that a gradient reaches far back."""
    rng = np.random.default_rng(steps)

    def run(states, weight):
        out = states.copy()
        ops.linear_recurrence_forward(out, scratch_of(batch, width), weight)
        return out

    def back(dout, states, weight):
        return [dout] + accumulated(
            lambda dweight: backward(dout, dweight, scratch_of(batch, width), run(states, weight), weight), weight.shape
        )

    states, weight = rng.standard_normal((steps + 1, batch, width)), rng.standard_normal((width, width))
    return Case("linear_recurrence", [states, 0.9 * width**-0.5 * weight], run, back)


linear_recurrence_backward = ops.linear_recurrence_backward


def truncated_to_one_step(dstates, dweight, scratch, states, weight):
    """The gradient that reaches H_t from H_(t+1) is lost: truncated backpropagation through time."""
    ops.linear_backward_weight(
        dweight, None, dstates[1:].reshape(-1, len(weight)), states[:-1].reshape(-1, len(weight))
    )


def cut_in_the_middle(dstates, dweight, scratch, states, weight):
    """The gradient is lost between two steps in the middle of the window."""
    middle = len(dstates) // 2
    whole, lost = dstates.copy(), np.zeros_like(dweight)
    linear_recurrence_backward(whole[middle:], lost, scratch, states[middle:], weight)
    linear_recurrence_backward(dstates[: middle + 1], dweight, scratch, states[: middle + 1], weight)
    dstates[middle + 1 :] = whole[middle + 1 :]
    dweight += lost


wrong_backwards = pytest.mark.parametrize("backward", [truncated_to_one_step, cut_in_the_middle])


@pytest.mark.parametrize(
    "steps, batch, width", [(1, 1, 1), (1, 8, 32), (5, 1, 7), (9, 3, 33), (6, 16, 64), (4, 13, 70), (32, 2, 6)]
)
def test_the_gradient_of_the_op(steps, batch, width):
    assert op_case(ops.linear_recurrence_backward, steps, batch, width).error() <= TOLERANCE


@wrong_backwards
def test_the_check_of_the_op_fails_if_the_gradient_is_cut_in_time(backward):
    assert op_case(backward).error() > 1000 * TOLERANCE


# The gradient of the model


def assert_gradients(config):
    errors = model_error(config)
    assert max(errors.values()) <= TOLERANCE, errors


@every_model
@pytest.mark.parametrize("steps", [1, 9])
def test_the_gradient_of_the_model(name, steps):
    assert_gradients(config_of(**{**MODELS[name], "block_size": steps}))


def long_window():
    return config_of(**{**MODELS["byte-ssm"], "block_size": 32})


def test_the_gradient_of_the_model_over_32_steps():
    assert_gradients(long_window())


@wrong_backwards
def test_the_check_of_the_model_fails_if_the_gradient_is_cut_in_time(backward, monkeypatch):
    """Then everything before a state has a wrong gradient, and what comes after the last layer's a right one."""
    monkeypatch.setattr(ops, "linear_recurrence_backward", backward)
    errors = model_error(long_window())
    before = [f"layers.{layer}.recurrence.{part}.weight" for layer in range(2) for part in ("input", "state")]
    for name in ("embedding.weight", *before):
        assert errors[name] > 3 * TOLERANCE, name
    assert max(errors[f"layers.1.recurrence.{part}.weight"] for part in ("output", "skip")) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 4, 6, 17])
def test_the_gradient_of_the_model_in_chunks_of_rows(rows, monkeypatch):
    monkeypatch.setattr(recurrence, "ROWS", rows)
    assert_gradients(config_of(**{**MODELS["byte-ssm"], "block_size": 11}))
    assert_gradients(config_of(**{**MODELS["residual"], "block_size": 11, "dropout": 0.2}))


def test_the_gradient_of_the_model_with_dropout():
    assert_gradients(config_of(**{**MODELS["residual-feed-forward"], "dropout": 0.3}))


# The mixer


def test_sizes_and_bounds_of_the_initial_weights():
    config = config_of(**BYTE_SSM, vocab_size=256, block_size=256, n_layer=4, n_embd=256, recurrence_size=512)
    assert parameter_count(config) == 2_424_832
    weight = Model(config, seed=1).parameters.weight
    for layer in range(4):
        for name, shape, bound in (
            ("input", (256, 512), 1.5 / 16),
            ("state", (512, 512), 0.5 / 512**0.5),
            ("output", (512, 256), 1.5 / 512**0.5),
            ("skip", (256, 256), 1.5 / 16),
        ):
            view = weight[f"layers.{layer}.recurrence.{name}.weight"]
            assert view.shape == shape and 0.999 * bound < np.abs(view).max() <= bound
    assert 0.999 / 16 < np.abs(weight["embedding.weight"]).max() <= 1 / 16


def test_projections_to_the_residual_branch_start_smaller():
    config = config_of(**BYTE_SSM, n_layer=4, n_embd=256, recurrence_size=512)
    config = dataclasses.replace(config, residual=True, head="tied", init="normal")
    scales = {tensor.name: tensor.scale for tensor in recurrence.parameters(config, 256)}
    assert scales["recurrence.output.weight"] == pytest.approx(1.5 * 512**-0.5 / 8**0.5)


@every_model
def test_a_token_changes_no_earlier_logits(name):
    model = made(name)
    tokens = random_tokens(model.config, 3, 9)
    before = model.logits(tokens)
    for position in (0, 4, 8):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % model.config.vocab_size
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(axis=(0, 2)).all()


@every_model
def test_a_gradient_reads_nothing_stale_and_allocates_nothing(name):
    model, found = made(name), []
    tokens, targets = random_tokens(model.config, 3, 9), random_tokens(model.config, 3, 9, seed=1)
    for value in (np.nan, 0.0):
        model.plan(3, 9).arena.fill(value)
        model.activations.set_positions(model.config, 0)
        model.parameters.gradients.fill(0)
        model.loss_and_gradient(tokens, targets)
        found.append(model.parameters.gradients.tobytes())
    assert found[0] == found[1]
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        model.loss_and_gradient(tokens, targets)
        assert tracemalloc.get_traced_memory()[1] - before < 64 << 10
    finally:
        tracemalloc.stop()


# PyTorch's loop


def torch_loss(torch, config, weight, tokens, targets):
    """The loss of the preset's model as a loop over time, with the engine's weights."""
    x = torch.nn.functional.embedding(tokens, weight["embedding.weight"])
    for layer in range(config.n_layer):
        b, a, c, d = (
            weight[f"layers.{layer}.recurrence.{part}.weight"] for part in ("input", "state", "output", "skip")
        )
        h, out = torch.zeros(len(tokens), len(a)), []
        for t in range(tokens.shape[1]):
            h = x[:, t] @ b + h @ a
            out.append(torch.nn.functional.silu(h) @ c + x[:, t] @ d)
        x = torch.stack(out, 1)
    return torch.nn.functional.cross_entropy(x.flatten(0, 1), targets.flatten())


def test_ten_updates_equal_those_of_pytorchs_loop():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    config = config_of(**BYTE_SSM, vocab_size=97, block_size=40, n_layer=3, n_embd=33, recurrence_size=65)
    model = Model(config, 3, "all")
    weight = {name: torch.tensor(view).requires_grad_() for name, view in model.parameters.weight.items()}
    recipe = dict(weight_decay=0.01, eps=1e-8)
    ours = AdamW(model.parameters, 3e-3, beta1=0.9, beta2=0.95, grad_clip=0.5, **recipe)
    theirs = torch.optim.AdamW(weight.values(), 3e-3, betas=(0.9, 0.95), **recipe)
    tokens, targets = np.random.default_rng(0).integers(0, 97, (2, 5, 40), np.int32)
    losses = []
    for update in range(10):
        loss = torch_loss(torch, config, weight, torch.tensor(tokens).long(), torch.tensor(targets).long())
        theirs.zero_grad()
        loss.backward()
        losses.append(model.loss_and_gradient(tokens, targets))
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-5 if update == 0 else 1e-4)
        if update == 0:
            whole = np.linalg.norm(model.parameters.gradients.astype(float))
            for name, gradient in model.parameters.gradient.items():
                expected = weight[name].grad.numpy()
                error = np.linalg.norm((gradient - expected).astype(float))
                assert error <= 1e-5 * np.linalg.norm(expected) + 1e-6 * whole, name
        torch.nn.utils.clip_grad_norm_(weight.values(), 0.5)
        theirs.step()
        ours.step()
    assert losses[-1] < losses[0] - 0.1
