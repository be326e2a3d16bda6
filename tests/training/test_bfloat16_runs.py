"""Runs with bf16 matmuls: they learn, resume with the same bits, keep their precision and finetune a base."""

import math

import numpy as np
import pytest
import small
from bfloat16_arrays import assert_cast_copies_match, norm

from slm_np.formats import checkpoint, run_config, runs
from slm_np.kernels.cpu.microkernel_bf16 import Unit
from slm_np.ops.device import CPU
from slm_np.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def dtype(run):
    return run_config.read_config(run).train.dtype


def test_a_run_learns_and_resumes_with_the_same_bits_in_another_process(tmp_path, data):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run, length in ((whole, 12), (halves, 8)):
        flags = small.flags(data, dtype="bf16", out_dir=run, max_iters=length, lr_decay_iters=12, dropout=0.1)
        assert small.status("train", *flags) == 0
        assert dtype(run) == "bf16"
    losses = [row["val_loss"] for row in small.rows(whole) if "val_loss" in row]
    assert losses == sorted(losses, reverse=True) and losses[-1] < math.log(256) - 0.3
    resumed = small.command("train", "--resume", halves, "--max-iters", 12, cwd=tmp_path)
    assert resumed.returncode == 0 and "from step 8" in resumed.stderr, resumed.stderr
    assert "bf16: bfloat16 matmuls with float32 accumulation" in resumed.stderr
    small.assert_same_state(whole, halves, 12)
    assert small.rows(whole) == small.rows(halves) and dtype(halves) == "bf16"


def test_a_trainer_resumes_with_the_same_bits_and_cast_copies(tmp_path, data):
    whole, part = (small.trainer(data, tmp_path / name, dtype="bf16") for name in ("whole", "part"))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        part.step()
    part.save()
    again = small.trainer(data, dtype="bf16")
    small.resume(again, tmp_path / "part")
    assert again.updates == 3
    assert_cast_copies_match(again.model.parameters)
    for _ in range(3):
        again.step()
    np.testing.assert_array_equal(whole.model.parameters.weights, again.model.parameters.weights)
    np.testing.assert_array_equal(whole.optimizer.mean, again.optimizer.mean)
    float32 = small.trainer(data, dtype="fp32")
    for _ in range(6):
        float32.step()
    difference = norm(float32.model.parameters.weights - whole.model.parameters.weights)
    assert 0 < difference < 0.3 * norm(float32.model.parameters.weights)


@pytest.mark.parametrize("before, asked", [("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "fp16")])
def test_resuming_in_another_precision_is_refused(tmp_path, data, capsys, before, asked):
    small.trainer(data, tmp_path / "run", dtype=before)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert small.status("train", "--resume", tmp_path / "run", "--dtype", asked) == 2
    message = capsys.readouterr().err
    assert f"was trained with --dtype {before}, not {asked}" in message and message.count("\n") == 1
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fast", [True, False])
def test_auto_chooses_the_faster_precision_reports_it_and_keeps_it(tmp_path, data, capsys, monkeypatch, fast):
    def report():
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("slm_np: on the CPU"))

    run, reason = tmp_path / "run", "the reason"
    monkeypatch.setattr(CPU.kernels, "bfloat16_unit", lambda: Unit(fast, reason))
    assert small.status("train", *small.flags(data, dtype=None, out_dir=run, max_iters=2)) == 0
    name, said = (
        ("bf16", f"bf16: bfloat16 matmuls with float32 accumulation ({reason})") if fast else ("fp32", f"({reason})")
    )
    line = report()
    assert said in line and f", {name}" in line and ("bf16" in line) == fast
    assert dtype(run) == name
    monkeypatch.setattr(CPU.kernels, "bfloat16_unit", lambda: Unit(not fast, reason))
    assert small.status("train", "--resume", run, "--dtype", "auto", "--max-iters", 4) == 0
    assert dtype(run) == name and checkpoint.newest_checkpoint(run).step == 4
    line = report()
    assert f", {name}" in line and ("bf16 would be faster: " in line) != fast


def test_float16_is_refused(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, dtype="fp16", out_dir="run")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--dtype fp16" in message and "bf16" in message
    assert small.tree(tmp_path) == []


def test_finetuning_starts_from_the_weights_of_the_base(tmp_path, data, monkeypatch):
    small.trainer(data, tmp_path / "base", dtype="bf16").train()
    base, _ = runs.best_weights(tmp_path / "base", run_config.read_config(tmp_path / "base"))
    train, weights = Trainer.train, []

    def record(self):
        assert_cast_copies_match(self.model.parameters)
        weights.append({name: view.copy() for name, view in self.model.parameters.weight.items()})
        train(self)

    monkeypatch.setattr(Trainer, "train", record)
    flags = ["--base", tmp_path / "base", "--data", small.text_file(tmp_path, "other.txt", seed=1)]
    flags += ["--dtype", "bf16", "--max-iters", 2, "--out-dir", tmp_path / "tuned"]
    assert small.status("finetune", *flags) == 0
    assert dtype(tmp_path / "tuned") == "bf16" and len(weights) == 1
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, base[name])
