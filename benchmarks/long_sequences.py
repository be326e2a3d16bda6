"""Long sequences: training speed and memory of Mamba, the linear recurrence and attention over the length of their windows.

    python benchmarks/long_sequences.py [--dtype fp32] [--plot FILE] [--json FILE]

Every step has the same number of tokens, TOKENS, in ever fewer and longer windows, so that only the length makes a difference; lengths take
turns, and the median step counts. Memory is the arena of one window: what a token costs, as its length grows. A text is written too, a token at
a time, to the longest length: how fast at its beginning and how fast at its end. One trunk of 4 layers, 256 wide, with a norm, a residual and no
feed-forward, around each mixer.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import clock, write_json  # noqa: E402

from slm_np.errors import exit_with_sentence  # noqa: E402
from slm_np.presets import LLAMA, MAMBA  # noqa: E402

TOKENS = 8192  # of a step
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
COMMON = dict(n_layer=4, n_embd=256, head="tied", feed_forward="none")
MIXERS = {
    "mamba": dict(MAMBA, **COMMON) | dict(pattern="M"),
    "linear recurrence": dict(MAMBA, **COMMON) | dict(pattern="S", recurrence_size=512),
    "attention": dict(LLAMA, **COMMON | dict(n_head=8)),
}


def step_of(settings, length, tokens, dtype):
    """A function that runs one step, and a batch's windows."""
    from slm_np.config import ModelConfig
    from slm_np.dtypes import BF16
    from slm_np.nn.model import Model
    from slm_np.training.optimizer import AdamW

    config = ModelConfig(**settings, block_size=length)
    model = Model(config, compute_dtype=BF16 if dtype == "bf16" else None)
    optimizer, ids = (
        AdamW(model.parameters, 1e-4),
        np.random.default_rng(0).integers(0, config.vocab_size, (tokens // length, length + 1)).astype(np.int32),
    )
    x, y = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

    def step():
        model.loss_and_gradient(x, y)
        optimizer.step()

    return step


def arena(settings, lengths, dtype):
    """Bytes of the activations of one window of each length, and of one token more where windows are long."""
    from slm_np.config import ModelConfig
    from slm_np.dtypes import BF16
    from slm_np.nn.arena import planned_bytes
    from slm_np.nn.model import plan

    sizes = [
        int(
            planned_bytes(
                plan(ModelConfig(**settings, block_size=length), 1, length),
                np.float32,
                BF16 if dtype == "bf16" else None,
            )
        )
        for length in lengths
    ]
    return dict(bytes=sizes, bytes_per_token=(sizes[-1] - sizes[-2]) / (lengths[-1] - lengths[-2]))


def written(settings, length):
    """(tokens/s at the beginning, at the end) of one text of `length` tokens."""
    from slm_np.config import ModelConfig
    from slm_np.inference.decoder import Decoder
    from slm_np.nn.model import Model

    decoder, ids, seconds = Decoder(Model(ModelConfig(**settings, block_size=length))), np.zeros(1, np.int32), []
    decoder.read(ids[:, None])
    for _ in range(length - 1):
        seconds.append(clock(lambda: decoder.step(ids)))
    return 1 / statistics.median(seconds[:256]), 1 / statistics.median(seconds[-256:])


def measured(lengths, tokens, rounds, dtype):
    """Rows of every mixer: tokens/s at each length, all in turns, and its memory."""
    rows = []
    for name, settings in MIXERS.items():
        steps, times = (
            {length: step_of(settings, length, tokens, dtype) for length in lengths},
            {length: [] for length in lengths},
        )
        for turn in range(rounds + 1):
            for length, step in steps.items():
                step()  # it fills the caches anew
                if turn:
                    times[length].append(clock(step))
        rates = {length: tokens / statistics.median(seconds) for length, seconds in times.items()}
        rows.append(
            dict(
                mixer=name,
                dtype=dtype,
                lengths=list(lengths),
                tokens_per_second=list(rates.values()),
                **arena(settings, lengths, dtype),
            )
        )
        row = rows[-1]
        row["written"] = written(settings, lengths[-1])
        print(
            f"{name:<18}"
            + "".join(f"{rate:>9,.0f}" for rate in rates.values())
            + f"   the longest at {rates[lengths[-1]] / rates[lengths[0]]:.2f} of the shortest"
            f"   {row['bytes_per_token'] / 1024:.1f} KiB a token   writing {row['written'][0]:,.0f} tokens/s, at the end {row['written'][1]:,.0f}",
            flush=True,
        )
    return rows


def draw(rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for row in rows:
        speed.plot(row["lengths"], row["tokens_per_second"], marker=".", label=row["mixer"])
        memory.plot(row["lengths"], [size / 2**20 for size in row["bytes"]], marker=".", label=row["mixer"])
    for axes, label in ((speed, f"tokens/s, steps of {TOKENS:,} tokens"), (memory, "activations of one window, MiB")):
        axes.set(xlabel="tokens of a window", ylabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(rows[0]["lengths"], [f"{length:,}" for length in rows[0]["lengths"]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    memory.set(xscale="linear")
    memory.set_xticks([256, 2048, 4096, 8192], ["256", "2,048", "4,096", "8,192"])
    speed.legend()
    figure.savefig(path, dpi=120)


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training speed and memory over the length of windows.")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each length")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--plot", metavar="FILE", help="draw them there")
    args = parser.parse_args(argv)
    from slm_np.ops.device import CPU

    CPU.use_threads(0)
    print(f"{'tokens/s, ' + args.dtype:<18}" + "".join(f"{length:>9,}" for length in LENGTHS))
    rows = measured(LENGTHS, TOKENS, args.rounds, args.dtype)
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
