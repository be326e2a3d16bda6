"""`python -m slm_np.train --data mine.txt` and nothing else: what a user's own text gets, and what is said of it."""

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.cli import own_text, report
from slm_np.cli.own_text import is_own_text
from slm_np.data import token_store
from slm_np.formats import checkpoint, run_config
from slm_np.ops.device import CPU

QUICK = ["--max-iters", 2, "--eval-iters", 1, "--kernels", "numpy"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with a text, and an empty cache."""
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    small.text_file(".", "mine.txt")
    yield tmp_path
    CPU.use_kernels()


def trained(capsys, *words):
    """(RunConfig of the new run in runs/own-text, stderr) of a short training."""
    capsys.readouterr()
    assert small.status("train", *words, *QUICK) == 0
    return run_config.read_config("runs/own-text"), capsys.readouterr().err


def test_which_data_are_a_text_of_the_user(folder):
    np.zeros(999, "<u2").tofile("tokens.bin")
    Path("dialogues").write_text("a file of that name", encoding="utf-8")
    for data in ("mine.txt", "mine.txt,stories", "tinyshakespeare", "missing.txt", "*.txt", ".", "dialogues"):
        assert is_own_text(dict(data=data)), data
    for train in ({}, dict(data="stories"), dict(data="stories, stories"), dict(data="tokens.bin"), dict(data="")):
        assert not is_own_text(train), train
    assert not is_own_text(dict(data="mine.txt", val_data="tokens.bin"))


def test_a_text_alone_chooses_everything_and_says_so(folder, capsys):
    run, said = trained(capsys, "--data", "mine.txt")
    n_bytes = Path("mine.txt").stat().st_size
    lines = said.splitlines()
    [at] = [n for n, line in enumerate(lines) if line.startswith("own text: ")]
    assert lines[at].startswith(f"own text: {n_bytes:,} bytes and 2 updates on ") and " on byte, " in lines[at]
    assert re.match(r"it reads .* of the text, so there is no dropout; change anything by its flag", lines[at + 1])
    assert lines[at + 2].startswith("run in runs/own-text")
    assert (run.preset, run.train.optimizer, run.train.tokenizer) == ("own-text", "muon", "byte")
    assert (run.train.max_iters, run.train.fit_time, run.train.eval_interval) == (2, "", 0)


def test_an_embedded_corpus_and_tokens_get_what_they_got(folder, capsys):
    assert small.status("train", "--data", "mine.txt", "--preset", "slim", "--n-embd", 16, *QUICK) == 0
    assert small.status("prepare", "mine.txt", "--out-dir", "tokens") == 0
    sizes = ["--n-embd", 16, "--n-head", 2, "--n-layer", 1, "--block-size", 16]
    assert small.status("train", "--data", "tokens", *sizes, *QUICK) == 0
    assert run_config.read_config("runs/slim").train.optimizer == "adamw"
    assert run_config.read_config("runs/stories").model.n_embd == 16
    assert "own text" not in capsys.readouterr().err
    said = small.refusal(capsys, "train", "--preset", "own-text", "--data", "tokens", *QUICK)
    assert "--preset own-text follows the length of a text, but tokens contains tokens already" in said


def test_flags_and_a_file_of_settings_win(folder, capsys):
    Path("settings.toml").write_text('data = "mine.txt"\nn-embd = 32\ndropout = 0.3\nbatch-size = 3', encoding="utf-8")
    run, said = trained(capsys, "--config", "settings.toml", "--dropout", 0.25, "--tokenizer", "char")
    assert (run.model.n_embd, run.model.dropout, run.train.batch_size) == (32, 0.25, 3)
    assert run.train.tokenizer == "char" and run.model.n_head == 1 and "so dropout" not in said


def test_it_resumes(folder, capsys):
    trained(capsys, "--data", "mine.txt")
    assert small.status("train", "--resume", "runs/own-text", "--max-iters", 4) == 0
    assert checkpoint.newest_checkpoint("runs/own-text").step == 4
    assert "own text:" not in capsys.readouterr().err


def test_the_size_is_that_of_the_unpacked_text_within_the_limit(folder, capsys, monkeypatch):
    content = Path("mine.txt").read_bytes()
    Path("mine.txt.gz").write_bytes(gzip.compress(content))
    _, said = trained(capsys, "--data", "mine.txt.gz")
    assert f"own text: {len(content):,} bytes" in said
    limit = 5000
    size = token_store.text_size("mine.txt", limit_bytes=limit)
    assert size == limit  # it has no documents
    assert token_store.text_size("mine.txt", "mine.txt") == len(content)
    assert token_store.text_size("stories") > 10**7 and not (folder / "cache" / "stories").exists()


def test_learned_tokens_for_a_longer_text_and_bytes_without_the_package(folder, capsys, monkeypatch):
    small.text_file(".", "long.txt", lines=3000)
    fit = ["--n-layer", 1, "--n-embd", 32, "--data", "long.txt"]
    run, said = trained(capsys, *fit)
    assert run.train.tokenizer == "bpe:512" and "it is read as bytes" not in said
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert small.status("train", *fit, *QUICK, "--out-dir", "bytes") == 0
    said = capsys.readouterr().err
    assert (
        "it is read as bytes: --tokenizer bpe:512 needs the package tokenizers, which is not installed; "
        'run pip install "slm_np[bpe]"'
    ) in said
    assert run_config.read_config("bytes").train.tokenizer == "byte" and " on byte, " in said
    said = small.refusal(capsys, "train", *fit, *QUICK, "--tokenizer", "bpe:512")
    assert "which is not installed" in said  # what the user asks for is not replaced


@pytest.mark.parametrize(
    "words, named",
    [
        (["--n-embd", "x"], "--n-embd 'x' is not a whole number"),
        (["--n-embd", 0], "--n-embd is 0; it must be at least 1"),
        (["--n-layer", 10**9], "--n-layer is 1000000000; it must be at most 1000"),
        (["--n-head", 7], "--n-head 7 does not divide --n-embd"),
        (["--fit-time", "9s"], "--max-iters 2 and --fit-time 9s both set the length"),
        (["--pattern", "M", "--n-head", 2], "--n-head 2 has no effect without attention layers"),
        (["--vocab-size", 300], "--vocab-size 300 has no effect with a tokenizer"),
        (["--data", "tezt.txt"], "tezt.txt does not exist"),
        (["--data", "empty.txt"], "empty.txt is empty"),
        (["--data", "tiny.txt"], "--block-size 8 needs 9"),
        (["--val-data", "nowhere.txt"], "--val-data nowhere.txt does not exist"),
        (["--block-size", 10**6], "--block-size 1000000 needs"),
        (["--tokenizer", "bpf"], "--tokenizer 'bpf' is unknown"),
    ],
)
def test_bad_settings_and_data_are_refused_as_before(folder, capsys, words, named):
    Path("empty.txt").write_bytes(b"")
    Path("tiny.txt").write_bytes(b"tiny")
    data = [] if "--data" in words else ["--data", "mine.txt"]
    assert named in small.refusal(capsys, "train", *data, *words, *QUICK)


@pytest.mark.parametrize("n_bytes", [250, 1000, 4000])
def test_a_text_of_a_few_lines_trains(folder, capsys, n_bytes):
    Path("few.txt").write_text(small.text()[:n_bytes], encoding="utf-8")
    run, said = trained(capsys, "--data", "few.txt")
    assert n_bytes / 50 < run.model.block_size <= n_bytes / 20
    assert "more text would help more than anything else" in said


def test_pretrain_chooses_too(folder, capsys):
    assert small.status("pretrain", "mine.txt", "--preset", "own-text", *QUICK) == 0
    assert run_config.read_config("runs/own-text").train.tokenizer == "byte"


def test_that_the_model_began_to_memorize_is_said(folder, capsys):
    words = small.flags(
        "short.txt",
        max_iters=600,
        eval_interval=20,
        save_interval=600,
        learning_rate=0.03,
        min_lr=0.03,
    )
    draw = np.random.default_rng(0)
    Path("short.txt").write_bytes(bytes(draw.integers(97, 123, 700).tolist()))  # nothing to learn but the letters
    assert small.status("train", *words, "--kernels", "numpy", "--warmup-iters", 0) == 0
    said = capsys.readouterr().err
    step = int(re.search(r"^evaluating the best model, of step (\d+),", said, re.M)[1])
    line = (
        f"the validation loss rose after step {step}: the model began to memorize; more text, --dropout or a smaller "
        "--max-iters would help\n"
    )
    assert step < 0.6 * 600 and line in said
    assert small.status("train", "--resume", "runs/stories") == 0
    assert line in capsys.readouterr().err


def test_when_it_is_said(folder):
    trainer = small.trainer("mine.txt", max_iters=100)
    trainer.updates = 100
    assert report.memorized(trainer, "60") is None
    assert "a smaller --max-iters" in report.memorized(trainer, "59")
    timed = small.trainer("mine.txt", fit_time="9s")
    timed.updates = 100
    assert "a shorter --fit-time" in report.memorized(timed, "0")


def test_wrong_values_of_a_program(folder):
    with pytest.raises(own_text.UserError, match="--n-layer must be of type int"):
        own_text.OwnText("own-text", dict(n_layer="x"), {})
