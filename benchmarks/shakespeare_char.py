"""nanoGPT's CPU recipe on tiny Shakespeare, beside PyTorch: the same weights, the same batches, and where both end.

    python benchmarks/shakespeare_char.py --data tinyshakespeare.txt [--against torch]

Prints for each seed the validation loss of each engine over many random windows, with its standard error, and the
seconds that the updates took. A seed decides weights and batches; the spread between seeds is what a comparison of
single runs has to beat.
"""

import argparse
import math
import statistics
import time

import checkout  # noqa: F401
import numpy as np
from measure import import_torch
from tasks import NANOGPT

from slm_np.cli.launch import prepared
from slm_np.data.batches import random_batch
from slm_np.errors import command
from slm_np.formats.run_config import RunConfig
from slm_np.ops.device import CPU
from slm_np.presets import preset
from slm_np.training.schedule import learning_rate
from slm_np.training.trainer import Trainer

PRESET = "shakespeare-char"
WINDOWS = 7200  # of the validation split
SEED, PURPOSE = 99, 7  # of these windows: no run trains or evaluates on the same ones


def windows_loss(losses, corpus, shape):
    """(mean, standard error) over WINDOWS random windows of the validation split, in nats per token.

    losses: function of tokens and targets (B, T) that returns the loss of each (B, T).   shape: (B, T)
    """
    tokens, targets, means = np.zeros(shape, np.int32), np.zeros(shape, np.int32), []
    for i in range(WINDOWS // shape[0]):
        random_batch(tokens, targets, corpus.validation, SEED, PURPOSE, i)
        means += list(losses(tokens, targets).mean(1, dtype=np.float64))
    return statistics.mean(means), statistics.stdev(means) / math.sqrt(len(means))


def trained(trainer):
    """Train slm_np to the end of its recipe. Returns the seconds that the updates took."""
    started = time.perf_counter()
    for _ in range(trainer.config.max_iters):
        trainer.step()
    return time.perf_counter() - started


def trained_in_torch(trainer, weights, bfloat16, compiled=False):
    """Train the PyTorch twin on the trainer's batches, from its initial weights.

    Returns (seconds that the updates took, the twin).
    """
    import torch_twin

    config, twin = trainer.config, torch_twin.Twin(trainer.model.config).load(weights)
    peer = torch_twin.Trainer(
        twin,
        config.learning_rate,
        config.beta1,
        config.beta2,
        weight_decay=config.weight_decay,
        decay=config.decay,
        grad_clip=config.grad_clip,
        compiled=compiled,
        bfloat16=bfloat16,
    )
    started = time.perf_counter()
    for step in range(config.max_iters):
        trainer.updates = step
        trainer.load_batch(step)
        for group in peer.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, trainer.schedule_progress)
        peer.train_step(trainer.tokens, trainer.targets)
    seconds = time.perf_counter() - started
    return seconds, twin.eval()


def losses_of(twin):
    """A function that returns losses as of `windows_loss`."""
    import torch

    def losses(tokens, targets):
        with torch.no_grad():
            logits = twin(torch.as_tensor(tokens).long()).flatten(0, 1)  # (N, V)
            targets = torch.as_tensor(targets).long().flatten()
            return torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(tokens.shape).numpy()

    return losses


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="nanoGPT's CPU recipe on tiny Shakespeare.")
    parser.add_argument("--data", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas (default: %(default)s)")
    parser.add_argument("--max-iters", type=int, default=2000, help="updates of each run (default: %(default)s)")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="precision of both engines")
    parser.add_argument("--against", choices=["torch"], help="train the PyTorch twin too")
    args = parser.parse_args(argv)
    if args.against:
        import_torch()
    CPU.use_threads(0)
    for seed in map(int, args.seeds.split(",")):
        settings = dict(data=args.data, seed=seed, max_iters=args.max_iters, dtype=args.dtype)
        corpus, run = prepared(RunConfig(*preset(PRESET, {}, NANOGPT | settings), preset=PRESET))
        trainer = Trainer(run, corpus)
        weights = {name: array.copy() for name, array in trainer.model.parameters.weight.items()}
        report(seed, "slm_np", trained(trainer), trainer.model.losses, corpus, trainer.tokens.shape)
        if args.against:
            seconds, twin = trained_in_torch(trainer, weights, args.dtype == "bf16")
            report(seed, "PyTorch", seconds, losses_of(twin), corpus, trainer.tokens.shape)


def report(seed, engine, seconds, losses, corpus, shape):
    mean, error = windows_loss(losses, corpus, shape)
    print(f"seed {seed}  {engine:<8} {WINDOWS} windows {mean:.4f} +- {error:.4f}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
