"""Training on a corpus that is still being tokenized: the same bits, waiting, failures, interruptions and kills."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small

from slm_np.cli import launch
from slm_np.data import batches, embedded, growing, shards, store_builder
from slm_np.data.growing import CorpusFailed
from slm_np.data.token_store import load_corpus
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.tokens import Tokens
from slm_np.data.workers import Stopped, WorkerDied
from slm_np.errors import UserError
from slm_np.formats.run_config import read_config
from slm_np.ops.device import CPU
from slm_np.training.callbacks import Callback
from slm_np.training.signals import Interrupted
from slm_np.training.storage import Storage
from slm_np.training.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(os.name == "nt", reason="Windows waits for the complete corpus"),
]
SHARD, LINES = 10_000, 1200
UPDATES = 24  # batch 24 of 64 tokens is the first that may read all of the 40,000 bytes
RUN = dict(max_iters=UPDATES, eval_interval=6, kernels="numpy")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD", SHARD)
    monkeypatch.setattr(growing, "WORTHWHILE", 0)
    monkeypatch.setattr(batches, "START", 2000)
    CPU.use_kernels("numpy")
    yield tmp_path / "cache"
    CPU.use_kernels()


@pytest.fixture(params=["plain", "documents"])
def data(tmp_path, request):
    path = small.text_file(tmp_path, lines=LINES)
    if request.param == "documents":
        path.write_text(path.read_text(encoding="utf-8").replace(" ball.", "\n<|endoftext|>\n"), encoding="utf-8")
    return path


@pytest.fixture
def plain(tmp_path):
    return small.text_file(tmp_path, lines=LINES)


class Gate:
    """Stands in for the worker processes: a thread that tokenizes shards one by one.

    It opens for the number of shards `free`, and for all once `opened` is set. `failure` is raised when it is set.
    """

    def __init__(self, monkeypatch, free=0):
        self.free, self.opened, self.failure = free, threading.Event(), None
        self.shards = []
        monkeypatch.setattr(store_builder, "tokenize_in_processes", self.tokenize)

    def tokenize(self, staging, numbers, n, meter, done, stop):
        plan = json.loads((staging / "plan.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(staging / "tokenizer.json")
        for number in numbers:
            while len(self.shards) >= self.free and not self.opened.wait(0.005):
                if stop.is_set():
                    raise Stopped
                if self.failure:
                    raise self.failure
            shards.tokenize(staging, plan, number, tokenizer, meter.update)
            self.shards.append(number)
            done()


class AtStep(Callback):
    """Calls `action(trainer)` after update `step`."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, trainer):
        if trainer.updates == self.step:
            self.action(trainer)


def trainer(data, wait, directory=None, callbacks=(), **changes):
    """A Trainer of a tiny run on a corpus that is complete (`wait`) or being tokenized."""
    run = small.config(data, **{**RUN, **changes})
    corpus = load_corpus(run.train.data, tokenizer=run.train.tokenizer, progress=False, threads=1, wait=wait)
    vocabulary = dict(vocab_size=corpus.vocab_size)
    run = dataclasses.replace(small.config(data, **{**RUN, **changes, **vocabulary}), data=dict(tokens=None))
    made = Trainer(run, corpus, callbacks)
    if corpus.building:
        corpus.building.between = made.check_stop
    if directory:
        Path(directory).mkdir(exist_ok=True)
        storage = Storage(directory)
        storage.create(made)
        made.callbacks.append(storage)
    return made


def results(made, directory):
    """What training computes: the weights, and the losses of all evaluations."""
    weights = np.concatenate([weight.ravel() for weight in made.model.parameters.weight.values()])
    return weights.tobytes(), small.rows(directory)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_the_first_update_comes_before_the_store_and_the_bits_are_those_of_a_complete_one(
    tmp_path, data, cache, monkeypatch, tokenizer
):
    complete = trainer(data, True, tmp_path / "a", tokenizer=tokenizer)
    assert complete.corpus.building is None
    complete.train()
    whole = {path.name: path.read_bytes() for path in (cache / "corpora" / complete.corpus.fingerprint).iterdir()}

    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    gate, seen = Gate(monkeypatch, free=2), []  # the first shard of each split

    def open_gate(made):
        seen.append((made.corpus.building.corpus, len(gate.shards)))
        gate.opened.set()

    reading = trainer(data, False, tmp_path / "b", [AtStep(1, open_gate)], tokenizer=tokenizer)
    reading.train()
    assert seen == [(None, 2)] and len(gate.shards) > 4
    assert results(reading, tmp_path / "b") == results(complete, tmp_path / "a")

    corpus = reading.corpus.building.wait()
    folder = tmp_path / "new" / "corpora" / corpus.fingerprint
    assert corpus.fingerprint == complete.corpus.fingerprint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    for split in ("train", "validation"):
        one, two, three = (getattr(c, split) for c in (reading.corpus, corpus, complete.corpus))
        for key in ("n_bytes", "n_targets", "n_documents", "bits_per_byte_floor"):
            assert getattr(one, key) == getattr(two, key) == getattr(three, key)
        np.testing.assert_array_equal(one.ids, three.ids)
    assert not [*folder.parent.glob("*.part")] and not [*folder.parent.glob("*.lock")]


def test_a_damaged_store_is_made_again_while_training_reads_it(tmp_path, plain, cache, monkeypatch, capsys):
    complete = trainer(plain, True, tmp_path / "a")
    complete.train()
    path = cache / "corpora" / complete.corpus.fingerprint / "train.bin"
    damaged = bytearray(path.read_bytes())
    damaged[9] ^= 1
    path.unlink()  # so that the trainer above keeps its tokens
    path.write_bytes(damaged)
    gate = Gate(monkeypatch)
    gate.opened.set()
    reading = trainer(plain, False, tmp_path / "b")
    reading.train()
    assert results(reading, tmp_path / "b") == results(complete, tmp_path / "a") and len(gate.shards) > 4
    assert "cannot be used: train.bin has other contents than its checksum" in capsys.readouterr().err


OTHER = """
import sys, time
from slm_np.data import shards
from slm_np.data.token_store import load_corpus
tokenize, shards.SHARD = shards.tokenize, int(sys.argv[2])
shards.tokenize = lambda *arguments: (tokenize(*arguments), time.sleep(float(sys.argv[3])))
load_corpus(sys.argv[1], progress=False, threads=1)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_another_process_that_tokenizes_gives_the_same_bits_even_if_it_is_killed(
    tmp_path, plain, cache, monkeypatch, killed
):
    complete = trainer(plain, True, tmp_path / "a")
    complete.train()
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    arguments = [str(plain), str(SHARD), "1000" if killed else "0.2"]
    other = subprocess.Popen([sys.executable, "-c", OTHER, *arguments], env=small.environment())
    try:
        folder = tmp_path / "new" / "corpora"
        while not [*folder.glob("*.part/shards/*.json")] and other.poll() is None:
            time.sleep(0.01)
        gate, at_first = Gate(monkeypatch), []
        gate.opened.set()
        note = AtStep(1, lambda made: at_first.append(made.corpus.building.corpus))
        reading = trainer(plain, False, tmp_path / "b", [note])
        assert reading.corpus.building.build.tokenizer is None  # the other process has the lock
        if killed:  # it has tokenized one shard of the validation split
            other.kill()
        reading.train()
    finally:
        other.kill()
        other.wait()
    assert bool(gate.shards) == killed and (killed or at_first == [None])
    assert results(reading, tmp_path / "b") == results(complete, tmp_path / "a")


def test_an_embedded_text_is_read_while_it_is_written(tmp_path, cache, monkeypatch):
    """Of text that is known beforehand, training reads the first part before the last one is written."""
    source, opened = tmp_path / "writer.py", threading.Event()
    source.write_bytes(b"first")

    def write(n_bytes, seed):
        for n in range(n_bytes // 20):
            if seed == 1 and n == 200:
                assert opened.wait(60)
            yield f"Tale {seed} no. {n:05d}.\n\n", 0.125 * 19

    writer = embedded.Writer(write, ".txt", (SimpleNamespace(__file__=str(source)),))
    monkeypatch.setitem(embedded.WRITERS, "stories", writer)
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=40_000, validation=4000))
    monkeypatch.setattr(embedded, "TOGETHER", 10)
    monkeypatch.setattr(shards, "SHARD", 1 << 20)
    monkeypatch.setattr(shards, "SEEN", 64)
    for split, seed in embedded.SEEDS.items():
        text = "".join(text for text, _ in write(embedded.SPLIT_BYTES[split], seed) if opened.set() is None).encode()
        known = embedded.KnownText(len(text), 0.125 * len(text), hashlib.sha256(text).hexdigest())
        monkeypatch.setitem(embedded.KNOWN, embedded._version("stories", split), known)
    complete = trainer("stories", True, tmp_path / "a")
    complete.train()

    opened.clear()
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    Gate(monkeypatch).opened.set()
    texts = []

    def go_on(made):
        texts.append([path.suffix for path in (tmp_path / "new" / "stories").glob("train-*")])
        opened.set()

    reading = trainer("stories", False, tmp_path / "b", [AtStep(1, go_on)])
    reading.train()
    assert texts == [[".part"]] and results(reading, tmp_path / "b") == results(complete, tmp_path / "a")
    corpus = reading.corpus.building.wait()
    assert corpus.fingerprint == complete.corpus.fingerprint
    assert corpus.train.bits_per_byte_floor == complete.corpus.train.bits_per_byte_floor == 0.125
    assert corpus.train.n_bytes == complete.corpus.train.n_bytes


def test_waiting_is_said_and_ends_when_the_shards_are_there(tmp_path, plain, monkeypatch):
    complete = trainer(plain, True, tmp_path / "a")
    complete.train()
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(growing, "FIRST_LINE_S", 0.0)
    gate, lines = Gate(monkeypatch, free=1), []

    def said(line, file):
        lines.append(line)
        gate.free = len(gate.shards) + 1

    monkeypatch.setattr(growing.tqdm, "write", said)
    monkeypatch.setattr(growing, "LINE_S", 0.0)
    reading = trainer(plain, False, tmp_path / "b")
    reading.corpus.building.progress = True
    reading.train()
    assert lines[0].startswith("waiting until the train split has 2,000 tokens: ")
    assert results(reading, tmp_path / "b") == results(complete, tmp_path / "a")


def test_a_signal_ends_waiting_and_saves(tmp_path, plain, monkeypatch):
    complete = trainer(plain, True, tmp_path / "a")
    complete.train()
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(growing, "FIRST_LINE_S", 0.0)
    gate = Gate(monkeypatch, free=2)
    monkeypatch.setattr(growing.tqdm, "write", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    reading = trainer(plain, False, tmp_path / "b", eval_interval=100)
    reading.corpus.building.progress = True
    with pytest.raises(Interrupted):
        reading.train()
    assert 0 < reading.updates < UPDATES and (tmp_path / "b" / f"checkpoint-{reading.updates}").is_dir()
    reading.corpus.building.close()
    assert reading.corpus.building.ended.is_set() and len(gate.shards) == 2
    reading.stop_signal, reading.corpus.building.progress = None, False
    with pytest.raises(CorpusFailed, match="tokenizing it was stopped"):
        len(reading.corpus.train)

    gate.opened.set()
    again = trainer(plain, False, eval_interval=100)
    small.resume(again, tmp_path / "b")
    again.train()
    assert sorted(gate.shards) == [*range(len(gate.shards))]  # finished shards were kept
    assert results(again, tmp_path / "b")[0] == results(complete, tmp_path / "a")[0]


@pytest.mark.parametrize(
    "failure, sentence",
    [
        (UserError("text.txt, line 5 is not a row"), "text.txt, line 5 is not a row"),
        (OSError(errno.ENOSPC, "No space left on device"), r"cannot write .*\(No space left on device\)"),
        (WorkerDied(-9), "ended with status -9"),
        ("changed", "text.txt changed while it was read"),
    ],
)
def test_a_failure_stops_training_with_its_sentence_and_a_checkpoint(tmp_path, plain, monkeypatch, failure, sentence):
    complete = trainer(plain, True, tmp_path / "a")
    complete.train()
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "new"))
    gate, stamp = Gate(monkeypatch, free=2), os.stat(plain).st_mtime_ns

    def fail(made):
        if failure == "changed":
            os.utime(plain, ns=(0, 0))
            gate.opened.set()
        else:
            gate.failure = failure

    with pytest.raises(CorpusFailed, match=sentence):
        trainer(plain, False, tmp_path / "b", [AtStep(3, fail)], max_iters=10**6, lr_decay_iters=UPDATES).train()
    os.utime(plain, ns=(stamp, stamp))
    gate.opened.set()
    again = trainer(plain, False, lr_decay_iters=UPDATES)
    small.resume(again, tmp_path / "b")
    assert 3 <= again.updates < UPDATES
    again.train()
    assert results(again, tmp_path / "b")[0] == results(complete, tmp_path / "a")[0]


@pytest.mark.parametrize("changes", [dict(epochs=0.5), dict(carry_state=True, pattern="S")])
def test_what_depends_on_the_length_waits_for_all(tmp_path, plain, monkeypatch, changes):
    Gate(monkeypatch).opened.set()
    corpus, run = launch.prepared(small.config(plain, **{**RUN, **changes}))
    assert corpus.building is None and run.data["tokens"] == [len(corpus.train), len(corpus.validation)]


def test_rows_wait_for_all(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "One two three four five."}\n' * 2000, encoding="utf-8")
    corpus, _ = launch.prepared(small.config(rows, **RUN))
    assert corpus.building is None and corpus.train.mask is None


def test_a_split_that_is_too_short_is_refused_before_the_run_begins(tmp_path, plain, monkeypatch, capsys):
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    Gate(monkeypatch).opened.set()
    flags = small.flags(plain, **RUN, val_data=tmp_path / "short.txt", out_dir=tmp_path / "run")
    assert small.status("train", *flags) == 2
    assert "the validation split has 5 tokens" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_command_records_and_prints_what_it_does_with_a_complete_corpus(tmp_path, plain, monkeypatch, capsys):
    gate = Gate(monkeypatch, free=2)
    said = []
    real = launch.describe
    monkeypatch.setattr(launch, "describe", lambda *args: (real(*args), said.append(gate.shards[:]), gate.opened.set()))
    outputs = []
    for name in ("growing", "complete"):
        assert small.status("train", *small.flags(plain, **RUN, out_dir=tmp_path / name)) == 0
        outputs.append(capsys.readouterr())
    assert len(said[0]) == 2 and "still being tokenized" in outputs[0].err and "tokenized" not in outputs[1].err
    assert outputs[0].out.replace("growing", "complete") == outputs[1].out
    one, two = (read_config(tmp_path / name) for name in ("growing", "complete"))
    assert one.data == two.data and all(one.data["tokens"])
    small.assert_same_state(tmp_path / "growing", tmp_path / "complete", UPDATES)
    assert small.rows(tmp_path / "growing") == small.rows(tmp_path / "complete")


def test_other_data_are_refused_without_waiting_for_them(tmp_path, plain, monkeypatch, capsys):
    gate = Gate(monkeypatch)
    gate.opened.set()
    assert small.status("train", *small.flags(plain, **RUN, out_dir=tmp_path / "run")) == 0
    small.text_file(tmp_path, "other.txt", seed=1, lines=LINES)
    gate.opened.clear()
    assert small.status("train", "--resume", tmp_path / "run", "--data", tmp_path / "other.txt") == 2
    assert re.search("the data have changed: .*other.txt is not what .*run was trained on", capsys.readouterr().err)


@pytest.mark.parametrize("n", [1500, 5000])
def test_windows_reach_further_and_further_and_then_everywhere(n):
    from slm_np.training.batches import RandomWindows

    split, x, y = Tokens("train", np.arange(n, dtype=np.uint16)), *np.zeros((2, 4, 8), np.int32)
    reaching, everywhere = RandomWindows(split, 1, 0, lambda index: index), RandomWindows(split, 1, 0)
    for index in range(8):
        reaching.fill(x, y, index)
        limit, first = max(2000, 32 * index * 32), x.copy()
        assert y.max() < limit
        everywhere.fill(x, y, index)
        assert np.array_equal(first, x) == (limit >= n)


def test_the_first_tokens_are_seen_little_more_than_the_last():
    """The bound of the docstring of `reach`, by summing the probabilities of a token under the rule."""
    start, growth, total, batch = 2000, batches.GROWTH, 200_000, 10
    seen = {position: 0.0 for position in (0, total - 1)}
    for n_read in range(0, total, batch):
        reach = min(total, batches.reach(n_read))
        for position in seen:
            seen[position] += batch / reach * (position < reach)
    more = seen[0] - seen[total - 1]
    assert 0 < more <= 1.02 * (1 + math.log(total / start)) / growth


CHILDREN = """
import sys
from slm_np.data import growing
growing.WORTHWHILE = 0
from slm_np.train import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="this system does not list child processes")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_ends_leaves_no_workers_and_resumes_with_the_same_bits(tmp_path, monkeypatch, number):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{line}\n\n" for line in small.text(lines=4000).splitlines()) * 50, encoding="utf-8")
    flags = small.flags(text, max_iters=40, save_interval=1, eval_interval=40, documents="blank-line", kernels="numpy")
    environment = small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "new"))

    def running_processes():
        """{process: its parent} of all processes that have not ended."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[path.parent.name] = int(parent)
        return found

    def start(*more):
        return subprocess.Popen(
            [sys.executable, "-c", CHILDREN, *map(str, more)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    running = start(*flags, "--out-dir", tmp_path / "run")
    while not (tmp_path / "run" / "checkpoint-1").exists() and running.poll() is None:
        time.sleep(0.01)
    workers = {process for process, parent in running_processes().items() if parent == running.pid}
    assert workers
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    assert running.returncode == (-9 if number == signal.SIGKILL else 128 + number), error
    deadline = time.monotonic() + 30
    while workers & running_processes().keys():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [part] = (tmp_path / "new" / "corpora").glob("*.part")
    assert (part / "plan.json").exists()
    resumed = start("--resume", tmp_path / "run")
    _, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, error
    whole = start(*flags, "--out-dir", tmp_path / "whole")
    _, error = whole.communicate(timeout=120)
    assert whole.returncode == 0 and "still being tokenized" not in error
    small.assert_same_state(tmp_path / "run", tmp_path / "whole", 40)
    assert read_config(tmp_path / "run").data == read_config(tmp_path / "whole").data
