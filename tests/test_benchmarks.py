"""The benchmarks: engines agree, operations are counted correctly, every script runs and refuses bad flags."""

import contextlib
import functools
import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cpu  # noqa: E402
import kernel_bench  # noqa: E402
import kernel_families  # noqa: E402
import measure  # noqa: E402
import shapes  # noqa: E402
import small  # noqa: E402

from slm_np import ops  # noqa: E402
from slm_np.config import ModelConfig  # noqa: E402
from slm_np.nn.gradient_check import shrunk  # noqa: E402
from slm_np.nn.model import parameter_count  # noqa: E402
from slm_np.ops.device import kernels_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("threads")  # resets the number of threads


def refusal(main, arguments, capsys):
    """The message with which a command refuses its flags."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


# All scripts


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_script_can_be_imported_and_has_help(name, capsys):
    if name == "torch_twin":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    script = importlib.import_module(name)
    if hasattr(script, "main"):
        with pytest.raises(SystemExit) as stopped:
            script.main(["--help"])
        assert not stopped.value.code and "usage:" in capsys.readouterr().out


# Kernels


@pytest.fixture
def small_peaks(monkeypatch):
    """Something fast in place of the machine's peak rates."""
    monkeypatch.setattr(kernel_bench, "peak", lambda unit: (lambda: sum(range(1000)), 1e6))


def copies(results):
    """Arrays or tensors as new arrays."""
    return [np.array(x.detach().numpy() if hasattr(x, "detach") else x) for x in results]


@pytest.mark.parametrize("family", kernel_families.FAMILIES)
def test_engines_of_every_kernel_case_agree(family, small_peaks):
    found = 0
    for name in shapes.SHAPES:
        for case in kernel_families.FAMILIES[family](shrunk(shapes.shape(name)[0]), 2):
            ours = copies(case.numba())
            with kernel_families.kernel_set("numpy"):
                others = [copies(case.numpy())]
            if case.torch and case.op != "dropout":  # PyTorch draws other masks
                others.append(copies(case.torch()))
            assert case.work > 0 and ours and all(others)
            for theirs in others:
                for a, b in zip(ours, theirs):
                    label, atol = f"{case.op} {case.direction} {case.size}", 1e-6 * np.abs(b).max()
                    np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=1e-4, atol=atol, err_msg=label)
            row = kernel_bench.measure(case, rounds=1, seconds=0.0)
            assert len(row["ms"]) == 2 + (case.torch is not None)
            for kind in ("ms", "rate", "share", "ratio"):
                assert all(math.isfinite(x) and x > 0 for x in row[kind].values())
            found += 1
    assert found >= 2


def test_kernel_bench_prints_a_table_and_writes_its_rows(small_peaks, capsys, tmp_path):
    flags = ["--quick", "--shapes", "char,smallm", "--json", str(tmp_path / "rows.json")]
    kernel_bench.main(["dropout", *flags])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [(row["op"], row["direction"], row["size"]) for row in rows] == [
        ("dropout", "forward", "18 x 12"),
        ("dropout", "backward", "18 x 12"),
    ]  # both shapes have this size, and it is timed once
    assert sum(line.startswith("dropout ") for line in capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shapes", "chr"], "did you mean char"),
        (["activations"], "did you mean activation"),
        (["dropout", "--quick", "--shapes", "char", "--json", "no such folder/rows.json"], "cannot write --json"),
    ],
)
def test_kernel_bench_refuses_bad_flags(small_peaks, arguments, message, capsys):
    assert message in refusal(kernel_bench.main, arguments, capsys)


# Counted operations


def test_matmuls_and_operations_of_transformers_counted_by_hand():
    llama = ModelConfig(
        vocab_size=11, block_size=3, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_hidden=12, feed_forward="swiglu"
    )
    assert shapes.matmuls(llama, 2) == [(6, 8, 16, 2), (6, 8, 8, 2), (6, 8, 24, 2), (6, 12, 8, 2), (6, 8, 11, 1)]
    # Of 3 x 3 scores 6 count, in 2 sequences and 2 heads: 24 pairs, 7 matmuls of 2 * 4 operations each, 2 layers.
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
    assert shapes.matmuls(mlp, 1) == [(3, 4, 18, 1), (3, 6, 4, 1), (3, 4, 5, 1), (3, 5, 11, 1)]


def test_matmuls_and_operations_of_recurrent_models_counted_by_hand():
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
    )  # Mamba, linear recurrence, and Mamba again, which gives the logits
    assert shapes.matmuls(both, 2) == [
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
    assert shapes.scan_operations(both, 2) == 2 * (28 + 44) * 6 * 10 * 2
    assert shapes.attention_operations(both, 2) == 0
    assert sum(m * k * n * count for m, k, n, count in shapes.matmuls(both, 2)) == 6 * (
        2 * (160 + 70 + 30) + 80 + 110 + 56 + 49 + 56 + 64
    )


def test_sizes_of_the_shapes():
    assert {name: parameter_count(shapes.shape(name)[0]) for name in shapes.SHAPES} == {
        "char": 834_304,
        "char10m": 10_844_160,
        "slim": 7_343_360,
        "smallm": 29_995_392,
        "byte-transformer": 2_424_832,
        "byte-ssm": 2_424_832,
        "mamba": 1_817_856,
        "stories": 1_328_192,
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape_name", ["char", "byte-transformer", "byte-ssm", "mamba"])
def test_profile_counts_the_operations_of_a_step(shape_name, dtype, capsys, monkeypatch):
    config, batch = shrunk(shapes.shape(shape_name)[0]), 2
    monkeypatch.setattr(cpu, "shape", lambda name: (config, batch))
    monkeypatch.setattr(measure, "matmul_rate", lambda dtype="fp32": shapes.operations(config, batch))
    monkeypatch.setattr(measure, "bandwidth", lambda: math.inf)
    before = dict(vars(ops))
    trainer = cpu.trainer_of(shape_name, 0, dtype)
    cpu.profile(shape_name, trainer, 0.0)
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[0] == "sum"
    assert float(total[-1]) == pytest.approx(1000.0, abs=0.5)  # ms: at this rate the floor is one second
    assert vars(ops) == before and trainer.optimizer.step.__name__ == "step"


# Timing


def test_alternate_takes_turns_within_contexts():
    calls, inside = [], []

    @contextlib.contextmanager
    def context():
        inside.append(True)
        yield
        inside.pop()

    functions = {"a": lambda: calls.append(("a", bool(inside))), "b": lambda: calls.append(("b", bool(inside)))}
    times = measure.alternate(functions, 3, 0.0, {"b": context})
    assert calls == [("a", False)] * 2 + [("b", True)] * 2 + [("a", False), ("b", True)] * 3
    assert all(0 < t < 1 for t in times.values())


def test_peak_memory_includes_touched_arrays():
    block = np.ones(1 << 23)
    assert block.nbytes / 1e6 < measure.peak_rss_mb() < 1e6


# Training speed


def test_cpu_benchmark_refuses_bad_flags(capsys, tmp_path):
    for arguments, message in (
        (["--shapes", "char,huge"], "'huge'"),
        (["--dtype", "fp7"], "fp7"),
        (["--against", str(tmp_path)], f"--against {tmp_path} is not a checkout of this project; give torch, numpy"),
        (["--against", "nunpy"], "--against nunpy is not a checkout of this project"),
    ):
        assert message in refusal(cpu.main, arguments, capsys)


def test_cpu_benchmark_against_pytorch_needs_pytorch(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs PyTorch, which is not installed" in refusal(cpu.main, ["--against", "torch"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "against, peer",
    [(str(ROOT), "checkout"), ("numpy", "numpy"), ("torch", "eager")],
    ids=["this-checkout", "numpy", "torch"],
)
def test_cpu_benchmark_beside_peers(against, peer, capsys, monkeypatch, tmp_path):
    if against == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(cpu, "TORCH", {"eager": cpu.TORCH["eager"]})  # compiling takes minutes
    path = tmp_path / "rows.json"
    flags = ["--shapes", "char", "--rounds", "2", "--seconds", "0", "--json", str(path)]
    cpu.main([*flags, "--against", against])
    (row,) = json.loads(path.read_text(encoding="utf-8"))
    assert (row["shape"], row["dtype"], row["peer"], list(row["peers"])) == ("char", "fp32", peer, [peer])
    figures = ("tokens_per_s", "step_ms", "gflops", "gemm_gflops", "peak_rss_mb", "ratio")
    assert all(row[name] > 0 for name in (*figures, "peer_tokens_per_s", "peer_peak_rss_mb"))
    line = capsys.readouterr().out
    assert line.startswith("char ") and f"{peer} {row['peer_tokens_per_s']:,.0f} tokens/s" in line


@pytest.mark.slow
def test_an_engine_that_stops_is_reported():
    with pytest.raises(cpu.UserError, match="an engine stopped with exit status 2"):
        cpu.Engine("slm_np", "no such shape", "fp32", 1)


# Matmuls, decoding, long sequences


def test_products_prints_a_line_for_each_matmul_of_a_linear_layer(capsys, monkeypatch):
    products = importlib.import_module("products")
    config = shrunk(shapes.shape("char")[0])
    monkeypatch.setattr(products, "shape", lambda name: (config, 2))
    monkeypatch.setattr(products, "alternate", lambda functions, **_: measure.alternate(functions, 1, 0.0))
    products.main(["--shapes", "char"])
    header, *lines = capsys.readouterr().out.splitlines()
    sizes = {(m, k, n) for m, k, n, _ in shapes.matmuls(config, 2)}
    assert header.startswith("m x k x n") and len(lines) == 3 * len(sizes)
    kinds = [next(kind for kind in products.KINDS if kind in line) for line in lines]
    assert kinds == [*products.KINDS] * len(sizes)


def test_decode_prints_and_writes_its_rows(capsys, tmp_path):
    decode = importlib.import_module("decode")
    decode.main(["--quick", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["batch"] for row in rows] == [1, 8]
    assert all(0 < value < 1e12 for row in rows for value in row.values())
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["1 sequence", "8 sequences"]


@pytest.mark.slow
def test_the_start_of_a_run_is_timed(capsys, tmp_path):
    start = importlib.import_module("start")
    start.main(["--presets", "stories", "--kernels", "numpy", "--rounds", "1", "--json", str(tmp_path / "rows.json")])
    [row] = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert (row["preset"], row["kernels"]) == ("stories", "numpy") and 0 < row["warm_s"] and 0 < row["cold_s"]
    assert re.fullmatch(r"stories +numpy +cold +[\d.]+ s +warm +[\d.]+ s\n", capsys.readouterr().out)
    assert "--presets none is unknown" in refusal(start.main, ["--presets", "none"], capsys)


def test_speed_and_memory_over_the_length_of_windows(tmp_path, capsys, monkeypatch):
    long_sequences = importlib.import_module("long_sequences")
    tiny = dict(n_layer=1, n_embd=16, vocab_size=11, init_std=0.02)
    sizes = {
        "mamba": dict(n_inner=16, ssm_state_size=2),
        "linear recurrence": dict(recurrence_size=16),
        "attention": dict(n_head=2),
    }
    mixers = {name: settings | tiny | sizes[name] for name, settings in long_sequences.MIXERS.items()}
    monkeypatch.setattr(long_sequences, "MIXERS", mixers)
    rows = long_sequences.measured((64, 128), 128, 1, "fp32")
    assert [row["mixer"] for row in rows] == list(mixers) and len(capsys.readouterr().out.splitlines()) == 3
    for row in rows:
        assert all(0 < rate < 1e9 for rate in (*row["tokens_per_second"], *row["decoded"]))
        assert row["bytes_per_token"] == (row["bytes"][1] - row["bytes"][0]) / 64 > 0
    measure.write_json(tmp_path / "rows.json", rows)
    pytest.importorskip("matplotlib")
    long_sequences.draw(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 1000


# Trained models


def test_models_of_the_quality_table_have_one_size():
    quality = importlib.import_module("quality")
    for name, settings in quality.MODELS.items():
        config = ModelConfig(**settings)
        assert 2.39e6 < parameter_count(config) < 2.45e6, name
        assert quality.TOKENS % config.block_size == 0


def test_truncated_gradients_are_those_of_one_step():
    quality = importlib.import_module("quality")
    full, rng = ops.linear_recurrence_backward, np.random.default_rng(0)
    states, dout, weight = rng.standard_normal((5, 2, 3)), rng.standard_normal((5, 2, 3)), rng.standard_normal((3, 3))
    scratch = np.zeros(kernels_of(dout).linear_recurrence_scratch(2, 3))
    found = {}
    for name, context in (("full", contextlib.nullcontext), ("truncated", quality.truncated_to_one_step)):
        dstates, dweight = dout.copy(), np.zeros((3, 3))
        with context():
            ops.linear_recurrence_backward(dstates, dweight, scratch, states, weight)
        found[name] = dstates, dweight
    np.testing.assert_array_equal(found["truncated"][0], dout)
    expected = sum(before.T @ g for before, g in zip(states[:-1], dout[1:]))
    np.testing.assert_allclose(found["truncated"][1], expected, rtol=1e-12)
    assert np.abs(found["full"][0] - dout).max() > 0.1 and ops.linear_recurrence_backward is full


@pytest.mark.slow
def test_quality_keeps_its_runs_and_does_not_repeat_them(tmp_path, capsys, monkeypatch):
    quality = importlib.import_module("quality")
    data = small.text_file(tmp_path, lines=400)
    tiny = quality.MODELS["llama"] | dict(n_layer=1, n_embd=16, n_head=2, n_hidden=16, block_size=16)
    monkeypatch.setattr(quality, "MODELS", {"llama": tiny})
    monkeypatch.setattr(quality, "TOKENS", 64)
    arguments = ["--data", str(data), "--models", "llama", "--max-time", "1s", "--json", str(tmp_path / "runs.json")]
    quality.main([*arguments, "--rates", "1e-6"])
    capsys.readouterr()
    quality.main([*arguments, "--rates", "1e-6,1e-2"])  # runs the second rate only
    poor, run = json.loads((tmp_path / "runs.json").read_text(encoding="utf-8"))
    assert run["best"] == min(row["bpb"] for row in run["curve"]) < poor["best"] < 8.5
    assert (poor["rate"], run["rate"]) == (1e-6, 1e-2)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"llama at 0.01: {run['best']:.3f}"
    assert shown[-1].startswith(f"| llama | {run['parameters']:,} | 0.01 |")
    assert shown[-1].endswith(f"| {run['best']:.3f} | 1e-06: {poor['best']:.3f} |")
    quality.main([*arguments, "--rates", "1e-6,1e-2"])  # prints the table only
    assert capsys.readouterr().out.splitlines() == shown[-3:]
    assert quality.best_runs([run | dict(diverged=True), poor]) == [poor]


def test_quality_refuses_bad_flags(capsys):
    quality = importlib.import_module("quality")
    for arguments, message in (
        (["--models", "lama"], "did you mean llama"),
        (["--rates", "1e-3;2e-3"], "--rates '1e-3;2e-3' is not a list of numbers; write 1e-3,2e-3"),
    ):
        assert message in refusal(quality.main, ["--data", "none", *arguments], capsys)


def test_bf16_training_compares_the_losses_of_both_precisions(tmp_path, capsys, monkeypatch):
    bf16_training = importlib.import_module("bf16_training")
    model = dict(n_layer=1, n_head=2, n_embd=16, block_size=16)
    recipe = "shakespeare-char", model, dict(data=str(small.text_file(tmp_path)))
    monkeypatch.setattr(bf16_training, "recipes", lambda data: {"tiny": recipe})
    monkeypatch.setattr(bf16_training, "EVAL_BATCHES", 2)
    bf16_training.main(["--updates", "3", "--seeds", "1,2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["tiny", "1"], ["tiny", "2"]]
    assert lines[-1].endswith("at most 1 % is allowed")
    monkeypatch.setattr(bf16_training, "LIMIT", -1.0)
    with pytest.raises(SystemExit) as stopped:
        bf16_training.main(["--updates", "1", "--seeds", "1"])
    assert stopped.value.code == 1
    capsys.readouterr()
    assert "--seeds '1;2' is not a list of integers" in refusal(bf16_training.main, ["--seeds", "1;2"], capsys)
    assert "--updates is 0" in refusal(bf16_training.main, ["--updates", "0"], capsys)


def test_both_engines_end_shakespeare_char_with_the_same_loss(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    shakespeare_char = importlib.import_module("shakespeare_char")
    monkeypatch.setattr(shakespeare_char, "WINDOWS", 48)
    data = small.text_file(tmp_path, lines=400)
    shakespeare_char.main(["--data", str(data), "--seeds", "3", "--max-iters", "3", "--against", "torch"])
    ours, theirs = capsys.readouterr().out.splitlines()
    assert "slm_np" in ours and "PyTorch" in theirs
    loss = functools.partial(re.search, r"windows (\S+)")
    assert float(loss(ours)[1]) == pytest.approx(float(loss(theirs)[1]), abs=2e-4)


@pytest.fixture
def run(tmp_path):
    """The directory of a tiny trained run."""
    trainer = small.trainer(small.text_file(tmp_path), tmp_path / "run", max_iters=2)
    trainer.train()
    return str(tmp_path / "run")


def test_prompts_continues_every_prompt(run, capsys):
    prompts = importlib.import_module("prompts")
    prompts.main([run, "--tokens", "5"])
    out = capsys.readouterr().out
    assert all(f"{prompt}|" in out for prompt in prompts.PROMPTS) and out.startswith(f"== {run}, step 2")


def test_answers_counts_exact_answers(run, capsys, tmp_path):
    answers = importlib.import_module("answers")
    answers.main(["--model", run, "--questions", "2", "--wrong", "1", "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    assert out.count("answered '") == 1 and "0 of 2 answered exactly: 0.0%" in out and "plot" not in out
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {by: sum(row["asked"] for row in rows if row["by"] == by) for by in ("all", "kind", "plot")} == dict(
        all=2, kind=2, plot=2
    )
    assert all(row["exact"] == 0 for row in rows)
    answers.main(["--model", run, "--questions", "1", "--wrong", "0", "--plots"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:4] in ("kind", "plot")] == [
        "kind",
        "plot",
    ]
    assert "--questions is 0" in refusal(answers.main, ["--model", run, "--questions", "0"], capsys)


def test_story_quality_samples_and_judges_stories(run, capsys, tmp_path, monkeypatch):
    story_quality = importlib.import_module("story_quality")
    monkeypatch.setattr(story_quality, "SPLIT_BYTES", dict(train=5000))
    monkeypatch.setattr(story_quality, "MAX_TOKENS", 20)
    flags = ["--model", run, "--stories", "3", "--json", str(tmp_path / "found.json")]
    story_quality.main(flags)
    out = capsys.readouterr().out
    assert "stories that the grammar writes      0 of     3    0.0%" in out
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["stories"], found["whole"], found["memorized"]) == (3, 0, 0) and found["texts"][0] in out
    assert "--stories" in refusal(story_quality.main, [*flags[:2], "--stories", "0"], capsys)


def test_story_quality_counts_whole_wrong_and_memorized_stories(monkeypatch):
    story_quality = importlib.import_module("story_quality")
    stories = story_quality.stories
    monkeypatch.setattr(story_quality, "SPLIT_BYTES", dict(train=5000))
    (known, _), (new, _) = next(stories.write(1, 1)), next(stories.write(1, 9))
    wrong = new.replace(stories.read(new).facts["hero"], "Gertrude", 1)
    n_sentences = sum(len(stories.sentences(text)) for text in (known, new, wrong))
    found = story_quality.judged([text[:-2] for text in (known, new, wrong)] + [""])
    assert found == dict(stories=4, whole=2, sentences=n_sentences, accepted=n_sentences - 1, memorized=1)


@pytest.mark.parametrize("name", ["quality", "long_sequences", "time_to_loss"])
def test_a_plot_without_matplotlib_is_refused_first(name, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refusal(
        importlib.import_module(name).main, ["--data", "x"] * (name != "long_sequences") + ["--plot", "x.png"], capsys
    )
    assert message.rstrip().endswith('--plot needs matplotlib: pip install "slm_np[plot]"')


@pytest.mark.parametrize("name, flag", [("prompts", []), ("answers", ["--model"]), ("story_quality", ["--model"])])
def test_scripts_refuse_a_missing_run(name, flag, capsys, tmp_path):
    message = refusal(importlib.import_module(name).main, [*flag, str(tmp_path / "none")], capsys)
    assert str(tmp_path / "none") in message


def test_repeated_four_grams():
    prompts = importlib.import_module("prompts")
    assert prompts.repeated("a b c d e f a b c d") == pytest.approx(1 / 7)
    assert prompts.repeated("a b c") == 0
    assert prompts.repeated("a " * 13) == pytest.approx(0.9)


def test_amx_stress_refuses_bad_flags_and_machines_without_amx(capsys, monkeypatch):
    amx_stress = importlib.import_module("amx_stress")
    monkeypatch.setattr(amx_stress.amx, "refusal", lambda: "this processor has no amx-tile")
    assert "--seconds is 0" in refusal(amx_stress.main, ["--seconds", "0"], capsys)
    assert "AMX is unavailable: this processor has no amx-tile" in refusal(amx_stress.main, [], capsys)


def test_stories_vocabulary_keeps_the_most_frequent_words(capsys, tmp_path):
    script = importlib.import_module("stories_vocabulary")
    script.main(["--size", "700", "--bytes", "50000", "--out", str(tmp_path / "few.txt")])
    lines = (tmp_path / "few.txt").read_text(encoding="utf-8").split("\n")
    assert 690 - 257 < len(lines) - 1 <= 700 - 257 and lines[-1] == ""
    found = re.findall(r"(\w+): ([\d.]+) bytes/token, ([\d.]+)% of the words", capsys.readouterr().out)
    assert [name for name, *_ in found] == ["stories", "dialogues"]
    assert all(float(rate) > 1.8 and 50 < float(share) < 99 for _, rate, share in found)
    assert "--size is 256" in refusal(script.main, ["--size", "256"], capsys)
