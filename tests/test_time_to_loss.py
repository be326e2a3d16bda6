"""The benchmark of recipes: counting is exact, tracks are kept, and rows survive a rerun."""

import importlib
import json
import math
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.errors import UserError


@pytest.fixture
def ngram():
    return importlib.import_module("ngram")  # of benchmarks/


@pytest.fixture
def benchmark():
    return importlib.import_module("time_to_loss")


def plain_losses(train, validation, size, orders):
    """The formula of ngram.py with dictionaries."""
    counts = [Counter(tuple(train[i - k + 1 : i + 1]) for i in range(k - 1, len(train))) for k in range(1, orders + 1)]
    followers, totals = defaultdict(set), Counter()
    for found in counts:
        for gram, n in found.items():
            followers[gram[:-1]].add(gram[-1])
            totals[gram[:-1]] += n
    sums = [0.0] * orders
    for i, token in enumerate(validation):
        p = 1 / size
        for k in range(1, orders + 1):
            history = tuple(validation[max(0, i - k + 1) : i])
            if len(history) == k - 1 and totals[history]:
                count = counts[k - 1][(*history, token)]
                p = (max(count - 0.75, 0) + 0.75 * len(followers[history]) * p) / totals[history]
            sums[k - 1] -= math.log(p)
    return [total / len(validation) for total in sums]


def test_counting_follows_its_formula(ngram):
    draw = random.Random(1)
    train, validation = ([draw.choice([0, 0, 1, 2, 5]) for _ in range(n)] for n in (400, 150))
    found = ngram.losses(np.array(train), np.array(validation), 6, 6)
    np.testing.assert_allclose(found, plain_losses(train, validation, 6, 6), rtol=1e-12)


def test_probabilities_of_counting_sum_to_one(ngram):
    train = np.array([0, 1, 2, 0, 1, 1, 2, 2, 0, 1])
    for order in range(1, 5):
        each = [ngram.losses(train, np.array([0, 1, 2, token]), 3, order)[-1] * 4 for token in range(3)]
        before = ngram.losses(train, np.array([0, 1, 2]), 3, order)[-1] * 3
        assert sum(math.exp(before - loss) for loss in each) == pytest.approx(1)


def test_splits_hold_out_a_tenth(benchmark, tmp_path):
    tasks = importlib.import_module("tasks")
    text = random.Random(2).randbytes(100_000)
    (tmp_path / "text").write_bytes(text)
    for split in tasks.SPLITS:
        train, held = tasks.split_text(tmp_path / "text", split)
        assert len(train) + len(held) == len(text) and 0.08 < len(held) / len(text) < 0.12
        assert Counter(train + held) == Counter(text)


def test_every_task_is_a_recipe_that_trains(benchmark):
    from slm_np.presets import preset

    for name, task in benchmark.TASKS.items():
        for recipe in ("preset", *["original"] * bool(task.original)):
            given, files = {"learning_rate": 3e-3, "optimizer": "muon"}, ("train.txt", "held-out.txt")
            base, model, train = benchmark.settings(task, recipe, given, files, 7, 5, "fp32")
            config, made = preset(base, model, train)
            assert (made.max_iters, made.seed, made.learning_rate, made.tokenizer) == (7, 5, 3e-3, task.tokenizer)
            assert config.vocab_size and task.unit in ("nats", "bits"), name


def run(*words, cwd):
    script = Path(__file__).parent.parent / "benchmarks" / "time_to_loss.py"
    return subprocess.run(
        [sys.executable, script, *map(str, words)],
        cwd=cwd,
        env=small.environment(),
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_each_seed_is_run_once(tmp_path):
    (tmp_path / "text").write_bytes(b"the cat sat on the mat, and the dog ran to the cat. " * 400)
    words = "--task shakespeare-char --track R --data text --updates 3 --json out.json --target 9 --seeds".split()
    change = ["--change", "learning_rate=2e-3,batch_size=2"]
    done = run(*words, "1,2", *change, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert row["seeds"] == [1, 2] and row["passed"] is True and row["updates"] == 3
    assert row["flops"] > 0 and row["seconds"] > 0 and row["sd"] > 0
    first = dict(row["losses"])
    done = run(*words, "1,2,3", *change, cwd=tmp_path)
    assert "seed 1" not in done.stdout and "seed 3" in done.stdout
    [row] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert row["seeds"] == [1, 2, 3] and first.items() <= row["losses"].items()
    for _ in range(2):
        done = run(*words, "1", "--engine", "ngram", cwd=tmp_path)
    assert done.returncode == 0 and len(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))) == 2


def test_track_r_keeps_the_network(benchmark):
    for change in ("model.n_layer=2", "tokenizer=byte"):
        with pytest.raises(SystemExit):
            benchmark.main(["--track", "R", "--change", change, "--data", "text"])


def test_pytorch_takes_recipes_of_adamw_only(benchmark, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--engine", "torch", "--data", "text"])
    assert ended.value.code == 2 and "by AdamW, not muon; use --recipe original" in capsys.readouterr().err


def test_a_target_needs_significance(benchmark):
    row = dict(losses={"1": 1.0, "2": 1.2}, times={"1": 1.0, "2": 3.0})
    assert benchmark.summary(row | dict(target=1.4))["passed"] is False
    assert benchmark.summary(row | dict(target=1.45))["passed"] is True
    assert benchmark.summary(row | dict(target=None))["passed"] is None


def test_the_plot_has_a_line_for_each_engine_and_recipe(benchmark, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    common = dict(task="shakespeare-char", track="R", processor="some processor", sd=0.01)
    rows = [
        common | dict(engine="slm_np", recipe="preset", seconds=4.0, mean_loss=1.7),
        common | dict(engine="slm_np", recipe="preset", seconds=2.0, mean_loss=1.9),
        common | dict(engine="torch", recipe="original", seconds=9.0, mean_loss=1.9),
        common | dict(engine="ngram", recipe="preset", seconds=1.0, mean_loss=1.69),
    ]
    benchmark.draw(rows, tmp_path / "plot.png")
    [axes] = drawn[0].axes
    handles, labels = axes.get_legend_handles_labels()
    lines = {label: handle.lines[0].get_xydata().tolist() for label, handle in zip(labels, handles)}
    assert lines == {
        "counted n-grams": [[1.0, 1.69]],
        "slm_np, preset": [[2.0, 1.9], [4.0, 1.7]],
        "PyTorch, original": [[9.0, 1.9]],
    }


def test_a_model_that_sees_its_targets_is_refused(benchmark):
    class Split:
        def first(self, n):
            return self

        ids = np.arange(9)

    class Peeking:
        class config:
            block_size, vocab_size = 8, 50

        def logits(self, tokens):
            found = np.zeros((*tokens.shape, 50))
            found[:, :-1] += 3.0 * np.eye(50)[tokens[:, 1:]]
            return found

        def losses(self, tokens, targets):
            logits = self.logits(tokens)
            return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]

    with pytest.raises(UserError, match="sees the tokens"):
        benchmark.check(Peeking(), Split())
