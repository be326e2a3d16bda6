"""Long sequences: training speed, memory and decoding speed over the length of windows, for each mixer.

    python benchmarks/long_sequences.py [--dtype fp32] [--plot FILE] [--json FILE]

Every training step has TOKENS tokens, in few long windows or in many short ones, so only the length makes a difference.
The lengths take turns, and the median step counts. Memory is the arena of one window. Decoding extends one sequence to
the longest length, a token at a time: how fast at its start, and how fast at its end. The model has 4 layers 256 wide
with a norm, a residual connection and no feed-forward, around each mixer.
"""

import argparse
import statistics

import checkout  # noqa: F401
import numpy as np
from measure import check_plot, clock, write_json

from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.errors import command
from slm_np.inference.decoder import Decoder
from slm_np.nn.arena import planned_bytes
from slm_np.nn.model import Model, plan
from slm_np.ops.device import CPU
from slm_np.presets import LLAMA, MAMBA
from slm_np.training.optimizer import AdamW

TOKENS = 8192  # of a training step
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)  # of a window, in tokens
DECODED = 256  # steps at the start and at the end that count
COMMON = dict(n_layer=4, n_embd=256, head="tied", feed_forward="none")
MIXERS = {
    "mamba": dict(MAMBA, **COMMON) | dict(pattern="M"),
    "linear recurrence": dict(MAMBA, **COMMON) | dict(pattern="S", recurrence_size=512),
    "attention": dict(LLAMA, **COMMON | dict(n_head=8)),
}


def compute_dtype(dtype):
    return BF16 if dtype == "bf16" else None


def step_of(settings, length, tokens, dtype):
    """A training step on windows of `length` tokens, as a function without arguments."""
    config = ModelConfig(**settings, block_size=length)
    model = Model(config, compute_dtype=compute_dtype(dtype))
    optimizer = AdamW(model.parameters, 1e-4)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (tokens // length, length + 1)).astype(np.int32)
    x, y = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])  # (B, T)

    def step():
        model.loss_and_gradient(x, y)
        optimizer.step()

    return step


def arena(settings, lengths, dtype):
    """Bytes of the activations of one window of each length, and of one more token in long windows."""
    plans = [plan(ModelConfig(**settings, block_size=length), 1, length) for length in lengths]
    sizes = [int(planned_bytes(requests, np.float32, compute_dtype(dtype))) for requests in plans]
    return dict(bytes=sizes, bytes_per_token=(sizes[-1] - sizes[-2]) / (lengths[-1] - lengths[-2]))


def decoded(settings, length):
    """(tokens/s at the start, at the end) of decoding one sequence of `length` tokens."""
    decoder, ids, seconds = Decoder(Model(ModelConfig(**settings, block_size=length))), np.zeros(1, np.int32), []
    decoder.read(ids[:, None])
    for _ in range(length - 1):
        seconds.append(clock(lambda: decoder.step(ids)))
    return 1 / statistics.median(seconds[:DECODED]), 1 / statistics.median(seconds[-DECODED:])


def measured(lengths, tokens, rounds, dtype):
    """The rows of all mixers: tokens/s at each length, which take turns, and memory."""
    rows = []
    for name, settings in MIXERS.items():
        steps = {length: step_of(settings, length, tokens, dtype) for length in lengths}
        times = {length: [] for length in lengths}
        for turn in range(rounds + 1):
            for length, step in steps.items():
                step()  # fills the caches
                if turn:
                    times[length].append(clock(step))
        rates = [tokens / statistics.median(times[length]) for length in lengths]
        rows.append(
            dict(
                mixer=name,
                dtype=dtype,
                lengths=list(lengths),
                tokens_per_second=rates,
                **arena(settings, lengths, dtype),
                decoded=decoded(settings, lengths[-1]),
            )
        )
        print(line_of(rows[-1]), flush=True)
    return rows


def line_of(row):
    """A row as text."""
    rates, (start, end) = row["tokens_per_second"], row["decoded"]
    return (
        f"{row['mixer']:<18}" + "".join(f"{rate:>9,.0f}" for rate in rates) + f"{rates[-1] / rates[0]:>14.2f}"
        f"{row['bytes_per_token'] / 1024:>12.1f}{start:>14,.0f}{end:>12,.0f}"
    )


def header(dtype):
    lengths = "".join(f"{length:>9,}" for length in LENGTHS)
    return f"{'tokens/s, ' + dtype:<18}{lengths}{'last / first':>14}{'KiB/token':>12}{'decoding':>14}{'at the end':>12}"


def draw(rows, path):
    """Speed and memory over the length of windows, as an image."""
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


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training speed and memory over the length of windows.")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="precision (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each length (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the rows into FILE")
    args = parser.parse_args(argv)
    check_plot(args.plot)
    CPU.use_threads(0)
    print(header(args.dtype))
    rows = measured(LENGTHS, TOKENS, args.rounds, args.dtype)
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
