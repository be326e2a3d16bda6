"""Commands on a GPU: what is missing is said in one sentence, memory is asked for before it is taken, runs move between devices, text is written."""

import dataclasses
import gc
import importlib
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
from slm_np.errors import UserError
from slm_np.formats import checkpoint, metrics, run_config, runs, tensors
from slm_np.inference.decoder import Decoder
from slm_np.inference.generation import text_of
from slm_np.nn.model import Model
from slm_np.ops.device import arrays_for, host
from slm_np.training import precision

emulated = pytest.mark.skipif(real() is not None, reason="this is said of a GPU that is not here")
needs_kernels = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(cupy):  # noqa: F811
    """The module that makes arrays of the GPU, on a stream that can be captured."""
    return arrays_for("cuda")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A text in an empty folder, which is the present one."""
    monkeypatch.chdir(tmp_path)
    return small.text_file(tmp_path)


def sentence(capsys, *words):
    """The one line on stderr of a command that exits with 2."""
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
    """A CuPy of which nothing is there but what is asked first."""
    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError, driverGetVersion=lambda: 0, runtimeGetVersion=lambda: 12090, **runtime
        )
    )
    return module


MISSING = {
    "CuPy": (lambda: None, "GPUs need CuPy, which is not installed"),
    "driver": (lambda: stub(getDeviceCount=fails(CUDARuntimeError(35))), "driver, which is missing"),
    "device": (lambda: stub(getDeviceCount=fails(CUDARuntimeError(100))), "finds no GPU"),
    "devices": (lambda: stub(getDeviceCount=lambda: 0), "finds no GPU"),
}


@pytest.mark.parametrize("what", MISSING)
def test_training_without_a_gpu_is_refused_before_anything_is_read_or_written(data, capsys, monkeypatch, what):
    made, said = MISSING[what]
    monkeypatch.setitem(sys.modules, "cupy", made())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("slm_np.data.token_store.load_corpus", fails(AssertionError("the data are read")))
    assert said in sentence(capsys, "train", *small.flags(data, device="cuda", out_dir="run"))
    assert said in sentence(capsys, "train", "--device", "cuda", "--data", "no-such-text.txt")
    assert small.tree(data.parent) == ["text.txt"]


@needs_kernels
@pytest.mark.parametrize("what", ["CuPy", "driver"])
def test_other_commands_without_a_gpu(data, capsys, monkeypatch, what):
    made, said = MISSING[what]
    small.trainer(data, "run")
    monkeypatch.setitem(sys.modules, "cupy", made())
    before = small.tree(data.parent)
    for words in (
        ("generate", "--model", "run"),
        ("evaluate", "--model", "run"),
        ("chat", "--model", "run"),
        ("finetune", "--base", "run", "--data", data, "--out-dir", "tuned"),
        ("train", "--resume", "run"),
    ):
        assert said in sentence(capsys, *words, "--device", "cuda")
    assert small.tree(data.parent) == before


def test_devices_and_precisions_are_named(data, capsys):
    assert "--device 'gpu' is unknown" in sentence(capsys, "train", *small.flags(data, device="gpu"))
    assert "invalid choice: 'gpu'" in sentence(capsys, "generate", "--device", "gpu")
    assert "--dtype fp16 is for GPUs" in str(
        pytest.raises(UserError, precision.resolved, small.config(data, dtype="fp16")).value
    )


# What a GPU can do


def capability(monkeypatch, cupy, *version):
    properties = cupy.cuda.runtime.getDeviceProperties
    monkeypatch.setattr(
        cupy.cuda.runtime,
        "getDeviceProperties",
        lambda number: properties(number) | dict(major=version[0], minor=version[1]),
    )


@emulated
def test_auto_takes_the_shorter_type_that_the_gpu_multiplies(cupy, data, monkeypatch):
    run = small.config(data, device="cuda", dtype="auto")
    for version, name in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        capability(monkeypatch, cupy, *version)
        assert precision.resolved(run).train.dtype == name
        for asked in ("fp32", "fp16"):
            assert precision.resolved(small.config(data, device="cuda", dtype=asked)).train.dtype == asked
    with pytest.raises(UserError, match="--dtype bf16 .* choose fp16"):
        precision.resolved(small.config(data, device="cuda", dtype="bf16"))
    assert [precision.operand(small.config(data, device="cuda", dtype=name)) for name in ("fp32", "bf16", "fp16")] == [
        None,
        np.uint16,
        np.float16,
    ]


@emulated
def test_memory_is_asked_for_before_it_is_taken(cupy, data, capsys, monkeypatch):
    parts = launch.memory_plan(small.config(data, device="cuda", dtype="bf16"))
    rounded = launch.memory_plan(small.config(data, device="cuda", dtype="fp16"))
    plain = launch.memory_plan(small.config(data, device="cuda", dtype="fp32"))
    assert (
        parts == rounded
        and plain["weights"] < parts["weights"] < 1.5 * plain["weights"] + 1
        and parts["moments"] == 2 * plain["weights"]
    )
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (4096, 1 << 34))
    assert "GiB of the GPU's memory" in sentence(capsys, "train", *small.flags(data, device="cuda", out_dir="run"))
    assert small.tree(data.parent) == ["text.txt"]


# Checkpoints know no device


def models(gpu, **settings):
    """The same weights on both devices."""
    config = ModelConfig(**{**small.MODEL, "vocab_size": 256, **settings})
    return Model(config, 5), Model(config, 5, arrays=gpu)


@needs_kernels
def test_files_are_the_same_from_either_device_and_fill_either(gpu, tmp_path):
    ours, theirs = models(gpu)
    for name, model in (("cpu", ours), ("cuda", theirs)):
        tensors.save_tensors(tmp_path / name, model.parameters.weight, dict(step=1))
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()
    for model in (ours, theirs):
        before = host(model.parameters.weights).copy()
        model.parameters.weights.fill(0)
        tensors.load_tensors(tmp_path / "cuda", into=model.parameters.weight)
        np.testing.assert_array_equal(host(model.parameters.weights), before)


def test_what_a_run_may_change_as_it_moves(data, monkeypatch):
    def going_on(began, **given):
        monkeypatch.setattr(checkpoint, "read_config", lambda directory: small.config(data, **began))
        train = resumed("run", None, {}, given).train
        return train.device, train.dtype

    assert going_on(dict(device="cuda", dtype="bf16"), device="cpu") == ("cpu", "bf16")
    assert going_on(dict(device="cuda", dtype="fp16"), device="cpu") == ("cpu", "auto")
    assert going_on(dict(device="cuda", dtype="fp16"), device="cpu", dtype="fp32") == ("cpu", "fp32")
    assert going_on(dict(device="cpu", dtype="fp32"), device="cuda") == ("cuda", "fp32")
    assert going_on(dict(device="cpu", dtype="fp32"), device="cuda", dtype="auto") == ("cuda", "auto")
    assert going_on(dict(device="cuda", dtype="fp16"), dtype="auto") == ("cuda", "fp16")
    with pytest.raises(UserError, match="was trained with --dtype bf16, not fp16"):
        going_on(dict(device="cuda", dtype="bf16"), device="cuda", dtype="fp16")


def losses(directory):
    return [row["loss"] for row in metrics.read_metrics(directory) if "loss" in row]


@needs_kernels
@pytest.mark.parametrize("began, goes_on", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(cupy, data, capsys, began, goes_on):
    flags = dict(dtype="fp32", log_interval=1, max_iters=8)
    assert small.status("train", *small.flags(data, out_dir="whole", device="cpu", **flags)) == 0
    assert small.status("train", *small.flags(data, out_dir="moved", device=began, **{**flags, "max_iters": 4})) == 0
    said = capsys.readouterr().err
    assert ("slm_np: on the CPU" in said) and (began == "cpu" or "(cuda:0, compute capability" in said)
    assert small.status("train", "--resume", "moved", "--device", goes_on, "--max-iters", 8) == 0
    assert "from step 4" in capsys.readouterr().err
    whole, moved = losses("whole"), losses("moved")
    assert len(whole) == len(moved) == 8 and run_config.read_config("moved").train.device == goes_on
    np.testing.assert_allclose(
        moved[:4], whole[:4], rtol=1e-5
    )  # later ones depend on when the rate falls, which --max-iters says
    assert all(np.isfinite(moved))
    weights = checkpoint.load_best("moved")[0]
    assert all(type(weight) is np.ndarray for weight in weights.values())


@needs_kernels
def test_a_run_is_read_evaluated_continued_and_finetuned_on_either_device(cupy, data, capsys):
    small.trainer(data, "run", device="cuda", dtype="fp32").train()
    found = []
    for device in ("cpu", "cuda"):
        assert (
            small.status(
                "evaluate", "--model", "run", "--data", data, "--limit-bytes", 500, "--json", "--device", device
            )
            == 0
        )
        fields = json.loads(capsys.readouterr().out)
        assert (
            small.status("generate", "--model", "run", "--prompt", "the cat", "--temp", 0, "-n", 30, "--device", device)
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
    assert config.train.device == "cuda" and runs.load("tuned").model.device.arrays is np


@needs_kernels
def test_pieces_that_a_base_lacks_start_as_the_mean_of_the_others(gpu):
    from slm_np.finetune import Base

    draw = np.random.default_rng(0)
    known = {
        "embedding.weight": draw.standard_normal((5, 3), np.float32),
        "recurrence.output.weight": draw.standard_normal((4, 5), np.float32),
        "norm.weight": np.ones(3, np.float32),
    }
    for arrays in (np, gpu):
        views = {
            name: arrays.zeros(shape, np.float32)
            for name, shape in (
                ("embedding.weight", (6, 3)),
                ("recurrence.output.weight", (4, 6)),
                ("norm.weight", (3,)),
            )
        }
        Base(Path("run"), None, dict(known), 0, None, None, None).fill(views)
        rows, columns = host(views["embedding.weight"]), host(views["recurrence.output.weight"])
        np.testing.assert_array_equal(rows[:5], known["embedding.weight"])
        np.testing.assert_array_equal(rows[5], known["embedding.weight"].mean(0))
        np.testing.assert_array_equal(columns[:, :5], known["recurrence.output.weight"])
        np.testing.assert_array_equal(columns[:, 5], known["recurrence.output.weight"].T.mean(0))


# Decoding

T, V = 9, 13
CHOICES = {
    "llama": dict(n_kv_head=2),
    "gpt2": dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True, head="tied"),
    "byte-transformer": dict(
        positions="sinusoidal", norm="none", feed_forward="silu", head="mlp", head_hidden=7, n_head=1
    ),
    "no-positions": dict(positions="none", head="linear"),
    "mamba": dict(pattern="M", feed_forward="none", n_inner=10, ssm_state_size=3),
    "filter-of-one": dict(pattern="M", feed_forward="none", conv_kernel=1, n_inner=10, ssm_state_size=3),
    "byte-ssm": dict(
        pattern="S", norm="none", feed_forward="none", residual=False, head="none", init="uniform", recurrence_size=7
    ),
    "hybrid": dict(pattern="SMA", n_layer=3, n_inner=10, ssm_state_size=3, recurrence_size=7),
    "one-token": dict(block_size=1),
}


def made(arrays, dtype=np.float64, **settings):
    """A model that has opinions."""
    model = Model(
        ModelConfig(**{**dict(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=16, n_hidden=10), **settings}),
        seed=3,
        dtype=dtype,
        arrays=arrays,
    )
    model.parameters.weights *= 3
    return model


def text(batch, steps):
    return np.random.default_rng(0).integers(0, V, (batch, steps), np.int32)


def decoded(decoder, tokens, prompt):
    """Logits at each place from the prompt's last on, (B, places, V)."""
    return np.stack(
        [decoder.read(tokens[:, :prompt]).copy()]
        + [decoder.step(tokens[:, place]).copy() for place in range(prompt, tokens.shape[1])],
        axis=1,
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CHOICES)
def test_steps_equal_the_whole_text(gpu, name, dtype):
    model = made(gpu, dtype, **CHOICES[name])
    steps = model.config.block_size
    tokens = text(2, steps)
    expected, decoder = host(model.logits(tokens)), Decoder(model, 2)
    for array in (*decoder.buffers, decoder.memory, decoder.logits):
        array.fill(np.nan)
    for prompt in (min(4, steps), 1):
        found = decoded(decoder, tokens, prompt)
        assert type(found) is np.ndarray and found.dtype == dtype
        np.testing.assert_allclose(
            found, expected[:, prompt - 1 :], atol=(1e-9 if dtype == np.float64 else 1e-4) * np.abs(expected).max()
        )
    assert steps == 1 or decoder.stepper.replayed.graph is not None


@pytest.mark.parametrize("positions", ["rotary", "none", "learned", "sinusoidal"])
def test_beyond_the_context(gpu, positions, monkeypatch):
    """A sliding layer sees the newest T tokens; where positions end, these are read again. Tables of angles turn at places of their own."""
    monkeypatch.setattr("slm_np.inference.decoder.ROWS", 5)
    model, tokens = made(gpu, positions=positions, n_layer=1, n_kv_head=2), text(2, 2 * T + 3)
    for place, logits in enumerate(decoded(Decoder(model, 2), tokens, 3).swapaxes(0, 1), 3):
        expected = host(model.logits(tokens[:, max(0, place - T) : place]))[:, -1]
        np.testing.assert_allclose(logits, expected, atol=1e-9 * np.abs(expected).max())


def test_replayed_steps_have_the_bits_of_plain_ones(gpu):
    model, tokens = made(gpu, np.float32), text(2, T)
    replayed, plain = Decoder(model, 2), Decoder(model, 2)
    plain.stepper.replayed.captures = False
    assert decoded(replayed, tokens, 2).tobytes() == decoded(plain, tokens, 2).tobytes()
    assert replayed.stepper.replayed.graph is not None and plain.stepper.replayed.graph is None


def test_weights_may_change_between_steps(gpu):
    """A captured step reads the model's own weights, not a copy."""
    model, tokens = made(gpu), text(1, T)
    decoder = Decoder(model)
    decoded(decoder, tokens[:, :5], 2)
    model.parameters.weights *= 0.5
    np.testing.assert_allclose(decoded(decoder, tokens, 3), host(model.logits(tokens))[:, 2:], atol=1e-9)


@emulated
def test_a_step_waits_once_and_allocates_nothing(gpu):
    import fake_cupy

    decoder, tokens = Decoder(made(gpu, np.float32), 2), text(2, T)
    decoded(decoder, tokens[:, :5], 2)
    before = dict(vars(fake_cupy.counts))
    decoder.step(tokens[:, 5])
    after = vars(fake_cupy.counts)
    assert (
        after["allocations"] == before["allocations"] and after["synchronizations"] - before["synchronizations"] <= 2
    )  # for the logits, and the input's last copy


@emulated
def test_memory_is_let_go_at_once(gpu, data, monkeypatch, capsys):
    """Not when garbage is next looked for: until then it would be missing where memory is asked for."""
    used, model = gpu.get_default_memory_pool().used_bytes, made(gpu, np.float32)
    decoded(Decoder(model, 2), text(2, T), 2)  # kernels keep the scratch that they take first
    gc.disable()
    try:
        before = used()
        decoded(Decoder(model, 2), text(2, T), 2)
        assert used() == before
        trained, seen = small.trainer(data, "run", device="cuda", dtype="fp32", max_iters=3), []
        trained.train()
        arena, before = trained.ahead.activations.arena.n_bytes, used()
        monkeypatch.setattr(
            "slm_np.evaluate.evaluate", lambda *arguments, **named: seen.append(used()) or fails(UserError("seen"))()
        )
        with pytest.raises(UserError, match="seen"):
            finish(trained)
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


def test_the_context_that_is_asked_for_is_checked_against_the_device(gpu, monkeypatch):
    model = made(gpu)
    monkeypatch.setattr("slm_np.kernels.gpu.device.free_bytes", lambda: 1000)
    with pytest.raises(UserError, match="making 3 texts at once needs .* of the GPU's memory"):
        Decoder(model, 3)


def test_settings_of_a_gpu_run_are_kept(data, tmp_path):
    config = small.config(data, device="cuda", dtype="fp16")
    run_config.write_config(tmp_path, config)
    assert (
        run_config.read_config(tmp_path) == config and TrainConfig(**dataclasses.asdict(config.train)) == config.train
    )


# The benchmark


@pytest.fixture
def benchmark():
    return importlib.import_module("gpu")  # of benchmarks/


def test_every_kernel_of_the_benchmark_runs(gpu, benchmark, monkeypatch, capsys):
    sizes = benchmark.Sizes(16, 8, 2, 8, 12, 11, 4, 33, (2, 5, 6, 3, 2, 4), (3, 5, 4))
    names = []
    for name, size, moved, work, function, *kind in benchmark.cases(sizes):
        monkeypatch.setattr(benchmark, "SEVERAL", 1)
        benchmark.Clock(1, 0.0).seconds(function)
        assert (moved or work) and size and kind in ([], ["float32"])
        names.append(name)
    assert len(names) == len(set(names)) > 40
    products, copied = benchmark.peaks(benchmark.Clock(1, 0.0), 16, 64)
    assert min(products["bfloat16"], products["float32"], copied) > 0
    assert capsys.readouterr().err == ""
    x, calls = gpu.ones(3, np.float32), []
    assert benchmark.Clock(1, 0.0).seconds(lambda: calls.append(x.fill(0))) >= 0
    assert len(calls) == 2 * benchmark.SEVERAL  # those that warm up, and those that are captured


def test_the_benchmark_s_sections_on_tiny_shapes(gpu, benchmark, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark,
        "TRAINED",
        {
            "smallm": (dict(small.MODEL, vocab_size=256), 2),
            "mamba": (dict(small.MODEL, pattern="M", positions="none", n_layer=1), 2),
        },
    )
    monkeypatch.setattr(benchmark, "GENERATED", {"smallm": (1, 2), "mamba": (1,)})
    args = SimpleNamespace(quick=True, found={}, shapes="smallm", dtype="fp32")
    assert [(row["shape"], row["texts"]) for row in benchmark.generation(args)] == [
        ("smallm", 1),
        ("smallm", 2),
        ("mamba", 1),
    ]
    assert "device" in benchmark.device(args)
    step, settle, memory = benchmark.our_step("smallm", "fp32")
    step(), step(), step(), settle()
    assert memory() >= 0

    class Engine:
        def __init__(self, name, *others):
            if name != "slm_np":
                raise UserError("there is none")

        def block(self, n):
            return [0.5]

        def close(self):
            return 7.0

    monkeypatch.setattr(benchmark, "Engine", Engine)
    monkeypatch.setattr(benchmark, "Limited", Engine)
    monkeypatch.setattr(benchmark, "peers_of", lambda name, quick: ["graphs"])
    ours, theirs = benchmark.training(args)
    assert (
        ours["tokens_per_s"] == 2 * 2 * small.MODEL["block_size"]
        and ours["memory_mb"] == 7
        and theirs["error"] == "there is none"
    )
    assert "there is none" in capsys.readouterr().out


def test_a_kernel_that_fails_costs_no_other(gpu, benchmark, monkeypatch, capsys):
    def cases(sizes):
        yield "sound", "3", 12, None, lambda: None
        yield "broken", "3", 12, None, fails(RuntimeError("launch failed"))
        raise RuntimeError("nothing can be made any more")

    monkeypatch.setattr(benchmark, "cases", cases)
    monkeypatch.setattr(benchmark, "peaks", lambda clock, size, length: (dict(bfloat16=1e12, float32=1e11), 1e12))
    monkeypatch.setattr(
        benchmark, "Clock", lambda rounds, least: SimpleNamespace(seconds=lambda function: function() or 1.0)
    )
    rows = benchmark.kernels(SimpleNamespace(quick=True))["rows"]
    assert [(row["kernel"], "error" in row) for row in rows] == [
        ("sound", False),
        ("broken", True),
        ("the next kernel", True),
    ]


def test_a_section_that_fails_or_hangs_or_dies_costs_no_other(benchmark, monkeypatch, capfd):
    for name, args, seconds, said in (
        ("config_of", "mamba", 60, None),
        ("config_of", "no such", 60, "KeyError"),
        ("config_of", "mamba", 0, "its 0 seconds are up"),
        ("main", ["--only", "no such"], 60, "ended with exit status 2"),
    ):
        monkeypatch.setattr(benchmark, "SECTIONS", {name: seconds})
        found = benchmark.apart(name, args)
        assert found == benchmark.config_of("mamba") if said is None else said in found["error"]


def test_an_engine_that_does_not_answer_is_ended(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "ANSWERED", 0.0)
    assert "exit status" in benchmark.started("slm_np", "mamba", "fp32")


def test_a_shape_that_cannot_write_costs_no_other(gpu, benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "GENERATED", {"mamba": (1, 2)})
    monkeypatch.setattr(benchmark, "written", fails(MemoryError("too little")))
    args = SimpleNamespace(quick=True, found=dict(kernels=dict(error="it ended")))
    assert [row["error"] for row in benchmark.generation(args)] == ["MemoryError: too little"] * 2


def test_runs_of_pytest_are_counted_also_where_their_time_is_up(benchmark):
    def script(text):
        return [sys.executable, "-c", text]

    lines = "print('tests/t.py::a PASSED [ 50%]', flush=True); print('tests/t.py::b FAILED [100%]', flush=True); "
    found = benchmark.checked(script(lines + "import time; time.sleep(60)"), 3)
    assert found["verdict"] == "time is up" and (found["passed"], found["failed"]) == (1, 1) and found["seconds"] < 30
    found = benchmark.checked(
        script(
            lines
            + "print('FAILED tests/t.py::b - no'); print('== 3 passed, 1 failed, 2 skipped in 0.1s =='); raise SystemExit(1)"
        ),
        60,
    )
    assert (
        found["verdict"] == "status 1"
        and (found["passed"], found["failed"], found["skipped"]) == (3, 1, 2)
        and found["errors"] == ["FAILED tests/t.py::b - no"]
    )


def test_the_benchmark_says_what_is_missing(benchmark, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for words, said in (
        ([], "GPUs need CuPy, which is not installed"),
        (["--only", "kernel"], "did you mean kernels"),
    ):
        with pytest.raises(SystemExit) as left:
            benchmark.main(words)
        assert left.value.code == 2 and said in capsys.readouterr().err
