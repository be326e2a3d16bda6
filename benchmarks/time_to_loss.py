"""How much loss a budget of training buys, by recipe: with seeds, whole held-out splits and a significance test.

    python benchmarks/time_to_loss.py --task shakespeare-char --track R --data tinyshakespeare.txt --seeds 1,2,3
        [--engine slm_np|torch|ngram] [--recipe preset|original] [--change NAME=VALUE,...] [--updates N] [--target LOSS]
        [--json FILE] [--plot PNG]

Track R keeps the network, the tokenizer and the windows of the task's preset, and may change the optimizer, schedule,
batch and initialization. Track F may change the network, too. Nothing but the tokenizer may be computed from the text.
The length is fixed before the launch, and the model is evaluated once, at the end: every token of the held-out text in
windows of the training length that do not overlap, in float32. The clock runs from the launch of the process to the
final weights; kernels are compiled by a run of one update before the first one. A budget reaches the target if
(target - mean) sqrt(n) >= 3.09 sd over n seeds, which is p < 0.001.

The rows of --json, one an engine and recipe: engine, task, track, recipe, processor, dtype, seeds, losses, updates,
flops, seconds, mean_loss, sd, target, passed. A seed is written when it ends, and a rerun skips those that are there.
--plot draws the rows of the task: loss over seconds, a line for each engine and recipe through its lengths.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
from measure import check_plot, import_torch, write_json
from tasks import TASKS, split_files

from slm_np.errors import UserError, command, near
from slm_np.presets import preset

ENGINES = ("slm_np", "torch", "ngram")
LABELS = {"torch": "PyTorch", "torch compiled": "PyTorch, compiled", "ngram": "counted n-grams"}
CONFIDENCE = 3.09  # standard errors: p < 0.001 on one side
NETWORK = ("model.", "tokenizer")  # what only track F may change


def changes(text):
    """{"train.NAME" or "model.NAME": value} of --change. UserError if it is malformed."""
    found = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--change {item!r} is not NAME=VALUE; write learning_rate=3e-3,beta2=0.98")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def settings(task, recipe, given, files, updates, seed, dtype):
    """(preset, changes of its model, of its training) of a run."""
    model, train = dict(task.model), dict(task.train, tokenizer=task.tokenizer)
    if recipe == "original":
        train |= task.original
    for name, value in given.items():
        (model if name.startswith("model.") else train)[name.removeprefix("model.")] = value
    train |= dict(max_iters=updates, seed=seed, dtype=dtype)
    if files:
        train |= dict(data=str(files[0]), val_data=str(files[1]))
    return task.preset, model, train


# The child: one run


def child(spec):
    """Train one seed and print its result as a line of JSON."""
    import contextlib

    if spec["engine"] == "torch":
        import_torch()

    from shakespeare_char import trained_in_torch
    from shapes import operations

    from slm_np.cli.launch import prepared
    from slm_np.formats.run_config import RunConfig
    from slm_np.inference.evaluation import evaluate
    from slm_np.nn.model import Model
    from slm_np.ops.device import CPU
    from slm_np.training.trainer import Trainer

    CPU.use_threads(0)
    name, model, train = spec["settings"]
    corpus, run = prepared(RunConfig(*preset(name, model, train), preset=name))
    if corpus.building:
        corpus.building.wait()
    trainer = Trainer(run, corpus)
    config, updates = trainer.model.config, run.train.max_iters
    if spec["engine"] == "torch":
        weights = {name: array.copy() for name, array in trainer.model.parameters.weight.items()}
        with contextlib.redirect_stdout(sys.stderr):
            _, twin = trained_in_torch(trainer, weights, trainer.config.dtype == "bf16", compiled=spec["compiled"])
        weights = twin.weights()
    else:
        for _ in range(updates):
            trainer.step()
        weights = trainer.model.parameters.weight
    seconds = time.time() - spec["launched"]
    final = Model(config, seed=0)
    for name, array in final.parameters.weight.items():
        array[...] = weights[name]
    check(final, corpus.validation)
    found = evaluate(final, corpus.validation, corpus.tokenizer, stride=config.block_size)
    loss = found.bits_per_byte if spec["unit"] == "bits" else found.nats_per_token
    micro = run.train.grad_accumulation_steps
    flops = updates * micro * operations(config, run.train.batch_size)
    print(json.dumps(dict(loss=loss, seconds=seconds, flops=flops, updates=updates, dtype=trainer.config.dtype)))


def check(model, split):
    """UserError unless losses are -log of probabilities that sum to 1 and do not depend on what follows."""
    ids, half = np.array(split.first(model.config.block_size + 1).ids, np.int32), model.config.block_size // 2
    tokens, targets = ids[None, : 2 * half].copy(), ids[None, 1 : 2 * half + 1].copy()
    logits = np.array(model.logits(tokens), np.float64)[0]
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    if not np.allclose(model.losses(tokens, targets)[0], total - logits[np.arange(2 * half), targets[0]], atol=1e-3):
        raise UserError("the losses are not those of probabilities that sum to 1")
    tokens[:, half:] = (tokens[:, half:] + 1) % model.config.vocab_size
    if not np.allclose(logits[:half], model.logits(tokens)[0, :half], atol=1e-3):
        raise UserError("the model sees the tokens that it has to predict")


# The parent


def run_child(spec):
    """The result of a child process."""
    spec = spec | dict(launched=time.time())
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
    )
    if done.returncode:
        raise UserError(f"the run of seed {spec['settings'][2]['seed']} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def processor():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def summary(row):
    """A row with its statistics."""
    losses = list(row["losses"].values())
    mean, sd = statistics.mean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0
    target = row["target"]
    margin = CONFIDENCE * sd / math.sqrt(len(losses))
    passed = None if target is None else mean + margin <= target
    seconds = statistics.median(row["times"].values())
    return row | dict(
        seeds=sorted(map(int, row["losses"])), mean_loss=mean, sd=sd, seconds=seconds, passed=passed, target=target
    )


def table(rows):
    """Lines of Markdown."""
    yield "| engine | track | recipe | updates | PFLOP | seconds | seeds | loss | sd | target | reached |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: row["mean_loss"]):
        target = "" if row["target"] is None else f"{row['target']:g}"
        reached = "" if row["passed"] is None else "yes" if row["passed"] else "no"
        yield (
            f"| {row['engine']} | {row['track']} | {row['recipe']} | {row['updates']:,} | {row['flops'] / 1e15:.4f} "
            f"| {row['seconds']:.1f} | {len(row['seeds'])} | {row['mean_loss']:.4f} | {row['sd']:.4f} | {target} "
            f"| {reached} |"
        )


def draw(rows, path):
    """Loss over seconds, one line for each engine and recipe through its lengths, as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, lines = figure.subplots(), {}
    for row in sorted(rows, key=lambda row: row["seconds"]):
        lines.setdefault((row["engine"], row["recipe"]), []).append(row)
    for (engine, recipe), line in lines.items():
        seconds, losses, spread = ([row[name] for row in line] for name in ("seconds", "mean_loss", "sd"))
        label = f"{LABELS.get(engine, engine)}, {recipe}" if engine != "ngram" else LABELS[engine]
        axes.errorbar(seconds, losses, spread, marker=".", capsize=2, label=label)
    first = rows[0]
    unit = TASKS[first["task"]].unit
    axes.set(
        xlabel="seconds from launch to the final weights",
        ylabel=f"held-out {unit} per {'byte' if unit == 'bits' else 'token'}",
        xscale="log",
        title=f"{first['task']} on {first['processor']}",
    )
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="How much loss a budget of training buys, by recipe.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--task", default="shakespeare-char", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--track", default="R", choices=("R", "F"), help="R fixes the network, F does not")
    parser.add_argument("--engine", default="slm_np", choices=ENGINES, help="(default: %(default)s)")
    parser.add_argument("--recipe", default="preset", choices=("preset", "original"), help="(default: %(default)s)")
    parser.add_argument("--change", default="", help="changes to the recipe: NAME=VALUE,... or model.NAME=VALUE")
    parser.add_argument("--seeds", default="1", help="separated by commas (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=0, help="length; 0 means that of the original recipe")
    parser.add_argument("--target", type=float, help="loss to reach: nats per character, or bits per byte")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"), help="(default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="compile PyTorch's model")
    parser.add_argument("--data", default="", help="the text, unless the task has its own")
    parser.add_argument("--json", metavar="FILE", help="keep the results in FILE")
    parser.add_argument("--plot", metavar="PNG", help="draw the results of the task into PNG; needs matplotlib")
    args = parser.parse_args(argv)
    check_plot(args.plot)
    if args.child:
        child(json.loads(args.child))
        return
    if args.task not in TASKS:
        raise UserError(f"--task {args.task!r} is unknown; {near(args.task, list(TASKS))}")
    task, given = TASKS[args.task], changes(args.change)
    if args.track == "R" and (fixed := [name for name in given if name.startswith(NETWORK)]):
        raise UserError(f"--track R fixes {fixed[0]}; use --track F to change the network or the tokenizer")
    if args.recipe == "original" and not task.original:
        raise UserError(f"--task {args.task} has no earlier recipe; use --recipe preset")
    _, recipe = preset(*settings(task, args.recipe, given, None, 1, 0, args.dtype))
    if args.engine == "torch" and recipe.optimizer != "adamw":
        raise UserError(f"--engine torch trains by AdamW, not {recipe.optimizer}; use --recipe original")
    if task.split and not args.data:
        raise UserError(f"--task {args.task} needs --data FILE")
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {args.seeds!r} is not a list of whole numbers; write 1,2,3") from None
    path = Path(args.json) if args.json else None
    rows = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        files = split_files(args.data, task.split, folder) if task.split else None
        measure(args, task, given, seeds, files, rows, path)
    rows = [row for row in rows if row["task"] == args.task]
    print("\n".join(table(rows)))
    if args.plot:
        draw(rows, args.plot)


def measure(args, task, given, seeds, files, rows, path):
    """Add the seeds that `rows` lack, and write them into `path`."""
    updates = 0 if args.engine == "ngram" else args.updates or task.updates
    key = dict(
        engine=args.engine + (" compiled" if args.compiled else ""),
        task=args.task,
        track=args.track,
        recipe=" ".join(filter(None, (args.recipe, args.change))),
        asked=args.dtype,
        updates=updates,
        processor=processor(),
    )
    row = next((row for row in rows if all(row[name] == value for name, value in key.items())), None)
    if row is None:
        row = key | dict(losses={}, times={}, target=args.target)
        rows.append(row)
    row["target"] = args.target if args.target is not None else row["target"]
    warm = False
    for seed in seeds:
        if str(seed) in row["losses"]:
            continue
        if args.engine == "ngram":
            result = counted(task, files)
        else:
            spec = dict(engine=args.engine, unit=task.unit, compiled=args.compiled)
            made = [settings(task, args.recipe, given, files, n, seed, args.dtype) for n in (1, updates)]
            if not warm:
                run_child(spec | dict(settings=made[0]))
                warm = True
            result = run_child(spec | dict(settings=made[1]))
        row["losses"][str(seed)], row["times"][str(seed)] = result["loss"], result["seconds"]
        row.update({name: result[name] for name in ("flops", "updates", "dtype")})
        row.update(summary(row))
        print(f"seed {seed}: {result['loss']:.4f} {task.unit} in {result['seconds']:.1f} s", flush=True)
        if path:
            write_json(path, rows)
    if row["losses"]:
        row.update(summary(row))


def counted(task, files):
    """The result of counting n-grams of the best order."""
    from ngram import counted

    tokenizer = "char" if task.tokenizer == "char" else "byte"
    losses, seconds = counted(*(path.read_bytes() for path in files), tokenizer)
    loss = min(losses) / (math.log(2) if task.unit == "bits" else 1)
    return dict(loss=loss, seconds=seconds, flops=0, updates=0, dtype="none")


if __name__ == "__main__":
    main()
