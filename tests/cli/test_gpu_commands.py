"""Commands on a GPU: errors without one, memory that is checked first, runs that move between devices, text."""

import dataclasses
import gc
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import small
from fake_cupy import cupy, real  # noqa: F401  a fixture

from slm_np.cli import launch
from slm_np.cli.report import finish
from slm_np.cli.resume import resumed
from slm_np.config import ModelConfig, SamplingConfig, TrainConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.formats import checkpoint, metrics, run_config, sources, tensors
from slm_np.inference.generation import text_of
from slm_np.nn.model import Model
from slm_np.ops.device import CPU, device, host
from slm_np.training import precision

emulated = pytest.mark.skipif(real() is not None, reason="needs the emulated GPU")
needs_kernels = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(cupy):  # noqa: F811
    """The GPU, on a stream that can be captured."""
    return device("cuda")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A text in an empty folder, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    return small.text_file(tmp_path)


def error_line(capsys, *words):
    """The one line on stderr of a command that exits with status 2."""
    assert small.status(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("slm_np: ") and err.count("\n") == 1, err
    return err


# What is missing


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(f"CUDA's error {status}")


def fails(error):
    def function(*arguments):
        raise error

    return function


def stub(**runtime):
    """A CuPy that has only what is called first."""
    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError, driverGetVersion=lambda: 0, runtimeGetVersion=lambda: 12090, **runtime
        )
    )
    return module


MISSING = {
    "CuPy": (lambda: None, "GPUs need CuPy, which is not installed"),
    "driver": (lambda: stub(getDeviceCount=fails(CUDARuntimeError(35))), "GPUs need NVIDIA's driver, which is missing"),
    "device": (lambda: stub(getDeviceCount=fails(CUDARuntimeError(100))), "finds no GPU"),
    "devices": (lambda: stub(getDeviceCount=lambda: 0), "finds no GPU"),
}


@pytest.mark.parametrize("what", MISSING)
def test_training_without_a_gpu_is_refused_before_anything_is_read_or_written(data, capsys, monkeypatch, what):
    made, said = MISSING[what]
    monkeypatch.setitem(sys.modules, "cupy", made())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("slm_np.data.token_store.load_corpus", fails(AssertionError("the data are read")))
    assert said in error_line(capsys, "train", *small.flags(data, device="cuda", out_dir="run"))
    assert said in error_line(capsys, "train", "--device", "cuda", "--data", "no-such-text.txt")
    assert small.tree(data.parent) == ["text.txt"]


@needs_kernels
@pytest.mark.parametrize("what", ["CuPy", "driver"])
def test_other_commands_without_a_gpu(data, capsys, monkeypatch, what):
    made, said = MISSING[what]
    small.trainer(data, "run")
    capsys.readouterr()  # on a cold cache, the line about compiling
    monkeypatch.setitem(sys.modules, "cupy", made())
    before = small.tree(data.parent)
    for words in (
        ("generate", "--model", "run"),
        ("evaluate", "--model", "run"),
        ("chat", "--model", "run"),
        ("finetune", "--base", "run", "--data", data, "--out-dir", "tuned"),
        ("train", "--resume", "run"),
    ):
        assert said in error_line(capsys, *words, "--device", "cuda")
    assert small.tree(data.parent) == before


def test_unknown_devices_and_unsupported_precisions(data, capsys):
    assert "--device 'gpu' is unknown" in error_line(capsys, "train", *small.flags(data, device="gpu"))
    assert "invalid choice: 'gpu'" in error_line(capsys, "generate", "--device", "gpu")
    assert "--dtype fp16 is not supported on a CPU" in str(
        pytest.raises(UserError, precision.resolved, small.config(data, dtype="fp16")).value
    )


# What a GPU can do


def capability(monkeypatch, cupy, *version):  # noqa: F811
    properties = cupy.cuda.runtime.getDeviceProperties
    monkeypatch.setattr(
        cupy.cuda.runtime,
        "getDeviceProperties",
        lambda number: properties(number) | dict(major=version[0], minor=version[1]),
    )


@emulated
def test_auto_chooses_the_16_bit_dtype_that_the_gpu_supports(cupy, data, monkeypatch):  # noqa: F811
    run = small.config(data, device="cuda", dtype="auto")
    for version, name in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        capability(monkeypatch, cupy, *version)
        assert precision.resolved(run).train.dtype == name
        for asked in ("fp32", "fp16"):
            assert precision.resolved(small.config(data, device="cuda", dtype=asked)).train.dtype == asked
    with pytest.raises(UserError, match="--dtype bf16 is not supported on .*; use --dtype fp16"):
        precision.resolved(small.config(data, device="cuda", dtype="bf16"))
    configs = [small.config(data, device="cuda", dtype=name) for name in ("fp32", "bf16", "fp16")]
    assert [precision.compute_dtype(config) for config in configs] == [None, BF16, np.float16]


@emulated
def test_memory_is_checked_before_it_is_allocated(cupy, data, capsys, monkeypatch):  # noqa: F811
    parts = launch.memory_plan(small.config(data, device="cuda", dtype="bf16"))
    half = launch.memory_plan(small.config(data, device="cuda", dtype="fp16"))
    plain = launch.memory_plan(small.config(data, device="cuda", dtype="fp32"))
    assert (
        parts == half
        and plain["weights"] < parts["weights"] < 1.5 * plain["weights"] + 1
        and parts["moments"] == 2 * plain["weights"]
    )
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (4096, 1 << 34))
    assert "GiB of the GPU's memory" in error_line(capsys, "train", *small.flags(data, device="cuda", out_dir="run"))
    assert small.tree(data.parent) == ["text.txt"]


# Checkpoints are device-independent


def models(gpu, **settings):
    """The same weights on both devices."""
    config = ModelConfig(**{**small.MODEL, "vocab_size": 256, **settings})
    return Model(config, 5), Model(config, 5, device=gpu)


@needs_kernels
def test_both_devices_write_the_same_files_and_read_them(gpu, tmp_path):
    ours, theirs = models(gpu)
    for name, model in (("cpu", ours), ("cuda", theirs)):
        tensors.save_tensors(tmp_path / name, model.parameters.weight, dict(step=1))
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()
    for model in (ours, theirs):
        before = host(model.parameters.weights).copy()
        model.parameters.weights.fill(0)
        tensors.load_tensors(tmp_path / "cuda", into=model.parameters.weight)
        np.testing.assert_array_equal(host(model.parameters.weights), before)


def test_settings_that_may_change_with_the_device(data, monkeypatch):
    def resume(began, **given):
        monkeypatch.setattr(run_config, "read_config", lambda directory: small.config(data, **began))
        train = resumed("run", None, {}, given).train
        return train.device, train.dtype

    assert resume(dict(device="cuda", dtype="bf16"), device="cpu") == ("cpu", "bf16")
    assert resume(dict(device="cuda", dtype="fp16"), device="cpu") == ("cpu", "auto")
    assert resume(dict(device="cuda", dtype="fp16"), device="cpu", dtype="fp32") == ("cpu", "fp32")
    assert resume(dict(device="cpu", dtype="fp32"), device="cuda") == ("cuda", "fp32")
    assert resume(dict(device="cpu", dtype="fp32"), device="cuda", dtype="auto") == ("cuda", "auto")
    assert resume(dict(device="cuda", dtype="fp16"), dtype="auto") == ("cuda", "fp16")
    with pytest.raises(UserError, match="was trained with --dtype bf16, not fp16"):
        resume(dict(device="cuda", dtype="bf16"), device="cuda", dtype="fp16")


def losses(directory):
    return [row["loss"] for row in metrics.read_metrics(directory) if "loss" in row]


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("began, resumed_on", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_is_resumed_on_another_device(cupy, data, capsys, began, resumed_on):  # noqa: F811
    flags = dict(dtype="fp32", log_interval=1, max_iters=8)
    assert small.status("train", *small.flags(data, out_dir="whole", device="cpu", **flags)) == 0
    assert small.status("train", *small.flags(data, out_dir="moved", device=began, **{**flags, "max_iters": 4})) == 0
    said = capsys.readouterr().err
    assert ("slm_np: on the CPU" in said) and (began == "cpu" or "(cuda:0, compute capability" in said)
    assert small.status("train", "--resume", "moved", "--device", resumed_on, "--max-iters", 8) == 0
    assert "from step 4" in capsys.readouterr().err
    whole, moved = losses("whole"), losses("moved")
    assert len(whole) == len(moved) == 8 and run_config.read_config("moved").train.device == resumed_on
    np.testing.assert_allclose(
        moved[:4], whole[:4], rtol=1e-5
    )  # later ones depend on when the rate falls, which --max-iters says
    assert all(np.isfinite(moved))
    weights = checkpoint.load_best("moved")[0]
    assert all(type(weight) is np.ndarray for weight in weights.values())


@pytest.mark.slow
@needs_kernels
def test_a_run_is_read_evaluated_continued_and_finetuned_on_either_device(cupy, data, capsys):  # noqa: F811
    small.trainer(data, "run", device="cuda", dtype="fp32").train()
    found = []
    for name in ("cpu", "cuda"):
        assert (
            small.status("evaluate", "--model", "run", "--data", data, "--limit-bytes", 500, "--json", "--device", name)
            == 0
        )
        fields = json.loads(capsys.readouterr().out)
        assert (
            small.status("generate", "--model", "run", "--prompt", "the cat", "--temp", 0, "-n", 30, "--device", name)
            == 0
        )
        found.append((fields["nats_per_token"], capsys.readouterr().out))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == found[1][1]
    assert (
        small.status(
            "finetune",
            "--base",
            "run",
            "--data",
            small.text_file(data.parent, "other.txt", seed=1),
            "--out-dir",
            "tuned",
            "--max-iters",
            2,
            "--device",
            "cuda",
            "--dtype",
            "fp32",
        )
        == 0
    )
    config = run_config.read_config("tuned")
    assert config.train.device == "cuda" and sources.load("tuned").model.device is CPU


@needs_kernels
def test_tokens_that_a_base_lacks_start_as_the_mean_of_the_others(gpu):
    from slm_np.formats.model_parts import ModelParts
    from slm_np.training.finetuning import Base

    config = ModelConfig(
        vocab_size=5, n_layer=1, n_embd=4, pattern="S", feed_forward="none", residual=False, head="none"
    )
    known = Model(config, 3).parameters.weight
    parts = ModelParts(Path("base"), config, lambda: known.items(), None, None, SamplingConfig(), "")
    for where in (CPU, gpu):
        model = Model(dataclasses.replace(config, vocab_size=6), None, device=where)
        Base(Path("base"), None, 0, parts, True).fill(model.parameters)
        rows, columns = (
            host(model.parameters.weight[name]) for name in ("embedding.weight", "layers.0.recurrence.output.weight")
        )
        of_rows, of_columns = known["embedding.weight"], known["layers.0.recurrence.output.weight"]
        np.testing.assert_array_equal(rows, [*of_rows, of_rows.mean(0)])
        np.testing.assert_array_equal(columns[:, :5], of_columns)
        np.testing.assert_array_equal(columns[:, 5], of_columns.T.mean(0))


@emulated
def test_memory_of_training_is_freed_before_the_evaluation(gpu, data, monkeypatch, capsys):
    """Not only by the garbage collector: until it runs, the memory would be missing."""
    used = gpu.arrays.get_default_memory_pool().used_bytes
    gc.disable()
    try:
        trained, seen = small.trainer(data, "run", device="cuda", dtype="fp32", max_iters=3), []
        trained.train()
        arena, before = trained.stepper.activations.arena.n_bytes, used()
        monkeypatch.setattr(
            "slm_np.inference.evaluation.evaluate",
            lambda *arguments, **named: seen.append(used()) or fails(KeyboardInterrupt("seen"))(),
        )
        with pytest.raises(KeyboardInterrupt, match="seen"):  # any other error is reported, and the command goes on
            finish(trained, "run")
        assert seen[0] <= before - arena
    finally:
        gc.enable()


@needs_kernels
def test_text_is_the_same_on_either_device(gpu):
    ours, theirs = models(gpu)
    for model in (ours, theirs):
        model.parameters.weights *= 20
    sampling = SamplingConfig(temp=0.8, seed=3)
    assert text_of(ours, ByteTokenizer(), "the cat", 40, sampling) == text_of(
        theirs, ByteTokenizer(), "the cat", 40, sampling
    )


def test_config_json_keeps_the_settings_of_a_gpu_run(data, tmp_path):
    config = small.config(data, device="cuda", dtype="fp16")
    run_config.write_config(tmp_path, config)
    assert (
        run_config.read_config(tmp_path) == config and TrainConfig(**dataclasses.asdict(config.train)) == config.train
    )
