"""Runs of format 1: they load, write the same text as before and resume with the same bits."""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.errors import UserError
from slm_np.formats import checkpoint, run_config, sources
from slm_np.formats.families import family_of
from slm_np.formats.files import read_json, write_json
from slm_np.formats.layouts import layout_of
from slm_np.formats.tensors import load_tensors
from slm_np.paths import has_old_settings, is_run

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "format1"  # see make.py there
RUNS = sorted(path.stem for path in (FIXTURES / "expected").iterdir())
STEP = 240  # updates of each run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the fixtures as the working directory: the runs name their data by relative paths."""
    shutil.copytree(FIXTURES, tmp_path / "format1")
    monkeypatch.chdir(tmp_path / "format1")
    return tmp_path / "format1"


def expected(name):
    return read_json(FIXTURES / "expected" / f"{name}.json")


def change_config(run, part, **fields):
    """Change fields of the part `model` or `train` of a run's config.json."""
    config = read_json(Path(run, "config.json"))
    config[part].update(fields)
    write_json(Path(run, "config.json"), config)


def file_names(path):
    """The names of the tensors in a file, as stored."""
    return set(load_tensors(path)[0])


def translate(run, new):
    """Write a run of format 1 to a new directory in today's format. The old config.json stays."""
    shutil.copytree(run, new)
    run_config.write_config(new, run_config.read_config(run))
    found = checkpoint.newest_checkpoint(run)
    state = {name: value for name, value in found.state.items() if name != "step"}
    checkpoint.save_checkpoint(new, found.step, found.model, found.optimizer, state)
    checkpoint.save_best(new, *checkpoint.load_best(run))


def resume(run, steps, *words):
    verb = "finetune" if run_config.read_config(run).base else "train"
    return small.status(verb, "--resume", run, "--max-iters", steps, *words)


def best_of(run):
    """({our name: array}, metadata) of a run's best model."""
    return checkpoint.load_best(run, layout=layout_of(run_config.read_config(run)))


def assert_read_by_others(run):
    """Assert that config.json and tensor names are Hugging Face's. Without a family: no config.json, and our names."""
    family = family_of(run_config.read_config(run).model)
    names = file_names(f"{run}/model.safetensors")
    if family is None:
        assert not Path(run, "config.json").exists() and "embedding.weight" in names
    else:
        assert read_json(Path(run, "config.json"))["model_type"] in family.MODEL_TYPES
        assert names == {mapping.theirs for mapping in family.mappings(run_config.read_config(run).model)}


def assert_rows_close(rows, expected_rows):
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows):
        assert row.keys() == expected_row.keys() and row["step"] == expected_row["step"]
        for key in row:
            np.testing.assert_allclose(row[key], expected_row[key], rtol=1e-5, err_msg=f"step {row['step']}: {key}")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_format_1_writes_the_same_text(folder, capsys, name):
    wanted = expected(name)
    words = ["--max-tokens", wanted["tokens"], "--temp", 0, "--min-confidence", 0, "--threads", 1]
    assert small.status("generate", "--model", name, "--prompt", wanted["prompt"], *words) == 0
    assert capsys.readouterr().out == wanted["text"] + "\n"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_format_1_resumes_like_its_translation(folder, name):
    wanted = expected(name)
    translate(name, "translated")
    for run in (name, "translated"):
        assert read_json(Path(run, "config.json"))["format"] == 1
        assert resume(run, wanted["steps"]) == 0
        assert read_json(Path(run, "run.json"))["format"] == run_config.FORMAT
        assert_read_by_others(run)
    assert_rows_close(small.rows(name), wanted["metrics"])
    assert small.rows(name) == small.rows("translated")
    small.assert_same_state(name, "translated", wanted["steps"])
    (best, metadata), (same, same_metadata) = map(best_of, (name, "translated"))
    assert metadata == same_metadata and best.keys() == same.keys()
    for tensor in best:
        np.testing.assert_array_equal(best[tensor], same[tensor], err_msg=tensor)


def test_formats_may_be_mixed_within_a_run(folder):
    old_config, old_best = (Path("mamba", name).read_bytes() for name in ("config.json", "model.safetensors"))
    shutil.copytree("mamba", "mixed")
    assert resume("mixed", 250) == 0 and resume("mamba", 260) == 0
    old, new = (file_names(f"mixed/checkpoint-{step}/model.safetensors") for step in (STEP, 250))
    assert "layers.0.mamba.select.weight" in old and "layers.0.mamba.x_proj.weight" in new
    shutil.copytree("mixed", "interrupted")
    # Settings and best model of format 1, newest checkpoint of today's format.
    Path("interrupted", "config.json").write_bytes(old_config)
    Path("interrupted", "model.safetensors").write_bytes(old_best)
    Path("interrupted", "run.json").unlink()
    shutil.rmtree("mixed/checkpoint-250")  # settings of today's format, newest checkpoint of format 1
    for run in ("mixed", "interrupted"):
        assert resume(run, 260) == 0
        small.assert_same_state("mamba", run, 260)


class Killed(BaseException):
    """Stands for a kill of the process."""


@pytest.mark.parametrize("name", ["mamba", "stories", "byte-ssm"])
def test_a_kill_at_any_moment_of_the_translation_leaves_a_run(folder, name, monkeypatch):
    """Resuming translates a run to today's format. Kill it after the k-th rename or removal, for each k."""
    weights = sources.load(FIXTURES / name).model.parameters.weights
    for k in itertools.count(1):
        shutil.copytree(FIXTURES / name, f"killed-{k}")
        with monkeypatch.context() as patch:
            left = count_down(patch, k)
            with contextlib.suppress(Killed):
                resume(f"killed-{k}", STEP)  # no update is left to make
        found = sources.load(f"killed-{k}")
        np.testing.assert_array_equal(found.model.parameters.weights, weights)
        assert resume(f"killed-{k}", STEP) == 0
        assert_read_by_others(f"killed-{k}")
        assert is_run(f"killed-{k}") and not has_old_settings(f"killed-{k}")
        if left() > 0:
            break
    assert k > 4


def count_down(patch, k):
    """Raise `Killed` after the k-th rename or removal of a file. Returns a function () -> how many are left."""
    left = [k]

    def counted(call):
        def run(*args, **options):
            result = call(*args, **options)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return run

    for name in ("replace", "rename", "unlink"):
        patch.setattr(os, name, counted(getattr(os, name)))
    return lambda: left[0]


def test_old_names_of_tensors_are_translated(folder):
    found = checkpoint.load_checkpoint("mamba/checkpoint-240")
    parts = "in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias A_log D out_proj.weight"
    mamba = {f"layers.{layer}.mamba.{part}" for layer in range(2) for part in parts.split()}
    norms = {"norm.weight", *(f"layers.{layer}.mixer_norm.weight" for layer in range(2))}
    assert found.model.keys() == mamba | norms | {"embedding.weight"}
    assert found.optimizer.keys() == {f"{moment}.{name}" for moment in ("mean", "square") for name in found.model}
    assert best_of("mamba")[0].keys() == found.model.keys()
    as_stored, _ = load_tensors("mamba/checkpoint-240/model.safetensors")
    np.testing.assert_array_equal(found.model["layers.1.mamba.D"], as_stored["layers.1.mamba.skip"])


def test_the_recurrent_state_of_a_checkpoint_is_translated(folder):
    optimizer = checkpoint.load_checkpoint("byte-ssm/checkpoint-240").optimizer
    assert "carried" in file_names("byte-ssm/checkpoint-240/optimizer.safetensors")
    assert "recurrent_state" in optimizer and "carried" not in optimizer
    assert {name for name in optimizer if name.startswith("spectral.")} == {
        f"spectral.layers.{layer}.recurrence.state.weight" for layer in range(2)
    }


def test_checksums_are_verified_before_the_translation(folder):
    path = Path("mamba/checkpoint-240/model.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged in tensor 'norm.weight', its checksum differs"):
        checkpoint.load_checkpoint(path.parent)
    raw[raw.index(b"mamba.skip")] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_checkpoint(path.parent)


def test_old_names_of_settings_are_translated(folder):
    assert run_config.read_config("mamba").model.ssm_state_size == 4
    assert run_config.read_config("byte-ssm").model.recurrence_size == 12
    assert run_config.read_config("byte-transformer").model.feed_forward == "silu"
    assert run_config.read_config("finetuned").train.retention_data == "text.txt"


def test_settings_without_effect_get_their_defaults(folder):
    change_config(
        "mamba", "model", positions="rotary", rope_theta=500.0, n_head=3, head_dim=5, head_hidden=7, state_size=9
    )
    change_config("mamba", "train", max_spectral_norm=0.5, lr_schedule="constant", lr_decay_iters=9)
    change_config("byte-ssm", "model", norm_eps=1e-6, n_hidden=9, bias=True, init_std=0.5, channel_states=3)
    for run in ("mamba", "byte-ssm"):
        model = run_config.read_config(run).model
        assert model.positions == "none"
        for name in model.unused:
            assert getattr(model, name) == type(model).__dataclass_fields__[name].default, name
        assert resume(run, 241) == 0
    train = run_config.read_config("mamba").train
    assert (train.max_spectral_norm, train.lr_decay_iters) == (0.0, 0)
    train = run_config.read_config("byte-ssm").train
    assert (train.max_spectral_norm, train.lr_decay_iters) == (0.9, 260)


@pytest.mark.parametrize(
    "part, fields, message",
    [
        ("model", dict(n_layers=1), "config.json: unknown field 'n_layers'.*did you mean n_layer"),
        ("train", dict(speed=1), "config.json: unknown field 'speed'"),
        ("model", dict(feed_forward="relu"), "config.json: --feed-forward 'relu' is unknown"),
        ("model", dict(state_size=-1), "config.json: --recurrence-size is -1"),
    ],
)
def test_bad_settings_of_format_1_are_named(folder, part, fields, message):
    change_config("hybrid", part, **fields)
    with pytest.raises(UserError, match=message):
        run_config.read_config("hybrid")


def test_the_base_of_a_finetuned_run_is_recognized(folder, capsys):
    assert resume("finetuned", 241, "--base", "mamba") == 0
    assert resume("finetuned", 242, "--base", "byte-ssm") == 2
    assert "was finetuned from other weights than byte-ssm" in capsys.readouterr().err


def test_finetuning_starts_from_a_run_of_format_1(folder):
    words = ["--data", "dialogues.jsonl", "--max-iters", 1, "--eval-iters", 1, "--out-dir", "new"]
    assert small.status("finetune", "--base", "mamba", *words) == 0
    first, *_ = [row for row in small.rows("new") if "val_loss" in row]
    assert first["step"] == 0 and first["val_loss"] < 5  # random weights: log 257 = 5.5 nats
    assert (
        json.loads(Path("new/run.json").read_text())["base"]["weights"]
        == read_json("finetuned/config.json")["base"]["weights"]
    )
