"""What the user said about the data, in every command that reads text: train, resume, finetune, evaluate."""

import json

import pytest
import small
from compressed import gzipped

from slm_np.formats import run_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a cache of its own."""
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(verb, *words, capsys):
    """(exit status, stdout, stderr) of a command."""
    capsys.readouterr()
    status = small.status(verb, *map(str, words))
    return status, *capsys.readouterr()


def evaluated(*words, capsys):
    """What `evaluate --json` prints."""
    status, said, error = run("evaluate", *words, "--json", capsys=capsys)
    assert status == 0, error
    return json.loads(said)


def test_repeated_data_adds_up_in_every_command(folder, capsys):
    texts = {name: small.text(seed=i, lines=60 + 20 * i) for i, name in enumerate(("a.txt", "b.txt", "c.txt"))}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    both = ["--data", "a.txt", "--data", "b.txt", "--val-data", "c.txt", "--val-data", "a.txt"]
    flags = small.flags("a.txt", max_iters=4, out_dir="run")
    status, said, error = run("train", *flags, *both[2:], capsys=capsys)
    assert status == 0, error
    config = run_config.read_config("run")
    assert config.train.data == "a.txt,b.txt" and config.train.val_data == "c.txt,a.txt"
    size = {name: len(text) for name, text in texts.items()}
    assert config.data["tokens"] == [size["a.txt"] + size["b.txt"], size["c.txt"] + size["a.txt"]]
    assert run("train", "--resume", "run", "--max-iters", 6, capsys=capsys)[0] == 0
    assert evaluated("--model", "run", "--data", "a.txt", "--data", "b.txt", capsys=capsys)["bytes"] == sum(
        len(texts[name]) - (name == "a.txt") for name in ("a.txt", "b.txt")
    )
    tuned = ["--base", "run", *both, "--retention-data", "c.txt", "--retention-data", "b.txt", "--max-iters", 4]
    status, said, error = run("finetune", *tuned, "--out-dir", "tuned", capsys=capsys)
    assert status == 0, error
    assert run_config.read_config("tuned").train.retention_data == "c.txt,b.txt"


@pytest.mark.parametrize("documents, name", [("line", "names.txt"), ("csv:story", "t.csv"), ("line", "names.txt.gz")])
def test_documents_work_in_every_command(folder, capsys, documents, name):
    lines = small.text(lines=200).splitlines()
    text = (
        "\n".join(lines)
        if documents == "line"
        else "id,story\n" + "".join(f'{i},"{one}"\n' for i, one in enumerate(lines))
    )
    data = gzipped(text.encode()) if name.endswith(".gz") else text.encode()
    (folder / name).write_bytes(data)
    flags = small.flags(name, max_iters=4, out_dir="run")
    status, said, error = run("train", *flags, "--documents", documents, capsys=capsys)
    assert status == 0, error
    config = run_config.read_config("run")
    assert config.train.documents == documents and config.data["separated"] and config.model.vocab_size == 257
    assert sum(config.data["tokens"]) == sum(len(line) + 1 for line in lines)
    assert run("train", "--resume", "run", "--max-iters", 6, capsys=capsys)[0] == 0
    assert evaluated("--model", "run", "--data", name, capsys=capsys)["documents"] == 200
    found = evaluated("--model", "run", "--data", name, "--documents", "marker", capsys=capsys)
    assert found["documents"] == 1
    arguments = ["--base", "run", "--data", name, "--retention-data", name, "--documents", documents, "--max-iters", 4]
    status, said, error = run("finetune", *arguments, "--out-dir", "tuned", capsys=capsys)
    assert status == 0, error
    assert run("finetune", "--resume", "tuned", "--max-iters", 6, capsys=capsys)[0] == 0
    status, said, error = run("evaluate", "--model", "run", "--data", name, "--documents", "lines", capsys=capsys)
    assert status == 2 and "--documents 'lines' is unknown; did you mean line" in error


def test_binary_data_are_refused_unless_asked_for(folder, capsys):
    data = bytes(range(256)) * 40
    (folder / "b.dat").write_bytes(data)
    flags = small.flags("b.dat", max_iters=4, out_dir="run")
    status, said, error = run("train", *flags, capsys=capsys)
    assert status == 2 and "b.dat is binary (byte 0 is zero); give text, or pass --binary" in error
    status, said, error = run("train", *flags, "--binary", capsys=capsys)
    assert status == 0, error
    config = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert config["train"].pop("binary") is True
    assert run("train", "--resume", "run", "--max-iters", 6, capsys=capsys)[0] == 0
    assert evaluated("--model", "run", "--data", "b.dat", capsys=capsys)["bytes"] == len(data) - 1
    arguments = ["--base", "run", "--data", "b.dat", "--retention-data", "b.dat", "--max-iters", 4]
    status, said, error = run("finetune", *arguments, "--out-dir", "tuned", capsys=capsys)
    assert status == 2 and "b.dat is binary" in error
    status, said, error = run("finetune", *arguments, "--binary", "--out-dir", "tuned", capsys=capsys)
    assert status == 0, error
    status, said, error = run("prepare", "b.dat", "--binary", "--out-dir", "tokens", capsys=capsys)
    assert status == 0 and "train: 1 document" in said and "nothing separates documents" not in error


def test_a_run_of_an_earlier_version_on_binary_data_is_resumed_with_the_flag(folder, capsys):
    """Its run.json has no `binary`, and its data are read as they were."""
    (folder / "t.txt.gz").write_bytes(gzipped(small.text().encode()))
    assert run("train", *small.flags("t.txt.gz", max_iters=4, out_dir="run"), "--binary", capsys=capsys)[0] == 0
    file = folder / "run" / "run.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["train"]["binary"], config["crc32"]
    file.write_text(json.dumps(config), encoding="utf-8")
    status, said, error = run("train", "--resume", "run", "--max-iters", 6, capsys=capsys)
    assert status == 2 and "the data have changed" in error
    assert run("train", "--resume", "run", "--max-iters", 6, "--binary", capsys=capsys)[0] == 0
