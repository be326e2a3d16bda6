"""A run on disk keeps its best model, its tokenizer and its template, whatever happens to its other files."""

import builtins
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small

from slm_np.config import SamplingConfig
from slm_np.data.chat_template import DEFAULT
from slm_np.errors import REMEDIES, UserError
from slm_np.formats import checkpoint, directories, files, metrics, run_config, sources
from slm_np.formats.checksum import with_checksum
from slm_np.formats.conversion import convert
from slm_np.training.storage import Storage

pytestmark = pytest.mark.usefixtures("one_thread")

# A model that memorizes 700 bytes: another text is predicted best after few updates.
OVERFIT = dict(
    n_embd=32,
    n_hidden=64,
    block_size=32,
    batch_size=8,
    learning_rate=0.02,
    warmup_iters=1,
    lr_schedule="constant",
    eval_interval=10,
    eval_iters=4,
    save_interval=20,
    max_iters=80,
)


@pytest.fixture(scope="module")
def overfit(tmp_path_factory):
    """The directory of an overfitted run, `run`, with its data."""
    folder = tmp_path_factory.mktemp("overfit")
    small.text_file(folder, lines=12)
    draw = random.Random(0)
    letters = "".join(draw.choices(small.text(lines=12), k=3000))  # as frequent as in the text, but in no order
    (folder / "other.txt").write_text(letters, encoding="utf-8")
    small.trainer(folder / "text.txt", folder / "run", **settings(folder)).train()
    losses = evaluations(folder / "run")
    assert losses[80] > min(losses.values()) + 0.1, losses
    return folder


@pytest.fixture
def folder(overfit, tmp_path):
    """A copy of `overfit`."""
    shutil.copytree(overfit, tmp_path / "copy")
    return tmp_path / "copy"


def settings(folder, **changes):
    return OVERFIT | dict(val_data=str(folder / "other.txt")) | changes


def evaluations(run):
    """{step: validation loss}"""
    return {row["step"]: row["val_loss"] for row in metrics.read_metrics(run) if "val_loss" in row}


def resumed(folder, name="run", **changes):
    """A Trainer that continues the run `name` in `folder`."""
    trainer = small.trainer(folder / "text.txt", **settings(folder, **changes))
    small.resume(trainer, folder / name)
    return trainer


# The best model


@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "edited", "a folder"])
def test_a_worse_model_never_replaces_the_best_one(folder, damage):
    run, before = folder / "run", (folder / "run" / "model.safetensors").read_bytes()
    path, losses = run / "metrics.jsonl", evaluations(run)
    if damage in ("removed", "a folder"):
        path.unlink()
    if damage == "emptied":
        path.write_bytes(b"")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    if damage == "edited":
        path.write_text(path.read_text().replace('"val_loss": ', '"val_loss": 1'), encoding="utf-8")
    trainer = resumed(folder, max_iters=110)
    assert trainer.best == min(losses.values()) and trainer.evaluated == 80
    trainer.train()
    assert min(evaluations(run)[step] for step in (90, 100, 110)) > min(losses.values())
    assert (run / "model.safetensors").read_bytes() == before


def test_an_older_checkpoint_does_not_bring_a_worse_model(folder):
    run, before = folder / "run", checkpoint.load_best(folder / "run")
    other = folder / "other"
    small.trainer(folder / "text.txt", other, **settings(folder, max_iters=0)).train()  # checkpoint-0 of the same run
    shutil.rmtree(run / "checkpoint-80"), shutil.rmtree(run / "checkpoint-60")
    shutil.copytree(other / "checkpoint-0", run / "checkpoint-0")
    trainer = resumed(folder, max_iters=3, eval_interval=1)  # all of these losses are higher
    assert trainer.updates == 0 and trainer.best > float(before[1]["val_loss"])
    trainer.train()
    after = checkpoint.load_best(run)
    assert after[1] == before[1] and min(evaluations(run).values()) == trainer.best > float(after[1]["val_loss"])
    for name, weight in before[0].items():
        np.testing.assert_array_equal(after[0][name], weight)


def test_a_resume_that_has_nothing_to_do_removes_what_a_kill_has_left(folder):
    run, before = folder / "run", {path.name for path in (folder / "run").rglob("*")}
    for name in ("model.safetensors.tmp-123", "checkpoint-80/trainer_state.json.tmp-123", "run.json.tmp-5"):
        (run / name).write_bytes(b"part")
    shutil.copytree(run / "checkpoint-80", run / "checkpoint-80.old-123")
    resumed(folder).train()
    assert {path.name for path in run.rglob("*")} == before


def test_a_lower_loss_replaces_the_best_model_after_the_metrics_are_lost(folder):
    (folder / "run" / "metrics.jsonl").unlink()
    trainer = resumed(folder, max_iters=90)
    storage = trainer.callbacks[0]
    storage.on_evaluation(trainer, dict(step=85, val_loss=0.5 * storage.lowest), True)
    assert checkpoint.load_best(folder / "run")[1]["step"] == "85"


@pytest.mark.parametrize("moment", ["best model", "metrics", "counters"])
def test_a_kill_after_an_evaluation_leaves_the_files_of_an_unbroken_run(tmp_path, monkeypatch, moment):
    data = small.text_file(tmp_path)
    options = dict(max_iters=16, eval_interval=4, save_interval=8, patience=3)
    unbroken = small.trainer(data, tmp_path / "unbroken", **options)
    unbroken.train()
    trainer = small.trainer(data, tmp_path / "killed", **options)
    name = {"best model": "append_metrics", "metrics": "update_state", "counters": "none"}[moment]

    class Killed(BaseException):
        pass

    def die(*args):
        if trainer.updates == 8:
            raise Killed
        return call(*args)

    if moment == "counters":
        write = trainer.callbacks[0].on_evaluation

        def on_evaluation(trainer, row, improved):
            write(trainer, row, improved)
            if trainer.updates == 8:
                raise Killed

        trainer.callbacks[0].on_evaluation = on_evaluation
    else:
        module = metrics if name == "append_metrics" else checkpoint
        call = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args: die(*args) if "val_loss" in str(args) or module is checkpoint else call(*args)
        )
    with pytest.raises(Killed):
        trainer.train()
    monkeypatch.undo()
    again = small.trainer(data, **options)
    small.resume(again, tmp_path / "killed")
    assert again.updates == 8 and again.evaluated == (8 if moment == "counters" else 4)
    again.train()
    assert again.stale == unbroken.stale and again.best == unbroken.best
    small.assert_same_state(tmp_path / "unbroken", tmp_path / "killed", 16)
    assert small.rows(tmp_path / "unbroken") == small.rows(tmp_path / "killed")
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "unbroken" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_patience_is_kept_without_metrics(tmp_path):
    data = small.text_file(tmp_path)
    options = dict(learning_rate=0.0, min_lr=0.0, patience=3, eval_interval=2, save_interval=2, max_iters=100)
    trainer = small.trainer(data, tmp_path / "run", **options | dict(max_iters=4))
    trainer.train()
    assert trainer.stale == 1
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = small.trainer(data, **options)
    small.resume(again, tmp_path / "run")
    assert again.stale == 1
    again.train()
    assert again.updates == 8 and again.stale == 3
    finished = small.trainer(data, **options)
    small.resume(finished, tmp_path / "run")
    assert finished.finished() and finished.stale == 3


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_lost_best_model_is_named_and_made_again(folder, capsys, damage):
    path = folder / "run" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 8
    path.unlink() if damage == "lost" else path.write_bytes(raw)
    if damage == "lost":
        assert sources.load(folder / "run").step == 80
        assert "model.safetensors, the best model, is missing; using checkpoint-80" in capsys.readouterr().err
    rows, counters = small.rows(folder / "run"), checkpoint.newest_checkpoint(folder / "run").state
    trainer = resumed(folder)
    wanted = "is missing" if damage == "lost" else "is damaged in tensor"
    assert wanted in (said := capsys.readouterr().err) and "the next evaluation saves another best model" in said
    trainer.train()  # it is finished, but for the evaluation
    assert sources.load(folder / "run").step == 80 == trainer.updates
    assert small.rows(folder / "run") == rows
    assert checkpoint.newest_checkpoint(folder / "run").state | dict(elapsed=0) == counters | dict(elapsed=0)


def test_a_checkpoint_of_an_older_version_takes_its_counters_from_the_metrics(folder):
    def aged():
        for path in (folder / "run").glob("checkpoint-*/trainer_state.json"):
            state = json.loads(path.read_bytes())
            for name in small.EVALUATIONS:
                state.pop(name, None)
            path.write_bytes(with_checksum(state, state))

    aged()
    losses, trainer = evaluations(folder / "run"), resumed(folder)
    assert trainer.best == min(losses.values()) and trainer.evaluated == 80
    assert trainer.stale == list(losses.values())[::-1].index(trainer.best)
    (folder / "run" / "metrics.jsonl").unlink()
    aged()
    assert resumed(folder).best == min(losses.values())


@pytest.mark.parametrize(
    "name, value", [("elapsed", "x"), ("bad_steps", -1), ("best", [1]), ("stale", 1.5), ("evaluated", None)]
)
def test_counters_of_the_wrong_type(folder, name, value):
    for path in (folder / "run").glob("checkpoint-*/trainer_state.json"):
        state = json.loads(path.read_bytes()) | {name: value}
        path.write_bytes(with_checksum(state, state))
    with pytest.raises(UserError, match=f"trainer_state.json has no '{name}', or a bad one"):
        resumed(folder)


# Tokenizer and template


@pytest.fixture
def chatting(tmp_path):
    """A run on conversations, with a template."""
    rows = [json.dumps(dict(prompt=f"Who is {i}?", completion=f"It is {i} again.")) for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    small.trainer(tmp_path / "rows.jsonl", tmp_path / "run", vocab_size=257, max_iters=8).train()
    return tmp_path / "run"


def damaged(path, how):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink() if how == "lost" else path.write_bytes(raw + b"\n")


@pytest.mark.parametrize("how", ["lost", "damaged"])
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.json"])
def test_a_small_file_is_restored_from_the_newest_checkpoint_that_has_it(chatting, capsys, name, how):
    before = (chatting / name).read_bytes()
    damaged(chatting / "checkpoint-8" / name, how)
    damaged(chatting / name, how)
    run = sources.load(chatting)
    wanted = f"{name} is {'missing' if how == 'lost' else 'damaged, its checksum differs'}; restored from checkpoint-4"
    assert wanted in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert run.tokenizer.vocab_size == 257 and run.template == DEFAULT and (chatting / name).read_bytes() == before
    damaged(chatting / name, how)
    trainer = small.trainer(chatting.parent / "rows.jsonl", vocab_size=257, max_iters=12)
    small.resume(trainer, chatting)
    trainer.train()
    assert (chatting / name).read_bytes() == before == (chatting / "checkpoint-12" / name).read_bytes()
    damaged(chatting / name, how)
    for copy in chatting.glob(f"checkpoint-*/{name}"):
        damaged(copy, how)
    with pytest.raises(UserError, match=f"{name} is .* no checkpoint has a copy; restore it from a backup"):
        sources.load(chatting)
    with pytest.raises(UserError, match="no checkpoint has a copy"):
        small.resume(trainer, chatting)


def test_a_copy_is_used_where_the_run_cannot_be_written(chatting, capsys, monkeypatch):
    (chatting / "tokenizer.json").unlink()

    def refuse(*args):  # chmod would not stop root
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    assert sources.load(chatting).tokenizer.vocab_size == 257
    assert "tokenizer.json is missing; using the copy in checkpoint-8" in capsys.readouterr().err
    assert not (chatting / "tokenizer.json").exists()


@pytest.mark.parametrize("verb", ["generate", "chat", "evaluate", "info"])
def test_every_command_misses_a_lost_tokenizer(chatting, capsys, verb, monkeypatch):
    monkeypatch.chdir(chatting.parent)
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="utf-8"))
    (chatting / "tokenizer.json").unlink()
    words = ["run"] if verb == "info" else ["--model", "run"] + ["-n", 2] * (verb == "generate")
    assert small.status(verb, *words) == (2 if verb == "evaluate" else 0)  # it has no preset's data
    assert "tokenizer.json is missing; restored from checkpoint-8" in capsys.readouterr().err
    assert (chatting / "tokenizer.json").exists()


def test_lost_sampling_defaults_are_named(chatting, capsys):
    (chatting / "generation_config.json").unlink()
    assert sources.load(chatting).sampling == SamplingConfig()
    assert "generation_config.json is missing; sampling with the defaults" in capsys.readouterr().err


def test_an_older_run_that_lost_its_tokenizer_gets_it_from_the_data(chatting, capsys):
    config = run_config.read_config(chatting)
    run_config.write_config(chatting, dataclasses.replace(config, files={}))  # as a run of version 0.3 is
    before = (chatting / "tokenizer.json").read_bytes()
    for path in [chatting / "tokenizer.json", *chatting.glob("checkpoint-*/tokenizer.json")]:
        path.unlink()
    assert sources.load(chatting).tokenizer is None  # its settings do not say that it had one
    small.resume(small.trainer(chatting.parent / "rows.jsonl", vocab_size=257), chatting)
    assert "tokenizer.json is missing; made again from the data" in capsys.readouterr().err
    assert (chatting / "tokenizer.json").read_bytes() == before
    kept, made = (
        {"tokenizer.json", "chat_template.json"},
        {"config.json", "tokenizer_config.json", "chat_template.jinja"},
    )
    assert set(run_config.read_config(chatting).files) == kept | made


# Failing writes


class Failing:
    """Makes the k-th call that changes the disk raise an error."""

    CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "write", "truncate")

    def __init__(self, patch, k, code):
        self.k, self.code, self.count = k, code, 0
        for name in self.CALLS:
            patch.setattr(os, name, self.counted(getattr(os, name)))
        for module in (files, metrics):
            patch.setattr(module, "open", self.open, raising=False)

    def counted(self, call):
        def run(*args, **kwargs):
            self.count += 1
            if self.count == self.k:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return run

    def open(self, path, mode):
        file = self.counted(builtins.open)(path, mode)
        parts = dict(write=self.counted(file.write), flush=self.counted(file.flush))
        return contextlib.closing(SimpleNamespace(**parts, fileno=file.fileno, close=file.close))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", ["create", "train", "resume"])
def test_any_write_of_a_run_may_fail(tmp_path, verb, stride):
    """Whichever call fails: one sentence, and the run has all that it had before. Every `stride`-th call is tried."""
    code, words = (errno.ENOSPC, "free some space") if verb != "train" else (errno.EIO, "check the disk")
    data = small.text_file(tmp_path, lines=100)
    options = dict(max_iters=4, eval_interval=2, save_interval=2, log_interval=2)
    small.trainer(data, tmp_path / "first", **options).train()
    failures, work = 0, tmp_path / "work"
    work.mkdir()
    for k in itertools.count(1, stride):
        run = work / str(k)
        if verb == "resume":
            shutil.copytree(tmp_path / "first", run)
        if verb == "train":
            small.trainer(data, run, **options)
        trainer = small.trainer(data, **options | dict(max_iters=8 if verb == "resume" else 4))
        before = [path.name for path in work.iterdir()]
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, k, code)
            try:
                with directories.new_directory(run, "") if verb == "create" else directories.writing(run):
                    if verb == "create":
                        Storage(run).create(trainer)
                    else:
                        small.resume(trainer, run)
                        trainer.train()
                failed = False
            except UserError as error:
                failed, failures = True, failures + 1
                assert words in str(error) or "cannot create" in str(error), error
                assert ("free some space" in str(error)) <= (code == errno.ENOSPC)
                assert ("resume: what the run saved before is intact" in str(error)) == (verb != "create")
        if failing.count < k:
            break
        if failed and verb == "create":
            assert [path.name for path in work.iterdir()] == before
            continue
        loaded = sources.load(run)
        assert loaded.tokenizer is not None
        if verb == "resume":
            assert loaded.step >= 2 and checkpoint.newest_checkpoint(run).step >= 4
        again = small.trainer(data, **options)
        small.resume(again, run)
        again.train()
        if verb == "train":
            small.assert_same_state(tmp_path / "first", run, 4)
        shutil.rmtree(run)
    assert not failed and failures > {"create": 20, "train": 80, "resume": 80}[verb] / stride


def test_any_write_of_a_conversion_may_fail(tmp_path, test_data):
    failures = 0
    for k in itertools.count(1):
        failed = True
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, k, errno.ENOSPC)
            with contextlib.suppress(UserError):
                convert(test_data / "llama2c" / "stories260K.bin", str(tmp_path / "run"))
                failed = False
        failures += failed
        if failing.count < k:
            break
        if failed:
            assert not (tmp_path / "run").exists()
        else:
            assert sources.load(tmp_path / "run").step == 0
            shutil.rmtree(tmp_path / "run")
    assert not failed and failures > 20


def test_a_directory_that_was_replaced_is_not_written(tmp_path):
    data = small.text_file(tmp_path)
    trainer = small.trainer(data, max_iters=8)
    with directories.new_directory(tmp_path / "run", "") as directory:
        storage = Storage(directory)
        storage.create(trainer)
        trainer.callbacks.append(storage)
        shutil.rmtree(directory)
        with directories.new_directory(tmp_path / "run", ""):  # another start
            (directory / "notes").write_text("theirs", encoding="utf-8")
            with pytest.raises(UserError, match="was removed, renamed or replaced"):
                trainer.train()
            assert sorted(os.listdir(directory)) == [directories.LOCK, "notes"]


def test_errors_of_the_disk_name_what_helps(tmp_path):
    for code, words in REMEDIES.items():
        with pytest.raises(UserError) as found, files.saving(tmp_path / "x"):
            raise OSError(code, os.strerror(code))
        assert str(found.value).endswith(words) and "resume" not in str(found.value)
    (tmp_path / "run.json").write_bytes(b"")
    with pytest.raises(UserError, match="choose another disk, then resume: what the run saved"):
        with files.saving(Path(tmp_path) / "x"):
            raise OSError(errno.ENXIO, "no such device")
