"""Checkpoints against everything that happens to files: odd arrays, flipped and missing bytes, full disks, kills."""

import builtins
import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.formats import checkpoint
from slm_np.formats.checkpoint import load_best, load_checkpoint, newest_checkpoint, save_best, save_checkpoint
from slm_np.formats.files import read_json, write_json
from slm_np.formats.metrics import append_metrics, read_metrics, trim_metrics
from slm_np.formats.run_config import RunConfig, read_config, write_config
from slm_np.formats.tensors import load_tensors, save_tensors


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


def assert_whole(found):
    """The checkpoint's five parts are all those of its step."""
    expected = tensors_of(found.step)
    np.testing.assert_array_equal(found.model["w"], expected["w"])
    np.testing.assert_array_equal(found.model["b"], expected["b"])
    np.testing.assert_array_equal(found.optimizer["m"], expected["w"] * 2)
    np.testing.assert_array_equal(found.optimizer["v"], expected["b"] * 3)
    assert found.state == {"cursor": found.step * 10, "step": found.step}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Tensors


def odd_arrays():
    a = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    return {
        "plain": a,
        "transposed": a.T,
        "strided": a[::2, 1::2],
        "reversed": a[::-1],
        "fortran": np.asfortranarray(a),
        "repeated": np.broadcast_to(a[0], (3, 5)),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
        "one byte": np.array([7], np.uint8),
        "double": a.astype(np.float64).T,
        "half": a.astype(np.float16),
        "big-endian": a.astype(">f4"),
        "ints": np.arange(-3, 4),
        "bools": a > 0,
        'größe "x"\n': a[:1],
    }


def test_round_trip_of_odd_arrays(tmp_path):
    arrays = odd_arrays()
    save_tensors(tmp_path / "t.safetensors", arrays, {"step": 12, "val_loss": 1.25})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": "12", "val_loss": "1.25"} and loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape and loaded[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert names(tmp_path) == ["t.safetensors"]


def test_the_safetensors_library_reads_the_file(tmp_path):
    arrays = odd_arrays()
    save_tensors(tmp_path / "t.safetensors", arrays, {"step": 12})
    with safe_open(tmp_path / "t.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["step"] == "12"
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            assert file.get_tensor(name).shape == array.shape
            np.testing.assert_array_equal(file.get_tensor(name), array, err_msg=name)


def test_same_tensors_give_the_same_bytes_and_data_are_aligned(tmp_path):
    arrays = {"odd": np.ones(3, np.uint8), "wide": np.ones(3)}
    for name in "ab":
        save_tensors(tmp_path / name, arrays, {"step": 1})
    raw = (tmp_path / "a").read_bytes()
    assert raw == (tmp_path / "b").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0 and json.loads(raw[8 : 8 + length])["wide"]["data_offsets"] == [0, 24]


def test_no_tensors_at_all(tmp_path):
    save_tensors(tmp_path / "t", {}, {})
    assert load_tensors(tmp_path / "t", into={}) == ({}, {})


def test_a_type_that_the_format_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SafetensorError, match="dtype"):
        save_tensors(tmp_path / "t", {"x": np.array(["text"])}, {})
    assert names(tmp_path) == []


def test_loading_into_views_of_a_flat_buffer(tmp_path):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    flat = np.zeros(9, np.float32)
    views = {"w": flat[:6].reshape(3, 2), "b": flat[6:]}
    loaded, _ = load_tensors(tmp_path / "t", into=views)
    assert loaded["w"] is views["w"]
    np.testing.assert_array_equal(flat, [5, 5, 5, 5, 5, 5, 5, 6, 7])
    with pytest.raises(UserError, match=r"'w' with shape \(3, 2\) of float32, not \(3, 2\) of float64"):
        load_tensors(tmp_path / "t", into={"w": np.zeros((3, 2)), "b": flat[6:]})
    columns = np.zeros((2, 3), np.float32)
    load_tensors(tmp_path / "t", into={"w": columns.T, "b": flat[6:]})
    np.testing.assert_array_equal(columns, 5)


@pytest.mark.parametrize(
    "shapes, dtype, message",
    [
        ({"w": (3, 2)}, "float32", "holds the unexpected tensor 'b'"),
        ({"w": (3, 2), "b": (3,), "c": (1,)}, "float32", "lacks tensor 'c'"),
        ({"w": (2, 3), "b": (3,)}, "float32", r"tensor 'w' with shape \(3, 2\) of float32, not \(2, 3\)"),
        ({"w": (3, 2), "b": (3,)}, "float64", "tensor 'w' .* of float32, not .* of float64"),
    ],
)
def test_wrong_names_shapes_and_types(tmp_path, shapes, dtype, message):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    with pytest.raises(UserError, match=message):
        load_tensors(tmp_path / "t", into={name: np.zeros(shape, dtype) for name, shape in shapes.items()})


def test_every_flipped_byte_of_a_tensor_file_is_noticed(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, tensors_of(5), {"step": 5, "note": "a b"})
    raw = path.read_bytes()
    for i, byte in enumerate(raw):
        for flipped in {byte ^ 1, byte ^ 0x80, byte ^ 0xFF, 0x20, 0x0A} - {
            byte
        }:  # with the white space that JSON would not mind
            path.write_bytes(raw[:i] + bytes([flipped]) + raw[i + 1 :])
            with pytest.raises(UserError, match=path.name):
                load_tensors(path)


def test_a_flip_in_the_data_names_the_tensor(tmp_path):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    raw = bytearray((tmp_path / "t").read_bytes())
    raw[-1] ^= 4
    (tmp_path / "t").write_bytes(raw)
    into = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="damaged in tensor 'w'"):
        load_tensors(tmp_path / "t", into=into)
    assert not into["w"].any() and not into["b"].any()


def test_every_truncation_and_extra_bytes_are_noticed(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, tensors_of(5), {"step": 5})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=path.name):
            load_tensors(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "5",
        "null",
        '{"__metadata__":{"format":"pt"}}',
        '{"__metadata__":"crc32"}',
        '{"__metadata__":null}',
        "[" * 100_000,
        '{"x":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}',
    ],
)
def test_foreign_files_are_refused(tmp_path, text):
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(UserError, match="not written by slm_np|no safetensors file"):
        load_tensors(tmp_path / "t")


def test_a_file_of_the_safetensors_library_is_foreign(tmp_path):
    save_file(tensors_of(1), tmp_path / "t", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not written by slm_np, it carries no checksums"):
        load_tensors(tmp_path / "t")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="t is missing"):
        load_tensors(tmp_path / "t")
    with pytest.raises(UserError, match="cannot read"):
        load_tensors(tmp_path)


# Checkpoints


def test_checkpoint_round_trip_and_pruning(tmp_path):
    for step in (5, 10, 100, 20):
        save(tmp_path, step)
        assert_whole(found := newest_checkpoint(tmp_path))
        assert found.step == step and found.path == tmp_path / f"checkpoint-{step}"
    # 20 after 100 means that 100 was damaged and the run resumed before it; a later one would win over what is trained now.
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
    assert_whole(found)


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
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_line(tmp_path, capsys, name):
    save(tmp_path, 5)
    save(tmp_path, 10)
    file = tmp_path / "checkpoint-10" / name
    whole = file.read_bytes()
    for broken in (whole[:-5], whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:], b""):
        file.write_bytes(broken)
        assert_whole(found := newest_checkpoint(tmp_path))
        line = capsys.readouterr().err
        assert found.step == 5 and line.count("\n") == 1 and str(file) in line
    file.unlink()
    assert newest_checkpoint(tmp_path).step == 5
    assert "is missing" in capsys.readouterr().err
    save(tmp_path, 10)  # the repeated step replaces the damaged one
    assert_whole(newest_checkpoint(tmp_path))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"] and not capsys.readouterr().err


def test_every_flipped_byte_of_the_trainer_state_is_noticed(tmp_path):
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


def test_files_of_different_steps_do_not_make_a_checkpoint(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    (tmp_path / "checkpoint-5" / "optimizer.safetensors").replace(tmp_path / "checkpoint-10" / "optimizer.safetensors")
    with pytest.raises(UserError, match="is of step 5, trainer_state.json beside it of 10"):
        load_checkpoint(tmp_path / "checkpoint-10")


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from .*none has been saved"):
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
    assert_whole(newest_checkpoint(tmp_path))
    save(tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-6", "my.tmp-notes"]


def test_a_repeated_step_beside_the_remains_of_one_moved_aside(tmp_path):
    save(tmp_path, 5)
    remains = tmp_path / f"checkpoint-5.old-{os.getpid()}"  # in containers the process numbers repeat
    remains.mkdir()
    (remains / "trainer_state.json").write_bytes(b"")
    save(tmp_path, 5)
    assert_whole(newest_checkpoint(tmp_path))
    assert names(tmp_path) == ["checkpoint-5"]


class FullDisk:
    """From the k-th call of an operation that changes the disk on, that call (and with `broken` each later one) raises ENOSPC."""

    CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch, k, broken):
        self.k, self.broken, self.count = k, broken, 0
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        monkeypatch.setattr(checkpoint, "open", self.open, raising=False)

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
def test_the_kth_disk_operation_fails(tmp_path, before, step, broken):
    failures = 0
    for k in range(1, 200):
        run = tmp_path / str(k)
        for earlier in before:
            save(run, earlier)
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
                    and "intact" in str(error)
                )
        if failed and not broken:
            assert not list(run.glob("*.tmp-*"))
        if before or not failed:
            assert_whole(found := newest_checkpoint(run))
            assert found.step == (before[-1] if failed else step)
        save(run, step + 1)
        assert_whole(newest_checkpoint(run))
        assert {name for name in names(run) if not name.startswith("checkpoint-") or "." in name} == set()
        if disk.count < k:
            break
    assert disk.count < k and not failed and failures > 15


@pytest.mark.parametrize(
    "write",
    [
        lambda run, step: save_best(run, tensors_of(step), {"step": step}),
        lambda run, step: write_json(run / "generation_config.json", {"top_k": step}),
        lambda run, step: (append_metrics(run, {"step": step}), trim_metrics(run, step)),
    ],
    ids=["best", "json", "metrics"],
)
def test_the_kth_disk_operation_fails_for_a_single_file(tmp_path, write):
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


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    save_best(tmp_path, tensors_of(1), {"step": 1})

    def refuse(*args, **kwargs):  # not by chmod: permissions do not bind root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(UserError, match="cannot write .*model.safetensors .Permission denied.*intact"):
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
from slm_np.formats.checkpoint import *
run = Path(sys.argv[1])
step = newest_checkpoint(run).step if any(run.glob("checkpoint-*")) else 1
while True:  # the first save repeats the step that was resumed from
    test.save(run, step)
    save_best(run, test.tensors_of(step), {"step": step})
    append_metrics(run, {"step": step})
    print(step, flush=True)
    step += 1
"""


def test_kills_at_thirty_moments_leave_a_loadable_run(tmp_path):
    moments, runs = random.Random(0), [tmp_path / str(i) for i in range(3)]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(Path(checkpoint.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
    )
    for run in runs:
        run.mkdir()
    for _ in range(10):  # three runs at a time, as most of the time goes into starting Python
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
            assert (saved := [loop.stdout.readline()])[0], "the loop died by itself"
            time.sleep(moments.uniform(0, 0.05))
            loop.kill()
            saved += loop.communicate()[0].split("\n")
            acknowledged = max(int(line) for line in saved if line.strip())
            assert_whole(found := newest_checkpoint(run))
            assert found.step >= acknowledged
            best, metadata = load_best(run)
            np.testing.assert_array_equal(best["w"], tensors_of(int(metadata["step"]))["w"])
            assert int(metadata["step"]) >= acknowledged
            trim_metrics(run, found.step)
            assert read_metrics(run)[-1]["step"] >= acknowledged
    for run in runs:
        save(run, step := newest_checkpoint(run).step + 1)
        assert names(run) == sorted(
            [f"checkpoint-{step}", f"checkpoint-{step - 1}", "metrics.jsonl", "model.safetensors"]
        )


# The best model, settings, metrics


def test_best_model(tmp_path):
    with pytest.raises(UserError, match="holds no model.safetensors yet"):
        load_best(tmp_path)
    for step in (1, 2):
        save_best(tmp_path, tensors_of(step), {"step": step, "val_loss": np.float32(0.5)})
    tensors, metadata = load_best(tmp_path)
    assert metadata == {"step": "2", "val_loss": "0.5"}
    np.testing.assert_array_equal(tensors["w"], tensors_of(2)["w"])


def config():
    return RunConfig(
        ModelConfig(n_layer=2, n_embd=32),
        TrainConfig(max_iters=7),
        "stories",
        {"fingerprint": "ab12", "source": "größe.txt"},
    )


def test_config_round_trip(tmp_path):
    write_config(tmp_path / "new" / "run", config())
    assert read_config(tmp_path / "new" / "run") == config()
    assert read_json(tmp_path / "new" / "run" / "config.json")["model"] == asdict(config().model)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.update(format=2), "is of format 2, this version reads up to 1; upgrade"),
        (lambda f: f.update(format="1"), "is not a run of slm_np"),
        (lambda f: f.update(model_type="gpt2"), "has model_type 'gpt2' .* is not a run of slm_np"),
        (lambda f: f.pop("model_type"), "is not a run of slm_np"),
        (lambda f: f.update(extra=1), "unknown field 'extra'"),
        (lambda f: f["model"].update(n_layers=1), "unknown field 'n_layers'.*did you mean n_layer"),
        (lambda f: f["train"].update(speed=1), "unknown field 'speed'"),
        (lambda f: f["model"].update(n_layer=-1), r"config.json: --n-layer is -1; it must be at least 1"),
        (
            lambda f: f["model"].update(n_layer=10**400),
            r"config.json: --n-layer is an integer of 1329 bits; it must be below 1e300",
        ),
        (
            lambda f: f["train"].update(learning_rate=-(10**400)),
            r"config.json: --learning-rate is an integer of 1329 bits; it must be below 1e300",
        ),
        (lambda f: f["model"].update(norm=["rmsnorm"]), "config.json: --norm must be of type str"),
        (lambda f: f.pop("model"), "has None for 'model'; it must be an object"),
        (lambda f: f.update(train=[]), r"has \[\] for 'train'"),
        (lambda f: f.update(preset=3), "has 3 for 'preset'; it must be a string"),
    ],
)
def test_broken_configs(tmp_path, change, message):
    write_config(tmp_path, config())
    fields = read_json(tmp_path / "config.json")
    change(fields)
    write_json(tmp_path / "config.json", fields)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe\xfa", b'{"format": ' + b"1" * 5000 + b"", b"[" * 100_000])
def test_broken_json(tmp_path, raw):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(UserError, match="config.json is broken JSON"):
        read_config(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="config.json missing: .* is not a run of slm_np"):
            read_config(folder)
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "generation_config.json")


def test_metrics_are_trimmed_with_their_torn_line(tmp_path):
    assert read_metrics(tmp_path) == []
    trim_metrics(tmp_path, 3)
    assert names(tmp_path) == []
    rows = [{"step": step, "loss": np.float32(1 / 2**step), "note": "größe\n"} for step in range(1, 6)]
    for row in rows:
        append_metrics(tmp_path, row)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    assert whole.count(b"\n") == 5 and read_metrics(tmp_path) == rows
    last = whole.rindex(b"{")
    for length in range(last, len(whole) + 1):  # the kill tore the last line anywhere
        path.write_bytes(whole[:length])
        trim_metrics(tmp_path, 10)
        assert read_metrics(tmp_path) == rows[: 5 if length >= len(whole) - 1 else 4]
        assert path.read_bytes().endswith(b"}\n")
    path.write_bytes(whole + b'{"step": 6, "lo')
    trim_metrics(tmp_path, 3)
    append_metrics(tmp_path, {"step": 4})
    assert read_metrics(tmp_path) == rows[:3] + [{"step": 4}]
    assert names(tmp_path) == ["metrics.jsonl"]
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl"):
        append_metrics(tmp_path / "nowhere", {"step": 1})


def test_numbers_in_metrics_that_are_not_finite_become_null(tmp_path):
    append_metrics(tmp_path, {"step": 1, "loss": np.float32(np.nan), "norms": [-np.inf, 2.0], "note": "NaN"})
    row = {"step": 1, "loss": None, "norms": [None, 2.0], "note": "NaN"}
    assert read_metrics(tmp_path) == [row]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "loss": Infinity}\n')
    trim_metrics(tmp_path, 2)
    assert b"Infinity" not in (tmp_path / "metrics.jsonl").read_bytes() and read_metrics(tmp_path) == [
        row,
        {"step": 2, "loss": None},
    ]
