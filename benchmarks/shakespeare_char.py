"""nanoGPT's CPU recipe on tiny Shakespeare beside PyTorch's twin: 2,000 updates from the same weights on the same batches.

Prints, per seed, each engine's validation loss by the trainer's own estimate and over many random windows, with its standard error, and the
seconds its updates took. The seeds differ in weights and batches; the spread between seeds is what a comparison of single runs has to beat.
"""

import argparse
import math
import statistics
import time

import numpy as np

WINDOWS = 7200


def windows_loss(losses, corpus, batch, steps):
    """(mean, standard error) in nats per token over WINDOWS random windows of the validation split."""
    from slm_np.data.batches import random_batch

    tokens, targets, means = np.zeros((batch, steps), np.int32), np.zeros((batch, steps), np.int32), []
    for i in range(WINDOWS // batch):
        random_batch(tokens, targets, corpus.validation, 99, 7, i)
        means += list(losses(tokens, targets).mean(1, dtype=np.float64))
    return statistics.mean(means), statistics.stdev(means) / math.sqrt(len(means))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--max-iters", type=int, default=2000)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="of both engines")
    parser.add_argument("--against", choices=["torch"], help="run PyTorch's twin too")
    args = parser.parse_args(argv)
    from slm_np import machine
    from slm_np.cli.launch import prepared
    from slm_np.formats.run_config import RunConfig
    from slm_np.presets import preset
    from slm_np.training.schedule import learning_rate
    from slm_np.training.trainer import Trainer

    machine.CPU.use_threads(0)
    for seed in map(int, args.seeds.split(",")):
        run = RunConfig(
            *preset(
                "shakespeare-char", {}, dict(data=args.data, seed=seed, max_iters=args.max_iters, dtype=args.dtype)
            ),
            preset="shakespeare-char",
        )
        corpus, run = prepared(run)
        trainer = Trainer(run, corpus)
        config, shape = run.train, trainer.tokens.shape
        start = {name: array.copy() for name, array in trainer.model.parameters.weight.items()}
        begun = time.perf_counter()
        for _ in range(config.max_iters):
            trainer.step()
        seconds = time.perf_counter() - begun
        mean, error = windows_loss(trainer.model.losses, corpus, *shape)
        print(
            f"seed {seed}  slm_np   estimate {trainer.estimate_loss()['val_loss']:.4f}  {WINDOWS} windows {mean:.4f} +- {error:.4f}  {seconds:.1f} s",
            flush=True,
        )
        if not args.against:
            continue
        import torch
        import torch_twin

        twin = torch_twin.Twin(run.model).load(start)
        opponent = torch_twin.Trainer(
            twin,
            config.learning_rate,
            config.beta1,
            config.beta2,
            weight_decay=config.weight_decay,
            decay=config.decay,
            grad_clip=config.grad_clip,
            bfloat16=args.dtype == "bf16",
        )
        trainer.updates = 0
        begun = time.perf_counter()
        for step in range(config.max_iters):
            trainer.updates = step
            trainer.load_batch(step)
            for group in opponent.optimizer.param_groups:
                group["lr"] = learning_rate(config, step, trainer.schedule_progress)
            opponent.train_step(trainer.tokens, trainer.targets)
        seconds = time.perf_counter() - begun

        def twin_losses(tokens, targets):
            with torch.no_grad():
                logits = twin(torch.as_tensor(tokens).long())
                return (
                    torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), torch.as_tensor(targets).long().flatten(), reduction="none"
                    )
                    .view(tokens.shape)
                    .numpy()
                )

        twin.eval()
        mean, error = windows_loss(twin_losses, corpus, *shape)
        print(f"seed {seed}  PyTorch  {WINDOWS} windows {mean:.4f} +- {error:.4f}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
