"""Tiny runs, whose update takes less than a millisecond, in this process or in one of their own."""

import os
import random
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
TIMED = {"step_ms", "tokens_per_s", "time_s"}  # metrics that differ between equal runs


def text(seed=0, lines=300):
    """Text of few words, the same for the same seed."""
    draw = random.Random(seed)
    return (
        "\n".join(
            " ".join(draw.choices("the cat dog sat ran saw a big red ball and home".split(), k=8)) + "."
            for _ in range(lines)
        )
        + "\n"
    )


def text_file(folder, name="text.txt", **options):
    """`text` as a file in `folder`. Returns its path."""
    path = Path(folder) / name
    path.write_text(text(**options), encoding="utf-8")
    return path


def sizes(changes):
    """MODEL without the sizes that a model with these changes does not have."""
    unused = ["n_head"] * ("A" not in changes.get("pattern", "A"))
    unused += ["n_hidden"] * (changes.get("feed_forward") == "none")
    return {name: value for name, value in MODEL.items() if name not in unused}


def config(data, **changes):
    """The RunConfig of a tiny run on the file `data`. changes: fields of ModelConfig or TrainConfig."""
    model = {
        **sizes(changes),
        "vocab_size": 256,
        **{name: value for name, value in changes.items() if name in ModelConfig.__dataclass_fields__},
    }
    train = {
        **TRAIN,
        "data": str(data),
        **{
            name: value
            for name, value in changes.items()
            if name not in model and name in TrainConfig.__dataclass_fields__
        },
    }
    return RunConfig(ModelConfig(**model), TrainConfig(**train), preset="stories")


def trainer(data, directory=None, **changes):
    """A Trainer of a tiny run, stored in the new `directory` if there is one. It prints nothing."""
    run = config(data, **changes)
    made = Trainer(
        run,
        load_corpus(
            run.train.data, run.train.val_data, run.train.tokenizer, documents=run.train.documents, progress=False
        ),
    )
    if directory:
        Path(directory).mkdir()
        storage = Storage(directory)
        storage.create(made)
        made.callbacks.append(storage)
    return made


def resume(trainer, directory):
    """Continue the run in `directory` with a Trainer of the same settings."""
    storage = Storage(directory)
    storage.resume(trainer)
    trainer.callbacks.append(storage)


def flags(data, **changes):
    """The flags of a tiny run for `train`."""
    given = {
        name.replace("_", "-"): value
        for name, value in {**sizes(changes), **TRAIN, "data": data, **changes}.items()
        if value is not None
    }
    return [
        word
        for name, value in given.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def environment(**more):
    """Environment variables of a process that imports the same slm_np as this one and uses one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(slm_np.__file__).resolve().parents[1]),
        "NUMBA_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def command(verb, *words, cwd, **options):
    """Run `python -m slm_np.VERB WORDS` in the directory `cwd`. Returns subprocess.run's result, with output as text."""
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
    """Exit status of a command run in this process."""
    import importlib

    try:
        importlib.import_module(f"slm_np.{verb}").main(list(map(str, words)))
    except SystemExit as left:
        return left.code
    return 0


def rows(run):
    """The metrics of a run, without times."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in metrics.read_metrics(run)]


def assert_same_state(run, other, step):
    """Both runs have a checkpoint of `step` with the same weights, moments and counters, bit for bit."""
    one, two = (checkpoint.load_checkpoint(Path(folder) / f"checkpoint-{step}") for folder in (run, other))
    for a, b in ((one.model, two.model), (one.optimizer, two.optimizer)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert {**one.state, "elapsed": 0} == {**two.state, "elapsed": 0}


def tree(folder):
    """The paths of all files and directories in a directory."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
