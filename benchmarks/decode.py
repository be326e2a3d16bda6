"""Decoding: tokens per second of a 15M Llama shape in float32, beside the floor of reading its weights; and prompts.

    python benchmarks/decode.py [--rounds 12] [--quick] [--json FILE]

A decode step reads every weight once, however many sequences there are. Its floor is the bytes of the weights over the
rate at which all threads read an array of 256 MiB. A step may be faster where a large cache keeps the weights from step
to step. A prompt is compared with a square matmul: its operations are the matmuls of the layers, the lower triangle of
attention, and the head for the last token only. All of them take turns. The best of the rounds counts, since other
programs may use the cores; the median shows how much they did.
"""

import argparse
import statistics

import checkout  # noqa: F401
import numpy as np
from measure import clock, square_matmul, write_json

from slm_np.config import ModelConfig
from slm_np.errors import command
from slm_np.inference.decoder import Decoder
from slm_np.kernels.cpu import jit
from slm_np.nn.model import Model
from slm_np.ops.device import CPU
from slm_np.presets import LLAMA

SHAPE = dict(LLAMA, vocab_size=32000, block_size=256, n_layer=6, n_head=6, n_embd=288, n_hidden=768)
QUICK = dict(LLAMA, vocab_size=301, block_size=32, n_layer=2, n_head=2, n_embd=32, n_hidden=64)
BATCHES, STEPS = (1, 8), 16  # sequences; decode steps in a round
ELEMENTS, QUICK_ELEMENTS = 1 << 26, 1 << 20  # of the array that the floor reads


@jit.row
def total(x):
    s = x.dtype.type(0)
    for i in range(x.size):
        s += x[i]
    return s


@jit.kernel
def read(part, sums, x, parts):
    """The sum of each of `parts` parts of x: reads all of x and writes almost nothing."""
    sums[part] = total(x[part * x.size // parts : (part + 1) * x.size // parts])


def prompt_operations(config, batch):
    """Floating-point operations of reading B prompts of T tokens."""
    steps, heads = config.block_size, config.n_head * config.head_dim
    qkv, gates = heads + 2 * config.n_kv_head * config.head_dim, 2 if config.feed_forward == "swiglu" else 1
    weights = config.n_embd * (qkv + heads + gates * config.n_hidden) + config.n_hidden * config.n_embd  # of a layer
    attention = 2 * heads * (steps + 1) // 2
    return 2 * batch * (steps * config.n_layer * (weights + attention) + config.n_embd * config.vocab_size)


def measure(config, rounds, steps=STEPS, elements=ELEMENTS):
    """A row for each number of sequences: seconds of a step, of its floor and of a prompt, and their rates."""
    model, sums, large = Model(config), np.zeros(64, np.float32), np.ones(elements, np.float32)
    weights, rng, rows = model.parameters.weights, np.random.default_rng(0), []
    matmul, matmul_operations = square_matmul(1024)
    for batch in BATCHES:
        decoder = Decoder(model, batch)
        tokens = rng.integers(0, config.vocab_size, (batch, config.block_size), np.int32)
        functions = {
            "floor": lambda: read(len(sums), sums, large, len(sums)),
            "step": lambda: decoder.step(tokens[:, 0]),
            "matmul": matmul,
            "prompt": lambda: decoder.read(tokens),
        }
        times = {name: [] for name in functions}
        decoder.read(tokens)  # fill the context: every step attends to T tokens
        for turn in range(rounds + 1):
            for name, function in functions.items():
                found = [clock(function) for _ in range(steps if name == "step" else 2)]
                times[name] += found if turn else []  # the first turn warms up
        rows.append(row_of(config, batch, times, weights.nbytes, weights.nbytes / large.nbytes, matmul_operations))
    return rows


def row_of(config, batch, times, weight_bytes, floor_scale, matmul_operations):
    """The row of one batch. times: {function: seconds of its calls}.   floor_scale: bytes of weights / bytes read"""
    best = {name: min(seconds) for name, seconds in times.items()}
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    floor, prompt_rate = best["floor"] * floor_scale, prompt_operations(config, batch) / best["prompt"]
    matmul_rate = matmul_operations / best["matmul"]
    return dict(
        batch=batch,
        weights_mb=weight_bytes / 1e6,
        step_ms=1e3 * best["step"],
        step_median_ms=1e3 * median["step"],
        tokens_per_s=batch / best["step"],
        floor_ms=1e3 * floor,
        floor_gb_per_s=weight_bytes / floor / 1e9,
        floor_share=floor / best["step"],
        prompt_ms=1e3 * best["prompt"],
        prompt_median_ms=1e3 * median["prompt"],
        prompt_tokens_per_s=batch * config.block_size / best["prompt"],
        prompt_gflop_per_s=prompt_rate / 1e9,
        matmul_gflop_per_s=matmul_rate / 1e9,
        matmul_share=prompt_rate / matmul_rate,
    )


def line_of(row):
    """A row as text: the best of the rounds, and the median in parentheses."""
    return (
        f"{row['batch']} sequence{'s' * (row['batch'] > 1)}: "
        f"step {row['step_ms']:.2f} ms ({row['step_median_ms']:.2f}), {row['tokens_per_s']:,.0f} tokens/s; "
        f"floor {row['floor_ms']:.2f} ms at {row['floor_gb_per_s']:.1f} GB/s, {100 * row['floor_share']:.0f} % of it; "
        f"prompt {row['prompt_ms']:.1f} ms ({row['prompt_median_ms']:.1f}), "
        f"{row['prompt_tokens_per_s']:,.0f} tokens/s, "
        f"{row['prompt_gflop_per_s']:.0f} of {row['matmul_gflop_per_s']:.0f} GFLOP/s, {100 * row['matmul_share']:.0f} %"
    )


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Decoding speed, beside the floor of reading the weights.")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of measurements (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads; 0 means one per core")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and one round, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(argv)
    threads = CPU.use_threads(args.threads)
    if args.quick:
        rows = measure(ModelConfig(**QUICK), rounds=1, steps=2, elements=QUICK_ELEMENTS)
    else:
        rows = measure(ModelConfig(**SHAPE), max(1, args.rounds))
    print(f"{threads} threads, {rows[0]['weights_mb']:.1f} MB of weights; best of the rounds (median)")
    for row in rows:
        print(line_of(row))
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
