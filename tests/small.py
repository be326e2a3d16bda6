"""Tiny runs with updates of less than a millisecond, in this process or in one of their own."""

import importlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import slm_np
from slm_np.config import ModelConfig, TrainConfig
from slm_np.data.token_store import load_corpus
from slm_np.formats import checkpoint, metrics
from slm_np.formats.run_config import RunConfig
from slm_np.training.storage import Storage
from slm_np.training.trainer import Trainer

MODEL = dict(n_layer=1, n_head=2, n_embd=16, n_hidden=24, block_size=16)
TRAIN = dict(
    batch_size=4,
    max_iters=12,
    learning_rate=3e-3,
    min_lr=1e-4,
    warmup_iters=2,
    beta2=0.99,
    eval_interval=4,
    eval_iters=2,
    log_interval=3,
    save_interval=4,
    threads=1,
)
EVALUATIONS = ("best", "stale", "evaluated")  # counters of a checkpoint that a run which ends there has in addition
TIMED = {"step_ms", "tokens_per_s", "time_s", "waiting"}  # metrics that differ between equal runs


def text(seed=0, lines=300):
    """Text of few distinct words, the same for the same seed."""
    draw, words = random.Random(seed), "the cat dog sat ran saw a big red ball and home".split()
    return "".join(" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(lines))


def text_file(folder, name="text.txt", **options):
    """`text` as a file in `folder`. Returns its path."""
    path = Path(folder) / name
    path.write_text(text(**options), encoding="utf-8")
    return path


def sizes(changes):
    """MODEL without the sizes that have no effect in a model with these changes."""
    unused = ["n_head"] * ("A" not in changes.get("pattern", "A"))
    unused += ["n_hidden"] * (changes.get("feed_forward") == "none")
    return {name: value for name, value in MODEL.items() if name not in unused}


def plain(changes):
    """Flags that switch off what the preset `stories` has and a tiny run lacks."""
    found = dict(init="normal", optimizer="adamw", beta1=0.9, weight_decay=0.1, lr_schedule="cosine")
    if "A" in changes.get("pattern", "A"):
        found["no_qk_norm"] = True
        if changes.get("positions", "rotary") == "rotary":
            found["rope_theta"] = 10000.0
    return found


def config(data, **changes):
    """The RunConfig of a tiny run on the file `data`. changes: fields of ModelConfig or TrainConfig."""
    of_model = {name: value for name, value in changes.items() if name in ModelConfig.__dataclass_fields__}
    of_training = {name: value for name, value in changes.items() if name in TrainConfig.__dataclass_fields__}
    model = ModelConfig(**{**sizes(changes), "vocab_size": 256, **of_model})
    return RunConfig(model, TrainConfig(**{**TRAIN, "data": str(data), **of_training}), preset="stories")


def trainer(data, directory=None, **changes):
    """A Trainer of a tiny run that prints nothing, stored in the new `directory` if one is given."""
    run = config(data, **changes)
    settings = run.train
    corpus = load_corpus(
        settings.data, settings.val_data, settings.tokenizer, documents=settings.documents, progress=False
    )
    trainer = Trainer(run, corpus)
    if directory:
        Path(directory).mkdir()
        storage = Storage(directory)
        storage.create(trainer)
        trainer.callbacks.append(storage)
    return trainer


def resume(trainer, directory):
    """Continue the run in `directory` with a Trainer of the same settings."""
    storage = Storage(directory)
    storage.resume(trainer)
    trainer.callbacks.append(storage)


def flags(data, **changes):
    """The flags of a tiny run for `train`."""
    words = ["--preset", "stories"]
    for name, value in {**sizes(changes), **plain(changes), **TRAIN, "data": data, **changes}.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}"] + [str(value)] * (value is not True)
    return words


def environment(**more):
    """Environment variables for a process that imports the same slm_np as this one and uses one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(slm_np.__file__).resolve().parents[1]),
        "NUMBA_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def command(verb, *words, cwd, **options):
    """Run `python -m slm_np.VERB WORDS` in the directory `cwd`. Returns the CompletedProcess, with output as text."""
    return subprocess.run(
        [sys.executable, "-m", f"slm_np.{verb}", *map(str, words)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        **options,
    )


def process(verb, *words, cwd):
    """Start `python -m slm_np.VERB WORDS` in the directory `cwd`. Returns the Popen; its stderr is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", f"slm_np.{verb}", *map(str, words)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def status(verb, *words):
    """Run `slm_np.VERB WORDS` in this process. Returns its exit status."""
    try:
        importlib.import_module(f"slm_np.{verb}").main(list(map(str, words)))
    except SystemExit as end:
        return end.code
    return 0


def refusal(capsys, verb, *words):
    """What a command prints on stderr: one line, with exit status 2 and without changing a file."""
    capsys.readouterr()
    before = tree(".")
    assert status(verb, *words) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"slm_np: [^\n]+\n", printed.err), printed.err
    assert printed.out == "" and tree(".") == before, "files were left behind"
    return printed.err


def rows(run):
    """The metrics of a run without times."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in metrics.read_metrics(run)]


def assert_same_state(run, other, step, but=()):
    """Both runs have a checkpoint of `step` with the same weights, moments and counters, bit for bit.

    but: counters that may differ.
    """
    one, two = (checkpoint.load_checkpoint(Path(folder) / f"checkpoint-{step}") for folder in (run, other))
    for a, b in ((one.model, two.model), (one.optimizer, two.optimizer)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    same = [name for name in one.state if name not in ("elapsed", *but)]
    assert one.state.keys() == two.state.keys()
    assert [one.state[name] for name in same] == [two.state[name] for name in same]


class Clock:
    """The time module of a trainer whose every look at the clock takes `tick` seconds."""

    def __init__(self, tick):
        self.tick, self.now = tick, 0.0

    def perf_counter(self):
        self.now += self.tick
        return self.now


def tree(folder):
    """The paths of all files and directories in a directory."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
