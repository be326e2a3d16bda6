"""The GPU benchmark on tiny shapes: every section runs, and a failure in one does not stop the others."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import small
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.errors import UserError
from slm_np.ops.device import device


@pytest.fixture
def gpu(cupy):  # noqa: F811
    """The GPU, on a stream that can be captured."""
    return device("cuda")


def fails(error):
    def function(*arguments):
        raise error

    return function


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
    x, calls = gpu.arrays.ones(3, np.float32), []
    assert benchmark.Clock(1, 0.0).seconds(lambda: calls.append(x.fill(0))) >= 0
    assert len(calls) == 2 * benchmark.SEVERAL  # for the warmup, and for the capture


def test_sections_of_the_benchmark_on_tiny_shapes(gpu, benchmark, monkeypatch, capsys):
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
    assert [(row["shape"], row["sequences"]) for row in benchmark.generation(args)] == [
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


def test_a_failing_kernel_does_not_stop_the_benchmark(gpu, benchmark, monkeypatch, capsys):
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


def test_a_section_that_fails_or_hangs_or_dies_does_not_stop_the_benchmark(benchmark, monkeypatch, capfd):
    for name, args, seconds, said in (
        ("config_of", "mamba", 60, None),
        ("config_of", "no such", 60, "KeyError"),
        ("config_of", "mamba", 0, "not finished after 0 s"),
        ("main", ["--only", "no such"], 60, "ended with exit status 2"),
    ):
        monkeypatch.setattr(benchmark, "SECTIONS", {name: seconds})
        found = benchmark.in_own_process(name, args)
        assert found == benchmark.config_of("mamba") if said is None else said in found["error"]


def test_an_engine_that_does_not_answer_is_ended(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "ANSWERED", 0.0)
    assert "exit status" in benchmark.started("slm_np", "mamba", "fp32")


def test_a_shape_that_cannot_generate_does_not_stop_the_benchmark(gpu, benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "GENERATED", {"mamba": (1, 2)})
    monkeypatch.setattr(benchmark, "generated", fails(MemoryError("too little")))
    args = SimpleNamespace(quick=True, found=dict(kernels=dict(error="it ended")))
    assert [row["error"] for row in benchmark.generation(args)] == ["MemoryError: too little"] * 2


def test_kernels_are_tested_under_compute_sanitizer(benchmark, monkeypatch, capsys):
    commands = {}

    def checked(arguments, seconds, separate):
        tool = arguments[arguments.index("--tool") + 1] if "--tool" in arguments else "pytest"
        commands[tool] = {word.split("/tests/")[1] for word in arguments if "/tests/" in word}
        return dict(
            verdict="timed out", passed=3, failed=int(tool == "racecheck"), skipped=0, errors=[], seconds=1, last=""
        )

    monkeypatch.setattr(benchmark, "checked", checked)
    monkeypatch.setattr(benchmark.shutil, "which", lambda *_, **__: "compute-sanitizer")
    found = benchmark.tests(SimpleNamespace(quick=False))
    assert commands["memcheck"] == commands["racecheck"] < commands["pytest"]
    assert {"kernels/test_gpu_attention.py", "kernels/test_gpu_scan.py"} <= commands["memcheck"]
    assert {"kernels/test_gpu_emulator.py", "nn/test_gpu_model.py"} <= commands["pytest"] - commands["memcheck"]
    assert [row["sound"] for row in found.values()] == [True, True, False]
    assert "racecheck" in capsys.readouterr().out


def test_pytest_results_survive_a_timeout(benchmark):
    def script(text):
        return [sys.executable, "-c", text]

    lines = "print('tests/t.py::a PASSED [ 50%]', flush=True); print('tests/t.py::b FAILED [100%]', flush=True); "
    found = benchmark.checked(script(lines + "import time; time.sleep(60)"), 3)
    assert found["verdict"] == "timed out" and (found["passed"], found["failed"]) == (1, 1) and found["seconds"] < 30
    found = benchmark.checked(
        script(
            lines
            + "print('FAILED tests/t.py::b - no'); print('== 3 passed, 1 failed, 2 skipped in 0.1s =='); "
            + "raise SystemExit(1)"
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
