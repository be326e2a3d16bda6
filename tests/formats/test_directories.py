"""The directory of a new run: one start gets it, and what fails or is killed is not in the way."""

import os

import pytest
import small

from slm_np.errors import UserError
from slm_np.formats.directories import LOCK, new_directory, newest_run, writing


def start(path, *files):
    """Make `path` a directory with files of these names."""
    path.mkdir()
    for name in files:
        (path / name).write_text(name, encoding="utf-8")


def test_a_second_start_is_refused_and_removes_nothing(tmp_path):
    run = tmp_path / "new" / "run"
    with new_directory(run, "") as directory:
        (directory / "tokenizer.json").write_bytes(b"of the first")
        for _ in range(2):
            with pytest.raises(UserError, match="run is in use by process .* since"), new_directory(run, ""):
                pass
        with pytest.raises(UserError, match="run is in use by process"), writing(run):
            pass
        assert sorted(os.listdir(run)) == [LOCK, "tokenizer.json"]
        (directory / "run.json").write_bytes(b"{}")
    assert sorted(os.listdir(run)) == ["run.json", "tokenizer.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_fails_removes_what_it_created(tmp_path, there):
    if there:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "notes").write_text("mine", encoding="utf-8")
    before = small.tree(tmp_path)
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "a" / "b", "") as directory:
        start(directory / "checkpoint-0", "model.safetensors")
        for name in ("tokenizer.json", "generation_config.json.tmp-12", "metrics.jsonl"):
            (directory / name).write_bytes(b"")
        assert 1 / 0
    assert small.tree(tmp_path) == before


def test_a_start_that_fails_leaves_what_others_put_there(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "run", "") as directory:
        (directory / "tokenizer.json").write_bytes(b"")
        (directory / "notes").write_bytes(b"mine")
        assert 1 / 0
    assert os.listdir(tmp_path / "run") == ["notes"]


def test_a_run_that_fails_later_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "run", "") as directory:
        (directory / "run.json").write_bytes(b"{}")
        assert 1 / 0
    assert os.listdir(tmp_path / "run") == ["run.json"]


def test_the_directory_of_a_start_that_was_killed_can_be_used_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for files in ([LOCK], [LOCK, "tokenizer.json", "generation_config.json", "checkpoint-0.tmp-7"]):
        start(tmp_path / "run", *files)
        with pytest.raises(UserError, match="run.json missing"), writing(tmp_path / "run"):
            pass
        assert sorted(os.listdir(tmp_path / "run")) == sorted(files)
        with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "run", ""):
            assert os.listdir(tmp_path / "run") == [LOCK]
            assert 1 / 0
        assert os.listdir(tmp_path / "run") == []
        (tmp_path / "run").rmdir()
        (tmp_path / "runs").mkdir()
        start(tmp_path / "runs" / "name", *files)
        with new_directory("", "name") as directory:
            assert str(directory) == os.path.join("runs", "name")
            assert os.listdir(directory) == [LOCK]  # nothing of the other start becomes a part of this run
            (directory / "run.json").write_bytes(b"{}")
        for path in (tmp_path / "runs" / "name").iterdir():
            path.unlink()
        (tmp_path / "runs" / "name").rmdir(), (tmp_path / "runs").rmdir()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "chat_template.json", "checkpoint-7", "model.safetensors"]
)
def test_a_new_run_overwrites_no_file(tmp_path, name):
    start(tmp_path / "run", name, "notes")
    with pytest.raises(UserError, match=f"run already holds {name}, which a new run would overwrite; choose another"):
        with new_directory(tmp_path / "run", ""):
            pass
    assert sorted(os.listdir(tmp_path / "run")) == sorted([name, "notes"])


def test_a_lock_does_not_make_a_trained_model_free(tmp_path):
    start(tmp_path / "run", LOCK, "model.safetensors")
    with pytest.raises(UserError, match="already holds model.safetensors"), new_directory(tmp_path / "run", ""):
        pass
    assert sorted(os.listdir(tmp_path / "run")) == [LOCK, "model.safetensors"]


def test_default_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start(tmp_path / "runs"), start(tmp_path / "runs" / "name", "run.json")
    (tmp_path / "runs" / "name-2").write_bytes(b"a file")
    with new_directory("", "name") as first, new_directory("", "name") as second:
        assert [path.name for path in (first, second)] == ["name-3", "name-4"]
        (first / "run.json").write_bytes(b"{}")
        assert newest_run().name in ("name", "name-3")
        (second / "run.json").write_bytes(b"{}")


def test_a_failed_first_start_leaves_no_folder_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), new_directory("", "name"):
        assert 1 / 0
    assert os.listdir(tmp_path) == []


def test_a_hugging_face_directory_is_not_a_run(tmp_path, monkeypatch):
    """It is not overwritten, not resumed, and not the newest run."""
    monkeypatch.chdir(tmp_path)
    start(tmp_path / "runs"), start(tmp_path / "runs" / "model", "model.safetensors", "tokenizer.json")
    (tmp_path / "runs" / "model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    before = small.tree(tmp_path)
    with pytest.raises(UserError, match="there is no run in runs/ yet"):
        newest_run()
    with (
        pytest.raises(UserError, match="not a run but a model of another program; start one from it"),
        writing("runs/model"),
    ):
        pass
    with pytest.raises(UserError, match="already holds config.json, which a new run would overwrite"):
        with new_directory("runs/model", ""):
            pass
    with new_directory("", "model") as directory:
        assert directory.name == "model-2"
    assert before == [path for path in small.tree(tmp_path) if "model-2" not in path]
