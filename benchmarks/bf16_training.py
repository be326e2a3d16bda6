"""Training in bfloat16 beside float32: the same weights, batches and dropout, and where both end.

    python benchmarks/bf16_training.py [--updates 1000] [--seeds 1,2,3] [--data tinyshakespeare.txt]

Each of two recipes, nanoGPT's on characters and a shrunk slim on the embedded stories, runs in both precisions from each seed. Prints both
validation losses, means over fixed batches in nats per token, and how far bfloat16's lies from float32's in %; exit status 1 if that is more
than LIMIT for any pair, or not a number.
"""

import argparse
import math
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from slm_np.errors import UserError, exit_with_sentence  # noqa: E402

LIMIT = 1.0  # % between the two losses
BATCHES = 100  # in an estimate of a loss
SLIM = dict(n_layer=3, n_head=4, n_embd=96, n_hidden=256, block_size=96)
SLIM_RECIPE = dict(
    data="stories", batch_size=8, learning_rate=1e-3, min_lr=1e-4
)  # a smaller model learns at a higher rate


def recipes(data):
    """{name: (preset, changes to the model, changes to the training)}"""
    return {"shakespeare-char": ("shakespeare-char", {}, dict(data=data)), "slim, shrunk": ("slim", SLIM, SLIM_RECIPE)}


def final_loss(recipe, dtype, seed, updates, progress):
    """Validation loss of a run in one precision. progress: called after each update."""
    from slm_np.cli.launch import prepared
    from slm_np.formats.run_config import RunConfig
    from slm_np.presets import preset
    from slm_np.training.trainer import Trainer

    name, model, train = recipe
    train = train | dict(
        dtype=dtype, seed=seed, max_iters=updates, warmup_iters=min(100, updates // 10), eval_iters=BATCHES
    )
    corpus, run = prepared(RunConfig(*preset(name, model, train), preset=name))
    trainer = Trainer(run, corpus)
    for _ in range(updates):
        trainer.step()
        progress()
    return trainer.estimate_loss()["val_loss"]


def difference(bf16, fp32):
    """How far one loss lies from the other, in % of the second."""
    return 100 * (bf16 / fp32 - 1)


def seeds_of(text):
    """'1,2,3' as integers. UserError if it is something else."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r} are not integers; write 1,2,3") from None


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training in bfloat16 beside float32.")
    parser.add_argument(
        "--updates", type=int, default=1000, help="optimiser updates of each run (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", default="1,2,3", help="of weights and batches, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        default="tinyshakespeare",
        help="the text of shakespeare-char (default: %(default)s, which is downloaded)",
    )
    args = parser.parse_args(argv)
    if args.updates < 1:
        raise UserError(f"--updates is {args.updates}; it must be at least 1")
    seeds = seeds_of(args.seeds)
    from slm_np import machine
    from slm_np.progress import bar

    machine.CPU.use_threads(0)
    chosen, worst = recipes(args.data), 0.0
    print(f"{'recipe':<18}{'seed':>5}{'fp32':>9}{'bf16':>9}{'difference':>12}{'seconds':>16}", flush=True)
    with bar(total=2 * len(chosen) * len(seeds) * args.updates, unit="update") as shown:
        for name, recipe in chosen.items():
            for seed in seeds:
                losses, seconds = {}, []
                for dtype in ("fp32", "bf16"):
                    begun = time.perf_counter()
                    losses[dtype] = final_loss(recipe, dtype, seed, args.updates, shown.update)
                    seconds.append(time.perf_counter() - begun)
                apart = difference(losses["bf16"], losses["fp32"])
                worst = max(worst, math.inf if math.isnan(apart) else abs(apart))
                shown.clear()
                print(
                    f"{name:<18}{seed:>5}{losses['fp32']:>9.4f}{losses['bf16']:>9.4f}{apart:>11.3f}%{seconds[0]:>8.1f}{seconds[1]:>8.1f}",
                    flush=True,
                )
    print(f"largest difference {worst:.3f} %, at most {LIMIT:g} % is allowed")
    if worst > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
