"""State-space models and transformers of 2.4M parameters on equal terms: the same bytes, the same time, and how well each predicts the text it has not seen.

    python benchmarks/quality.py --data tinyshakespeare.txt [--max-time 10m] [--rates 1e-3,2e-3,4e-3] [--json FILE] [--plot FILE]

Every model reads 4,096 bytes a batch under one schedule and optimiser; where A is a matrix its spectral norm is held at 1. It runs whole at every learning
rate, and its best run counts: short runs would choose rates that are too high for long ones. Prints a table of the lowest validation bits per byte and draws how they
fell. The model "cut" is `byte-ssm` with the gradient's flow from H_t to H_(t-1) left out, so that a step learns from its own loss alone. Runs
stand in the file one after another; those that it already holds are not repeated.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import write_json  # noqa: E402

from slm_np.errors import UserError, exit_with_sentence, near  # noqa: E402
from slm_np.presets import LLAMA, MAMBA, PRESETS  # noqa: E402

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
MODELS = {
    "byte-ssm": PRESETS["byte-ssm"]["model"],
    "byte-ssm, cut": PRESETS["byte-ssm"]["model"],
    "residual recurrence": RECURRENCE,
    "mamba": dict(MAMBA, n_layer=5, n_embd=264, block_size=256),
    "byte-transformer": PRESETS["byte-transformer"]["model"],
    "llama": dict(LLAMA, head="tied", n_layer=4, n_head=8, n_embd=256, n_hidden=432, block_size=256),
}
COURSE = dict(
    warmup_iters=50,
    beta2=0.95,
    weight_decay=0.1,
    decay="matrices",
    grad_clip=1.0,
    eval_iters=16,
    eval_interval=250,
)


@contextlib.contextmanager
def one_step(cut):
    """Within, gradients do not flow from one step of a linear recurrence to the one before it, if `cut`."""
    from slm_np import ops

    whole = ops.linear_recurrence_backward

    def backward(dstates, dweight, scratch, states, weight):
        width = states.shape[2]
        ops.linear_backward_weight(dweight, None, dstates[1:].reshape(-1, width), states[:-1].reshape(-1, width))

    ops.linear_recurrence_backward = backward if cut else whole
    try:
        yield
    finally:
        ops.linear_recurrence_backward = whole


def trained(name, data, rate, max_time, dtype, threads=0):
    """What a run came to, its evaluations [{minutes, tokens, train, bpb}] among it; `diverged` if it did."""
    import math

    from slm_np.cli.launch import prepared
    from slm_np.config import ModelConfig, TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.training.callbacks import Callback
    from slm_np.training.trainer import Trainer

    model = ModelConfig(**MODELS[name])
    train = TrainConfig(
        **COURSE,
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
    trainer, rows, steps = Trainer(run, corpus), [], []
    step = trainer.step

    def timed():
        begun = time.perf_counter()
        result = step()
        steps.append(time.perf_counter() - begun)
        return result

    trainer.step = timed

    class Evaluations(Callback):
        def on_evaluation(self, trainer, row, improved):
            rows.append(
                dict(
                    minutes=row["time_s"] / 60,
                    tokens=row["step"] * TOKENS,
                    train=row["train_loss"] / math.log(2),
                    bpb=row["val_loss"] / math.log(2),
                )
            )

    trainer.callbacks.append(Evaluations())
    with one_step(name.endswith("cut")):
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
        tokens_per_second=TOKENS / statistics.median(steps),
        curve=rows,
        best=min((row["bpb"] for row in rows), default=math.inf),
    )


def best_runs(runs):
    """The best run of each model that did not diverge, the best model first."""
    best = {}
    for run in sorted((run for run in runs if not run["diverged"]), key=lambda run: run["best"]):
        best.setdefault(run["model"], run)
    return list(best.values())


def table(runs):
    """The best runs as lines of Markdown, beside what their models came to at other rates."""
    yield "| model | parameters | learning rate | bytes/s | bytes seen | bits per byte | at other rates |"
    yield "|---|---|---|---|---|---|---|"
    for row in best_runs(runs):
        others = sorted(
            (run["rate"], "diverges" if run["diverged"] else f"{run['best']:.3f}")
            for run in runs
            if run["model"] == row["model"] and run is not row
        )
        yield (
            f"| {row['model']} | {row['parameters']:,} | {row['rate']:g} | {row['tokens_per_second']:,.0f} | {row['updates'] * TOKENS / 1e6:.1f}M | {row['best']:.3f} "
            f"| {', '.join(f'{rate:g}: {came_to}' for rate, came_to in others)} |"
        )


def draw(runs, path):
    """Bits per byte over minutes, a line for each model's best run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = best_runs(runs)
    for row in reversed(rows):
        axes.plot(
            [at["minutes"] for at in row["curve"]],
            [at["bpb"] for at in row["curve"]],
            marker=".",
            label=f"{row['model']}  {row['best']:.3f}",
        )
    axes.set(
        xlabel="minutes",
        ylabel="validation bits per byte",
        ylim=(min(row["best"] for row in rows) - 0.2, 4),
        title="2.4M parameters on tiny Shakespeare",
    )
    figure.legend(loc="outside center right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description="Models of one size on equal terms.")
    parser.add_argument("--data", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--max-time", default="10m", help="of each run")
    parser.add_argument(
        "--rates",
        default="1e-3,2e-3,4e-3",
        help="learning rates, of which each model's best counts (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        default=",".join(MODELS).replace("byte-ssm, cut", "cut"),
        help="which, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="auto", help="precision: auto, fp32 or bf16")
    parser.add_argument("--threads", type=int, default=0, help="0 means one per core")
    parser.add_argument("--json", metavar="FILE", help="keep the runs there, and take from there what has been run")
    parser.add_argument("--plot", metavar="FILE", help="draw them there")
    args = parser.parse_args(argv)
    names = ["byte-ssm, cut" if name == "cut" else name for name in args.models.split(",")]
    for name in names:
        if name not in MODELS:
            raise UserError(f"--models {name!r} is unknown; {near(name, list(MODELS))}")
    try:
        rates = [float(rate) for rate in args.rates.split(",")]
    except ValueError:
        raise UserError(
            f"--rates {args.rates!r} is no list of numbers; separate them by commas, like 1e-3,2e-3"
        ) from None
    from slm_np.ops.device import CPU

    CPU.use_threads(args.threads)
    runs = json.loads(Path(args.json).read_text(encoding="utf-8")) if args.json and Path(args.json).exists() else []
    for name, rate in itertools.product(names, rates):
        if any((run["model"], run["rate"]) == (name, rate) for run in runs):
            continue
        runs.append(trained(name, args.data, rate, args.max_time, args.dtype, args.threads))
        print(
            f"{name} at {rate:g}: {'diverges' if runs[-1]['diverged'] else format(runs[-1]['best'], '.3f')}", flush=True
        )
        if args.json:
            write_json(args.json, runs)
    print("\n".join(table(runs)))
    if args.plot and best_runs(runs):
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
