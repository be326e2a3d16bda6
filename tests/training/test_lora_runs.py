"""Finetuning with low-rank adapters: what is saved, resuming, kills, merging, bases, and bad input."""

import dataclasses
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np import load
from slm_np.config import LoraConfig
from slm_np.formats import checkpoint, metrics, run_config
from slm_np.formats.layouts import layout_of
from slm_np.formats.tensors import open_tensors
from slm_np.nn.model import model_tensors
from slm_np.training.finetuning import LORA_RATE, RATE_SHARE, recipe

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = ["--lora-rank", 2, "--lora-dropout", 0.1, "--rslora"]
TRAIN = ["--eval-iters", 2, "--log-interval", 2, "--save-interval", 4, "--eval-interval", 4, "--threads", 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with texts and the run `base`."""
    folder = tmp_path_factory.mktemp("made")
    data = small.text_file(folder)
    small.text_file(folder, "new.txt", seed=3)
    words = small.flags(data, max_iters=8, learning_rate=0.01, out_dir=folder / "base", block_size=32)
    assert small.status("train", *words) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def finetune(*words, out="tuned", base="base", updates=8):
    given = ["--base", base, "--data", "new.txt", "--out-dir", out, "--max-iters", updates, *TRAIN, *LORA, *words]
    return small.status("finetune", *given)


def test_checkpoints_and_the_best_model_hold_adapters_only(folder, capsys):
    assert finetune("--retention-data", "text.txt") == 0
    said = capsys.readouterr().err
    assert re.search(r"adapters of rank 2 on q, k, v, o, gate, up, down: 496 parameters to train", said)
    assert re.search(r"memory: weights 0\.\d, gradients 0\.0, moments 0\.0", said)
    assert re.search(r"time: about \ds on this machine, for 8 updates of 0\.\d\d s and 3 evaluations\n", said)
    config = run_config.read_config("tuned")
    assert config.lora == dataclasses.asdict(LoraConfig(lora_rank=2, lora_dropout=0.1, rslora=True))
    assert config.train.learning_rate == pytest.approx(0.01 * RATE_SHARE * LORA_RATE) and config.train.weight_decay == 0
    tensors, _ = model_tensors(config.model, LoraConfig(**config.lora))
    trained = {tensor.name for tensor in tensors if tensor.trained}
    found = checkpoint.load_checkpoint("tuned/checkpoint-8")
    assert found.model.keys() == trained
    assert found.optimizer.keys() == {f"{role}.{name}" for role in ("mean", "square") for name in trained}
    measured = [row for row in metrics.read_metrics("tuned") if "val_loss" in row]
    assert [row["step"] for row in measured] == [0, 4, 8] and all(row["replay_loss"] > 0 for row in measured)
    assert measured[-1]["val_loss"] != measured[0]["val_loss"]
    assert not Path("tuned/model.safetensors").exists()


def test_a_loaded_run_is_its_base_with_the_adapters_merged(folder):
    assert finetune("--learning-rate", 0.002, updates=20) == 0
    run, base, config = load("tuned"), load("base"), run_config.read_config("tuned")
    layout = layout_of(config)
    found, _ = open_tensors(Path("tuned") / layout.file)
    tensors, expected = layout.from_file("tuned", found), dict(base.model.parameters.weight)
    for layer, own in enumerate(layout.adapters):
        for adapter in own:
            name = f"layers.{layer}.{adapter.name}"
            change = adapter.scale * (tensors[f"{name}.lora_A"] @ tensors[f"{name}.lora_B"])
            assert change.any()
            expected[f"{name}.weight"] = expected[f"{name}.weight"] + change
    for name, view in run.model.parameters.weight.items():
        np.testing.assert_allclose(view, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    moved = Path("elsewhere")
    moved.mkdir()
    for name in ("base", "tuned"):
        shutil.move(name, moved / name)
    again = load(moved / "tuned")  # found beside it
    np.testing.assert_array_equal(again.model.parameters.weights, run.model.parameters.weights)


def test_a_run_with_adapters_is_a_base_too(folder):
    assert finetune("--learning-rate", 0.002, updates=20) == 0
    assert finetune("--learning-rate", 0.002, out="twice", base="tuned", updates=20) == 0
    words = ["--base", "tuned", "--data", "new.txt", "--out-dir", "whole", "--max-iters", 4, *TRAIN]
    assert small.status("finetune", *words) == 0
    whole, twice = load("whole"), load("twice")
    assert whole.config.lora == {} and twice.config.base["weights"] == whole.config.base["weights"]


def test_resuming_gives_the_bits_of_an_unbroken_run(folder):
    assert finetune(out="unbroken") == 0
    assert finetune(out="resumed", updates=4) == 0
    assert small.status("finetune", "--resume", "resumed", "--base", "base", "--max-iters", 8) == 0
    a, b = (checkpoint.load_checkpoint(f"{name}/checkpoint-8") for name in ("unbroken", "resumed"))
    # A run of 4 updates has another schedule than one of 8, so only the names of tensors are the same.
    assert a.model.keys() == b.model.keys() and a.optimizer.keys() == b.optimizer.keys()
    shutil.copytree("unbroken", "cut")
    shutil.rmtree("cut/checkpoint-8")
    assert small.status("finetune", "--resume", "cut") == 0
    small.assert_same_state("unbroken", "cut", 8)


def test_adapters_are_trained_in_micro_batches(folder):
    words = ["--batch-size", 2, "--grad-accumulation-steps", 2, "--learning-rate", 0.002]
    assert finetune(*words, updates=20) == 0
    first, *_, last = [row["val_loss"] for row in small.rows("tuned") if "val_loss" in row]
    assert last < first - 0.001


def test_patience_stops_a_run(folder):
    assert finetune("--patience", 1, "--learning-rate", 0, "--min-lr", 0, out="stopped", updates=40) == 0
    assert checkpoint.newest_checkpoint("stopped").step == 4


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_bits_of_an_unbroken_one(folder):
    words = ["--base", "base", "--data", "new.txt", "--out-dir", "killed", *TRAIN, *LORA, "--save-interval", 20]
    words += ["--max-iters", 300, "--eval-interval", 100]
    running = small.process("finetune", *words, cwd=folder)
    while not any(path.name[11:].isdecimal() and int(path.name[11:]) >= 20 for path in Path("killed").glob("check*-*")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL and checkpoint.newest_checkpoint("killed").step < 300
    assert small.status("finetune", "--resume", "killed", "--save-interval", 300) == 0
    assert small.status("finetune", *["unbroken" if word == "killed" else word for word in words]) == 0
    small.assert_same_state("unbroken", "killed", 300)


def test_the_recipe_of_adapters():
    base = small.config("x", learning_rate=0.004).train
    found = recipe(base, {}, LoraConfig(lora_rank=8))
    assert found["learning_rate"] == pytest.approx(0.004 * RATE_SHARE * LORA_RATE) and found["weight_decay"] == 0
    found = recipe(base, dict(learning_rate=0.5, weight_decay=0.2), LoraConfig(lora_rank=8))
    assert (found["learning_rate"], found["weight_decay"]) == (0.5, 0.2)


@pytest.mark.parametrize("adapters", [True, False])
def test_a_base_of_another_program(folder, adapters, capsys):
    """A Hugging Face directory: the recipe is our default, and exports keep the context that the run shortens."""
    Path("foreign").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("base") / name, "foreign")
    words = ["--base", "foreign", "--data", "new.txt", "--out-dir", "tuned", "--max-iters", 4, *TRAIN]
    words += [*(LORA if adapters else []), "--block-size", 16]
    assert small.status("finetune", *words) == 0
    config = run_config.read_config("tuned")
    assert (config.model.block_size, config.full_context, config.base["run"]) == (16, 32, "foreign")
    assert config.train.learning_rate == pytest.approx(2e-4 if adapters else 2e-5)
    assert (config.train.batch_size, config.train.weight_decay) == (8, 0)
    found = load("tuned")
    assert found.step in (0, 4) and found.model.config.block_size == 16
    assert small.status("finetune", "--resume", "tuned", "--base", "foreign", "--max-iters", 5) == 0
    assert "--block-size 64 is more than the context of foreign, 32 tokens" in sentence(
        capsys, "--base", "foreign", "--data", "new.txt", "--block-size", 64
    )


# Bad input


def sentence(capsys, *words):
    """The line with which finetune refuses its arguments."""
    return small.refusal(capsys, "finetune", *words)


@pytest.mark.parametrize(
    "words, named",
    [
        (["--lora-alpha", 8], "--lora-alpha 8.0 has no effect without --lora-rank"),
        (["--rslora"], "--rslora has no effect without --lora-rank"),
        (["--lora-rank", 2, "--lora-targets", "qv"], "--lora-targets 'qv' is unknown"),
        (["--lora-rank", 2, "--lora-targets", "in_proj"], "--lora-targets in_proj is not in this model"),
        (["--lora-rank", -1], "--lora-rank is -1; it must be at least 0"),
        (["--lora-rank", 2, "--lora-dropout", 1], "--lora-dropout is 1.0; it must be at most 0.95"),
    ],
)
def test_bad_settings(folder, capsys, words, named):
    assert named in sentence(capsys, "--base", "base", "--data", "new.txt", *words)


def test_several_documents_need_an_end_of_text(folder, capsys):
    rows = "".join(json.dumps(dict(prompt=f"q{i}", completion="a b c d e f g h")) + "\n" for i in range(60))
    Path("rows.jsonl").write_text(rows, encoding="utf-8")
    said = sentence(capsys, "--base", "base", "--data", "rows.jsonl", *LORA)
    assert "the tokenizer of base has no end-of-text, and adapters cannot learn a new token" in said


def test_a_base_that_has_changed_or_is_missing_is_refused(folder, capsys):
    assert finetune() == 0
    words = small.flags("text.txt", max_iters=2, seed=5, out_dir="other", block_size=32)
    assert small.status("train", *words) == 0
    assert "--lora-rank 2, not 3" in sentence(capsys, "--resume", "tuned", "--lora-rank", 3)
    shutil.move("base", "kept")
    shutil.copytree("other", "base")
    for verb in (["finetune", "--resume", "tuned"], ["generate", "--model", "tuned"]):
        capsys.readouterr()
        assert small.status(*verb) == 2
        assert "tuned holds adapters to other weights than those in base, which have changed since" in (
            capsys.readouterr().err
        )
    shutil.rmtree("base")
    assert small.status("generate", "--model", "tuned") == 2
    assert "base" in capsys.readouterr().err
