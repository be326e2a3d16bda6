"""Finetuning: the base's weights and vocabulary, masked targets, retention data, patience, resuming, bad input."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.config import LoraConfig, TrainConfig
from slm_np.data.assistant_windows import replies, window_starts
from slm_np.data.batches import gather
from slm_np.data.tokens import Tokens
from slm_np.formats import checkpoint, metrics, run_config, sources
from slm_np.inference.evaluation import evaluate, windows_of
from slm_np.nn.model import Model
from slm_np.training.finetuning import Base, grown, recipe

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = [
    "--max-iters",
    8,
    "--eval-interval",
    4,
    "--eval-iters",
    2,
    "--log-interval",
    2,
    "--save-interval",
    4,
    "--threads",
    1,
]


def rows(n=60):
    """Conversations as the text of a .jsonl file, in both forms of rows."""
    pairs = [(f"Who sat on the {i}?", f"Cat {i}.") for i in range(n)]
    return "".join(
        json.dumps(
            dict(messages=[dict(role="user", content=q), dict(role="assistant", content=a)])
            if i % 2
            else dict(prompt=q, completion=a)
        )
        + "\n"
        for i, (q, a) in enumerate(pairs)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with texts and the run `base`, whose vocabulary is the 256 bytes."""
    folder = tmp_path_factory.mktemp("made")
    data = small.text_file(folder)
    small.text_file(folder, "new.txt", seed=3)
    (folder / "rows.jsonl").write_text(rows(), encoding="utf-8")
    assert (
        small.status(
            "train", *small.flags(data, max_iters=8, learning_rate=0.01, out_dir=folder / "base", block_size=32)
        )
        == 0
    )
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def finetune(*words, data="new.txt", out="tuned"):
    return small.status("finetune", "--base", "base", "--data", data, "--out-dir", out, *TRAIN, *words)


def sentence(capsys, *words):
    """The line with which finetune refuses its arguments."""
    return small.refusal(capsys, "finetune", *words)


# Masked targets


def masked(ids, mask):
    return Tokens("train", np.array(ids, np.uint16), mask=np.array(mask, np.uint8), n_targets=sum(mask))


def test_windows_start_with_the_document_of_a_reply():
    #        0  1  2  3  4  5  6  7  8  9 10 11     9 ends a document
    ids = [1, 2, 3, 9, 1, 2, 3, 4, 5, 6, 7, 9]
    mask = [0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1]
    tokens = masked(ids, mask)
    assert [found.tolist() for found in replies(tokens, 9)] == [[2, 1, 2], [3, 6, 11], [0, 4, 4]]
    assert window_starts(tokens, 8, 9).tolist() == [0, 3]  # the third reply, which ends at 11, just fits
    assert window_starts(tokens, 3, 9).tolist() == [0, 4, 8]
    long = masked(range(20), [0] * 5 + [1] * 10 + [0] * 5)
    starts = window_starts(long, 4, 99).tolist()
    assert {target for start in starts for target in range(start + 1, start + 5)} >= set(range(5, 15))


def test_replies_are_found_across_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    tokens = masked(draw.integers(0, 6, 500).tolist(), draw.integers(0, 2, 500).tolist())
    whole = replies(tokens, 0)
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("slm_np.data.assistant_windows.BLOCK", block)
        for one, other in zip(replies(tokens, 0), whole):
            np.testing.assert_array_equal(one, other)
    assert whole[0].sum() == tokens.n_targets
    counted = np.concatenate(
        [np.arange(start + 1 + 8 - new, start + 1 + 8) for start, new in windows_of(tokens, 8, 4, False, 0)]
    )
    begins = {0, *(np.flatnonzero(tokens.ids == 0) + 1)}
    assert len(set(counted)) == len(counted) and set(np.flatnonzero(tokens.mask)) - begins <= set(counted)


def test_two_micro_batches_of_different_counts_are_one_large_batch(folder):
    """The loss is the mean over the unmasked targets of the whole update."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = small.trainer(
            "rows.jsonl",
            vocab_size=257,
            batch_size=batch,
            grad_accumulation_steps=accumulation,
            block_size=32,
            grad_clip=0.0,
        )
        counts = []
        for micro in range(accumulation):
            trainer.load_batch(micro)
            counts.append(int((trainer.targets >= 0).sum()))
        found.append((counts, *trainer.step()[:2], trainer.optimizer.mean.copy()))
    (_, loss, norm, mean), (counts, *parts) = found
    assert len(set(counts)) > 1 and 0 < sum(counts) < 8 * 32
    assert parts[0] == pytest.approx(loss, rel=1e-6) and parts[1] == pytest.approx(norm, rel=1e-5)
    np.testing.assert_allclose(parts[2], mean, atol=1e-7 * float(np.abs(mean).max()) + 1e-9, rtol=1e-3)


def test_evaluation_counts_assistant_tokens_only(folder):
    trainer = small.trainer("rows.jsonl", vocab_size=257, block_size=32)
    validation = trainer.corpus.validation
    total, count = 0.0, 0
    x, y = np.zeros((1, 32), np.int32), np.zeros((1, 32), np.int32)
    for start, new in windows_of(validation, 32, 16, False, trainer.corpus.tokenizer.end_of_text):
        gather(x, y, validation, [start])
        total += float(trainer.model.losses(x, y)[0, 32 - new :].sum())
        count += int((y[0, 32 - new :] >= 0).sum())
    assert 0 < count < len(validation) / 2 and evaluate(
        trainer.model, validation, trainer.corpus.tokenizer
    ).nats_per_token == pytest.approx(total / count, rel=1e-5)


def test_a_run_on_conversations_reports_masking_and_keeps_their_template(folder, capsys):
    assert finetune(data="rows.jsonl") == 0
    said = capsys.readouterr()
    for words in (
        "the loss is masked to assistant tokens",
        "end-of-text is added to the vocabulary (256 -> 257)",
        "documents",
    ):
        assert words in said.err
    assert "Q: Who sat on the" in said.out and "slm_np.chat --model tuned" in said.out
    assert Path("tuned/chat_template.json").exists() and sources.load("tuned").tokenizer.end_of_text == 256
    # A finetuned run is a base like any other: the message is about the data.
    assert "tuned" not in sentence(capsys, "--base", "tuned", "--data", "none.txt")
    assert small.status("finetune", "--base", "tuned", "--data", "new.txt", "--out-dir", "again", *TRAIN) == 0
    assert Path("again/chat_template.json").exists() and run_config.read_config("again").model.vocab_size == 257


# What comes from the base


def test_it_starts_from_the_best_weights_of_the_base_and_evaluates_them(folder):
    assert finetune("--retention-data", "text.txt") == 0
    base, start = Base.load("base"), checkpoint.load_checkpoint("tuned/checkpoint-4")
    assert run_config.read_config("tuned").base["weights"] == base.read_checksum()
    measured = [row for row in metrics.read_metrics("tuned") if "val_loss" in row]
    assert [row["step"] for row in measured] == [0, 4, 8] and all(row["replay_loss"] > 0 for row in measured)
    config = run_config.read_config("tuned")
    assert (config.train.learning_rate, config.train.batch_size, config.model.vocab_size) == (0.0025, 4, 256)
    assert any(
        (start.model[name] != array).any() for name, array in sources.load("base").model.parameters.weight.items()
    )
    assert json.loads(Path("tuned/generation_config.json").read_text()) == json.loads(
        Path("base/generation_config.json").read_text()
    )


def test_new_tokens_start_as_the_mean_of_the_others(folder):
    base, known = Base.load("base"), sources.load("base").model.parameters.weight["embedding.weight"]
    model = Model(dataclasses.replace(base.config.model, vocab_size=257), None)
    base.fill(model.parameters)
    found = model.parameters.weight["embedding.weight"]
    np.testing.assert_array_equal(found[:256], known)
    np.testing.assert_allclose(found[256], known.mean(0), rtol=1e-5)
    assert not list(base.parts.tensors())  # fill frees their memory


def test_new_rows_and_columns_are_the_mean_of_the_others():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert grown(weight, (4, 3)) is weight
    np.testing.assert_array_equal(grown(weight, (6, 3)), [*weight, weight.mean(0), weight.mean(0)])
    np.testing.assert_array_equal(grown(weight, (4, 4)), np.column_stack([weight, weight.mean(1)]))


def test_the_recipe_follows_the_base():
    base = small.config("x", learning_rate=0.01, seed=3).train
    found = recipe(base, {})
    assert found["epochs"] == 3 and found["learning_rate"] == 0.0025 and found["seed"] == 3
    assert TrainConfig(**found).min_lr == pytest.approx(0.00025)
    assert found["batch_size"] == 4 and "eval_interval" not in found
    found = recipe(base, dict(max_iters=5, learning_rate=0.5, seed=4))
    assert "epochs" not in found and (found["max_iters"], found["learning_rate"], found["seed"]) == (5, 0.5, 4)
    assert TrainConfig(**found).min_lr == pytest.approx(0.05)


def test_the_optimizer_of_the_base_stays_in_the_same_proportions():
    base = small.config("x", learning_rate=0.01, optimizer="muon", matrix_rate=0.5).train
    found = recipe(base, {})
    assert (found["optimizer"], found["matrix_rate"], found["learning_rate"]) == ("muon", 0.5, 0.0025)
    assert recipe(base, dict(matrix_rate=2.0))["matrix_rate"] == 2.0
    for found in (recipe(base, dict(optimizer="adamw")), recipe(base, {}, LoraConfig(lora_rank=4))):
        TrainConfig(**found)
        assert found.get("optimizer", "adamw") == "adamw" and "matrix_rate" not in found
    # The matrices' rate under Muon, of which AdamW's updates are as large.
    assert recipe(base, dict(optimizer="adamw"))["learning_rate"] == pytest.approx(0.00125)
    found = recipe(small.config("x", learning_rate=0.01).train, dict(optimizer="muon"))
    assert found["optimizer"] == "muon" and "matrix_rate" not in found


@pytest.mark.parametrize("words, interval", [([], 0), (["--eval-interval", 3], 3)])
def test_it_evaluates_and_saves_after_each_tenth_unless_told_otherwise(folder, words, interval):
    words = ["--base", "base", "--data", "new.txt", "--max-iters", 20, "--eval-iters", 1, "--out-dir", "tenths", *words]
    assert small.status("finetune", *words) == 0
    train = run_config.read_config("tenths").train
    assert (train.eval_interval, train.save_interval, train.warmup_iters) == (interval, interval, 2)


def test_no_updates_keep_the_weights_of_the_base(folder):
    assert finetune("--max-iters", 0) == 0
    one, two = sources.load("base"), sources.load("tuned")
    np.testing.assert_array_equal(one.model.parameters.weights, two.model.parameters.weights)


# Stopping and resuming


def test_it_stops_without_a_lower_validation_loss(folder):
    trainer = small.trainer("text.txt", Path("stale"), patience=2, max_iters=100, eval_interval=5)
    losses = iter([3.0, 2.0, 2.5, 2.25, 1.0])
    trainer.estimate_loss = lambda: dict(train_loss=1.0, val_loss=next(losses))
    trainer.train()
    assert trainer.updates == 20 and trainer.best == 2.0 and checkpoint.newest_checkpoint("stale").step == 20
    assert checkpoint.load_best("stale")[1]["step"] == "10"
    again = small.trainer("text.txt", patience=2, max_iters=100, eval_interval=5)
    small.resume(again, "stale")
    assert again.finished() and again.stale == 2
    more = small.trainer("text.txt", patience=3, max_iters=100, eval_interval=5)
    small.resume(more, "stale")
    assert not more.finished()


@pytest.mark.parametrize("data", [pytest.param("new.txt", marks=pytest.mark.slow), "rows.jsonl"])
def test_resuming_gives_the_same_bits(folder, data):
    words = ["--retention-data", "text.txt", "--lr-decay-iters", 8]
    assert finetune(*words, data=data, out="whole") == 0
    assert finetune(*words, "--max-iters", 4, data=data, out="halves") == 0
    shutil.rmtree("base")  # no longer needed
    resumed = small.command("finetune", "--resume", "halves", "--max-iters", 8, cwd=folder)
    assert resumed.returncode == 0 and "from step 4" in resumed.stderr, resumed.stderr
    small.assert_same_state("whole", "halves", 8)
    assert small.rows("whole") == small.rows("halves")
    assert Path("whole/model.safetensors").read_bytes() == Path("halves/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_killed_run_resumes_with_the_same_bits(folder):
    words = [
        "--base",
        "base",
        "--data",
        "rows.jsonl",
        "--out-dir",
        "killed",
        *TRAIN[:8],
        "--save-interval",
        1,
        "--threads",
        1,
        "--max-iters",
        300,
        "--eval-interval",
        100,
    ]
    running = small.process("finetune", *words, cwd=folder)
    while not any(
        path.name[11:].isdecimal() and int(path.name[11:]) >= 20 for path in Path("killed").glob("checkpoint-*")
    ):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL and checkpoint.newest_checkpoint("killed").step < 300
    assert small.status("train", "--resume", "killed", "--save-interval", 300) == 0  # train resumes any run
    assert small.status("finetune", *words[:5], "unbroken", *words[6:]) == 0
    small.assert_same_state("unbroken", "killed", 300)


def test_another_base_or_other_data_are_refused(folder, capsys):
    assert finetune("--retention-data", "text.txt") == 0
    capsys.readouterr()
    assert small.status("train", *small.flags("text.txt", max_iters=2, seed=5, out_dir="other", block_size=32)) == 0
    assert "tuned was finetuned from other weights than other" in sentence(
        capsys, "--resume", "tuned", "--base", "other"
    )
    assert "the data have changed" in sentence(capsys, "--resume", "tuned", "--data", "text.txt")
    assert "--retention-data new.txt is not what the run began with" in sentence(
        capsys, "--resume", "tuned", "--retention-data", "new.txt"
    )
    assert "other did not start from another run" in sentence(capsys, "--resume", "other")
    assert small.status("finetune", "--resume", "tuned", "--base", "base", "--max-iters", 9) == 0


# Bad input


@pytest.mark.parametrize(
    "words, named",
    [
        (["--data", "new.txt"], "--base is missing"),
        (["--base", "base"], "--data is missing"),
        (["--base", ".", "--data", "new.txt"], ". is not a model but a folder with runs; name one: base"),
        (
            ["--base", "base", "--data", "short.txt"],
            "the train split of short.txt has 15 tokens, but the model of base needs at least 33",
        ),
        (["--base", "base", "--data", "new.txt", "--n-layer", 2], "base uses --n-layer 1, not 2"),
        (["--base", "base", "--data", "new.txt", "--block-size", 8], "base uses --block-size 32, not 8"),
        (["--base", "base", "--data", "new.txt", "--tokenizer", "char"], "base uses --tokenizer byte, not char"),
        (["--base", "base", "--data", "new.txt", "--patience", -1], "--patience is -1"),
        (["--base", "base", "--data", "new.txt", "--epochs", 2, "--max-time", "3s"], "give one"),
        (
            ["--base", "base", "--data", "new.txt", "--retention-data", "short.txt"],
            "--retention-data short.txt holds out",
        ),
        (["--base", "base", "--data", "empty.jsonl"], "empty.jsonl"),
        (["--base", "base", "--data", "broken.jsonl"], "broken.jsonl"),
        (["--base", "base", "--data", "new.txt", "--out-dir", "base"], "already holds a run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(folder, capsys, words, named):
    Path("short.txt").write_text("not enough of it.", encoding="utf-8")
    Path("empty.jsonl").write_text('{"prompt": "", "completion": "x"}\n', encoding="utf-8")
    Path("broken.jsonl").write_text(rows() + '{"prompt": \n', encoding="utf-8")
    assert named in sentence(capsys, *words)


def test_other_commands_refuse_retention_data(folder, capsys):
    assert small.status("train", *small.flags("text.txt", out_dir="x"), "--retention-data", "new.txt") == 2
    assert "has no effect on a run without a base; leave it out, or use finetune" in capsys.readouterr().err


# pretrain


def test_pretrain_builds_a_vocabulary(folder, capsys):
    words = [
        word
        for name, value in {**small.MODEL, **small.TRAIN, "max_iters": 3}.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert small.status("pretrain", *words, "--tokenizer", "bpe:300", "--out-dir", "pre", "text.txt") == 0
    config = run_config.read_config("pre")
    assert (config.preset, config.train.tokenizer) == ("slim", "bpe:300") and 257 < config.model.vocab_size <= 300
    assert small.status("pretrain", "text.txt", "--data", "new.txt") == 2 and "give one" in capsys.readouterr().err
    assert small.status("pretrain") == 2 and "what to train on is missing" in capsys.readouterr().err
