"""Two commands that write to one run: the second is refused at once, and the first is untouched."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

from slm_np.formats import checkpoint, metrics, sources
from slm_np.formats.directories import LOCK, new_directory, writing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writers")
    data = small.text_file(folder)
    assert small.status("train", *small.flags(data, max_iters=4, out_dir=folder / "run")) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(run):
    return {
        str(path): path.read_bytes() for path in sorted(Path(run).rglob("*")) if path.is_file() and path.name != LOCK
    }


WRITERS = {
    "resume": ("train", "--resume", "run"),
    "resume for longer": ("train", "--resume", "run", "--max-iters", 90),
    "resume of pretrain": ("pretrain", "--resume", "run"),
    "resume of finetune": ("finetune", "--resume", "run"),
    "train": ("train", "--data", "text.txt", "--out-dir", "run"),
    "pretrain": ("pretrain", "text.txt", "--out-dir", "run"),
    "finetune": ("finetune", "--base", "run", "--data", "text.txt", "--out-dir", "run"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_command_that_writes_is_refused(folder, capsys, name):
    before = contents("run")
    with writing("run"):
        assert small.status(*WRITERS[name]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"run is in use by process {os.getpid()} on " in line
    assert contents("run") == before and not Path("run", LOCK).exists()


def test_readers_are_not_hindered(folder, capsys):
    with writing("run"):
        assert small.status("generate", "--model", "run", "-n", 2) == 0
        assert small.status("evaluate", "--model", "run") == 0
        assert small.status("info", "run") == 0
        assert (
            small.status("finetune", "--base", "run", "--data", "text.txt", "--max-iters", 1, "--out-dir", "new") == 0
        )
    assert sources.load("new").step == 1


def test_a_start_is_refused_while_another_one_reads_its_corpus(folder, capsys):
    with new_directory("new", ""):
        for words in (WRITERS["train"], ("train", "--resume", "new")):
            assert small.status(*["new" if word == "run" else word for word in words]) == 2
            assert "new is in use by process" in capsys.readouterr().err
        assert small.status("convert", "run", "new") == 2  # it writes only into an empty directory
        assert "new already exists, and nothing is overwritten" in capsys.readouterr().err
        assert os.listdir("new") == [LOCK]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "missing.txt"),
        ("train", "--data", "text.txt", "--block-size", 4000),
        ("train", "--data", "text.txt", "--n-embd", 4096, "--batch-size", 2**20),
        ("finetune", "--base", "run", "--data", "missing.txt"),
        ("convert", "missing.bin"),
        ("convert", "text.txt"),
    ],
)
@pytest.mark.parametrize("out_dir", ["new/run", "there", ""])
def test_a_start_that_fails_leaves_everything_as_it_was(folder, capsys, words, out_dir):
    Path("there").mkdir()
    Path("there", "notes").write_text("mine", encoding="utf-8")
    before = contents(".") | dict.fromkeys(small.tree("."))
    assert small.status(*words, *["--out-dir", out_dir] * bool(out_dir)) == 2
    assert contents(".") | dict.fromkeys(small.tree(".")) == before


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 0.001, 0.05])
def test_of_two_starts_exactly_one_trains(folder, pause):
    flags = small.flags("text.txt", max_iters=200, save_interval=20, out_dir="same")
    for _ in range(3):
        processes = []
        for seed in (1, 2):
            processes.append(small.process("train", *flags, "--seed", seed, cwd=folder))
            time.sleep(pause)
        errors = [process.communicate(timeout=120)[1] for process in processes]
        codes = [process.returncode for process in processes]
        assert sorted(codes) == [0, 2], errors
        winner = processes[codes.index(0)].pid
        refusal = errors[codes.index(2)].splitlines()[-1]  # on a busy machine the first may have ended
        assert f"same is in use by process {winner} on " in refusal or "same already holds a run" in refusal
        assert sources.load("same").step > 0 and checkpoint.newest_checkpoint("same").step == 200
        steps = [row["step"] for row in metrics.read_metrics("same") if "val_loss" in row]
        assert steps == sorted(set(steps)) and LOCK not in os.listdir("same")
        shutil.rmtree("same")


@pytest.mark.slow
def test_two_starts_without_a_name_get_two_directories(folder):
    flags = small.flags("text.txt", max_iters=20)
    processes = [small.process("train", *flags, cwd=folder) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    found = sorted(os.listdir("runs"))
    assert len(found) == 2 and all(checkpoint.newest_checkpoint(Path("runs", name)).step == 20 for name in found)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_of_two_resumes_one_trains_and_after_a_kill_another_one_may(folder):
    longer = ("--resume", "run", "--max-iters", 10**6, "--lr-schedule", "constant", "--log-interval", 1)
    first = small.process("train", *longer, cwd=folder)
    while (line := first.stderr.readline()) and not line.startswith("step "):
        pass
    before = checkpoint.newest_checkpoint("run").step
    second = small.command("train", *longer, cwd=folder)
    assert second.returncode == 2 and f"run is in use by process {first.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert Path("run", LOCK).exists()
    third = small.command("train", "--resume", "run", "--max-iters", before + 40, cwd=folder)
    assert third.returncode == 0, third.stderr
    assert not Path("run", LOCK).exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_start_that_is_killed_while_it_reads_its_corpus_is_not_in_the_way(folder):
    slow = (
        "import time\n"
        "from slm_np.cli import launch\n"
        "def prepared(*args):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(60)\n"
        "launch.prepared = prepared\n"
        "from slm_np import train\n"
        "train.main()\n"
    )
    words = [*map(str, small.flags("text.txt", max_iters=4)), "--out-dir", "new"]
    first = subprocess.Popen(
        [sys.executable, "-c", slow, *words], cwd=folder, env=small.environment(), stdout=subprocess.PIPE, text=True
    )
    while first.stdout.readline() not in ("reading\n", ""):
        pass
    second = small.command("train", *words, cwd=folder)
    assert second.returncode == 2 and f"new is in use by process {first.pid} on " in second.stderr
    first.kill()
    first.wait()
    first.stdout.close()
    assert os.listdir("new") == [LOCK]
    third = small.command("train", *words, cwd=folder)
    assert third.returncode == 0, third.stderr
