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

from slm_np.config import ModelConfig  # noqa: E402
from slm_np.gradcheck import shrunk  # noqa: E402

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
                    np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=1e-4, atol=1e-6 * np.abs(b).max(), err_msg=f"{case.op} {case.direction} {case.size}")
            row = kernel_bench.measure(case, rounds=1, seconds=0.0)
            assert len(row["ms"]) == 1 + len(others)
            assert all(math.isfinite(x) and x > 0 for kind in ("ms", "rate", "share", "ratio") for x in row[kind].values())
            found += 1
    assert found >= 6


def test_a_kernel_benchmark_writes_its_table_and_rows(capsys, tmp_path):
    dropout = importlib.import_module("kernel_dropout")
    dropout.bench(dropout.cases, ["--quick", "--shapes", "char,smallm", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [(row["op"], row["direction"], row["size"]) for row in rows] == [("dropout", "forward", "18 x 12"), ("dropout", "backward", "18 x 12")]  # one size, once
    assert sum(line.startswith("dropout ") for line in capsys.readouterr().out.splitlines()) == 2


def test_kernel_benchmark_refuses_what_it_cannot_do(capsys, tmp_path):
    dropout = importlib.import_module("kernel_dropout")
    for arguments, word in ((["--shapes", "chr"], "did you mean char"),
                            (["--quick", "--shapes", "char", "--json", str(tmp_path / "no" / "rows.json")], "cannot be written")):
        with pytest.raises(SystemExit) as stopped:
            dropout.bench(dropout.cases, arguments)
        assert stopped.value.code == 2 and word in capsys.readouterr().err


def test_products_and_operations_of_a_shape_counted_by_hand():
    llama = ModelConfig(vocab_size=11, block_size=3, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12, feed_forward="swiglu")
    assert shapes.products(llama, 2) == [(6, 8, 16, 2), (6, 8, 8, 2), (6, 8, 24, 2), (6, 12, 8, 2), (6, 8, 11, 1)]
    # Of 3 x 3 scores 6 count, in 2 sequences and 2 heads: 24 pairs, 7 products of 2 * 4 operations each, 2 layers.
    assert shapes.attention_operations(llama, 2) == 24 * 7 * 8 * 2
    assert shapes.operations(llama, 2) == 6 * (1536 + 768 + 2304 + 1152 + 528) + 2688
    mlp = ModelConfig(vocab_size=11, block_size=3, n_layer=1, n_head=1, n_embd=4, feed_forward="none", head="mlp", head_hidden=5, head_dim=6)
    assert shapes.products(mlp, 1) == [(3, 4, 18, 1), (3, 6, 4, 1), (3, 4, 5, 1), (3, 5, 11, 1)]


def test_products_of_models_that_carry_a_state_counted_by_hand():
    both = ModelConfig(vocab_size=11, block_size=3, pattern="MS", n_layer=3, n_embd=8, n_inner=10, channel_states=2, time_step_rank=3, state_size=7, feed_forward="none",
                       residual=False, head="none")  # Mamba, recurrence, and Mamba again, which gives the logits
    assert shapes.products(both, 2) == [(6, 8, 20, 2), (6, 10, 7, 2), (6, 3, 10, 2), (6, 10, 8, 1), (6, 10, 11, 1), (6, 8, 7, 1), (2, 7, 7, 3), (6, 7, 8, 1), (6, 8, 8, 1)]
    assert shapes.scan_operations(both, 2) == 2 * (28 + 44) * 6 * 10 * 2 and shapes.attention_operations(both, 2) == 0
    assert sum(m * k * n * count for m, k, n, count in shapes.products(both, 2)) == 6 * (2 * (160 + 70 + 30) + 80 + 110 + 56 + 49 + 56 + 64)


def test_shapes_are_the_models_they_are_named_after():
    from slm_np.model import parameter_count
    assert {name: parameter_count(shapes.shape(name)[0]) for name in shapes.SHAPES} == {
        "char": 834_304, "char10m": 10_844_160, "slim": 7_343_360, "smallm": 29_995_392, "byte-transformer": 2_424_832,
        "byte-ssm": 2_424_832, "mamba": 1_817_856}


def test_alternate_takes_turns_within_their_settings():
    calls, inside = [], []

    @contextlib.contextmanager
    def setting():
        inside.append(True)
        yield
        inside.pop()
    times = measure.alternate({"a": lambda: calls.append(("a", bool(inside))), "b": lambda: calls.append(("b", bool(inside)))}, 3, 0.0, {"b": setting})
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
    monkeypatch.setattr(measure, "product_rate", lambda dtype: shapes.operations(config, batch))
    monkeypatch.setattr(measure, "bandwidth", lambda: math.inf)
    from slm_np import ops
    before = dict(vars(ops))
    trainer = cpu.trainer_of(shape_name, 0, dtype)
    cpu.profile(shape_name, trainer, 0.0)
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[0] == "sum" and float(total[-1]) == pytest.approx(1000.0, abs=0.5)  # ms: the floor is one second of products
    assert vars(ops) == before and trainer.optimizer.step.__name__ == "step"


def test_cpu_benchmark_helps_and_refuses_an_unknown_shape(capsys):
    for arguments, status, word in ((["--help"], 0, "--against"), (["--shapes", "char,huge"], 2, "'huge'"), (["--dtype", "fp7"], 2, "fp7")):
        with pytest.raises(SystemExit) as stopped:
            cpu.main(arguments)
        out, err = capsys.readouterr()
        assert stopped.value.code == status and word in (err if status else out)


def test_repeated_four_grams():
    prompts = importlib.import_module("prompts")
    assert prompts.repeated("a b c d e f a b c d") == pytest.approx(1 / 7) and prompts.repeated("a b c") == 0 and prompts.repeated("a " * 13) == pytest.approx(0.9)
