"""Training in bf16 beside float32, from the same weights on the same batches: validation loss beside validation loss.

    python benchmarks/bf16_training.py [--updates 1000] [--seeds 1,2,3] [--data tinyshakespeare.txt]

Two recipes, nanoGPT's on characters and a small `slim` on the embedded stories, run in both precisions from each seed.
Prints both losses, the mean of fixed batches in nats per token, and the difference in %. Exit status 1 if a difference
is larger than LIMIT or not a number.
"""

import argparse
import math
import time

import checkout  # noqa: F401

from slm_np.cli.launch import prepared
from slm_np.errors import UserError, command
from slm_np.formats.run_config import RunConfig
from slm_np.ops.device import CPU
from slm_np.presets import preset
from slm_np.progress import bar
from slm_np.training.trainer import Trainer

LIMIT = 1.0  # % between the two losses
EVAL_BATCHES = 100
SLIM = dict(n_layer=3, n_head=4, n_embd=96, n_hidden=256, block_size=96)
SLIM_RECIPE = dict(data="stories", batch_size=8, learning_rate=1e-3, min_lr=1e-4)  # a small model learns at a high rate


def recipes(data):
    """{name: (preset, changes to the model, changes to the training)}"""
    return {"shakespeare-char": ("shakespeare-char", {}, dict(data=data)), "slim, small": ("slim", SLIM, SLIM_RECIPE)}


def final_loss(recipe, dtype, seed, updates, progress):
    """The validation loss at the end of a run. progress: called after each update"""
    name, model, train = recipe
    warmup = min(100, updates // 10)
    train = train | dict(dtype=dtype, seed=seed, max_iters=updates, warmup_iters=warmup, eval_iters=EVAL_BATCHES)
    corpus, run = prepared(RunConfig(*preset(name, model, train), preset=name))
    trainer = Trainer(run, corpus)
    for _ in range(updates):
        trainer.step()
        progress()
    return trainer.estimate_loss()["val_loss"]


def seeds_of(text):
    """The integers in "1,2,3". UserError if it is something else."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r} is not a list of integers; write 1,2,3") from None


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training in bf16 beside float32.")
    parser.add_argument("--updates", type=int, default=1000, help="updates of each run (default: %(default)s)")
    parser.add_argument(
        "--seeds", default="1,2,3", help="seeds of weights and batches, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        default="tinyshakespeare",
        help="the text of shakespeare-char (default: %(default)s, which is downloaded)",
    )
    args = parser.parse_args(argv)
    if args.updates < 1:
        raise UserError(f"--updates is {args.updates}; it must be at least 1")
    seeds, chosen = seeds_of(args.seeds), recipes(args.data)
    CPU.use_threads(0)
    differences = []
    print(f"{'recipe':<18}{'seed':>5}{'fp32':>9}{'bf16':>9}{'difference':>12}{'seconds':>16}", flush=True)
    with bar(total=2 * len(chosen) * len(seeds) * args.updates, unit="update") as progress:
        for name, recipe in chosen.items():
            for seed in seeds:
                losses, seconds = {}, {}
                for dtype in ("fp32", "bf16"):
                    started = time.perf_counter()
                    losses[dtype] = final_loss(recipe, dtype, seed, args.updates, progress.update)
                    seconds[dtype] = time.perf_counter() - started
                difference = 100 * (losses["bf16"] / losses["fp32"] - 1)
                differences.append(math.inf if math.isnan(difference) else abs(difference))
                progress.clear()
                print(
                    f"{name:<18}{seed:>5}{losses['fp32']:>9.4f}{losses['bf16']:>9.4f}{difference:>11.3f}%"
                    f"{seconds['fp32']:>8.1f}{seconds['bf16']:>8.1f}",
                    flush=True,
                )
    print(f"largest difference {max(differences):.3f} %, at most {LIMIT:g} % is allowed")
    if max(differences) > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
