"""Files that a run names are found wherever a command starts, and after the run was moved together with them."""

import shutil
from pathlib import Path

import pytest
import small

from slm_np.formats import run_config
from slm_np.formats.run_paths import directories, given_here, written_here
from slm_np.inference.evaluation import tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a text, a run on it, and a run finetuned from that one in the folder `tuned`."""
    folder = tmp_path_factory.mktemp("project")
    small.text_file(folder)
    small.text_file(folder, "other.txt", seed=5)
    (folder / "tuned").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small_run = small.flags("text.txt", out_dir="run", val_data="other.txt", max_iters=4)
        assert small.status("train", *small_run) == 0
        patch.chdir(folder / "tuned")
        words = ["--base", "../run", "--data", "../other.txt", "--retention-data", "../text.txt", "--out-dir", "ft"]
        assert small.status("finetune", *words, "--max-iters", 2) == 0
    return folder


@pytest.fixture
def folder(project, tmp_path, monkeypatch):
    """A copy of `project`, so every run in it was moved together with its data. It is the current directory."""
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def error_of(capsys, *words):
    capsys.readouterr()
    assert small.status(*words) == 2
    return capsys.readouterr().err


def started_in(directory):
    """Let the run `run` say that it was started in this absolute directory."""
    config = run_config.read_config("run")
    config.data["directory"]["absolute"] = directory
    run_config.write_config("run", config)


def test_a_run_keeps_its_paths_as_given_and_where_it_was_started(project):
    config = run_config.read_config(project / "run")
    assert (config.train.data, config.train.val_data, config.data["source"]) == ("text.txt", "other.txt", "text.txt")
    assert config.data["directory"] == dict(relative="..", absolute=str(project))


@pytest.mark.parametrize("start", [".", "tuned", "run", ".."])
def test_evaluate_and_resume_find_the_data_from_anywhere(folder, monkeypatch, capsys, start):
    monkeypatch.chdir(folder / start)
    assert small.status("evaluate", "--model", folder / "run") == 0
    found = capsys.readouterr().out
    assert small.status("train", "--resume", folder / "run", "--max-iters", 6) == 0
    assert small.status("finetune", "--resume", folder / "tuned" / "ft", "--max-iters", 4) == 0
    monkeypatch.chdir(folder)
    assert run_config.read_config("run").train.data == "text.txt"
    assert run_config.read_config("tuned/ft").train.retention_data == "../text.txt"
    assert "nats/token" in found


def test_another_file_of_the_same_name_here_is_not_read(folder, monkeypatch, capsys):
    assert small.status("evaluate", "--model", "run") == 0
    right = capsys.readouterr().out
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    small.text_file(".", seed=9)
    small.text_file(".", "other.txt", seed=9)
    assert small.status("evaluate", "--model", "../run") == 0
    assert capsys.readouterr().out == right


def test_a_run_that_was_moved_alone_finds_its_data(folder, tmp_path, monkeypatch):
    started_in(str(folder))
    shutil.move("run", tmp_path / "alone" / "run")
    monkeypatch.chdir(tmp_path)
    assert small.status("evaluate", "--model", "alone/run") == 0


def test_a_missing_file_says_where_it_was_sought(folder, capsys):
    Path("text.txt").rename("new.txt")
    started_in(str(folder / "gone"))
    said = error_of(capsys, "evaluate", "--model", "run")
    assert f"cannot find the data of run, text.txt, in {folder} or {folder / 'gone'}" in said
    assert said.endswith("put it back, or name a text with --data\n")
    said = error_of(capsys, "train", "--resume", "run", "--max-iters", 9)
    assert said.endswith("put it back, or say with --data where it is\n")
    assert small.status("train", "--resume", "run", "--max-iters", 9, "--data", "new.txt") == 0
    assert run_config.read_config("run").train.data == "new.txt"


def test_changed_validation_data_are_not_measured_in_silence(folder, capsys):
    small.text_file(folder, "other.txt", seed=6, lines=50)
    said = error_of(capsys, "evaluate", "--model", "run")
    assert "the validation data of run have changed" in said and "other.txt" in said and "--data" in said


def test_a_run_of_an_earlier_version_is_sought_here_and_beside_it(folder, monkeypatch):
    config = run_config.read_config("run")
    del config.data["directory"]
    run_config.write_config("run", config)
    assert directories("run", run_config.read_config("run")) == [Path(), Path("run").parent][:1]
    assert small.status("evaluate", "--model", "run") == 0
    monkeypatch.chdir("tuned")
    assert small.status("evaluate", "--model", "../run") == 0


def test_paths_given_when_resuming_are_kept_as_from_where_the_run_was_started(folder, monkeypatch):
    config = run_config.read_config("run")
    assert given_here("run", config, "text.txt") == "text.txt"
    monkeypatch.chdir("tuned")
    assert given_here("../run", config, "../text.txt") == "text.txt"
    assert given_here("../run", config, "mine.txt,../b.txt") == str(Path("tuned/mine.txt")) + ",b.txt"
    assert given_here("../run", config, str(folder / "x.txt")) == str(folder / "x.txt")
    assert given_here("../run", config, "stories") == "stories"


def test_several_files_patterns_and_names(tmp_path, monkeypatch):
    place = tmp_path / "odd [1]"
    (place / "texts").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "one,two.txt"):
        (place / "texts" / name).write_text(name, encoding="utf-8")
    (place / "stories").mkdir()
    monkeypatch.chdir(tmp_path)
    places = [tmp_path / "none", place]
    texts = Path("odd [1]") / "texts"
    assert written_here("texts/a.txt, texts/b.txt", places) == f"{texts / 'a.txt'},{texts / 'b.txt'}"
    assert written_here("texts/one,two.txt", places) == str(texts / "one,two.txt")
    assert written_here("texts/*.txt", places) == str(Path("odd [[]1]") / "texts" / "*.txt")
    assert written_here("texts/a.txt,texts/c.txt", places) is None
    assert written_here("stories", places) == "stories"  # the corpus: no such file was there at the start
    monkeypatch.chdir(place)
    assert written_here("texts/*.txt", places) == "texts/*.txt"


def test_a_finetuned_run_splits_its_retention_data_as_the_base_did(folder, monkeypatch, capsys):
    config = run_config.read_config("tuned/ft")
    assert (config.base["data"], config.base["val_data"]) == (
        str(Path("..") / "text.txt"),
        str(Path("..") / "other.txt"),
    )
    monkeypatch.chdir("tuned")
    here = dict(out_dir="again", data="../other.txt", max_iters=2)
    words = [word for name, value in here.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert small.status("finetune", "--base", "../run", *words, "--retention-data", folder / "text.txt") == 0
    assert small.rows("again") == small.rows("ft")


def test_the_validation_data_of_a_program(folder, monkeypatch):
    from slm_np import load

    monkeypatch.chdir("tuned")
    assert len(tokens_of(load("../run"))) == len(tokens_of(load(folder / "run")))


def test_a_tokenizer_file_is_found_too(folder, monkeypatch, capsys):
    words = small.flags("text.txt", out_dir="with-file", max_iters=2, tokenizer="file:run/tokenizer.json")
    assert small.status("train", *words) == 0
    monkeypatch.chdir("tuned")
    assert small.status("train", "--resume", "../with-file", "--max-iters", 4) == 0
    (folder / "run" / "tokenizer.json").unlink()
    said = error_of(capsys, "train", "--resume", "../with-file", "--max-iters", 6)
    assert "cannot find the tokenizer of" in said and "tokenizer.json" in said
