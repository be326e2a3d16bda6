"""Training steps on a GPU, or on the fake one, beside the CPU's: updates, captured graphs, no synchronization, runs."""

import dataclasses
import math

import fake_cupy
import numpy as np
import pytest
import small
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.config import LoraConfig
from slm_np.formats import metrics
from slm_np.ops.device import host, number, put
from slm_np.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "cupy")
fake_only = pytest.mark.skipif(fake_cupy.real(), reason="only the fake CuPy counts")
GPT2 = dict(
    grad_accumulation_steps=2, positions="learned", norm="layernorm", feed_forward="gelu-tanh", bias=True, dropout=0.2
)
RECURRENT = dict(
    pattern="MS",
    n_layer=2,
    positions="none",
    feed_forward="none",
    recurrence_size=12,
    n_inner=16,
    ssm_state_size=4,
    carry_state=True,
    max_spectral_norm=0.2,
)
LLAMA = dict(positions="rotary", feed_forward="swiglu", dtype="fp16")
MAMBA = dict(pattern="M", positions="none", feed_forward="none", bias=True, ssm_state_size=5, n_inner=24)
BYTE_SSM = dict(
    pattern="S",
    positions="none",
    feed_forward="none",
    head="none",
    norm="none",
    residual=False,
    n_layer=2,
    recurrence_size=12,
    max_spectral_norm=0.2,
)

MUON = dict(optimizer="muon", positions="rotary", feed_forward="swiglu", n_kv_head=1, decay="all")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def trainer(data, directory=None, **changes):
    settings = dict(device="cuda", dtype="fp32", batch_size=2, block_size=8, tokenizer="char", threads=1)
    return small.trainer(data, directory, **{**settings, **changes})


def steps(trainer, n):
    """[(loss, norm)] of n steps, read after each."""
    found = []
    for _ in range(n):
        loss, norm, _ = trainer.step()
        found.append((number(loss), number(norm)))
    return found


def capture(trainer, on):
    """Whether the next steps are captured as graphs and replayed."""
    trainer.stepper.batch.captures = trainer.stepper.finish.captures = on


# Updates


@pytest.mark.parametrize("settings", [GPT2, RECURRENT, MUON], ids=["gpt2", "recurrent", "muon"])
def test_ten_steps_equal_the_cpus(data, settings):
    cpu, gpu = trainer(data, device="cpu", **settings), trainer(data, **settings)
    np.testing.assert_allclose(steps(gpu, 10), steps(cpu, 10), rtol=2e-4)
    gpu.stepper.read()
    assert gpu.optimizer.updates == cpu.optimizer.updates == 10
    assert gpu.stepper.batch.graph and gpu.stepper.finish.graph
    for key, view in cpu.model.parameters.weight.items():
        np.testing.assert_allclose(host(gpu.model.parameters.weight[key]), view, rtol=0, atol=1e-4, err_msg=key)
    assert list(gpu.spectral.norms.values()) == pytest.approx(list(cpu.spectral.norms.values()), rel=1e-3)
    assert gpu.estimate_loss() == pytest.approx(cpu.estimate_loss(), rel=1e-3)


@pytest.mark.parametrize(
    "settings", [GPT2, dict(dtype="bf16"), dict(dtype="fp16"), MUON], ids=["gpt2", "bf16", "fp16", "muon"]
)
def test_replayed_graphs_give_the_bits_of_single_launches(data, settings):
    replayed, launched = trainer(data, **settings), trainer(data, **settings)
    capture(launched, False)
    activations = replayed.stepper.activations
    activations.arena.fill(np.nan)
    activations.set_positions(replayed.model.config, 0)
    assert steps(replayed, 4) == steps(launched, 4)
    assert replayed.stepper.batch.graph and not launched.stepper.batch.graph
    weights = host(replayed.model.parameters.weights)
    np.testing.assert_array_equal(weights, host(launched.model.parameters.weights))
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("settings", [dict(GPT2, n_layer=3), RECURRENT], ids=["gpt2", "recurrent"])
def test_recomputation_gives_the_same_bits(data, settings):
    saving, recomputing = trainer(data, **settings), trainer(data, **settings, recompute=True)
    assert recomputing.stepper.activations.arena.n_bytes < saving.stepper.activations.arena.n_bytes
    assert steps(recomputing, 4) == steps(saving, 4)
    assert recomputing.stepper.batch.graph
    np.testing.assert_array_equal(host(recomputing.model.parameters.weights), host(saving.model.parameters.weights))


def test_a_loss_that_is_not_finite_moves_no_matrix(data):
    made = trainer(data, **MUON)
    made.step()
    p, optimizer = made.model.parameters, made.optimizer
    kept = [host(x).copy() for x in (p.weights, optimizer.mean)]
    norm = p.weight["norm.weight"]
    whole = host(norm).copy()
    for _ in range(2):
        norm.fill(np.nan)
        made.step()
        put(norm, whole)
    assert made.stepper.read().skipped == 2 and not host(p.gradients).any()
    for x, before in zip((p.weights, optimizer.mean), kept):
        np.testing.assert_array_equal(host(x), before)


def test_a_loss_that_is_not_finite_skips_the_update_and_clears_the_recurrent_state(data):
    made = trainer(data, **RECURRENT)
    made.step()
    weights, embedding = host(made.model.parameters.weights).copy(), made.model.parameters.weight["embedding.weight"]
    kept = host(embedding).copy()
    embedding.fill(np.nan)
    for _ in range(2):
        made.step()
    result = made.stepper.read()
    assert math.isnan(result.loss) and math.isnan(result.norm) and result.skipped == 2
    assert made.optimizer.updates == 1
    assert not host(made.states.memory).any() and not host(made.model.parameters.gradients).any()
    put(embedding, kept)
    np.testing.assert_array_equal(host(made.model.parameters.weights), weights)
    made.step()
    assert np.isfinite(made.stepper.read()).all()
    assert made.stepper.read().skipped == 0 and made.optimizer.updates == 2


# What the host does in a step


@pytest.mark.parametrize(
    "settings",
    [
        GPT2,
        dict(LLAMA, dtype="bf16"),
        dict(MAMBA, dtype="fp16"),
        dict(qk_norm=True, n_layer=2, dtype="bf16", recompute=True),
    ],
    ids=["gpt2", "llama", "mamba", "recompute"],
)
def test_adapters_are_trained_by_replayed_graphs(data, settings):
    """Frozen weights exist in 16 bits only. A step that reads them can be captured, and has the same bits."""
    found = []
    for captured in (True, False):
        plain = trainer(data, **settings)
        lora = dataclasses.asdict(LoraConfig(lora_rank=2, lora_dropout=0.1))
        made = Trainer(dataclasses.replace(plain.run, lora=lora), plain.corpus)
        capture(made, captured)
        found.append((steps(made, 4), host(made.model.parameters.weights)))
        assert (made.stepper.batch.graph is not None) == captured
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


@fake_only
@pytest.mark.parametrize("settings", [dict(RECURRENT, grad_accumulation_steps=2), MUON], ids=["recurrent", "muon"])
def test_a_step_neither_synchronizes_nor_allocates(data, settings):
    made = trainer(data, **settings)
    made.step()  # the first one allocates scratch and the first singular vectors
    before = vars(fake_cupy.counts).copy()
    for captured in (False, True, True):
        capture(made, captured)
        made.step()
    assert fake_cupy.counts.synchronizations == before["synchronizations"]
    assert fake_cupy.counts.allocations == before["allocations"]
    result = made.stepper.read()
    assert math.isfinite(result.loss) and math.isfinite(result.norm) and result.skipped == 0


@fake_only
@pytest.mark.parametrize(
    "settings, expected",
    [(GPT2, 0), (LLAMA, 0), (BYTE_SSM, 0), (MUON, 0), (dict(MAMBA, n_layer=2), 2)],
    ids=["gpt2", "llama", "byte-ssm", "muon", "mamba"],
)
def test_a_step_launches_almost_none_of_cupys_own_kernels(data, settings, expected):
    """CuPy compiles them with the headers of the CUDA toolkit. Mamba's layers need one each: zeros before the scan."""
    made = trainer(data, **settings)
    made.step()
    before = fake_cupy.counts.cupy_kernels
    capture(made, False)
    made.step()
    assert fake_cupy.counts.cupy_kernels - before == expected


# Runs


def test_a_run_logs_and_resumes_with_the_counters_of_the_device(data, tmp_path):
    settings = dict(log_interval=2, save_interval=4, eval_interval=100, max_iters=6, lr_decay_iters=6, eval_iters=1)
    whole, part = (trainer(data, tmp_path / name, **settings) for name in ("whole", "part"))
    whole.train()
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "whole") if "loss" in row] == [2, 4, 6]
    part.max_iters = 4
    part.train()
    resumed = trainer(data, **settings)
    small.resume(resumed, tmp_path / "part")
    assert resumed.optimizer.updates == 4
    resumed.train()
    np.testing.assert_array_equal(host(resumed.model.parameters.weights), host(whole.model.parameters.weights))


@pytest.mark.parametrize("warmup, waits", [(20, [20, 20]), (5, [5, 5, 10, 5])], ids=["warmup", "undone"])
def test_a_run_fitted_to_a_time_synchronizes_rarely_and_has_the_bits_of_one_with_that_many_updates(
    data, tmp_path, monkeypatch, warmup, waits
):
    monkeypatch.setattr("slm_np.ranks.world.time", small.Clock(0.01))  # an update takes 30 ms
    settings = dict(warmup_iters=warmup, log_interval=10**6, save_interval=10**6, eval_interval=10**6, eval_iters=1)
    fitted = trainer(data, tmp_path / "fitted", fit_time="1.5s", **settings)
    waited, read = [], fitted.stepper.read
    fitted.stepper.read = lambda wait=True: (waited.append(fitted.updates) if wait else None) or read(wait)
    fitted.train()
    n = fitted.max_iters
    assert n == fitted.updates > 20
    assert waited == [*waits, n]  # where time is taken, for the checkpoint then, and for the last one
    counted = trainer(data, tmp_path / "counted", max_iters=n, **settings)
    counted.train()
    small.assert_same_state(tmp_path / "fitted", tmp_path / "counted", n)
