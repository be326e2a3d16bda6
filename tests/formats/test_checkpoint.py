"""Checkpoints survive what happens to files: odd arrays, flipped and missing bytes, full disks, kills."""

import builtins
import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from slm_np.errors import UserError
from slm_np.formats import files, metrics
from slm_np.formats.checkpoint import (
    load_best,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    save_best,
    save_checkpoint,
)
from slm_np.formats.files import write_json
from slm_np.formats.metrics import append_metrics, read_metrics, trim_metrics


def tensors_of(step, size=3):
    return {"w": np.full((size, 2), step, np.float32), "b": np.arange(size, dtype=np.float32) + step}


def save(run, step, **more):
    save_checkpoint(
        run,
        step,
        tensors_of(step),
        {"m": tensors_of(step)["w"] * 2, "v": tensors_of(step)["b"] * 3},
        {"cursor": step * 10},
        **more,
    )


def assert_intact(found):
    """All tensors and counters of the checkpoint are those of its step."""
    expected = tensors_of(found.step)
    np.testing.assert_array_equal(found.model["w"], expected["w"])
    np.testing.assert_array_equal(found.model["b"], expected["b"])
    np.testing.assert_array_equal(found.optimizer["m"], expected["w"] * 2)
    np.testing.assert_array_equal(found.optimizer["v"], expected["b"] * 3)
    assert found.state == {"cursor": found.step * 10, "step": found.step}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_round_trip_and_pruning(tmp_path):
    for step in (5, 10, 100, 20):
        save(tmp_path, step)
        assert_intact(found := newest_checkpoint(tmp_path))
        assert found.step == step and found.path == tmp_path / f"checkpoint-{step}"
    # 20 after 100: the run resumed from before 100, which was damaged. A later checkpoint would win over the new one.
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["checkpoint-30"]
    assert names(tmp_path / "checkpoint-30") == ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]


def test_loading_a_checkpoint_into_existing_arrays(tmp_path):
    save(tmp_path, 5)
    model, optimizer = (
        {"w": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)},
        {"m": np.zeros((3, 2), np.float32), "v": np.zeros(3, np.float32)},
    )
    found = newest_checkpoint(tmp_path, model, optimizer)
    assert found.model["w"] is model["w"] and found.optimizer["v"] is optimizer["v"]
    assert_intact(found)


def test_state_keeps_big_integers_and_numpy_scalars(tmp_path):
    state = {
        "random": [2**127 + 1, -1],
        "best": np.float32(0.5),
        "rows": np.int64(3),
        "rate": 0.1,
        "text": "größe \udcff",
        "nothing": None,
    }
    save_checkpoint(tmp_path, np.int64(1), {}, {}, state)
    assert newest_checkpoint(tmp_path).state == state | {"step": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_line_on_stderr(tmp_path, capsys, name):
    save(tmp_path, 5)
    save(tmp_path, 10)
    file = tmp_path / "checkpoint-10" / name
    whole = file.read_bytes()
    for broken in (whole[:-5], whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:], b""):
        file.write_bytes(broken)
        assert_intact(found := newest_checkpoint(tmp_path))
        line = capsys.readouterr().err
        assert found.step == 5 and line.count("\n") == 1 and str(file) in line
    file.unlink()
    assert newest_checkpoint(tmp_path).step == 5
    assert "is missing" in capsys.readouterr().err
    save(tmp_path, 10)  # saving the step again replaces the damaged checkpoint
    assert_intact(newest_checkpoint(tmp_path))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"] and not capsys.readouterr().err


def test_every_flipped_byte_of_the_trainer_state_is_detected(tmp_path):
    save(tmp_path, 5)
    file = tmp_path / "checkpoint-5" / "trainer_state.json"
    raw = file.read_bytes()
    for i, byte in enumerate(raw):
        for flipped in {byte ^ 1, byte ^ 0x80, 0x20} - {byte}:
            file.write_bytes(raw[:i] + bytes([flipped]) + raw[i + 1 :])
            with pytest.raises(UserError, match="trainer_state.json is damaged"):
                load_checkpoint(tmp_path / "checkpoint-5")
    for text in (b"[]", b"5", b"[" * 100_000, raw[:-1], raw + b"\n"):
        file.write_bytes(text)
        with pytest.raises(UserError, match="trainer_state.json is damaged"):
            load_checkpoint(tmp_path / "checkpoint-5")


def test_files_of_different_steps_are_not_a_checkpoint(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "checkpoint-5" / "optimizer.safetensors").replace(tmp_path / "checkpoint-10" / "optimizer.safetensors")
    with pytest.raises(UserError, match="is of step 5, but trainer_state.json beside it of step 10"):
        load_checkpoint(tmp_path / "checkpoint-10")


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from .*it has saved none"):
        newest_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        newest_checkpoint(tmp_path / "nowhere")
    save(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint to resume from .*cut short"):
        newest_checkpoint(tmp_path)


def test_a_kill_between_the_two_renames_of_a_repeated_step_loses_nothing(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "checkpoint-5").rename(tmp_path / "checkpoint-5.old-123")
    (tmp_path / "checkpoint-6.tmp-123").mkdir()
    (tmp_path / "model.safetensors.tmp-123").write_bytes(b"part")
    (tmp_path / "my.tmp-notes").write_bytes(b"not ours")
    assert_intact(found := newest_checkpoint(tmp_path))
    remove_leftovers(tmp_path, found)
    assert names(tmp_path) == ["checkpoint-5.old-123", "my.tmp-notes"]
    (tmp_path / "checkpoint-6.tmp-123").mkdir()
    save(tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-6", "my.tmp-notes"]


def test_a_resume_removes_what_a_kill_has_left(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "checkpoint-5", tmp_path / "checkpoint-5.old-123")
    for name in ("model.safetensors.tmp-123", "run.json.tmp-7", "checkpoint-5/trainer_state.json.tmp-123"):
        (tmp_path / name).write_bytes(b"part")
    (tmp_path / "my.tmp-notes").write_bytes(b"not ours")
    kept = names(tmp_path / "checkpoint-5.old-123")
    remove_leftovers(tmp_path, newest_checkpoint(tmp_path))
    assert names(tmp_path) == ["checkpoint-5", "my.tmp-notes"]
    assert names(tmp_path / "checkpoint-5") == kept


def test_saving_a_step_again_beside_leftovers_of_the_same_process_number(tmp_path):
    save(tmp_path, 5)
    leftovers = tmp_path / f"checkpoint-5.old-{os.getpid()}"  # process numbers repeat in containers
    leftovers.mkdir()
    (leftovers / "trainer_state.json").write_bytes(b"")
    save(tmp_path, 5)
    assert_intact(newest_checkpoint(tmp_path))
    assert names(tmp_path) == ["checkpoint-5"]


class FullDisk:
    """Makes the k-th call that changes the disk raise ENOSPC and, if `broken`, every later one too."""

    CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch, k, broken):
        self.k, self.broken, self.count = k, broken, 0
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        for module in (files, metrics):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def counted(self, call):
        def run(*args, **kwargs):
            self.count += 1
            if self.count == self.k or self.broken and self.count > self.k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return run

    def open(self, path, mode):
        file = self.counted(builtins.open)(path, mode)
        return contextlib.closing(
            SimpleNamespace(
                write=self.counted(file.write), flush=self.counted(file.flush), fileno=file.fileno, close=file.close
            )
        )


@pytest.mark.parametrize("broken", [False, True], ids=["one call fails", "all later calls fail"])
@pytest.mark.parametrize("before, step", [((), 5), ((5,), 10), ((5, 10), 15), ((5,), 5), ((5, 10), 10)])
def test_any_disk_operation_of_a_checkpoint_may_fail(tmp_path, before, step, broken):
    failures = 0
    for k in range(1, 200):
        run = tmp_path / str(k)
        for earlier in before:
            save(run, earlier)
            (run / "run.json").write_bytes(b"{}")  # it is a run
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, k, broken)
            try:
                save(run, step)
                failed = False
            except UserError as error:
                failed, failures = True, failures + 1
                assert (
                    f"checkpoint-{step}" in str(error)
                    and os.strerror(errno.ENOSPC) in str(error)
                    and ("then resume: what the run saved before is intact" in str(error)) == bool(before)
                )
        if failed and not broken:
            assert not list(run.glob("*.tmp-*"))
        if before or not failed:
            assert_intact(found := newest_checkpoint(run))
            assert found.step == (before[-1] if failed else step)
        save(run, step + 1)
        assert_intact(newest_checkpoint(run))
        assert {name for name in names(run) if not name.startswith("checkpoint-") or "." in name} <= {"run.json"}
        if disk.count < k:
            break
    assert disk.count < k and not failed and failures > 15


@pytest.mark.parametrize(
    "write",
    [
        lambda run, step: save_best(run, tensors_of(step), {"step": step}),
        lambda run, step: write_json(run / "generation_config.json", {"top_k": step}),
        lambda run, step: (append_metrics(run, {"step": step}), trim_metrics(run, step, step)),
    ],
    ids=["best", "json", "metrics"],
)
def test_any_disk_operation_of_a_single_file_may_fail(tmp_path, write):
    write(tmp_path, 1)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for k in range(1, 50):
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, k, broken=False)
            try:
                write(tmp_path, 2)
            except UserError as error:
                assert str(path) in str(error)
                if path.name != "metrics.jsonl":
                    assert path.read_bytes() == whole
                else:
                    assert read_metrics(tmp_path)[0] == {"step": 1}
        assert names(tmp_path) == [path.name]
        if disk.count < k:
            break
        write(tmp_path, 1)
    assert disk.count < k and k > 5


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    save_best(tmp_path, tensors_of(1), {"step": 1})

    def refuse(*args, **kwargs):  # chmod would not stop root
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "run.json").write_bytes(b"{}")
    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(UserError, match="model.safetensors: Permission denied; check the permissions.*intact"):
        save_best(tmp_path, tensors_of(2), {"step": 2})
    monkeypatch.undo()
    assert load_best(tmp_path)[1] == {"step": "1"}
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "file", 1)


LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_checkpoint as test
from slm_np.formats.checkpoint import newest_checkpoint, save_best
from slm_np.formats.metrics import append_metrics
run = Path(sys.argv[1])
step = newest_checkpoint(run).step if any(run.glob("checkpoint-*")) else 1
while True:  # the first save repeats the step that was resumed from
    test.save(run, step)
    save_best(run, test.tensors_of(step), {"step": step})
    append_metrics(run, {"step": step})
    print(step, flush=True)
    step += 1
"""


@pytest.mark.slow
def test_a_run_loads_after_each_of_thirty_kills(tmp_path):
    moments, runs = random.Random(0), [tmp_path / str(i) for i in range(3)]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(Path(files.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
    )
    for run in runs:
        run.mkdir()
    for _ in range(10):  # three runs at a time: most of the time is spent starting Python
        loops = [
            subprocess.Popen(
                [sys.executable, "-c", LOOP, str(run), str(Path(__file__).parent)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for run in runs
        ]
        for run, loop in zip(runs, loops):
            assert (saved := [loop.stdout.readline()])[0], "the loop exited by itself"
            time.sleep(moments.uniform(0, 0.05))
            loop.kill()
            saved += loop.communicate()[0].split("\n")
            acknowledged = max(int(line) for line in saved if line.strip())
            assert_intact(found := newest_checkpoint(run))
            assert found.step >= acknowledged
            best, metadata = load_best(run)
            np.testing.assert_array_equal(best["w"], tensors_of(int(metadata["step"]))["w"])
            assert int(metadata["step"]) >= acknowledged
            trim_metrics(run, found.step, found.step)
            assert read_metrics(run)[-1]["step"] >= acknowledged
    for run in runs:
        save(run, step := newest_checkpoint(run).step + 1)
        assert names(run) == sorted(
            [f"checkpoint-{step}", f"checkpoint-{step - 1}", "metrics.jsonl", "model.safetensors"]
        )


def test_best_model(tmp_path):
    with pytest.raises(UserError, match="holds no model.safetensors yet"):
        load_best(tmp_path)
    for step in (1, 2):
        save_best(tmp_path, tensors_of(step), {"step": step, "val_loss": np.float32(0.5)})
    tensors, metadata = load_best(tmp_path)
    assert metadata == {"step": "2", "val_loss": "0.5"}
    np.testing.assert_array_equal(tensors["w"], tensors_of(2)["w"])
