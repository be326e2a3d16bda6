"""What the commands say is true where they say it, and names the next step."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.formats import metrics, run_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two texts, the finished run `run` of 12 updates, and the run `converted`."""
    folder = tmp_path_factory.mktemp("made")
    small.text_file(folder, "other.txt", seed=5, lines=400)
    data = small.text_file(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert small.status("train", *small.flags(data.name, out_dir="run")) == 0
    shutil.copytree(folder / "run", folder / "converted")
    config = run_config.read_config(folder / "converted")
    config.data.clear()
    config.data["converted"] = "llama2.c, model.bin"
    run_config.write_config(folder / "converted", config)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def said(capsys, verb, *words, status=2):
    """What a command prints on stderr."""
    capsys.readouterr()
    assert small.status(verb, *words) == status
    return capsys.readouterr().err


# Resuming


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_a_converted_run_is_not_resumed(folder, capsys, verb):
    line = said(capsys, verb, "--resume", "converted")
    assert "converted from another program's checkpoint" in line
    assert "python -m slm_np.finetune --base converted --data TEXT" in line


def test_a_run_on_other_data_names_finetune(folder, capsys):
    line = said(capsys, "train", "--resume", "run", "--data", "other.txt", "--max-iters", 20)
    assert "other.txt is not what run was trained on" in line
    assert line.endswith("train on new data with python -m slm_np.finetune --base run --data other.txt\n")
    shutil.copy("other.txt", "text.txt")
    line = said(capsys, "train", "--resume", "run", "--max-iters", 20)
    assert "text.txt is not what run was trained on" in line and "restore it" in line


def test_a_finished_run_says_so_and_how_to_train_longer(folder, capsys):
    line = said(capsys, "train", "--resume", "run", status=0)
    assert "run is finished, since it has made 12 updates; train it longer with: " in line
    assert "python -m slm_np.train --resume run --max-iters 24" in line
    line = said(capsys, "train", "--resume", "run", "--max-iters", 24, status=0)
    assert "is finished" not in line and metrics.read_metrics("run")[-1]["step"] == 24


def test_a_run_without_patience_left_says_so(folder, capsys):
    words = small.flags("text.txt", out_dir="stale", learning_rate=0, min_lr=0, max_iters=40, patience=2)
    said(capsys, "train", *words, status=0)
    line = said(capsys, "train", "--resume", "stale", status=0)
    assert "no lower validation loss in 2 evaluations" in line and "--resume stale --patience 0" in line


def test_a_schedule_that_changes_is_announced(folder, capsys):
    before = metrics.read_metrics("run")[-2]["lr"]
    line = said(capsys, "train", "--resume", "run", "--max-iters", 24, "--log-interval", 1, status=0)
    [announced] = [part for part in line.splitlines() if "the learning rate goes from" in part]
    after = next(row["lr"] for row in metrics.read_metrics("run") if row["step"] == 13 and "lr" in row)
    assert announced == (
        f"the schedule follows --max-iters 24 from here on: the learning rate goes from {before:.3g} to {after:.3g}"
    )
    assert "the learning rate goes" not in said(capsys, "train", "--resume", "run", status=0)


def test_the_least_rate_follows_when_resuming(folder, capsys):
    assert small.status("train", "--resume", "run", "--max-iters", 14, "--learning-rate", 1e-5) == 0
    assert run_config.read_config("run").train.min_lr == pytest.approx(1e-6)
    said(capsys, "train", "--resume", "run", "--max-iters", 16, "--learning-rate", 1e-5, "--min-lr", 1e-7, status=0)
    assert small.status("train", "--resume", "run", "--max-iters", 18, "--learning-rate", 1e-5) == 0
    assert run_config.read_config("run").train.min_lr == pytest.approx(1e-7)  # the rate is the run's own


def test_a_run_within_its_warmup_says_so(folder, capsys):
    line = said(capsys, "train", *small.flags("text.txt", out_dir="short", max_iters=3, warmup_iters=50), status=0)
    assert "the learning rate still rises when the run ends: it has 3 updates, and --warmup-iters is 50" in line
    assert "still rises" not in said(capsys, "train", *small.flags("text.txt", out_dir="long"), status=0)


# Something else where a run is expected, and the other way round


def test_what_is_not_a_run_is_named(folder, capsys):
    Path("tokens").mkdir()
    Path("tokens/train.bin").write_bytes(b"")
    Path("model.bin").write_bytes(b"")
    Path("empty").mkdir()
    alike = {
        "runn": "did you mean run?",
        "run/model.safetensors": "a part of the run run; name the run: run",
        "run/checkpoint-12": "a part of the run run; name the run: run",
        "run/checkpoint-99": "does not exist in the run run; name the run: run",
        "tokens": "a folder of tokens; train on it with --data tokens",
        ".": "a folder with runs; name one: converted, run",
    }
    as_run = {
        "nowhere": "does not exist; name a directory",
        "text.txt": "not a run but a file; train on a text with --data text.txt",
        "model.bin": "python -m slm_np.convert model.bin",
        "empty": "run.json missing: empty is not a run",
    }
    as_model = {
        "nowhere": "nowhere is not a model: it does not exist; name a run, a Hugging Face directory",
        "text.txt": "is a text, not a model; train on it with --data text.txt, or name a run",
        "model.bin": "model.bin is empty, not a model",
        "empty": "empty is an empty folder, not a model",
    }
    for verb, flag, expected in (
        ("generate", "--model", as_model),
        ("train", "--resume", as_run),
        ("finetune", "--base", as_model),
    ):
        words = ["--data", "text.txt"] * (verb == "finetune")
        for path, named in (alike | expected).items():
            assert named in said(capsys, verb, flag, Path(path), *words), (verb, path)


def test_a_run_is_not_a_text(folder, capsys):
    for words in (
        ("train", "--data", "run", "--out-dir", "new"),
        ("train", "--data", "text.txt", "run", "--out-dir", "new"),
        ("evaluate", "--model", "run", "--data", "run"),
        ("prepare", "run", "--out-dir", "new"),
    ):
        line = said(capsys, *words)
        assert "run is a run and not a text" in line and "train --resume or finetune --base" in line
    assert not os.path.exists("new")


# Advice that helps


def test_a_larger_vocabulary_is_advised_where_it_can_be_chosen(folder, capsys):
    np.random.default_rng(0).integers(0, 300, 4000).astype("<u2").tofile("ids.bin")
    words = small.flags("ids.bin", out_dir="new", vocab_size=256)
    assert "use --vocab-size 300 or more, or tokens of the right tokenizer" in said(capsys, "train", *words)
    said(capsys, "train", *small.flags("ids.bin", out_dir="ids", vocab_size=300, max_iters=1), status=0)
    (np.random.default_rng(0).integers(0, 300, 4000) + 300).astype("<u2").tofile("more.bin")
    for words in (
        ("evaluate", "--model", "ids", "--data", "more.bin"),
        ("finetune", "--base", "ids", "--data", "more.bin"),
        ("finetune", "--base", "ids", "--data", "ids.bin", "--retention-data", "more.bin"),
    ):
        line = said(capsys, *words)
        assert "the vocabulary has 300" in line and "--vocab-size" not in line, words


def test_a_stride_without_effect_is_refused(folder, capsys):
    row = '{"prompt": "the cat", "completion": "sat and ran home"}\n'
    Path("chat.jsonl").write_text(row * 40, encoding="utf-8")
    line = said(capsys, "evaluate", "--model", "run", "--data", "chat.jsonl", "--stride", 4)
    assert "--stride 4 has no effect on conversations" in line
    said(capsys, "evaluate", "--model", "run", "--data", "chat.jsonl", status=0)


def test_the_text_that_was_measured_is_named(folder, capsys):
    words = small.flags("text.txt", out_dir="two", val_data="other.txt", max_iters=1)
    said(capsys, "train", *words, status=0)
    assert ", on other.txt: " in said(capsys, "evaluate", "--model", "two", status=0)
    assert ", on the validation split of text.txt: " in said(capsys, "evaluate", "--model", "run", status=0)
    capsys.readouterr()
    assert small.status("info", "two") == 0
    assert "validation tokens, validated on other.txt\n" in capsys.readouterr().out


def test_other_retention_data_are_not_said_to_have_changed(folder, capsys):
    words = ["--base", "run", "--data", "other.txt", "--retention-data", "text.txt", "--out-dir", "tuned"]
    said(capsys, "finetune", *words, "--max-iters", 1, status=0)
    line = said(capsys, "finetune", "--resume", "tuned", "--retention-data", "other.txt", "--max-iters", 2)
    assert "--retention-data other.txt is not what the run began with" in line


@pytest.mark.parametrize(
    "words", [("train", "--preset", ""), ("gradcheck", "--preset", ""), ("warmup", "--preset", "")]
)
def test_an_empty_name_is_refused(folder, capsys, words):
    assert "argument --preset: an empty text names nothing" in said(capsys, *words)


def test_a_prompt_without_its_flag(folder, capsys):
    line = said(capsys, "generate", "Once upon a time")
    assert "did you mean --prompt " in line and "Once upon a time" in line
    assert "unknown argument" in said(capsys, "generate", "long " * 2000)
    assert "is not a model: it does not exist" in said(capsys, "generate", "--model", "long" * 2000)
    assert "is not a model: it does not exist" in said(capsys, "generate", "--model", "long" * 2000 + "/x")


def test_a_tokenizer_file_without_its_prefix(folder, capsys):
    words = small.flags("text.txt", out_dir="new", tokenizer="run/tokenizer.json")
    assert "did you mean file:run/tokenizer.json?" in said(capsys, "train", *words)


def test_a_target_that_exists_is_not_overwritten(folder, capsys):
    before = small.tree(".")
    for words in (["run", "run"], ["run", "converted"], ["run", "--out-dir", "run"], ["run", "text.txt"]):
        assert "already exists, and nothing is overwritten" in said(capsys, "convert", *words), words
    assert "both say what to write; give one" in said(capsys, "convert", "run", "a", "--out-dir", "b")
    assert small.tree(".") == before


def test_an_empty_stop_is_refused(folder, capsys):
    assert "--stop '' is empty" in said(capsys, "generate", "--model", "run", "--stop", "")


def test_a_model_too_large_to_load_is_told_what_helps(folder, capsys, monkeypatch):
    monkeypatch.setattr("slm_np.ops.device.CPU.free_bytes", lambda: 1)
    line = said(capsys, "generate", "--model", "run")
    assert "the model in run needs" in line and line.endswith("use a machine with more\n")


def test_a_limit_is_one_on_the_text_that_is_measured(folder, capsys):
    words = small.flags("text.txt", out_dir="two", val_data="other.txt", max_iters=1)
    said(capsys, "train", *words, status=0)
    whole = said(capsys, "evaluate", "--model", "two", status=0)
    limited = said(capsys, "evaluate", "--model", "two", "--limit-bytes", 500, status=0)
    same = said(capsys, "evaluate", "--model", "two", "--data", "other.txt", "--limit-bytes", 500, status=0)
    assert limited == same != whole and "other.txt: " in limited
