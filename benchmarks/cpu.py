"""The CPU benchmark: training speed of the shapes, ours against PyTorch.

    python benchmarks/cpu.py [--dtype bf16] [--shapes char,char10m,slim,smallm,byte-transformer,byte-ssm,mamba] [--against torch] [--json FILE] [--profile]

It times the trainer's own step (batch, forward, backward, clip, AdamW). Each engine runs in a process of its own; blocks of steps
alternate between them, so that a drift of the machine meets them all, and the median of all steps counts. Quote the ratios: absolute
figures hold for one machine at one time.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import write_json  # noqa: E402
from shapes import SHAPES, names_of, operations, shape  # noqa: E402
from step_profile import profile  # noqa: E402

from slm_np.errors import UserError, exit_with_sentence  # noqa: E402

# PyTorch computes in float32 or under autocast to bfloat16, as it is or compiled; a linear recurrence in a loop over time of A h alone, or of everything.
SLOW = 10.0  # seconds of warming up after which a step is long enough for one to do
PEERS = {
    "eager": (False, False),
    "compiled": (True, False),
    "eager-bf16": (False, True),
    "compiled-bf16": (True, True),
    "stepwise": (False, False),
}


class Engine:
    """A training step in a process of its own: `block(n)` returns the seconds of each of n steps."""

    def __init__(self, name, shape_name, dtype, threads, script="cpu.py"):
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / script),
                "--engine",
                name,
                "--shapes",
                shape_name,
                "--dtype",
                dtype,
                "--threads",
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.ready = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"an engine stopped with exit status {self.process.wait()}; its own message says why")
        return json.loads(line)

    def ask(self, *request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def block(self, n):
        return self.ask("block", n)

    def close(self):
        """Peak memory in MB; the process ends."""
        peak = self.ask("end")
        self.process.wait()
        return peak


def serve(name, shape_name, dtype, threads):
    """Inside an engine's process: build, warm up, then answer requests."""
    answers, sys.stdout = sys.stdout, sys.stderr
    step = (
        trainer_of(shape_name, threads, dtype).step
        if name == "slm_np"
        else torch_step(shape_name, threads, *PEERS[name], name == "stepwise")
    )
    begun = time.perf_counter()
    for _ in range(3):
        step()
        if time.perf_counter() - begun > SLOW:
            break
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request[0] == "end":
            from measure import peak_rss_mb

            print(json.dumps(peak_rss_mb()), file=answers, flush=True)
            return
        times = []
        for _ in range(request[1]):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
        print(json.dumps(times), file=answers, flush=True)


def corpus_of(config):
    """A corpus of random tokens."""
    import numpy as np

    from slm_np.data.token_store import Corpus, Tokens

    ids = np.random.default_rng(0).integers(0, config.vocab_size, 1 << 20).astype(np.uint16)
    return Corpus(Tokens("train", ids), Tokens("validation", ids), None, config.vocab_size, "", "random")


def trainer_of(shape_name, threads, dtype="fp32"):
    """The trainer whose step is timed."""
    from slm_np.config import TrainConfig
    from slm_np.formats.checkpoint import RunConfig
    from slm_np.machine import use_threads
    from slm_np.training.trainer import Trainer

    config, batch = shape(shape_name)
    use_threads(threads)
    train = TrainConfig(batch_size=batch, max_iters=10**6, learning_rate=1e-4, min_lr=1e-5, dtype=dtype)
    return Trainer(RunConfig(config, train), corpus_of(config), quiet=True)


def torch_step(shape_name, threads, compiled, bfloat16, stepwise=False):
    import numpy as np
    import torch
    from torch_twin import Recurrence, Trainer, Twin

    from slm_np.data.batches import random_batch

    config, batch = shape(shape_name)
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(0)
    Recurrence.stepwise = stepwise
    trainer, corpus = Trainer(Twin(config), learning_rate=1e-4, compiled=compiled, bfloat16=bfloat16), corpus_of(config)
    x, y = (np.zeros((batch, config.block_size), np.int32) for _ in range(2))
    state = [0]

    def step():
        random_batch(x, y, corpus.train, 0, 0, state[0])
        state[0] += 1
        return trainer.train_step(x.astype(np.int64), y.astype(np.int64))

    return step


def numpy_product_rate(shape_name, threads):
    """Operations per second that NumPy's products reach on the step's own shapes, in a process where BLAS has threads of its own."""
    code = f"""
import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}
import numpy as np
from threadpoolctl import threadpool_limits
from measure import median_seconds
from shapes import products, shape
threadpool_limits({threads or None})
seconds = operations = 0
for m, k, n, count in products(*shape({shape_name!r})):
    rows = min(m, max(512, (64 << 20) // (4 * n)))  # as many rows of a large product as are computed at once
    x, w, y = np.ones((rows, k), 'f'), np.ones((k, n), 'f'), np.ones((rows, n), 'f')
    dx, dw = np.empty_like(x), np.empty_like(w)
    for f in (lambda: np.matmul(x, w, out=y), lambda: np.matmul(y, w.T, out=dx), lambda: np.matmul(x.T, y, out=dw)):
        seconds += count * m / rows * median_seconds(f, 0.3)
        operations += 2 * m * k * n * count
print(operations / seconds)
"""
    return float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout
    )


def compare(shape_name, dtype, against, threads, rounds, seconds):
    """One shape: engines side by side. Returns the row for the table and the JSON file."""
    config, batch = shape(shape_name)
    tokens = batch * config.block_size
    loops = set(config.letters) != {"A"}  # over time, which a compiler would unroll: thousands of steps, for minutes
    peers = [
        name
        for name, (compiled, bfloat16) in PEERS.items()
        if (not bfloat16 or dtype == "bf16")
        and not (compiled and loops)
        and (name != "stepwise" or "S" in config.letters)
    ]
    peers = peers if against == "torch" else []
    engines = {name: Engine(name, shape_name, dtype, threads) for name in ["slm_np", *peers]}
    times = {name: [] for name in engines}
    sizes = {name: max(1, round(seconds / engine.block(1)[0])) for name, engine in engines.items()}
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name] += engine.block(sizes[name])
    peaks = {name: engine.close() for name, engine in engines.items()}
    step = {name: statistics.median(values) for name, values in times.items()}
    row = dict(
        shape=shape_name,
        dtype=dtype,
        tokens_per_s=tokens / step["slm_np"],
        step_ms=1e3 * step["slm_np"],
        gflops=1e-9 * operations(config, batch) / step["slm_np"],
        gemm_gflops=1e-9 * numpy_product_rate(shape_name, threads),
        peak_rss_mb=peaks["slm_np"],
        torch_variant=None,
        torch_tokens_per_s=None,
        torch_peak_rss_mb=None,
        ratio=None,
    )
    if against == "torch":
        best = min(peers, key=step.get)
        row.update(
            torch_variant=best,
            torch_tokens_per_s=tokens / step[best],
            torch_peak_rss_mb=peaks[best],
            ratio=step[best] / step["slm_np"],
            peers={name: tokens / step[name] for name in peers},
        )
    return row


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training speed on this CPU.")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which, separated by commas (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "bf16"),
        help="ours; with bf16 the fastest of PyTorch's float32 and bfloat16 counts",
    )
    parser.add_argument("--against", choices=("torch",), help="run PyTorch's twin beside it, eager and compiled")
    parser.add_argument("--threads", type=int, default=0, help="0 means one per core")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of steps per engine")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a block")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--profile", action="store_true", help="say where the step's time goes instead")
    parser.add_argument("--engine", choices=("slm_np", *PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = names_of(args.shapes)
    if args.against == "torch" and not importlib.util.find_spec("torch"):
        raise UserError(
            "--against torch needs PyTorch, which is not installed; install the package torch, or leave --against out"
        )
    if args.engine:
        return serve(args.engine, names[0], args.dtype, args.threads)
    rows = []
    for name in names:
        if args.profile:
            profile(name, trainer_of(name, args.threads, args.dtype), args.seconds)
            continue
        row = compare(name, args.dtype, args.against, args.threads, args.rounds, args.seconds)
        rows.append(row)
        line = f"{name:<18}{row['tokens_per_s']:>9,.0f} tokens/s {row['step_ms']:>8.1f} ms  {row['gflops']:>5.0f} GFLOP/s, {100 * row['gflops'] / row['gemm_gflops']:.0f} % of NumPy's {row['gemm_gflops']:.0f}  {row['peak_rss_mb']:>6.0f} MB"
        if row["ratio"]:
            line += f"   PyTorch {row['torch_variant']} {row['torch_tokens_per_s']:,.0f} tokens/s {row['torch_peak_rss_mb']:.0f} MB   ratio {row['ratio']:.2f}, memory {row['peak_rss_mb'] / row['torch_peak_rss_mb']:.2f}"
            line += f"   ({', '.join(f'{name} {rate:,.0f}' for name, rate in row['peers'].items() if name != row['torch_variant'])})"
        print(line, flush=True)
        if args.json:
            write_json(args.json, rows)


if __name__ == "__main__":
    main()
