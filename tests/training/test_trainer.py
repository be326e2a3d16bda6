"""Runs from start to end: resuming, signals, kills, skipped updates, full disks, evaluations, and their files."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import small

from slm_np.errors import UserError
from slm_np.formats import checkpoint, metrics, run_config
from slm_np.formats.layouts import layout_of
from slm_np.training.callbacks import Callback
from slm_np.training.display import Display
from slm_np.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")
STEP = {"step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s"}
EVALUATION = {"step", "train_loss", "val_loss", "val_bpb", "time_s"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def weights(trainer):
    return trainer.model.parameters.weights.copy()


# Resuming


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        pytest.param(dict(epochs=None), marks=pytest.mark.slow),
        pytest.param(dict(grad_accumulation_steps=3), marks=pytest.mark.slow),
        dict(dropout=0.2, positions="learned", norm="layernorm", feed_forward="gelu", bias=True),
    ],
    ids=["random", "epochs", "accumulation", "dropout"],
)
def test_resuming_in_another_process_gives_the_same_bits(tmp_path, data, changes):
    length, part, full = ("epochs", 0.125, 0.25) if "epochs" in changes else ("max_iters", 8, 12)
    changes = {"max_iters": None, **changes, "lr_decay_iters": 12, "eval_interval": 1}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert small.status("train", *small.flags(data, **{**changes, length: full}, out_dir=whole)) == 0
    assert small.status("train", *small.flags(data, **{**changes, length: part}, out_dir=halves)) == 0
    middle, end = checkpoint.newest_checkpoint(halves).step, checkpoint.newest_checkpoint(whole).step
    assert 0 < middle < end
    resumed = small.command("train", "--resume", halves, f"--{length.replace('_', '-')}", full, cwd=tmp_path)
    assert resumed.returncode == 0 and f"from step {middle}" in resumed.stderr, resumed.stderr
    small.assert_same_state(whole, halves, end)
    assert small.rows(whole) == small.rows(halves)
    assert (whole / "model.safetensors").read_bytes() == (halves / "model.safetensors").read_bytes()


def test_metrics_have_the_promised_keys_and_no_rows_after_the_resumed_step(tmp_path, data):
    run = tmp_path / "run"
    first = small.trainer(data, run, save_interval=5)
    first.train()
    rows = metrics.read_metrics(run)
    assert {tuple(sorted(row)) for row in rows} == {tuple(sorted(keys)) for keys in (STEP, EVALUATION)}
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["val_bpb"] == pytest.approx(row["val_loss"] / math.log(2)) for row in rows if "val_loss" in row)

    again = small.trainer(data, save_interval=5)
    (run / "checkpoint-12" / "model.safetensors").unlink()
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + b'{"step": 13, "lo')
    small.resume(again, run)
    assert again.updates == 10
    assert metrics.read_metrics(run) == [row for row in rows if row["step"] <= 10]
    assert again.evaluated == 8 and again.best == min(
        row["val_loss"] for row in rows if "val_loss" in row and row["step"] <= 10
    )


@pytest.mark.parametrize(
    "change, named",
    [
        (["--n-layer", 2], "--n-layer 1, not 2"),
        (["--norm", "none"], "--norm rmsnorm, not none"),
        (["--seed", 5], "--seed 1337, not 5"),
        (["--preset", "slim"], "--preset stories, not slim"),
        (["--epochs", 2], "--max-iters 4, not for --epochs"),
        (["--tokenizer", "char"], "--tokenizer byte, not char"),
        (["--out-dir", "elsewhere"], "--out-dir elsewhere"),
        (["--data", "other.txt"], "the data have changed"),
        (["--data", "longer.txt"], "the data have changed"),
        (["--retention-data", "other.txt"], "--retention-data other.txt has no effect on a run without a base"),
    ],
)
def test_resuming_with_another_model_or_other_data_is_refused(tmp_path, data, capsys, monkeypatch, change, named):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, max_iters=4, out_dir="run")) == 0
    small.text_file(tmp_path, "other.txt", seed=1)
    small.text_file(tmp_path, "longer.txt", lines=400)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert small.status("train", "--resume", "run", *change) == 2
    sentence = capsys.readouterr().err
    assert named in sentence and sentence.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_resuming_accepts_data_that_moved(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, max_iters=4, out_dir="run")) == 0
    (tmp_path / "moved.txt").write_bytes(data.read_bytes())
    assert small.status("train", "--resume", "run", "--data", "moved.txt", "--max-iters", 6) == 0
    assert checkpoint.newest_checkpoint("run").step == 6


def test_resuming_accepts_zeros_that_mean_defaults(tmp_path, data):
    assert small.status("train", *small.flags(data, max_iters=4, out_dir=tmp_path / "run")) == 0
    assert small.status("train", "--resume", tmp_path / "run", "--n-kv-head", 0, "--head-dim", 0) == 0


# Stopping


def wait_for(process, words):
    """Read the stderr of a process up to a line with these words. Returns these lines."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


def wait_for_step(process, run, step):
    """Wait until a run, and so its process, has logged this step."""
    while not any(row["step"] >= step for row in metrics.read_metrics(run)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", None), 129)]
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(tmp_path, data, number, status):
    running = small.process(
        "train",
        *small.flags(
            data,
            max_iters=10**6,
            lr_schedule="constant",
            min_lr=None,
            log_interval=1,
            save_interval=10**6,
            out_dir="run",
        ),
        cwd=tmp_path,
    )
    wait_for_step(running, tmp_path / "run", 5)
    running.send_signal(number)
    rest = running.communicate(timeout=60)[1]
    assert running.returncode == status
    step = checkpoint.newest_checkpoint(tmp_path / "run").step
    assert step >= 5 and f"stopped at step {step}; resume with: python -m slm_np.train --resume run\n" in rest
    unbroken = small.trainer(data, tmp_path / "unbroken", max_iters=step, lr_schedule="constant")
    unbroken.train()  # it ends here, with an evaluation
    small.assert_same_state(tmp_path / "unbroken", tmp_path / "run", step, but=small.EVALUATIONS)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_second_signal_ends_the_process_in_the_middle_of_an_update(tmp_path, data):
    running = small.process(
        "train", *small.flags(data, grad_accumulation_steps=10**6, out_dir="run"), cwd=tmp_path
    )  # one update would take minutes
    wait_for(running, "run in run")
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    wait_for(running, "a second signal stops at once")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT
    assert checkpoint.newest_checkpoint(tmp_path / "run").step == 0


class Interrupting(Callback):
    """Raises signals at the end of the third update."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def on_step(self, trainer):
        if trainer.updates == 3:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
@pytest.mark.parametrize("others", [["SIGHUP"], ["SIGHUP", "SIGTERM"]])
def test_a_terminal_that_closes_sends_several_signals_and_the_run_is_saved(tmp_path, data, others):
    trainer = small.trainer(data, tmp_path / "run")
    trainer.callbacks.append(Interrupting(signal.SIGHUP, *(getattr(signal, name) for name in others)))
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.status == 129 and checkpoint.newest_checkpoint(tmp_path / "run").step == 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_is_ignored_stays_ignored(data, name):
    """As nohup does, and a shell for the background jobs of a script."""
    if not hasattr(signal, name):
        pytest.skip("Windows has no such signals")
    trainer, number = small.trainer(data), getattr(signal, name)
    trainer.callbacks.append(Interrupting(number))
    before = signal.signal(number, signal.SIG_IGN)
    try:
        trainer.train()
        assert trainer.updates == 12 and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_stops_the_sample_of_an_evaluation(tmp_path, data):
    trainer, calls = small.trainer(data, tmp_path / "run"), []

    def sampler(model, stopped):
        calls.append(stopped())
        signal.raise_signal(signal.SIGTERM)
        calls.append(stopped())
        return ""

    trainer.callbacks.append(Display(sampler))
    with pytest.raises(Interrupted):
        trainer.train()
    assert calls == [False, True] and checkpoint.newest_checkpoint(tmp_path / "run").step == 4


def test_a_signal_stops_training_during_an_evaluation(tmp_path, data):
    trainer = small.trainer(data, tmp_path / "run", eval_iters=10**6)
    loss, calls = trainer.model.loss, []

    def interrupting(*batch):
        calls.append(batch)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(*batch)

    trainer.model.loss = interrupting
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.status == 130 and len(calls) == 3
    assert checkpoint.newest_checkpoint(tmp_path / "run").step == 4
    assert [row for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row] == []
    trainer.config = small.config(data).train
    trainer.train()  # as in a notebook, where the process lives on
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row] == [4, 8, 12]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
# Imported here, so that no child has to do it again.
from slm_np import train
from slm_np.cli import plot
from slm_np.formats import checkpoint, metrics, run_config
from slm_np.inference import generation, sampling
from slm_np.ops.device import CPU
from slm_np.training import storage, trainer
CPU.kernels  # loaded but not run, since threads do not survive a fork
start, resume, run, kills = eval(sys.argv[1])
draw = random.Random(0)
steps = [-1]

def newest():
    return max([int(path.name[11:]) for path in Path(run).glob("checkpoint-*") if path.name[11:].isdigit()], default=-1)

for kill in range(kills):
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        train.main(resume if Path(run, "run.json").exists() else start)
        os._exit(0)
    # Two of three kills come while it trains, the others while it starts.
    while kill % 3 and newest() <= steps[-1] and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(draw.uniform(0.0, 0.05 if kill % 3 else 0.5))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "a run ended before it was killed"
    if Path(run, "run.json").exists():
        found = checkpoint.newest_checkpoint(run)
        checkpoint.load_checkpoint(found.path)
        steps.append(found.step)
print(steps[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_30_times_ends_with_the_bits_of_an_unbroken_run(tmp_path, data):
    end, run = 1500, tmp_path / "run"
    flags = [
        *small.flags(data, max_iters=end, eval_interval=7, eval_iters=1, log_interval=1, save_interval=1),
        "--out-dir",
        str(run),
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, repr((list(map(str, flags)), ["--resume", str(run)], str(run), 30))],
        env=small.environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert steps == sorted(steps) and len(set(steps)) > 10
    assert (
        small.status("train", "--resume", run, "--save-interval", end, "--eval-interval", 1000, "--log-interval", 1000)
        == 0
    )
    unbroken = small.trainer(
        data, tmp_path / "unbroken", max_iters=end, save_interval=end, eval_interval=1000, log_interval=1000
    )
    unbroken.train()
    small.assert_same_state(tmp_path / "unbroken", run, end, but=small.EVALUATIONS)  # it was evaluated less often


# What goes wrong


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(carry_state=True), "--carry-state needs recurrent layers only; choose a --pattern of M and S"),
        (dict(recompute=True), "--recompute has no effect on a single layer"),
        (dict(max_spectral_norm=0.9), "--max-spectral-norm 0.9 has no effect without linear recurrences"),
        (dict(max_time="2s", lr_decay_iters=9), "--lr-decay-iters 9 has no effect with --max-time 2s"),
        (
            dict(lr_schedule="constant", lr_decay_iters=9),
            "--lr-decay-iters 9 has no effect with --lr-schedule constant",
        ),
    ],
)
def test_settings_without_effect_on_the_model_are_refused(data, changes, words):
    with pytest.raises(UserError, match=words):
        small.trainer(data, **changes)


def test_kernels_of_the_cpu_are_refused_on_a_gpu(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, device="cuda", kernels="numpy")) == 2
    assert "--kernels numpy has no effect with --device cuda" in capsys.readouterr().err
    assert small.tree(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_update_changes_nothing_and_five_in_a_row_stop_the_run(tmp_path, data, value, where, capsys):
    run = tmp_path / "run"
    trainer = small.trainer(data, run, save_interval=100)
    trainer.callbacks.append(Display())
    compute, bad = trainer.model.loss_and_gradient, {3, 4, 8, 9, 10, 11, 12}

    def poisoned(*arguments):
        loss = compute(*arguments)
        if trainer.updates in bad:
            trainer.model.parameters.gradients[5] = value if where == "gradient" else 0
            return value if where == "loss" else loss
        return loss

    trainer.model.loss_and_gradient = poisoned
    trainer.config = small.config(data, max_iters=50, save_interval=100, eval_interval=100).train
    trainer.max_iters = 50
    with pytest.raises(UserError, match="5 updates in a row"):
        trainer.train()
    assert trainer.updates == 13 and trainer.optimizer.updates == 6
    assert capsys.readouterr().err.count("update skipped") == 7
    rows = metrics.read_metrics(run)
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [4, 5, 9, 10, 11, 12, 13]
    assert all(set(row) == STEP for row in rows)
    saved = checkpoint.newest_checkpoint(run)
    assert saved.step == 13
    assert all(np.isfinite(tensor).all() for tensor in [*saved.model.values(), *saved.optimizer.values()])

    clean = small.trainer(data, max_iters=50)  # the same updates without the bad ones
    for step in range(8):
        clean.step() if step not in bad else setattr(clean, "updates", step + 1)
    for name, tensor in saved.model.items():
        np.testing.assert_array_equal(tensor, clean.model.parameters.weight[name])

    bad.clear()
    again = small.trainer(data, max_iters=20)
    small.resume(again, run)
    again.train()
    assert again.skipped == 0 and np.isfinite(weights(again)).all() and checkpoint.newest_checkpoint(run).step == 20


def test_five_skipped_updates_exit_with_status_2(tmp_path, data, monkeypatch, capsys):
    from slm_np.nn.model import Model

    monkeypatch.setattr(Model, "loss_and_gradient", lambda *arguments: math.nan)
    assert small.status("train", *small.flags(data, out_dir=tmp_path / "run")) == 2
    assert "slm_np: 5 updates in a row" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.newest_checkpoint(tmp_path / "run").step == 5


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, data, monkeypatch):
    run = tmp_path / "run"
    trainer = small.trainer(data, run)
    fsync = os.fsync

    def full(file):
        if trainer.updates >= 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in run.iterdir() if "tmp" in path.name] == []
    assert checkpoint.newest_checkpoint(run).step == 4
    again = small.trainer(data)
    small.resume(again, run)
    again.train()
    unbroken = small.trainer(data)
    unbroken.train()
    np.testing.assert_array_equal(weights(again), weights(unbroken))


@pytest.mark.skipif(os.name == "nt", reason="no limits on file sizes")
@pytest.mark.parametrize("there_before", [False, True])
def test_a_run_that_cannot_be_written_leaves_nothing_behind(tmp_path, data, there_before):
    (tmp_path / "work").mkdir()
    if there_before:
        (tmp_path / "work" / "run").mkdir()
        (tmp_path / "work" / "run" / "notes").write_text("mine", encoding="utf-8")
    before = small.tree(tmp_path / "work")

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))

    done = small.command("train", *small.flags(data, out_dir="run"), cwd=tmp_path / "work", preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr
    assert small.tree(tmp_path / "work") == before


# Evaluation


def test_evaluation_uses_fixed_batches(data):
    trainer = small.trainer(data, dropout=0.3)
    first = trainer.estimate_loss()
    trainer.updates = 7
    assert trainer.estimate_loss() == first and first["train_loss"] != first["val_loss"]
    assert small.trainer(data, seed=1).estimate_loss() != first


def test_evaluation_does_not_change_training(data):
    often, never = (
        small.trainer(data, dropout=0.3, eval_interval=1),
        small.trainer(data, dropout=0.3, eval_interval=1000),
    )
    often.train()
    never.train()
    np.testing.assert_array_equal(weights(often), weights(never))


def test_the_best_model_is_kept_not_the_last(tmp_path):
    train, other = small.text_file(tmp_path, lines=20), tmp_path / "other.txt"
    # The better the model learns one text, the worse it is on the other.
    other.write_text("".join(chr(33 + (7 * i * i) % 90) for i in range(400)), encoding="utf-8")
    run = tmp_path / "run"
    assert (
        small.status("train", *small.flags(train, val_data=other, max_iters=60, learning_rate=0.02, out_dir=run)) == 0
    )
    losses = {row["step"]: row["val_loss"] for row in metrics.read_metrics(run) if "val_loss" in row}
    best = min(losses, key=losses.get)
    assert best < 60
    metadata = checkpoint.load_best(run)[1]
    assert int(metadata["step"]) == best and float(metadata["val_loss"]) == losses[best]
    again = small.trainer(train, val_data=str(other), max_iters=60, learning_rate=0.02)
    checkpoint.load_best(run, again.model.parameters.weight, layout_of(again.run))
    again.model.parameters.update_cast_copies()
    assert again.estimate_loss()["val_loss"] == losses[best]


# Callbacks


def test_without_callbacks_nothing_is_written_or_printed(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small.trainer(data).train()
    assert small.tree(tmp_path) == [] and capsys.readouterr() == ("", "")


def test_callbacks_are_called_in_order(data):
    class Recorder(Callback):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, event):
            if not event.startswith("on_"):
                return super().__getattribute__(event)
            return lambda trainer, *arguments: calls.append((trainer.updates, event, self.name))

    calls = []
    trainer = small.trainer(data, max_iters=3, log_interval=2, eval_interval=2, save_interval=2)
    trainer.callbacks = [Recorder("a"), Recorder("b")]
    trainer.train()
    assert [name for *_, name in calls] == ["a", "b"] * (len(calls) // 2)
    assert [(step, event) for step, event, name in calls if name == "a"] == [
        (0, "on_start"),
        (0, "on_save"),
        (1, "on_step"),
        (2, "on_log"),
        (2, "on_step"),
        (2, "on_save"),
        (2, "on_evaluation"),
        (3, "on_step"),
        (3, "on_save"),
        (3, "on_evaluation"),
        (3, "on_save"),
        (3, "on_end"),
    ]


def test_an_exception_in_a_callback_ends_the_run(data):
    class Failing(Callback):
        def on_step(self, trainer):
            if trainer.updates == 3:
                raise UserError("no more")

        def on_end(self, trainer):
            self.ended = trainer.updates

    trainer = small.trainer(data)
    trainer.callbacks.append(Failing())
    with pytest.raises(UserError, match="no more"):
        trainer.train()
    assert trainer.callbacks[-1].ended == trainer.updates == 3


# How long


def test_max_time_ends_the_run_at_the_lowest_rate(tmp_path, data, monkeypatch):
    monkeypatch.setattr("slm_np.ranks.world.time", small.Clock(0.005))
    changes = dict(max_time="1.5s", learning_rate=1e-2, log_interval=1, eval_interval=10**6, save_interval=10**6)
    small.trainer(data, tmp_path / "run", **changes).train()
    rows = metrics.read_metrics(tmp_path / "run")
    rates = [row["lr"] for row in rows if "lr" in row]
    assert max(rates) > 9e-3 and rates[-1] == pytest.approx(1e-4, rel=0.1)
    assert 1.5 <= rows[-1]["time_s"] < 1.52


def test_max_time_lowers_the_rate_even_during_warmup(data):
    trainer = small.trainer(data, max_time="10s", warmup_iters=10**6, learning_rate=1e-2, min_lr=1e-6)
    trainer.updates, trainer.elapsed = 900_000, 9.99
    assert trainer.step()[2] < 1e-5


def test_epochs_visit_every_window_once(data):
    trainer = small.trainer(data, epochs=2.0, batch_size=1)
    windows = (len(trainer.corpus.train) - 1) // 16
    assert trainer.max_iters == 2 * windows
    seen = []
    for trainer.updates in range(trainer.max_iters):
        trainer.load_batch(trainer.updates)
        seen.append(trainer.tokens.tobytes() + trainer.targets.tobytes())
    assert sorted(seen[:windows]) == sorted(seen[windows:]) and seen[:windows] != seen[windows:]
    ids = np.asarray(trainer.corpus.train.ids, np.int32)
    assert sorted(seen[:windows]) == sorted(
        ids[16 * i : 16 * i + 16].tobytes() + ids[16 * i + 1 : 16 * i + 17].tobytes() for i in range(windows)
    )


def test_a_run_of_no_updates_can_be_resumed(tmp_path, data):
    assert small.status("train", *small.flags(data, max_iters=0, out_dir=tmp_path / "run")) == 0
    assert small.status("train", "--resume", tmp_path / "run", "--max-iters", 3) == 0
    assert checkpoint.newest_checkpoint(tmp_path / "run").step == 3


def test_a_terminal_shows_a_bar_with_an_eta(data, capsys, monkeypatch):
    from slm_np import progress

    monkeypatch.setattr(progress, "interactive", lambda: True)
    trainer = small.trainer(data)
    trainer.callbacks.append(Display())
    trainer.train()
    shown = capsys.readouterr().err
    assert re.search(r"step 12/12 100%\|.*ETA 00:00, loss \d\.\d+  \d\.\d+ bits/byte  [\d,]+ tokens/s", shown)
    assert shown.count("validation loss") == 3


def test_a_warm_step_allocates_less_than_64_kib(data):
    trainer = small.trainer(data, dropout=0.1, grad_accumulation_steps=2)
    for _ in range(3):
        trainer.step()
    tracemalloc.start()
    trainer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


def test_real_text_is_learned(test_data, tmp_path):
    """A short run on the 65 characters of tiny Shakespeare: from ln 65 = 4.2 nats to below 3.3.

    3.3 nats is what the frequencies of the characters alone give.
    """
    path, end = test_data / "tinyshakespeare.txt", tmp_path / "end.txt"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    end.write_bytes(path.read_bytes()[-20_000:])
    assert (
        small.status(
            "train",
            "--preset",
            "shakespeare-char",
            "--data",
            path,
            "--val-data",
            end,
            "--n-layer",
            2,
            "--n-embd",
            64,
            "--max-iters",
            150,
            "--warmup-iters",
            10,
            "--learning-rate",
            3e-3,
            "--eval-interval",
            75,
            "--eval-iters",
            5,
            "--threads",
            1,
            "--out-dir",
            tmp_path / "run",
        )
        == 0
    )
    assert run_config.read_config(tmp_path / "run").model.vocab_size == 65
    losses = [row["val_loss"] for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row]
    assert losses[1] < losses[0] < 3.3 and losses[1] < 2.8


def test_saving_and_loading_copy_nothing(tmp_path):
    tensors = {"w": np.ones((1024, 1024), np.float32), "b": np.arange(1024, dtype=np.float32)}
    into = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    tracemalloc.start()
    checkpoint.save_best(tmp_path, tensors, dict(step=1, val_loss=1.0))
    checkpoint.load_best(tmp_path, into=into)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 10
    np.testing.assert_array_equal(into["w"], tensors["w"])


@pytest.mark.parametrize("separator", ["", "<|endoftext|>\n"])
def test_prompts_start_with_end_of_text_if_documents_end_with_it(tmp_path, separator):
    from slm_np import load
    from slm_np.inference.generation import encode_prompt

    text = tmp_path / "text.txt"
    text.write_text(separator.join(f"one fish {i}, two fish\n" for i in range(400)), encoding="utf-8")
    assert small.status("train", *small.flags(text, tokenizer="bpe:270", max_iters=1, out_dir=tmp_path / "run")) == 0
    tokenizer = load(tmp_path / "run").tokenizer
    assert tokenizer.end_of_text is not None
    assert (encode_prompt(tokenizer, "one")[0] == tokenizer.end_of_text) == bool(separator)
