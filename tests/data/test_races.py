"""Several processes, or threads, make or read the same tokens at the same time."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import small
from data_files import contents, load, marked, mixed_corpus, stories, text_file

from slm_np.data import shards
from slm_np.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def race(*functions):
    """Call functions in threads that start together. Returns their results, in which a UserError stands for itself."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def call(n, function):
        start.wait()
        try:
            results[n] = function()
        except UserError as error:
            results[n] = error

    threads = [threading.Thread(target=call, args=each) for each in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_builds_of_one_folder(tmp_path, monkeypatch):
    data, out = mixed_corpus(tmp_path, 20), tmp_path / "out"
    expected = contents(load(data, out_dir=tmp_path / "once") and tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 3000)
    for _ in range(20):
        found = race(*[lambda: load(data, threads=1, out_dir=out)] * 2)
        assert found[0].train.ids.tolist() == found[1].train.ids.tolist() and contents(out) == expected
        assert not (tmp_path / "out.part").exists() and not (tmp_path / "out.lock").exists()
        shutil.rmtree(out)


def test_two_builds_of_different_tokens_into_one_folder(tmp_path):
    data, out = text_file(tmp_path, marked(stories(50))), tmp_path / "out"
    for _ in range(20):
        found = race(
            *[lambda name=name: load(data, tokenizer=name, threads=1, out_dir=out) for name in ("byte", "char")]
        )
        [refused] = [one for one in found if isinstance(one, UserError)]
        [made] = [one for one in found if one is not refused]
        assert "out contains something else; name a new directory" in str(refused)
        assert load(str(out)).tokenizer.to_json() == made.tokenizer.to_json()
        assert not (tmp_path / "out.part").exists()
        shutil.rmtree(out)


def test_a_damaged_store_is_made_again_once_while_others_read_it(tmp_path, cache, capfd):
    data = text_file(tmp_path, marked(stories(50)))
    first = load(data, threads=1)
    folder, expected = cache / "corpora" / first.fingerprint, first.train.ids.tolist()
    for _ in range(20):
        reader = load(data)
        damaged = bytearray((folder / "train.bin").read_bytes())
        damaged[7] ^= 8
        (folder / "new").write_bytes(damaged)
        os.replace(folder / "new", folder / "train.bin")  # so that the reader has the old file
        capfd.readouterr()
        found = race(*[lambda: load(data, threads=1)] * 3)
        assert not [str(one) for one in found if isinstance(one, UserError)]
        assert all(one.train.ids.tolist() == expected for one in (*found, reader))
        assert capfd.readouterr().err.count("cannot be used: train.bin has other contents") == 1


MAKE = (
    "import sys; from slm_np.data import shards; shards.SHARD = 3000; from slm_np.{0} import main; main(sys.argv[1:])"
)


def start(tmp_path, command, *words):
    return subprocess.Popen(
        [sys.executable, "-c", MAKE.format(command), *map(str, words)],
        env=small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "cache")),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_prepare_one_folder(tmp_path, killed):
    """Two of them, of which one may be killed at a random moment."""
    data, out, draw = mixed_corpus(tmp_path, 20), tmp_path / "out", random.Random(8)
    load(data, out_dir=tmp_path / "once")
    words = ["prepare", *data.split(","), "--threads", "2", "--out-dir", out]
    for _ in range(20):
        two = [start(tmp_path, *words) for _ in range(2)]
        if killed:
            time.sleep(draw.uniform(0.2, 1.5))
            two[0].kill()
            two[0].communicate()
        said = [process.communicate()[1] for process in two[killed:]]
        assert [process.returncode for process in two[killed:]] == [0] * len(said), said
        assert contents(out) == contents(tmp_path / "once")
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_process_that_trains_while_another_one_evaluates_or_trains(tmp_path):
    """Both need the same store, which is not there."""
    small.text_file(tmp_path)
    model = "--n-layer 1 --n-head 2 --n-embd 16 --n-hidden 24 --block-size 16 --batch-size 4 --warmup-iters 1"
    run = "--data text.txt --max-iters 2 --eval-interval 2 --eval-iters 1 --kernels numpy --threads 1 --out-dir"
    losses = set()
    for n in range(5):
        two = [start(tmp_path, "train", *model.split(), *run.split(), f"run{n}{i}") for i in range(2)]
        said = [process.communicate()[1] for process in two]
        assert [process.returncode for process in two] == [0, 0], said
        losses |= {
            row["val_loss"] for i in range(2) for row in small.rows(tmp_path / f"run{n}{i}") if "val_loss" in row
        }
        shutil.rmtree(tmp_path / "cache")
    assert np.isfinite(list(losses)).all() and len(losses) <= 2
