"""Models and training steps on a GPU, or on the stand-in of one, against the same on the CPU: gradients, updates, graphs, and that nobody waits."""

import math

import fake_cupy
import numpy as np
import pytest
import small
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.kernels.gpu.graph import CapturedGraph
from slm_np.nn.model import Model, States
from slm_np.ops import device
from slm_np.ops.device import arrays_for, arrays_of, host, kernels_of, number, put
from slm_np.training.device_step import DeviceStep
from slm_np.training.optimizer import AdamW
from slm_np.training.scaler import GradientScaler
from slm_np.training.spectral import SpectralNorms

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = dict(vocab_size=13, block_size=6, n_layer=1, n_embd=16, n_head=2, n_hidden=20)
MODELS = {
    "plain": {},
    "gpt2": dict(positions="learned", norm="layernorm", feed_forward="gelu-tanh", bias=True, dropout=0.2),
    "llama": dict(positions="rotary", feed_forward="swiglu", n_kv_head=1, head="linear"),
    "byte-transformer": dict(positions="sinusoidal", norm="layernorm", feed_forward="gelu", head="mlp"),
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
        pattern="MAS", n_layer=3, positions="rotary", dropout=0.1, ssm_state_size=4, n_inner=16, recurrence_size=12
    ),
}
KEY = 1, 2, 3


@pytest.fixture
def arrays(cupy):  # noqa: F811
    return arrays_for("cuda")


def config(name, **changes):
    return ModelConfig(**{**BASE, **MODELS[name], **changes})


def text(seed=0, batch=2):
    """Tokens and targets, one of which is not counted."""
    tokens, targets = np.random.default_rng(seed).integers(
        0, BASE["vocab_size"], (2, batch, BASE["block_size"]), np.int32
    )
    targets[0, 3] = -1
    return tokens, targets


def prefilled(model, batch=2):
    """The model with an arena of NaN, its tables apart."""
    activations = model.plan(batch, model.config.block_size)
    activations.arena.fill(np.nan)
    activations.set_positions(model.config, 0)
    return model


def gradient(model, **named):
    """(loss, gradients of the host) of `text`"""
    model.parameters.gradients.fill(0)
    loss = model.loss_and_gradient(*text(), key=KEY if model.config.dropout else None, **named)
    return loss, host(model.parameters.gradients).copy()


# Models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 2e-4)], ids=["float64", "float32"])
def test_loss_and_every_gradient_are_the_cpus(arrays, name, dtype, tolerance):
    exact, model = (
        Model(config(name), 3, dtype=np.float64),
        prefilled(Model(config(name), 3, dtype=dtype, arrays=arrays)),
    )
    (loss, expected), (found_loss, found) = gradient(exact), gradient(model)
    assert found_loss == pytest.approx(loss, rel=tolerance)
    for key, view in exact.parameters.like(expected).items():
        np.testing.assert_allclose(
            model.parameters.like(found)[key], view, rtol=0, atol=tolerance * max(1e-3, np.abs(view).max()), err_msg=key
        )
    if dtype == np.float64:  # a second time there would say nothing new
        return
    assert model.loss(*text()) == pytest.approx(exact.loss(*text()), rel=tolerance)
    np.testing.assert_allclose(host(model.logits(text()[0])), exact.logits(text()[0]), rtol=0, atol=tolerance)
    again = gradient(model)
    assert again[0] == found_loss
    np.testing.assert_array_equal(again[1], found)


@pytest.mark.parametrize("name", ["gpt2", "llama", "hybrid", "byte-ssm"])
@pytest.mark.parametrize("operand", [BF16, np.dtype(np.float16)], ids=["bf16", "fp16"])
def test_gradients_of_16_bits_point_where_the_exact_do(arrays, name, operand):
    exact, model = (
        Model(config(name), 3, dtype=np.float64),
        prefilled(Model(config(name), 3, compute_dtype=operand, arrays=arrays)),
    )
    (loss, expected), (found_loss, found) = gradient(exact), gradient(model)
    assert found_loss == pytest.approx(loss, rel=3e-3)
    assert found @ expected / math.sqrt((found @ found) * (expected @ expected)) > 1 - 1e-4
    assert model.full_precision().loss(*text()) == pytest.approx(exact.loss(*text()), rel=1e-5)


def test_states_carry_a_text_from_window_to_window(arrays):
    found = []
    for module in (np, arrays):
        model = Model(config("hybrid", pattern="MS", n_layer=2, dropout=0.0), 3, arrays=module)
        states = States(model, 2)
        found.append(
            [model.loss_and_gradient(*text(seed), states=states.layers) for seed in range(3)]
            + [host(states.memory).copy(), host(model.parameters.gradients).copy()]
        )
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_adamw_is_the_cpus(arrays):
    weights = []
    for module in (np, arrays):
        model = Model(config("plain"), 3, dtype=np.float64, arrays=module)
        optimizer = AdamW(model.parameters, 1e-2, grad_clip=0.1)
        for _ in range(3):
            model.loss_and_gradient(*text())
            norm = optimizer.step()
        weights.append((norm, host(model.parameters.weights)))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-12)
    np.testing.assert_allclose(weights[1][1], weights[0][1], rtol=1e-10, atol=1e-14)


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def trainer(data, device="cuda", **changes):
    return small.trainer(
        data,
        **{**dict(device=device, dtype="fp32", batch_size=2, block_size=8, tokenizer="char", threads=1), **changes},
    )


def stepped(made, steps):
    """[(loss, norm)] of so many steps, read after each."""
    found = []
    for _ in range(steps):
        loss, norm, _ = made.step()
        found.append((number(loss), number(norm)))
    return found


RUNS = {
    "accumulated": dict(
        grad_accumulation_steps=2,
        positions="learned",
        norm="layernorm",
        feed_forward="gelu-tanh",
        bias=True,
        dropout=0.2,
    ),
    "carried": dict(
        pattern="MS",
        n_layer=2,
        positions="none",
        feed_forward="none",
        recurrence_size=12,
        n_inner=16,
        ssm_state_size=4,
        carry_state=True,
        max_spectral_norm=0.2,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_are_the_cpus(arrays, data, name):
    cpu, gpu = trainer(data, "cpu", **RUNS[name]), trainer(data, **RUNS[name])
    np.testing.assert_allclose(stepped(gpu, 10), stepped(cpu, 10), rtol=2e-4)
    gpu.catch_up()
    assert gpu.optimizer.updates == cpu.optimizer.updates == 10 and gpu.ahead.batch.graph and gpu.ahead.finish.graph
    for key, view in cpu.model.parameters.weight.items():
        np.testing.assert_allclose(host(gpu.model.parameters.weight[key]), view, rtol=0, atol=1e-4, err_msg=key)
    assert list(gpu.spectral.norms.values()) == pytest.approx(list(cpu.spectral.norms.values()), rel=1e-3)
    assert gpu.estimate_loss() == pytest.approx(cpu.estimate_loss(), rel=1e-3)


@pytest.mark.parametrize(
    "changes", [RUNS["accumulated"], dict(dtype="bf16"), dict(dtype="fp16")], ids=["accumulated", "bf16", "fp16"]
)
def test_replayed_steps_give_the_same_bits(arrays, data, changes):
    replayed, plain = trainer(data, **changes), trainer(data, **changes)
    plain.ahead.batch.captures = plain.ahead.finish.captures = False
    prefilled(replayed.model)
    assert stepped(replayed, 4) == stepped(plain, 4)
    assert replayed.ahead.batch.graph and not plain.ahead.batch.graph
    np.testing.assert_array_equal(host(replayed.model.parameters.weights), host(plain.model.parameters.weights))
    assert np.isfinite(host(replayed.model.parameters.weights)).all()


def test_a_step_neither_waits_nor_allocates(arrays, data):
    if fake_cupy.real():
        pytest.skip("only the stand-in counts")
    made = trainer(data, **RUNS["carried"], grad_accumulation_steps=2)
    made.step()  # the first finds scratch, and vectors to begin with
    before = vars(fake_cupy.counts).copy()
    for captured in (False, True, True):
        made.ahead.batch.captures = made.ahead.finish.captures = captured
        made.step()
    assert (fake_cupy.counts.synchronizations, fake_cupy.counts.allocations) == (
        before["synchronizations"],
        before["allocations"],
    )
    loss, norm = made.catch_up()
    assert math.isfinite(loss) and math.isfinite(norm) and made.bad_steps == 0


@pytest.mark.parametrize(
    "changes",
    [
        RUNS["accumulated"],
        dict(positions="rotary", feed_forward="swiglu", dtype="fp16"),
        dict(MODELS["byte-ssm"], max_spectral_norm=0.2),
    ],
    ids=["gpt2", "llama", "byte-ssm"],
)
def test_a_step_launches_no_kernel_of_cupys_own(arrays, data, changes):
    if fake_cupy.real():
        pytest.skip("only the stand-in counts")
    made = trainer(data, **changes)
    made.step()
    before = fake_cupy.counts.cupy_kernels
    made.ahead.batch.captures = made.ahead.finish.captures = False
    made.step()
    assert fake_cupy.counts.cupy_kernels == before


def test_a_step_of_mamba_launches_one_of_cupys_own_for_each_layer(arrays, data):
    if fake_cupy.real():
        pytest.skip("only the stand-in counts")
    made = trainer(data, **MODELS["mamba"], n_layer=2)
    made.step()
    before = fake_cupy.counts.cupy_kernels
    made.ahead.batch.captures = made.ahead.finish.captures = False
    made.step()
    assert fake_cupy.counts.cupy_kernels - before == 2  # the zeros that scans begin with


def test_a_loss_that_is_not_finite_updates_nothing_and_forgets_what_is_carried(arrays, data):
    made = trainer(data, **RUNS["carried"])
    made.step()
    weights, broken = host(made.model.parameters.weights).copy(), made.model.parameters.weight["embedding.weight"]
    good = host(broken).copy()
    broken.fill(np.nan)
    for _ in range(2):
        made.step()
    loss, norm = made.catch_up()
    assert math.isnan(loss) and math.isnan(norm) and made.bad_steps == 2 and made.optimizer.updates == 1
    assert not host(made.carried.memory).any() and not host(made.model.parameters.gradients).any()
    put(broken, good)
    np.testing.assert_array_equal(host(made.model.parameters.weights), weights)
    made.step()
    assert np.isfinite(made.catch_up()).all() and made.bad_steps == 0 and made.optimizer.updates == 2


def test_a_run_logs_and_resumes_from_what_the_device_counted(arrays, data, tmp_path):
    from slm_np.formats import metrics

    changes = dict(log_interval=2, save_interval=4, eval_interval=100, max_iters=6, lr_decay_iters=6, eval_iters=1)
    whole, part = trainer(data, **changes), trainer(data, **changes)
    for made, name in ((whole, "whole"), (part, "part")):
        (tmp_path / name).mkdir()
        made.start(tmp_path / name)
    whole.train()
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "whole") if "loss" in row] == [2, 4, 6]
    part.max_iters = 4
    part.train()
    again = trainer(data, **changes)
    again.resume(tmp_path / "part")
    assert again.optimizer.updates == 4
    again.train()
    np.testing.assert_array_equal(host(again.model.parameters.weights), host(whole.model.parameters.weights))


# The scaler's rule on the device


def test_scaled_updates_are_those_of_the_scaler(arrays):
    scale = dict(scale=8.0, interval=3, lowest=2.0)
    ours, theirs = Model(config("plain"), 3, arrays=arrays), Model(config("plain"), 3)
    optimizers = [AdamW(model.parameters, 1e-2, grad_clip=0.5) for model in (ours, theirs)]
    scaler = GradientScaler(**scale)
    steps = DeviceStep(ours, optimizers[0], SpectralNorms(ours.parameters), (2, 6), scaler=GradientScaler(**scale))
    steps.inputs.fill(given=(1e-2, 1, 1))
    put(steps.field("loss"), 0.5)
    rng, bad = np.random.default_rng(0), 0
    for overflow in (0, 0, np.inf, 0, np.nan, np.inf, np.inf, -np.inf, 0, 0, 0, 0):
        gradients = rng.standard_normal(theirs.parameters.gradients.shape).astype(np.float32)
        gradients[40] += overflow
        lowest = scaler.scale == scaler.lowest
        put(ours.parameters.gradients, gradients)
        put(theirs.parameters.gradients, gradients)
        expected = scaler.step(optimizers[1])
        steps.update()
        _, norm, found_bad = steps.read()
        bad = 0 if math.isfinite(expected) else bad + lowest
        assert norm == pytest.approx(expected, rel=1e-6, nan_ok=True) and found_bad == bad
        assert (steps.scaler.scale, steps.scaler.good, optimizers[0].updates) == (
            scaler.scale,
            scaler.good,
            optimizers[1].updates,
        )
        assert not host(ours.parameters.gradients).any()
        np.testing.assert_allclose(host(ours.parameters.weights), theirs.parameters.weights, rtol=1e-5, atol=1e-7)


# Parts


def test_a_function_that_cannot_be_captured_is_run(cupy, arrays, capsys):  # noqa: F811
    x, calls = arrays.zeros(3), []

    def waits():
        calls.append(float(x[0]))  # which a captured stream may not
        x.fill(len(calls))

    replayed = CapturedGraph(cupy)
    for _ in range(4):
        replayed(waits)
    assert replayed.graph is None and host(x)[0] == len(calls) == 4
    line = capsys.readouterr().err
    assert (
        line.count("\n") == 1 and "cannot be captured" in line and "(get)" in line
    )  # what it was that failed, not that the capture did


def test_spectral_norms_are_held_down(arrays):
    class Some:
        weight = {
            f"layers.{i}.recurrence.state.weight": arrays.asarray(a)
            for i, a in enumerate((np.random.default_rng(0).standard_normal((12, 12)), 3 * np.eye(3), 0.1 * np.eye(9)))
        }

    norms, exact = SpectralNorms(Some()), [np.linalg.norm(host(a), 2) for a in Some.weight.values()]
    norms.begin()
    norms.launch()
    norms.read()
    assert list(norms.norms.values()) == pytest.approx(exact, rel=1e-3)
    norms.launch(0.5)
    norms.read()
    assert list(norms.norms.values()) == pytest.approx([0.5, 0.5, 0.1])
    assert [np.linalg.norm(host(a), 2) for a in Some.weight.values()] == pytest.approx([0.5, 0.5, 0.1], rel=1e-3)


def test_arrays_of_either_device(arrays):
    x = arrays.zeros((2, 3), np.float32)
    put(x, [1, 2, 3])
    assert arrays_of(x) is arrays and kernels_of(x) is device.gpu_kernels() and host(x).tolist() == [[1, 2, 3]] * 2
    assert number(x[1, 2:]) == number(np.float32([3])) == number(3) == number(np.float64(3)) == 3.0
    assert arrays_of(np.zeros(1)) is np and host(y := np.zeros(1)) is y and arrays_for("cpu") is np
    with pytest.raises(TypeError, match="NumPy or CuPy"):
        arrays_of([1.0])
