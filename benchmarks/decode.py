"""Decoding: tokens per second of a 15M Llama shape in float32, beside the floor that reading its weights sets, and the rate of a prompt.

A step reads every weight once, whatever the number of texts. Its floor is their bytes over the rate at which all threads read an array of
256 MiB; where a large cache keeps the weights from step to step, a step may be faster. A prompt is held against the rate of a square product; its operations are those of the layers' products
and of attention's lower triangle, the head's for the last token only. Everything runs in turns; the best of the rounds counts, as other
programs may have the cores, and the median tells how much they did.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
from numba import prange

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from measure import clock, square_product, write_json  # noqa: E402

from slm_np.config import ModelConfig  # noqa: E402
from slm_np.errors import exit_with_sentence  # noqa: E402
from slm_np.inference.decoder import Decoder  # noqa: E402
from slm_np.kernels.cpu.jit import kernel, row  # noqa: E402
from slm_np.nn.model import Model  # noqa: E402
from slm_np.ops.device import CPU  # noqa: E402
from slm_np.presets import LLAMA  # noqa: E402

SHAPE = dict(LLAMA, vocab_size=32000, block_size=256, n_layer=6, n_head=6, n_embd=288, n_hidden=768)
QUICK = dict(LLAMA, vocab_size=301, block_size=32, n_layer=2, n_head=2, n_embd=32, n_hidden=64)
BATCHES, STEPS = (1, 8), 16


@row
def total(x):
    s = x.dtype.type(0)
    for i in range(x.size):
        s += x[i]
    return s


@kernel
def read(sums, x, parts):
    """The sum of each of `parts` parts of x: every byte read, nearly none written."""
    for part in prange(parts):
        sums[part] = total(x[part * x.size // parts : (part + 1) * x.size // parts])


def prompt_operations(config, batch):
    """Floating-point operations of reading B prompts of T tokens."""
    steps, heads = config.block_size, config.n_head * config.head_dim
    qkv, hidden = (
        heads + 2 * config.n_kv_head * config.head_dim,
        config.n_hidden * (2 if config.feed_forward == "swiglu" else 1),
    )
    products = config.n_embd * (qkv + heads + hidden) + config.n_hidden * config.n_embd
    attention = 2 * heads * (steps + 1) // 2
    return 2 * batch * (steps * config.n_layer * (products + attention) + config.n_embd * config.vocab_size)


def measure(config, rounds, steps=STEPS):
    """A row for each number of texts: best and median seconds of a step, of its floor and of a prompt, and the rates they make."""
    model = Model(config)
    weights, sums, large = (
        model.parameters.weights,
        np.zeros(64, np.float32),
        np.ones(1 << (20 if steps < STEPS else 26), np.float32),
    )
    product, product_operations = square_product(1024)
    draw, rows = np.random.default_rng(0), []
    for batch in BATCHES:
        decoder, tokens = (
            Decoder(model, batch),
            draw.integers(0, config.vocab_size, (batch, config.block_size), np.int32),
        )
        functions = {
            "floor": lambda: read(sums, large, len(sums)),
            "step": lambda: decoder.step(tokens[:, 0]),
            "product": product,
            "prompt": lambda: decoder.read(tokens),
        }
        times = {name: [] for name in functions}
        decoder.read(tokens)  # the context is full: steps attend to all T places
        for turn in range(rounds + 1):
            for name, function in functions.items():
                found = [clock(function) for _ in range(steps if name == "step" else 2)]
                times[name] += found if turn else []
        best = {name: min(values) for name, values in times.items()}
        best["floor"] *= weights.nbytes / large.nbytes
        operations = prompt_operations(config, batch)
        rows.append(
            dict(
                batch=batch,
                weights_mb=weights.nbytes / 1e6,
                step_ms=1e3 * best["step"],
                step_median_ms=1e3 * statistics.median(times["step"]),
                tokens_per_s=batch / best["step"],
                floor_ms=1e3 * best["floor"],
                floor_gb_per_s=weights.nbytes / best["floor"] / 1e9,
                floor_share=best["floor"] / best["step"],
                prompt_ms=1e3 * best["prompt"],
                prompt_median_ms=1e3 * statistics.median(times["prompt"]),
                prompt_tokens_per_s=tokens.size / best["prompt"],
                prompt_gflop_per_s=operations / best["prompt"] / 1e9,
                product_gflop_per_s=product_operations / best["product"] / 1e9,
                product_share=operations / best["prompt"] / (product_operations / best["product"]),
            )
        )
    return rows


def table(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=12, help="how often everything is measured (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 means one per core")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round: to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    args = parser.parse_args(argv)
    threads = CPU.use_threads(args.threads)
    rows = measure(ModelConfig(**QUICK), 1, 2) if args.quick else measure(ModelConfig(**SHAPE), max(1, args.rounds))
    print(f"{threads} threads, {rows[0]['weights_mb']:.1f} MB of weights; best of the rounds, (median)")
    for r in rows:
        print(
            f"{r['batch']} text{'s' * (r['batch'] > 1)}: step {r['step_ms']:.2f} ms ({r['step_median_ms']:.2f}), {r['tokens_per_s']:,.0f} tokens/s; floor {r['floor_ms']:.2f} ms "
            f"at {r['floor_gb_per_s']:.1f} GB/s, {100 * r['floor_share']:.0f} % of it; prompt {r['prompt_ms']:.1f} ms ({r['prompt_median_ms']:.1f}), "
            f"{r['prompt_tokens_per_s']:,.0f} tokens/s, {r['prompt_gflop_per_s']:.0f} of {r['product_gflop_per_s']:.0f} GFLOP/s, {100 * r['product_share']:.0f} %"
        )
    if args.json:
        write_json(args.json, rows)


def main(argv=None):
    exit_with_sentence(table)(argv)


if __name__ == "__main__":
    main()
