"""Building a token store: shards and processes give the same bytes, kills lose nothing, memory stays small."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import small
from data_files import LONG_AGO, contents, jsonl, load, marked, mixed_corpus, text_file

from slm_np.data import joined, shards
from slm_np.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
@pytest.mark.parametrize("plain", [False, True])
def test_shards_and_processes_give_the_same_store(tmp_path, monkeypatch, tokenizer, plain):
    text = "One two  three.\nFour 漢字 🙂 naïve,\n\n five! " * 1500
    data = text_file(tmp_path, text, "plain.txt") if plain else mixed_corpus(tmp_path)
    once = load(data, tokenizer=tokenizer, out_dir=tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    load(data, tokenizer=tokenizer, threads=1, out_dir=tmp_path / "many")
    assert contents(tmp_path / "once") == contents(tmp_path / "many")
    if tokenizer == "bpe:300":
        load(data, tokenizer=tokenizer, threads=2, out_dir=tmp_path / "processes")
        assert contents(tmp_path / "once") == contents(tmp_path / "processes")
    if plain:
        assert once.tokenizer.decode(once.train.ids) + once.tokenizer.decode(once.validation.ids) == text.encode()


def test_bad_text_in_a_worker_process_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 5000)
    path = text_file(tmp_path, jsonl([dict(text="abc " * 50)] * 200 + [dict(text=3)]), "r.jsonl")
    with pytest.raises(UserError, match=r"r.jsonl, line 201\b"):
        load(path, text_file(tmp_path, "v", "v.txt"), threads=2)


def test_a_worker_that_dies_is_reported_and_finished_shards_are_kept(tmp_path, cache, monkeypatch):
    data = mixed_corpus(tmp_path)
    expected = load(data, out_dir=tmp_path / "expected")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    real = subprocess.Popen

    def dying(command, **options):
        process = real(command, **options)
        threading.Timer(0.6, process.kill).start()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", dying)
        try:
            load(data, threads=2)
        except UserError as error:
            assert "a worker process that tokenized the corpus ended" in str(error)
            assert "finished shards are kept" in str(error)
    found = load(data, threads=2)
    assert found.train.ids.tolist() == expected.train.ids.tolist()


SLOW = """
import sys, time
from slm_np.data import joined, shards
from slm_np.prepare import main
tokenize, shards.SHARD = shards.tokenize, 20_000
shards.tokenize = lambda *arguments: (tokenize(*arguments), time.sleep(0.05))
main(sys.argv[1:])
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_run_resumes_and_gives_the_same_store(tmp_path, threads):
    data = mixed_corpus(tmp_path)
    load(data, out_dir=tmp_path / "once")
    environment, out = small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "cache")), tmp_path / "out"
    arguments = [sys.executable, "-c", SLOW, *data.split(","), "--out-dir", str(out), "--threads", str(threads)]
    parts = tmp_path / "out.part" / "shards"

    def finished():
        return {path.stem: path.stat().st_mtime_ns for path in parts.glob("*.json") if path.stem.isdigit()}

    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    while len(finished()) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = finished()
    assert kept and not out.exists()
    time.sleep(0.3)  # its workers end, since it has closed their stdin
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:  # finished shards are not written again
        for name, mtime in kept.items():
            try:
                assert (parts / f"{name}.json").stat().st_mtime_ns == mtime
            except FileNotFoundError:
                pass
        time.sleep(0.01)
    assert process.returncode == 0 and contents(out) == contents(tmp_path / "once")
    assert not (tmp_path / "out.part").exists() and not (tmp_path / "out.lock").exists()


def test_interruptions_while_shards_are_joined_lose_nothing(tmp_path, monkeypatch):
    data = mixed_corpus(tmp_path)
    load(data, out_dir=tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    real, syncs, left = os.fsync, [], 0

    def breaking(descriptor):
        nonlocal left
        syncs.append(descriptor)
        left -= 1
        if not left:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", breaking)
    tokenize, tokenized = shards.tokenize, []

    def recorded(staging, plan, number, *rest):
        tokenized.append(number)
        tokenize(staging, plan, number, *rest)

    monkeypatch.setattr(shards, "tokenize", recorded)
    for left in (*[1, 2, 3, 4] * 10, *range(5, 30)):  # the sync at which an attempt is interrupted
        try:
            load(data, threads=1, out_dir=tmp_path / "out")
            break
        except KeyboardInterrupt:
            if (tmp_path / "out").exists():
                assert contents(tmp_path / "out") == contents(tmp_path / "once")
    assert len(tokenized) == len(set(tokenized)) > 10
    assert len(syncs) > 20
    assert contents(tmp_path / "out") == contents(tmp_path / "once")


def test_a_worker_that_outlives_its_parent_does_not_finish_the_shard_of_another_one(tmp_path, cache, monkeypatch):
    """The first shard of a split is written in place, so a new builder must not take an old worker's word for it."""
    data = text_file(tmp_path, "One two three.\n" * 3000)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    tokenize, refused = shards.tokenize, []

    def interrupted(staging, plan, number, tokenizer, report):
        split, build = plan["shards"][number][0], shards.current_build(staging)
        if refused:
            return tokenize(staging, plan, number, tokenizer, report)

        def refuses(worker_reports=report):
            with pytest.raises(OSError) as found:
                tokenize(staging, plan, number, tokenizer, worker_reports, build)
            refused.append(found.value.errno)
            assert not shards.finished(staging, number)

        # An old worker is refused if a new build cleans the folder while it writes, or before it starts.
        refuses(lambda n: joined.clean(staging, plan, tokenizer.dtype.itemsize, False))
        refuses()
        assert not (staging / f"{split}.bin").stat().st_size
        # And while the new one writes.
        tokenize(staging, plan, number, tokenizer, lambda n: (report(n), refuses()))

    expected = load(data, out_dir=tmp_path / "expected")
    monkeypatch.setattr(shards, "tokenize", interrupted)
    found = load(data, threads=1)
    assert set(refused) == {errno.ESTALE} and len(refused) > 2
    assert found.train.ids.tolist() == expected.train.ids.tolist()


def test_an_old_incomplete_store_is_resumed(tmp_path, cache, monkeypatch):
    data = mixed_corpus(tmp_path)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    tokenize, begun = shards.tokenize, []

    def breaking(staging, plan, number, *rest):
        begun.append(number)
        if len(begun) == 3:
            raise KeyboardInterrupt
        tokenize(staging, plan, number, *rest)

    monkeypatch.setattr(shards, "tokenize", breaking)
    with pytest.raises(KeyboardInterrupt):
        load(data, threads=1)
    [part] = (cache / "corpora").glob("*.part")
    for path in (*part.iterdir(), part):
        os.utime(path, (LONG_AGO, LONG_AGO))
    load(data, threads=1)
    assert len(set(begun[:3])) == 3 and begun[2] == begun[3]
    assert sorted(begun[:2] + begun[3:]) == [*range(len(begun) - 1)]


def test_a_kill_while_shards_are_removed_can_be_resumed(tmp_path, monkeypatch):
    data, out = mixed_corpus(tmp_path), tmp_path / "out"
    load(data, out_dir=tmp_path / "once")
    rmtree = shutil.rmtree

    def killed(path, **options):
        rmtree(path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            load(data, threads=1, out_dir=out)
    assert (tmp_path / "out.part" / "plan.json").exists() and not (tmp_path / "out.part" / "shards").exists()
    load(data, threads=1, out_dir=out)
    assert contents(out) == contents(tmp_path / "once")


def test_concurrent_builds_of_a_store_share_the_work(tmp_path, monkeypatch):
    data = mixed_corpus(tmp_path)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    found = []
    workers = [threading.Thread(target=lambda: found.append(load(data, threads=1))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({one.fingerprint for one in found}) == 1
    assert len(found) == 3
    assert len({one.train.ids.tobytes() for one in found}) == 1


WATCHED = """
import sys, threading, time
from pathlib import Path
peak = 0
def watch():
    global peak
    while True:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        peak = max(peak, int(fields["RssAnon"].split()[0]) * 1024)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from slm_np.prepare import main
main(sys.argv[1:])
print("peak", peak)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="this system does not report anonymous memory")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    megabyte, peaks = marked(["The quick brown fox jumps over the lazy dog, naïvely. " * 20] * 900).encode(), []
    for megabytes in (10, 40):
        with open(tmp_path / f"{megabytes}.txt", "wb") as out:
            for _ in range(megabytes):
                out.write(megabyte)
        arguments = [f"{megabytes}.txt", "--threads", "1", "--out-dir", f"{megabytes}"]
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, *arguments],
            cwd=tmp_path,
            env=small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "cache")),
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 12e6 and peaks[1] < 200e6, peaks
