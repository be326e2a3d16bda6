"""Concurrent starts: one writer wins, the other is refused at once or waits, and the winner's result is undisturbed."""

import random
import re
import time
from collections import Counter

from fault_campaign import children, fixtures, scenes
from fault_campaign.fixtures import FINETUNE, SCENES, TRAIN
from fault_campaign.judges import FAILED, LOST, check_end, done, require, same_files, same_run, sentence

TRIES = 50
TEXT, BASE = ("text.txt",), ("text.txt", "chat.jsonl", "base=run", "cache")
NAMED = r"process|already holds a run|in use|already|another"  # a loser says who or what was first
CONVERT = "convert model.bin --tokenizer tok.bin --out-dir run"
GENERATE = "generate --model run -n 8 --seed 3"
# name: (inputs, first command, second command, {output: (reference of the first, of the second)})
PAIRS = {
    "train+train": (TEXT, f"train {TRAIN} --out-dir run", f"train {TRAIN} --seed 5 --out-dir run", ("run", "seeded")),
    "resume+resume": (SCENES["resume"].inputs, "train --resume run", "train --resume run", ("run", "run")),
    "train+finetune": (
        BASE,
        f"train {TRAIN} --out-dir run",
        f"finetune --base base {FINETUNE} --out-dir run",
        ("run", "tuned"),
    ),
    "train+resume": (TEXT, f"train {TRAIN} --out-dir run", "train --resume run", ("run", "run")),
    "convert+convert": (
        SCENES["convert"].inputs,
        *[CONVERT] * 2,
        ("converted",) * 2,
    ),
    "prepare+prepare": (TEXT, *["prepare text.txt --tokenizer char --out-dir tokens"] * 2, ("tokens", "tokens")),
    "train+prepare": (
        TEXT,
        f"train {TRAIN} --out-dir run",
        "prepare text.txt --tokenizer char --out-dir tokens",
        ("run", "tokens"),
    ),
    "resume+generate": (
        SCENES["resume"].inputs,
        "train --resume run",
        GENERATE,
        ("run", ""),
    ),
    "default+default": (TEXT, f"train {TRAIN}", f"train {TRAIN} --seed 5", ("run", "seeded")),
    "finetune+finetune": (BASE, *[f"finetune --base base {FINETUNE} --out-dir run"] * 2, ("tuned", "tuned")),
}
FREE = "train+prepare", "resume+generate", "default+default"  # neither is in the way of the other
AT_ONCE_S = 5.0  # seconds in which a loser has to end, on a busy machine


def cases(context):
    draw, names = random.Random(context.seed), list(PAIRS)
    seconds = scenes.measured("train", context)[0]
    found = []
    for i in range(TRIES):
        delay = 0.0 if i // len(names) % 2 == 0 else draw.uniform(0.0, seconds)
        found.append(f"{names[i % len(names)]} {i} second after {delay:.4f} s")
    return found


def attempt(case, context, folder):
    name, *_, delay, _ = case.split()
    inputs, first, second, references = PAIRS[name]
    fixtures.place(context.fixtures, folder, inputs)
    begin = time.perf_counter() + 0.02
    both = [
        children.started_command(*line.split(), cwd=folder, setup=lambda at=at: wait_until(at))
        for line, at in ((first, begin), (second, begin + float(delay)))
    ]
    results = children.waited(both)
    for result, line in zip(results, (first, second)):
        check_end(result, line.split()[0])
    judge(name, context, folder, results, references)


def wait_until(moment):
    """Wait, without giving the processor away, so that two children start at the same time."""
    while time.perf_counter() < moment:
        pass


def judge(name, context, folder, results, references):
    """One won, and what it made is as if it had been alone."""
    winners = [i for i in (0, 1) if results[i].status == 0]
    require(winners, LOST, f"both fail: {results[0].tail()} | {results[1].tail()}")
    for i in {0, 1} - set(winners):
        said = sentence(results[i], "the loser")
        late = name == "train+resume" and i == 1 or name == "resume+generate" and i == 1
        require(
            re.search(NAMED, said) or late and "not a run" in said, FAILED, f"the loser does not name the first: {said}"
        )
        require(results[i].seconds < AT_ONCE_S, FAILED, f"the loser takes {results[i].seconds:.1f} s")
    if name in FREE:
        require(len(winners) == 2, FAILED, f"one is refused: {[result.tail() for result in results if result.status]}")
    if name == "prepare+prepare":
        same_files(folder / "tokens", context.fixtures / "tokens", "tokens")
        return
    if name == "train+prepare":
        same_files(folder / "tokens", context.fixtures / "tokens", "tokens")
    if name == "default+default":
        runs = sorted(path.parent for path in folder.glob("runs/*/run.json"))
        require(len(runs) == 2, LOST, f"{len(runs)} runs instead of two")
        seeds = {run: seed_of(run) for run in runs}
        for run, seed in seeds.items():
            same_run(run, context.fixtures / references[seed == 5], run.name)
        require(len(set(seeds.values())) == 2, LOST, "both runs are the same")
        return
    run = folder / "run"
    winner = 0 if 0 in winners else 1
    if name == "train+train" and len(winners) == 2:
        require(False, LOST, "both trained in one directory")
    same_run(run, context.fixtures / references[winner], "the winner's run")
    done(children.forked("generate", "--model", "run", "-n", 4, cwd=folder), "generate from the winner's run", LOST)
    once(run)


def seed_of(run):
    from slm_np.formats.run_config import read_config

    return read_config(run).train.seed


def once(run):
    """No update was logged twice."""
    from slm_np.formats import metrics

    steps = Counter((row["step"], "val_loss" in row) for row in metrics.read_metrics(run))
    twice = [step for (step, _), count in steps.items() if count > 1]
    require(not twice, LOST, f"two processes trained the run: steps {twice[:3]} are in the metrics twice")
