"""Every place that takes a path expands ~, and takes names with spaces, quotes and letters of any script."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
import small

from slm_np import load
from slm_np.data.token_store import load_corpus
from slm_np.formats import run_config
from slm_np.formats.conversion import convert

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder with a text and a run."""
    folder = tmp_path_factory.mktemp("home")
    small.text_file(folder)
    assert small.status("train", *small.flags(folder / "text.txt", out_dir=folder / "run", max_iters=4)) == 0
    return folder


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy of `made` as the home folder. The current directory is another one, and empty."""
    shutil.copytree(made, tmp_path / "home")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield tmp_path / "home"
    assert not os.path.lexists(tmp_path / "work" / "~"), "a folder named ~ was made"


def test_training_in_the_home_folder(home):
    words = small.flags(None, max_iters=2)
    assert small.status("train", *words, "--data=~/text.txt", "--val-data=~/text.txt", "--out-dir=~/new") == 0
    assert run_config.read_config(home / "new").train.out_dir == str(home / "new")
    assert small.status("train", "--resume=~/new", "--max-iters", 3) == 0
    assert small.status("train", "--resume", "--out-dir=~/new", "--max-iters", 4, "--data=~/text.txt") == 0
    tokenizer = "--tokenizer=file:~/run/tokenizer.json"
    assert small.status("train", *words, "--data=~/text.txt", "--out-dir=~/file", tokenizer) == 0
    (home / "settings.toml").write_text('out-dir = "~/toml"\ndata = ["~/text.txt", "~/*.txt"]\n', encoding="utf-8")
    assert small.status("train", *words, "--config=~/settings.toml") == 0
    assert (home / "toml" / "run.json").is_file()


def test_finetuning_in_the_home_folder(home):
    words = ["--base=~/run", "--data=~/text.txt", "--retention-data=~/text.txt", "--out-dir=~/tuned"]
    assert small.status("finetune", *words, "--max-iters", 1) == 0
    assert small.status("finetune", "--resume=~/tuned", "--base=~/run", "--max-iters", 2) == 0


def test_using_a_run_in_the_home_folder(home, capsys):
    assert small.status("generate", "--model=~/run", "-n", 3) == 0
    assert small.status("evaluate", "--model=~/run", "--data=~/text.txt") == 0
    assert small.status("info", "~/run", "~/text.txt") == 0
    assert load("~/run").step == load(Path("~/run")).step == load(str(home / "run")).step


def test_preparing_in_the_home_folder(home, capsys):
    assert small.status("prepare", "~/text.txt", "--out-dir=~/tokens") == 0
    assert f"--data {home / 'tokens'}" in capsys.readouterr().out
    whole = load_corpus("~/tokens", progress=False)
    single = load_corpus("~/tokens/train.bin", "~/tokens/validation.bin", progress=False)
    beside = load_corpus("~/tokens/train.bin", progress=False)
    assert len(whole.validation) == len(single.validation) == len(beside.validation) > 0
    assert len(load_corpus("~/text.txt", progress=False).train) == len(whole.train)


def test_converting_in_the_home_folder(home, test_data):
    for file in (test_data / "llama2c").iterdir():
        shutil.copy(file, home)
    assert small.status("convert", "~/stories260K.bin", "--out-dir=~/one", "--tokenizer=~/tok512.bin") == 0
    assert convert("~/stories260K.bin", "~/two", "~/tok512.bin").path == home / "two"


def test_a_file_with_a_tilde_in_its_name(home):
    shutil.copy(home / "text.txt", "~nobody-of-that-name")
    shutil.copy(home / "text.txt", "text.txt~")
    assert len(load_corpus("./~nobody-of-that-name", progress=False).train)
    assert len(load_corpus("~nobody-of-that-name", progress=False).train)  # there is no such user
    assert len(load_corpus("text.txt~,text.txt~", progress=False).train)


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
@pytest.mark.parametrize(
    "name", ["my run", "it's", 'a "quote"', "größe 名前", "-dash", "$HOME", "$\\frac$", "a;b&c", "tab\there"]
)
def test_printed_commands_work_as_they_are(home, capsys, name):
    folder = Path("in")
    folder.mkdir()
    os.chdir(folder)
    shutil.copy(home / "text.txt", f"./{name}.txt")
    assert small.status("train", *small.flags(None, max_iters=2), f"--data={name}.txt", f"--out-dir={name}") == 0
    shown = capsys.readouterr()
    commands = [
        line.partition("python -m slm_np.")[2] for line in shown.out.splitlines() if "python -m slm_np." in line
    ]
    assert len(commands) == 2
    for command in commands:
        verb, *words = shlex.split(command)
        assert verb in ("generate", "chat") and words[0] == "--model" and Path(words[1]).samefile(name)
    verb, *words = shlex.split(commands[0])
    assert small.status(verb, *words, "-n", 2) == 0
    assert small.status("train", "--resume", words[1]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "train it longer with" in line)
    verb, *words = shlex.split(line.partition("python -m slm_np.")[2])
    assert small.status(verb, *words) == 0
