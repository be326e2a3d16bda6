"""The benchmarks measure what they say: engines agree, operations are counted rightly, commands refuse what they do not know."""

import contextlib
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cpu  # noqa: E402
import kernel_bench  # noqa: E402
import measure  # noqa: E402
import shapes  # noqa: E402
import small  # noqa: E402

from slm_np.config import ModelConfig  # noqa: E402
from slm_np.nn.gradient_check import shrunk  # noqa: E402
from slm_np.ops.device import kernels_of

KERNELS = sorted(path.stem for path in BENCHMARKS.glob("kernel_*.py") if path.stem != "kernel_bench")


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    """The machine's ceilings do not matter here, only that something is measured in their place."""
    monkeypatch.setattr(kernel_bench, "ceiling", lambda unit: (lambda: sum(range(1000)), 1e6))


@pytest.mark.parametrize("name", KERNELS)
def test_every_case_runs_and_its_engines_agree(name):
    found = 0
    for shape_name in ("char", "slim", "byte-transformer"):
        for case in importlib.import_module(name).cases(shrunk(shapes.shape(shape_name)[0]), 2):
            ours, *others = (list(engine()) for engine in (case.ours, case.numpy, case.torch) if engine)
            assert case.work > 0 and ours
            for other in others if case.op != "dropout" else ():  # every engine draws a mask of its own
                assert other
                for a, b in zip(ours, other):
                    b = np.asarray(b.detach() if hasattr(b, "detach") else b)
                    np.testing.assert_allclose(
                        np.ravel(a),
                        np.ravel(b),
                        rtol=1e-4,
                        atol=1e-6 * np.abs(b).max(),
                        err_msg=f"{case.op} {case.direction} {case.size}",
                    )
            row = kernel_bench.measure(case, rounds=1, seconds=0.0)
            assert len(row["ms"]) == 1 + len(others)
            assert all(
                math.isfinite(x) and x > 0 for kind in ("ms", "rate", "share", "ratio") for x in row[kind].values()
            )
            found += 1
    assert found >= 6


def test_a_kernel_benchmark_writes_its_table_and_rows(capsys, tmp_path):
    dropout = importlib.import_module("kernel_dropout")
    dropout.bench(dropout.cases, ["--quick", "--shapes", "char,smallm", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [(row["op"], row["direction"], row["size"]) for row in rows] == [
        ("dropout", "forward", "18 x 12"),
        ("dropout", "backward", "18 x 12"),
    ]  # one size, once
    assert sum(line.startswith("dropout ") for line in capsys.readouterr().out.splitlines()) == 2


def test_kernel_benchmark_refuses_what_it_cannot_do(capsys, tmp_path):
    dropout = importlib.import_module("kernel_dropout")
    for arguments, word in (
        (["--shapes", "chr"], "did you mean char"),
        (["--quick", "--shapes", "char", "--json", str(tmp_path / "no" / "rows.json")], "cannot be written"),
    ):
        with pytest.raises(SystemExit) as stopped:
            dropout.bench(dropout.cases, arguments)
        assert stopped.value.code == 2 and word in capsys.readouterr().err


def test_products_and_operations_of_a_shape_counted_by_hand():
    llama = ModelConfig(
        vocab_size=11, block_size=3, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12, feed_forward="swiglu"
    )
    assert shapes.products(llama, 2) == [(6, 8, 16, 2), (6, 8, 8, 2), (6, 8, 24, 2), (6, 12, 8, 2), (6, 8, 11, 1)]
    # Of 3 x 3 scores 6 count, in 2 sequences and 2 heads: 24 pairs, 7 products of 2 * 4 operations each, 2 layers.
    assert shapes.attention_operations(llama, 2) == 24 * 7 * 8 * 2
    assert shapes.operations(llama, 2) == 6 * (1536 + 768 + 2304 + 1152 + 528) + 2688
    mlp = ModelConfig(
        vocab_size=11,
        block_size=3,
        n_layer=1,
        n_head=1,
        n_embd=4,
        feed_forward="none",
        head="mlp",
        head_hidden=5,
        head_dim=6,
    )
    assert shapes.products(mlp, 1) == [(3, 4, 18, 1), (3, 6, 4, 1), (3, 4, 5, 1), (3, 5, 11, 1)]


def test_products_of_models_that_carry_a_state_counted_by_hand():
    both = ModelConfig(
        vocab_size=11,
        block_size=3,
        pattern="MS",
        n_layer=3,
        n_embd=8,
        n_inner=10,
        ssm_state_size=2,
        time_step_rank=3,
        recurrence_size=7,
        feed_forward="none",
        residual=False,
        head="none",
    )  # Mamba, recurrence, and Mamba again, which gives the logits
    assert shapes.products(both, 2) == [
        (6, 8, 20, 2),
        (6, 10, 7, 2),
        (6, 3, 10, 2),
        (6, 10, 8, 1),
        (6, 10, 11, 1),
        (6, 8, 7, 1),
        (2, 7, 7, 3),
        (6, 7, 8, 1),
        (6, 8, 8, 1),
    ]
    assert shapes.scan_operations(both, 2) == 2 * (28 + 44) * 6 * 10 * 2 and shapes.attention_operations(both, 2) == 0
    assert sum(m * k * n * count for m, k, n, count in shapes.products(both, 2)) == 6 * (
        2 * (160 + 70 + 30) + 80 + 110 + 56 + 49 + 56 + 64
    )


def test_shapes_are_the_models_they_are_named_after():
    from slm_np.nn.model import parameter_count

    assert {name: parameter_count(shapes.shape(name)[0]) for name in shapes.SHAPES} == {
        "char": 834_304,
        "char10m": 10_844_160,
        "slim": 7_343_360,
        "smallm": 29_995_392,
        "byte-transformer": 2_424_832,
        "byte-ssm": 2_424_832,
        "mamba": 1_817_856,
    }


def test_alternate_takes_turns_within_their_settings():
    calls, inside = [], []

    @contextlib.contextmanager
    def setting():
        inside.append(True)
        yield
        inside.pop()

    times = measure.alternate(
        {"a": lambda: calls.append(("a", bool(inside))), "b": lambda: calls.append(("b", bool(inside)))},
        3,
        0.0,
        {"b": setting},
    )
    assert calls == [("a", False)] * 2 + [("b", True)] * 2 + [("a", False), ("b", True)] * 3
    assert all(0 < t < 1 for t in times.values())


def test_peak_memory_counts_what_was_touched():
    block = np.ones(1 << 23)
    assert block.nbytes / 1e6 < measure.peak_rss_mb() < 1e6


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape_name", ["char", "byte-transformer", "byte-ssm", "mamba"])
def test_profile_counts_the_operations_of_a_step(shape_name, dtype, capsys, monkeypatch):
    config, batch = shrunk(shapes.shape(shape_name)[0]), 2
    monkeypatch.setattr(cpu, "shape", lambda name: (config, batch))
    monkeypatch.setattr(measure, "product_rate", lambda dtype="fp32": shapes.operations(config, batch))
    monkeypatch.setattr(measure, "bandwidth", lambda: math.inf)
    from slm_np import ops

    before = dict(vars(ops))
    trainer = cpu.trainer_of(shape_name, 0, dtype)
    cpu.profile(shape_name, trainer, 0.0)
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[0] == "sum" and float(total[-1]) == pytest.approx(
        1000.0, abs=0.5
    )  # ms: the floor is one second of products
    assert vars(ops) == before and trainer.optimizer.step.__name__ == "step"


def test_cpu_benchmark_helps_and_refuses_an_unknown_shape(capsys):
    for arguments, status, word in (
        (["--help"], 0, "--against"),
        (["--shapes", "char,huge"], 2, "'huge'"),
        (["--dtype", "fp7"], 2, "fp7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cpu.main(arguments)
        out, err = capsys.readouterr()
        assert stopped.value.code == status and word in (err if status else out)


def test_repeated_four_grams():
    prompts = importlib.import_module("prompts")
    assert (
        prompts.repeated("a b c d e f a b c d") == pytest.approx(1 / 7)
        and prompts.repeated("a b c") == 0
        and prompts.repeated("a " * 13) == pytest.approx(0.9)
    )


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_every_benchmark_is_python_of_this_release(path):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_speed_and_memory_over_the_length_of_windows(tmp_path, capsys, monkeypatch):
    long_sequences = importlib.import_module("long_sequences")
    small_ones = {
        name: settings
        | dict(n_layer=1, n_embd=16, vocab_size=11, init_std=0.02)
        | (dict(n_head=2) if name == "attention" else dict(n_inner=16, recurrence_size=16, ssm_state_size=2))
        for name, settings in long_sequences.MIXERS.items()
    }
    monkeypatch.setattr(long_sequences, "MIXERS", small_ones)
    rows = long_sequences.measured((64, 128), 128, 1, "fp32")
    assert [row["mixer"] for row in rows] == list(small_ones) and len(capsys.readouterr().out.splitlines()) == 3
    for row in rows:
        assert all(0 < rate < 1e9 for rate in (*row["tokens_per_second"], *row["written"]))
        assert row["bytes_per_token"] == (row["bytes"][1] - row["bytes"][0]) / 64 > 0
    measure.write_json(tmp_path / "rows.json", rows)
    pytest.importorskip("matplotlib")
    long_sequences.draw(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 1000


def test_models_of_the_quality_table_are_of_one_size():
    from slm_np.nn.model import parameter_count

    quality = importlib.import_module("quality")
    for name, settings in quality.MODELS.items():
        config = ModelConfig(**settings)
        assert 2.39e6 < parameter_count(config) < 2.45e6, name
        assert quality.TOKENS % config.block_size == 0


def test_cut_gradients_are_those_of_one_step():
    from slm_np import ops

    quality = importlib.import_module("quality")
    whole, rng = ops.linear_recurrence_backward, np.random.default_rng(0)
    states, flow, weight = rng.standard_normal((5, 2, 3)), rng.standard_normal((5, 2, 3)), rng.standard_normal((3, 3))
    found = {}
    for cut in (False, True):
        dstates, dweight, scratch = (
            flow.copy(),
            np.zeros((3, 3)),
            np.zeros(kernels_of(flow).linear_recurrence_scratch(2, 3)),
        )
        with quality.one_step(cut):
            ops.linear_recurrence_backward(dstates, dweight, scratch, states, weight)
        found[cut] = dstates, dweight
    np.testing.assert_array_equal(found[True][0], flow)
    np.testing.assert_allclose(
        found[True][1], sum(before.T @ g for before, g in zip(states[:-1], flow[1:])), rtol=1e-12
    )
    assert np.abs(found[False][0] - flow).max() > 0.1 and ops.linear_recurrence_backward is whole


def test_quality_runs_are_kept_and_not_repeated(tmp_path, capsys, monkeypatch):
    quality = importlib.import_module("quality")
    data = small.text_file(tmp_path, lines=400)
    monkeypatch.setattr(
        quality,
        "MODELS",
        {"llama": quality.MODELS["llama"] | dict(n_layer=1, n_embd=16, n_head=2, n_hidden=16, block_size=16)},
    )
    monkeypatch.setattr(quality, "TOKENS", 64)
    arguments = ["--data", str(data), "--models", "llama", "--max-time", "1s", "--json", str(tmp_path / "runs.json")]
    quality.main([*arguments, "--rates", "1e-6"])
    capsys.readouterr()
    quality.main([*arguments, "--rates", "1e-6,1e-2"])  # the second alone
    poor, run = json.loads((tmp_path / "runs.json").read_text(encoding="utf-8"))
    assert run["best"] == min(row["bpb"] for row in run["curve"]) < poor["best"] < 8.5 and (
        poor["rate"],
        run["rate"],
    ) == (1e-6, 1e-2)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"llama at 0.01: {run['best']:.3f}"
    assert shown[-1].startswith(f"| llama | {run['parameters']:,} | 0.01 |") and shown[-1].endswith(
        f"| {run['best']:.3f} | 1e-06: {poor['best']:.3f} |"
    )
    quality.main([*arguments, "--rates", "1e-6,1e-2"])  # the table alone
    assert capsys.readouterr().out.splitlines() == shown[-3:]
    assert quality.best_runs([run | dict(diverged=True), poor]) == [poor]
    with pytest.raises(SystemExit) as stopped:
        quality.main([*arguments, "--models", "lama"])
    assert stopped.value.code == 2 and "did you mean llama" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        quality.main([*arguments, "--rates", "1e-3;2e-3"])
    assert (
        stopped.value.code == 2
        and "--rates '1e-3;2e-3' is no list of numbers; separate them by commas" in capsys.readouterr().err
    )
