"""Models of 2.4M parameters on equal terms: the same bytes for the same time, and how well each predicts unseen text.

    python benchmarks/quality.py --data tinyshakespeare.txt [--max-time 10m] [--rates 1e-3,2e-3,4e-3]
        [--json FILE] [--plot FILE]

Every model reads 4,096 bytes a batch under one schedule and one optimizer. The spectral norm of a linear recurrence's A
is held at 1. Each model is trained in full at each learning rate and its best run counts, since short trials favor
rates that are too high for long runs. Prints a table of the lowest validation bits per byte, and draws them over time.
"byte-ssm, truncated" is `byte-ssm` with backpropagation truncated to one step: no gradient flows from H_t to H_(t-1).
Runs that --json already holds are not repeated.
"""

import argparse
import contextlib
import itertools
import json
import math
import statistics
import time
from pathlib import Path

import checkout  # noqa: F401
from measure import check_plot, write_json

from slm_np import ops
from slm_np.cli.launch import prepared
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, command, near
from slm_np.formats.run_config import RunConfig
from slm_np.ops.device import CPU
from slm_np.presets import LLAMA, MAMBA, PRESETS
from slm_np.training.callbacks import Callback
from slm_np.training.trainer import Trainer

TOKENS = 4096  # in a batch
RECURRENCE = dict(
    pattern="S",
    positions="none",
    norm="rmsnorm",
    feed_forward="none",
    head="tied",
    n_layer=4,
    n_embd=256,
    recurrence_size=512,
    block_size=256,
)
TRUNCATED = "byte-ssm, truncated"
MODELS = {
    "byte-ssm": PRESETS["byte-ssm"]["model"],
    TRUNCATED: PRESETS["byte-ssm"]["model"],
    "residual recurrence": RECURRENCE,
    "mamba": dict(MAMBA, n_layer=5, n_embd=264, block_size=256),
    "byte-transformer": PRESETS["byte-transformer"]["model"],
    "llama": dict(LLAMA, head="tied", n_layer=4, n_head=8, n_embd=256, n_hidden=432, block_size=256),
}
FLAGS = {name.replace("byte-ssm, ", ""): name for name in MODELS}  # {value of --models: model}
RECIPE = dict(
    warmup_iters=50,
    beta2=0.95,
    weight_decay=0.1,
    decay="matrices",
    grad_clip=1.0,
    eval_iters=16,
    eval_interval=250,
)


@contextlib.contextmanager
def truncated_to_one_step():
    """Within, no gradient flows from one step of a linear recurrence to the one before it."""
    full = ops.linear_recurrence_backward

    def backward(dstates, dweight, scratch, states, weight):
        width = states.shape[2]
        ops.linear_backward_weight(dweight, None, dstates[1:].reshape(-1, width), states[:-1].reshape(-1, width))

    ops.linear_recurrence_backward = backward
    try:
        yield
    finally:
        ops.linear_recurrence_backward = full


class Evaluations(Callback):
    """Collects a run's evaluations: [{minutes, tokens, train, bpb}], both losses in bits per byte."""

    def __init__(self):
        self.rows = []

    def on_evaluation(self, trainer, row, improved):
        self.rows.append(
            dict(
                minutes=row["time_s"] / 60,
                tokens=row["step"] * TOKENS,
                train=row["train_loss"] / math.log(2),
                bpb=row["val_loss"] / math.log(2),
            )
        )


def trained(name, data, rate, max_time, dtype, threads=0):
    """Train a model of MODELS at one learning rate. Returns its row of the JSON file."""
    model = ModelConfig(**MODELS[name])
    train = TrainConfig(
        **RECIPE,
        max_spectral_norm=1.0 if "S" in model.letters else 0.0,
        data=data,
        threads=threads,
        learning_rate=rate,
        min_lr=rate / 10,
        max_time=max_time,
        batch_size=TOKENS // model.block_size,
        dtype=dtype,
    )
    corpus, run = prepared(RunConfig(model, train))
    evaluations, seconds = Evaluations(), []
    trainer = Trainer(run, corpus, [evaluations])
    step = trainer.step

    def timed_step():
        started = time.perf_counter()
        result = step()
        seconds.append(time.perf_counter() - started)
        return result

    trainer.step = timed_step
    with truncated_to_one_step() if name == TRUNCATED else contextlib.nullcontext():
        try:
            trainer.train()
        except UserError as error:
            print(f"{name} at {rate:g} after {trainer.updates} updates: {error}", flush=True)
    return dict(
        model=name,
        rate=rate,
        parameters=trainer.model.parameters.weights.size,
        dtype=trainer.config.dtype,
        updates=trainer.updates,
        diverged=not trainer.finished(),
        tokens_per_second=TOKENS / statistics.median(seconds),
        curve=evaluations.rows,
        best=min((row["bpb"] for row in evaluations.rows), default=math.inf),
    )


def best_runs(runs):
    """The best run of each model among those that did not diverge, the best model first."""
    best = {}
    for run in sorted((run for run in runs if not run["diverged"]), key=lambda run: run["best"]):
        best.setdefault(run["model"], run)
    return list(best.values())


def result(run):
    return "diverges" if run["diverged"] else f"{run['best']:.3f}"


def table(runs):
    """Lines of Markdown: the best run of each model, and its results at other rates."""
    yield "| model | parameters | learning rate | bytes/s | bytes seen | bits per byte | at other rates |"
    yield "|---|---|---|---|---|---|---|"
    for best in best_runs(runs):
        others = [run for run in runs if run["model"] == best["model"] and run is not best]
        others = [f"{run['rate']:g}: {result(run)}" for run in sorted(others, key=lambda run: run["rate"])]
        yield (
            f"| {best['model']} | {best['parameters']:,} | {best['rate']:g} | {best['tokens_per_second']:,.0f} "
            f"| {best['updates'] * TOKENS / 1e6:.1f}M | {best['best']:.3f} | {', '.join(others)} |"
        )


def draw(runs, path):
    """Bits per byte over minutes, one line for each model's best run, as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = best_runs(runs)
    for row in reversed(rows):
        minutes, bits = [at["minutes"] for at in row["curve"]], [at["bpb"] for at in row["curve"]]
        axes.plot(minutes, bits, marker=".", label=f"{row['model']}  {row['best']:.3f}")
    axes.set(
        xlabel="minutes",
        ylabel="validation bits per byte",
        ylim=(min(row["best"] for row in rows) - 0.2, 4),
        title="2.4M parameters on tiny Shakespeare",
    )
    figure.legend(loc="outside center right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def models_of(text):
    """Models named by --models. UserError if one is unknown."""
    for name in text.split(","):
        if name not in FLAGS:
            raise UserError(f"--models {name!r} is unknown; {near(name, list(FLAGS))}")
    return [FLAGS[name] for name in text.split(",")]


def rates_of(text):
    """The learning rates in "1e-3,2e-3". UserError if it is something else."""
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise UserError(f"--rates {text!r} is not a list of numbers; write 1e-3,2e-3") from None


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Models of one size on equal terms.")
    parser.add_argument("--data", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--max-time", default="10m", help="length of each run (default: %(default)s)")
    parser.add_argument(
        "--rates",
        default="1e-3,2e-3,4e-3",
        help="learning rates, separated by commas; the best counts (default: %(default)s)",
    )
    parser.add_argument("--models", default=",".join(FLAGS), help="models, separated by commas (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision: auto, fp32 or bf16 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads; 0 means one per core")
    parser.add_argument("--json", metavar="FILE", help="keep the runs in FILE, and skip those that it holds")
    parser.add_argument("--plot", metavar="FILE", help="draw the best runs into FILE")
    args = parser.parse_args(argv)
    check_plot(args.plot)
    names, rates = models_of(args.models), rates_of(args.rates)
    CPU.use_threads(args.threads)
    runs = json.loads(Path(args.json).read_text(encoding="utf-8")) if args.json and Path(args.json).exists() else []
    for name, rate in itertools.product(names, rates):
        if any((run["model"], run["rate"]) == (name, rate) for run in runs):
            continue
        runs.append(trained(name, args.data, rate, args.max_time, args.dtype, args.threads))
        print(f"{name} at {rate:g}: {result(runs[-1])}", flush=True)
        if args.json:
            write_json(args.json, runs)
    print("\n".join(table(runs)))
    if args.plot and best_runs(runs):
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
