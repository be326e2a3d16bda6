"""The dense linear recurrence: the op against a loop of the same signature, its gradient through all of time, the mixer, and A kept in hand."""

import dataclasses
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from configs import config_of

import slm_np
from slm_np import ops
from slm_np.nn import head
from slm_np.nn.gradient_check import TOLERANCE, Case, accumulated, model_error
from slm_np.nn.mixers import recurrence
from slm_np.nn.model import Model, parameter_count
from slm_np.ops.device import kernels_of
from slm_np.training.optimizer import AdamW
from slm_np.training.spectral import SpectralNorms

pytestmark = pytest.mark.usefixtures("one_thread")
BYTE_SSM = dict(
    pattern="S", positions="none", norm="none", feed_forward="none", residual=False, head="none", init="uniform"
)
SMALL = dict(vocab_size=13, block_size=9, n_layer=2, n_head=1, n_embd=7, n_hidden=10, recurrence_size=11)
MODELS = {
    "byte-ssm": dict(SMALL, **BYTE_SSM),
    "byte-ssm-one-layer": {**SMALL, **BYTE_SSM, "n_layer": 1},
    "byte-ssm-wider-than-its-vocabulary": {**SMALL, **BYTE_SSM, "vocab_size": 3, "recurrence_size": 40},
    "ssm-residual": dict(SMALL, pattern="S", positions="none", feed_forward="none"),
    "ssm-residual-feed-forward": dict(
        SMALL, pattern="S", positions="none", norm="layernorm", bias=True, feed_forward="swiglu", head="linear"
    ),
    "ssm-no-residual-but-a-head": {**SMALL, **BYTE_SSM, "head": "mlp"},
    "ssm-attention": dict(SMALL, pattern="SA", n_embd=8),
}
every_model = pytest.mark.parametrize("name", MODELS)
SIZES = [(1, 1, 1), (1, 8, 32), (5, 1, 7), (9, 3, 33), (6, 16, 64), (4, 13, 70), (3, 24, 257), (2, 7, 600)]  # T, B, S
every_size = pytest.mark.parametrize("steps, batch, width", SIZES)


def normal(*shape, scale=1.0, seed=0, dtype=np.float64):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def scratch_of(batch, width, dtype=np.float64):
    return np.full(kernels_of(np.empty(0)).linear_recurrence_scratch(batch, width), np.nan, dtype)


# The slow reference, of the ops' signatures


def slow_forward(states, scratch, weight):
    for t in range(len(states) - 1):
        states[t + 1] += states[t] @ weight


def slow_backward(dstates, dweight, scratch, states, weight):
    for t in reversed(range(len(states) - 1)):
        dweight += states[t].T @ dstates[t + 1]
        dstates[t] += dstates[t + 1] @ weight.T


def both_ways(forward, backward, states, dstates, weight):
    """The op and its derivative on copies, prefilled as ops promise to bear: what states, dstates and dweight become."""
    (_, batch, width), states, dstates, dweight = states.shape, states.copy(), dstates.copy(), np.ones_like(weight)
    forward(states, scratch_of(batch, width, states.dtype), weight)
    backward(dstates, dweight, scratch_of(batch, width, states.dtype), states, weight)
    return states, dstates, dweight


def engine(states, dstates, weight):
    return both_ways(ops.linear_recurrence_forward, ops.linear_recurrence_backward, states, dstates, weight)


def slow(*inputs):
    return both_ways(slow_forward, slow_backward, *(x.astype(np.float64) for x in inputs))


def inputs(steps, batch, width, dtype=np.float32):
    return (
        normal(steps + 1, batch, width, dtype=dtype),
        normal(steps + 1, batch, width, seed=1, dtype=dtype),
        normal(width, width, scale=width**-0.5, dtype=dtype),
    )


@every_size
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-14)])
def test_scan_is_the_slow_reference(steps, batch, width, dtype, tolerance):
    given = inputs(steps, batch, width, dtype)
    for found, expected in zip(engine(*given), slow(*given)):
        assert found.dtype == dtype
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_scan_in_float32_errs_no_more_than_numpy():
    """Each result's error over 100 steps, as a share of NumPy's own in float32."""
    given = inputs(100, 16, 96)
    exact, plain = slow(*given), both_ways(slow_forward, slow_backward, *given)
    for found, numpys, expected in zip(engine(*given), plain, exact):
        assert np.linalg.norm(found - expected) <= 1.5 * np.linalg.norm(numpys - expected)


def test_a_text_has_the_same_states_in_any_company():
    states, _, weight = inputs(6, 19, 40)
    whole = engine(states, states, weight)[0]
    for some in (slice(0, 1), slice(3, 11), slice(18, 19), slice(8, 16)):
        alone = np.ascontiguousarray(states[:, some])
        np.testing.assert_array_equal(engine(alone, alone, weight)[0], whole[:, some])


def test_scan_in_pieces_has_the_same_states():
    states, _, weight = inputs(12, 5, 40)
    whole, again, scratch = engine(states, states, weight)[0], states.copy(), scratch_of(5, 40, np.float32)
    for first, last in ((0, 1), (1, 6), (6, 12)):
        ops.linear_recurrence_forward(again[first : last + 1], scratch, weight)
    np.testing.assert_array_equal(again, whole)


def test_infinite_and_missing_numbers_stay_with_their_text():
    states, _, weight = inputs(4, 19, 40)
    clean = engine(states, states, weight)[0]
    states[2, 17, 3] = np.nan
    found = engine(states, states, weight)[0]
    others = np.arange(19) != 17
    np.testing.assert_array_equal(found[:, others], clean[:, others])
    np.testing.assert_array_equal(found[:2], clean[:2])
    assert np.isnan(found[3:, 17]).all()


THREADS = """\
import hashlib, numba, test_recurrence as tests
for threads in (1, 2, 3):
    numba.set_num_threads(threads)
    print(hashlib.sha256(b"".join(x.tobytes() for given in ((5, 40, 70), (3, 24, 257), (2, 9, 33)) for x in tests.engine(*tests.inputs(*given)))
                         + tests.training_bits()).hexdigest())
"""


def training_bits():
    """Gradients of a model in which no size is round."""
    model = Model(
        config_of(**{**MODELS["ssm-residual"], "n_embd": 65, "recurrence_size": 130, "block_size": 40}), seed=1
    )
    tokens, targets = np.random.default_rng(0).integers(0, 13, (2, 19, 40), np.int32)
    model.loss_and_gradient(tokens, targets)
    return model.parameters.gradients.tobytes()


def test_ssm_has_the_same_bits_with_one_two_and_three_threads():
    root = str(Path(slm_np.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        cwd=Path(__file__).parent,
        env={
            **os.environ,
            "NUMBA_NUM_THREADS": "3",
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert len(lines) == 3 and len(set(lines)) == 1


# The order of rows


@pytest.mark.parametrize("steps, batch, columns", [(1, 1, 1), (5, 3, 7), (4, 1, 33), (1, 6, 2)])
def test_time_major_and_back(steps, batch, columns):
    x, residual = normal(batch, steps, columns), normal(batch, steps, columns, seed=1)
    back, summed = np.full((2, batch * steps, columns), np.nan)
    for first, last in ((0, steps // 2), (steps // 2, steps)):
        turned = np.full((last - first, batch, columns), np.nan)
        ops.time_major(turned, x.reshape(-1, columns), first)
        np.testing.assert_array_equal(turned, x[:, first:last].swapaxes(0, 1))
        ops.batch_major(back, turned, None, first)
        ops.batch_major(summed, turned, residual.reshape(-1, columns), first)
    np.testing.assert_array_equal(back, x.reshape(-1, columns))
    np.testing.assert_array_equal(summed, (x + residual).reshape(-1, columns))


# Gradients


def op_case(backward, steps=32, batch=2, width=6):
    """The op with this backward; A is large enough for a gradient to come a long way."""

    def run(states, weight):
        out = states.copy()
        ops.linear_recurrence_forward(out, scratch_of(batch, width), weight)
        return out

    def back(dout, states, weight):
        return [dout] + accumulated(
            lambda dweight: backward(dout, dweight, scratch_of(batch, width), run(states, weight), weight), weight.shape
        )

    return Case(
        "linear_recurrence", [normal(steps + 1, batch, width), normal(width, width, scale=0.9 * width**-0.5)], run, back
    )


def cut_to_one_step(dstates, dweight, scratch, states, weight):
    """What reaches H_t from H_(t+1) is lost: the published system's backward pass."""
    ops.linear_backward_weight(
        dweight, None, dstates[1:].reshape(-1, len(weight)), states[:-1].reshape(-1, len(weight))
    )


def cut_once(dstates, dweight, scratch, states, weight):
    """The flow is cut between two steps in the middle of the window."""
    middle = len(dstates) // 2
    whole, lost = dstates.copy(), np.zeros_like(dweight)
    linear_recurrence_backward(whole[middle:], lost, scratch, states[middle:], weight)
    linear_recurrence_backward(dstates[: middle + 1], dweight, scratch, states[: middle + 1], weight)
    dstates[middle + 1 :] = whole[middle + 1 :]
    dweight += lost


linear_recurrence_backward = ops.linear_recurrence_backward
harms = pytest.mark.parametrize("harm", [cut_to_one_step, cut_once])


@every_size
def test_scan_gradient(steps, batch, width):
    if width <= 70:
        assert op_case(ops.linear_recurrence_backward, steps, batch, width).error() <= TOLERANCE


def test_scan_gradient_over_32_steps():
    assert op_case(ops.linear_recurrence_backward).error() <= TOLERANCE


@harms
def test_scan_gradient_fails_where_the_flow_through_time_is_cut(harm):
    assert op_case(harm).error() > 1000 * TOLERANCE


@every_model
@pytest.mark.parametrize("steps", [1, 9])
def test_ssm_model_gradient(name, steps):
    errors = model_error(config_of(**{**MODELS[name], "block_size": steps}))
    assert max(errors.values()) <= TOLERANCE, errors


def long_window():
    return config_of(**{**MODELS["byte-ssm"], "block_size": 32})


def test_ssm_model_gradient_over_32_steps():
    assert max(model_error(long_window()).values()) <= TOLERANCE


@harms
def test_ssm_model_gradient_fails_where_the_flow_through_time_is_cut(harm, monkeypatch):
    """All that lies before a state is wrong then, and nothing behind the last layer's."""
    monkeypatch.setattr(ops, "linear_recurrence_backward", harm)
    errors = model_error(long_window())
    for name in (
        "embedding.weight",
        *(f"layers.{layer}.recurrence.{part}.weight" for layer in range(2) for part in ("input", "state")),
    ):
        assert errors[name] > 3 * TOLERANCE, name
    assert max(errors[f"layers.1.recurrence.{part}.weight"] for part in ("output", "skip")) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 4, 6, 17])
def test_ssm_model_gradient_over_chunks(rows, monkeypatch):
    monkeypatch.setattr(recurrence, "ROWS", rows)
    assert max(model_error(config_of(**{**MODELS["byte-ssm"], "block_size": 11})).values()) <= TOLERANCE
    assert (
        max(model_error(config_of(**{**MODELS["ssm-residual"], "block_size": 11, "dropout": 0.2})).values())
        <= TOLERANCE
    )


def test_ssm_gradient_with_dropout():
    assert max(model_error(config_of(**{**MODELS["ssm-residual-feed-forward"], "dropout": 0.3})).values()) <= TOLERANCE


# The mixer


def made(name, dtype=np.float32, **changes):
    return Model(config_of(**{**MODELS[name], **changes}), seed=3, dtype=dtype)


def text(config, batch, steps, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, steps), np.int32)


def test_ssm_has_the_parameters_and_spreads_of_the_original():
    config = config_of(**BYTE_SSM, vocab_size=256, block_size=256, n_layer=4, n_embd=256, recurrence_size=512)
    assert parameter_count(config) == 2_424_832
    spreads = {name: (np.abs(view).max(), view.shape) for name, view in Model(config, seed=1).parameters.weight.items()}
    for layer in range(4):
        for name, shape, bound in (
            ("input", (256, 512), 1.5 / 16),
            ("state", (512, 512), 0.5 / 512**0.5),
            ("output", (512, 256), 1.5 / 512**0.5),
            ("skip", (256, 256), 1.5 / 16),
        ):
            largest, found = spreads[f"layers.{layer}.recurrence.{name}.weight"]
            assert found == shape and 0.999 * bound < largest <= bound
    assert 0.999 / 16 < spreads["embedding.weight"][0] <= 1 / 16
    residual = {
        t.name: t.spread
        for t in recurrence.parameters(dataclasses.replace(config, residual=True, head="tied", init="normal"), 256)
    }
    assert residual["recurrence.output.weight"] == pytest.approx(1.5 * 512**-0.5 / 8**0.5)


@every_model
def test_ssm_changes_no_earlier_logits(name):
    model = made(name)
    tokens = text(model.config, 3, 9)
    before = model.logits(tokens)
    for place in (0, 4, 8):
        changed = tokens.copy()
        changed[:, place] = (changed[:, place] + 1) % model.config.vocab_size
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (after[:, place:] != before[:, place:]).any(axis=(0, 2)).all()


def states_of(model, batch):
    sizes = [mixer.state_elements(model.config, batch) for mixer in model.mixers]
    return [mixer.State(model.config, batch, np.zeros(size, model.dtype)) for mixer, size in zip(model.mixers, sizes)]


@pytest.mark.parametrize("name", ["byte-ssm", "ssm-residual", "ssm-residual-feed-forward"])
@pytest.mark.parametrize("pieces", [9 * [1], [4, 5], [1, 8]], ids=["step-by-step", "two-windows", "one-then-the-rest"])
def test_ssm_goes_on_from_its_state(name, pieces):
    """The states of windows that follow each other, and what they give, are those of the whole."""
    model = made(name, np.float64)
    tokens, kept = text(model.config, 3, 9), states_of(model, 3)
    whole = model.logits(tokens)
    last = [layer["recurrence.states"][-1].copy() for layer in model.activations.layers]
    found, start = [], 0
    for steps in pieces:
        window = np.ascontiguousarray(tokens[:, start : start + steps])
        given = model.forward(model.plan(3, steps), window, model.keys(None), kept)
        out = np.empty((window.size, model.config.vocab_size))
        head.logits_forward(model.config, model.parameters.weight, model.activations.shared, out, given)
        found.append(out.reshape(3, steps, -1))
        start += steps
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-12, atol=1e-13)
    for state, expected in zip(kept, last):
        np.testing.assert_allclose(state.last, expected, rtol=1e-12, atol=1e-14)
        state.clear()
        assert not state.last.any()


@every_model
def test_ssm_step_reads_nothing_stale_and_allocates_nothing(name):
    model, found = made(name), []
    tokens, targets = text(model.config, 3, 9), text(model.config, 3, 9, seed=1)
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
    """System 2 as a loop over time, of this project's names and shapes."""
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


def test_ssm_is_pytorchs_loop_for_ten_updates():
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
                assert (
                    np.linalg.norm((gradient - expected).astype(float))
                    <= 1e-5 * np.linalg.norm(expected) + 1e-6 * whole
                ), name
        torch.nn.utils.clip_grad_norm_(weight.values(), 0.5)
        theirs.step()
        ours.step()
    assert losses[-1] < losses[0] - 0.1


# The spectral norm


def parameters_with(*matrices):
    """What SpectralNorms reads of a model's parameters."""

    class Some:
        weight = {f"layers.{i}.recurrence.state.weight": a for i, a in enumerate(matrices)} | {
            "layers.0.recurrence.input.weight": np.ones((2, 3), np.float32)
        }

    return Some()


def test_spectral_norms_are_the_largest_singular_values():
    matrices = [normal(n, n, scale=n**-0.5, seed=n, dtype=np.float32) for n in (1, 2, 7, 8, 33, 128)] + [
        3 * np.eye(5, dtype=np.float32),
        np.zeros((4, 4), np.float32),
    ]
    norms = SpectralNorms(parameters_with(*matrices))
    first = list(norms.update().values())
    exact = [np.linalg.norm(a.astype(float), 2) for a in matrices]
    np.testing.assert_allclose(first, exact, rtol=1e-2)
    for _ in range(60):
        later = list(norms.update().values())
    np.testing.assert_allclose(later, exact, rtol=1e-4)
    assert (np.array(later) <= np.array(exact) * (1 + 1e-6)).all()


def test_spectral_norm_follows_a_matrix_that_changes():
    """A warm start: after a change that sets another direction first, one update finds it, and after two nothing is missing."""
    a, rng = normal(96, 96, scale=0.05, dtype=np.float32), np.random.default_rng(2)
    norms = SpectralNorms(parameters_with(a))
    norms.update()
    for _ in range(5):
        u, v = rng.standard_normal((2, 96)).astype(np.float32)
        a += 1.5 * np.linalg.norm(a, 2) * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        found = [norms.update()["layers.0.recurrence.state.weight"] for _ in range(4)]
        assert found[-1] == pytest.approx(np.linalg.norm(a, 2), rel=1e-3)


def test_projection_scales_what_is_above_the_limit_and_leaves_the_rest():
    large, small = normal(40, 40, scale=0.3, dtype=np.float32), normal(40, 40, scale=0.01, dtype=np.float32)
    before = large.copy(), small.copy()
    norms = SpectralNorms(parameters_with(large, small))
    for _ in range(10):
        norms.update()
    found = list(norms.update(0.9).values())
    assert np.linalg.norm(large, 2) == pytest.approx(0.9, rel=1e-3) and found[0] == 0.9
    np.testing.assert_allclose(large * (before[0][0, 0] / large[0, 0]), before[0], rtol=1e-5)
    np.testing.assert_array_equal(small, before[1])
    assert found[1] == pytest.approx(np.linalg.norm(small, 2), rel=1e-3)


def test_a_matrix_that_is_not_finite_is_reported_and_left_alone():
    a = normal(20, 20, dtype=np.float32)
    norms = SpectralNorms(parameters_with(a))
    a[3, 4] = np.nan
    assert np.isnan(list(norms.update(0.5).values())).all() and np.isnan(a).sum() == 1
    a[3, 4] = 0
    norms.update()
    assert list(norms.update().values())[0] == pytest.approx(np.linalg.norm(a, 2), rel=1e-2)


def test_spectral_state_restores_the_bits():
    a = normal(40, 40, scale=0.2, dtype=np.float32)
    one, two = SpectralNorms(parameters_with(a.copy())), SpectralNorms(parameters_with(a.copy()))
    one.update(0.9)
    for name, view in two.state().items():
        assert name == "spectral.layers.0.recurrence.state.weight"
        view[...] = one.state()[name]
    two.matrices["layers.0.recurrence.state.weight"][...] = one.matrices["layers.0.recurrence.state.weight"]
    for _ in range(3):
        assert one.update(0.8) == two.update(0.8)
    for name in one.matrices:
        np.testing.assert_array_equal(one.matrices[name], two.matrices[name])


def test_spectral_update_allocates_nothing_large():
    a = normal(256, 256, scale=0.1, dtype=np.float32)
    norms = SpectralNorms(parameters_with(a))
    norms.update(0.9)
    tracemalloc.start()
    try:
        norms.update(0.9)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        norms.update(0.8)
        assert tracemalloc.get_traced_memory()[1] - before < 16 << 10
    finally:
        tracemalloc.stop()


def trained(limit, updates=40):
    """Losses of a model that learns a text of 24 letters over and over, too fast and without clipping, and the true norms of its A."""
    config = config_of(**BYTE_SSM, vocab_size=16, block_size=256, n_layer=2, n_embd=16, recurrence_size=32)
    model = Model(config, seed=1)
    optimizer, spectral, rng = (
        AdamW(model.parameters, 3e-2, weight_decay=0.01, grad_clip=0.0),
        SpectralNorms(model.parameters),
        np.random.default_rng(0),
    )
    letters, losses, norms = np.tile(rng.integers(0, 16, 24, np.int32), 20), [], []
    for _ in range(updates):
        windows = np.stack([letters[start : start + 257] for start in rng.integers(0, 24, 4)])
        losses.append(
            model.loss_and_gradient(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
        )
        optimizer.step()
        found = spectral.update(limit)
        norms.append([np.linalg.norm(a, 2) for a in spectral.matrices.values()])
        np.testing.assert_allclose(list(found.values()), norms[-1], rtol=1e-2)
    return np.array(losses), np.array(norms)


def test_a_run_diverges_without_the_projection_and_not_with_it():
    free, norms = trained(limit=0.0)
    assert norms.max() > 1.5 and not free[-10:].max() < 1e6  # states of a window of 256 grow without bounds
    held, norms = trained(limit=0.95)
    assert norms.max() < 0.95 * 1.01 and held[-10:].max() < 0.5 and held.max() <= held[0] + 0.5
