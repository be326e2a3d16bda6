"""Training speed on the CPU, beside PyTorch, the NumPy kernels, or another checkout of this project.

    python benchmarks/cpu.py [--shapes char,slim,...] [--dtype bf16] [--against torch|numpy|CHECKOUT] [--json FILE]
    python benchmarks/cpu.py --profile

It times the trainer's own step: batch, forward, backward, clipping, AdamW. Each engine runs in a process of its own.
Blocks of steps alternate between the engines, so that a drift of the machine affects them all, and the median of all
steps counts. Quote the ratios: absolute figures hold for one machine at one time. `--profile` shows where a step's time
goes instead.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import checkout  # noqa: F401
from measure import median_seconds, peak_rss_mb, write_json
from shapes import SHAPES, matmuls, names_of, operations, shape
from step_profile import profile

from slm_np.errors import UserError, command

SCRIPT = Path(__file__).resolve()
SLOW = 10.0  # seconds of warmup after which one step is enough
HEAD_BYTES = 64 << 20  # of the logits that NumPy computes at once
# PyTorch computes in float32 or under autocast to bfloat16, eager or compiled. {name: (compiled, bfloat16)}
TORCH = {
    "eager": (False, False),
    "compiled": (True, False),
    "eager-bf16": (False, True),
    "compiled-bf16": (True, True),
}
ENGINES = ("slm_np", "numpy", "matmuls", *TORCH)


class Engine:
    """A training step in a process of its own.

    name: one of ENGINES.   script: the benchmark that serves it, of this checkout or of another one.
    """

    def __init__(self, name, shape_name, dtype, threads, script=SCRIPT):
        flags = {"--engine": name, "--shapes": shape_name, "--dtype": dtype, "--threads": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, str(script), *(word for pair in flags.items() for word in pair)],
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
        """The seconds of each of n steps."""
        return self.ask("block", n)

    def close(self):
        """Ends the process. Returns its peak memory in MB."""
        peak = self.ask("end")
        self.process.wait()
        return peak


def serve(name, shape_name, dtype, threads):
    """Inside an engine's process: build, warm up, then answer requests."""
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    if name == "matmuls":
        return answer(numpy_matmul_rate(shape_name, threads))
    step = step_of(name, shape_name, dtype, threads)
    started = time.perf_counter()
    for _ in range(3):
        step()
        if time.perf_counter() - started > SLOW:
            break
    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if request[0] == "end":
            return answer(peak_rss_mb())
        times = []
        for _ in range(request[1]):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        answer(times)


def step_of(name, shape_name, dtype, threads):
    """An engine's training step, as a function without arguments."""
    if name in TORCH:
        return torch_step(shape_name, threads, *TORCH[name])
    return trainer_of(shape_name, threads, dtype, "numpy" if name == "numpy" else "numba").step


def corpus_of(config):
    """A corpus of random tokens."""
    import numpy as np

    from slm_np.data.tokens import Corpus, Tokens

    ids = np.random.default_rng(0).integers(0, config.vocab_size, 1 << 20).astype(np.uint16)
    return Corpus(Tokens("train", ids), Tokens("validation", ids), None, config.vocab_size, "", "random")


def trainer_of(shape_name, threads, dtype="fp32", kernels="numba"):
    """The trainer of a shape."""
    from slm_np.config import TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.ops.device import CPU
    from slm_np.training.trainer import Trainer

    config, batch = shape(shape_name)
    CPU.use_kernels(kernels)
    CPU.use_threads(threads)
    train = TrainConfig(batch_size=batch, max_iters=10**6, learning_rate=1e-4, min_lr=1e-5, dtype=dtype)
    return Trainer(RunConfig(config, train), corpus_of(config))


def torch_step(shape_name, threads, compiled, bfloat16):
    """The same step of the PyTorch twin, on the same batches."""
    import numpy as np
    import torch
    from torch_twin import Trainer, Twin

    from slm_np.data.batches import random_batch

    config, batch = shape(shape_name)
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(0)
    trainer = Trainer(Twin(config), learning_rate=1e-4, compiled=compiled, bfloat16=bfloat16)
    corpus, updates = corpus_of(config), 0
    x, y = (np.zeros((batch, config.block_size), np.int32) for _ in range(2))

    def step():
        nonlocal updates
        random_batch(x, y, corpus.train, 0, 0, updates)
        updates += 1
        return trainer.train_step(x.astype(np.int64), y.astype(np.int64))

    return step


def numpy_matmul_rate(shape_name, threads, seconds=0.3):
    """Operations per second that NumPy reaches on the matmuls of a step, each timed alone.

    It needs a process of its own, in which the BLAS has all threads.   seconds: per matmul
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads or None)
    total = work = 0
    for m, k, n, count in matmuls(*shape(shape_name)):
        rows = min(m, max(512, HEAD_BYTES // (4 * n)))  # of a large matmul as many rows as the head computes at once
        x, w, y = np.ones((rows, k), np.float32), np.ones((k, n), np.float32), np.ones((rows, n), np.float32)
        dx, dw = np.empty_like(x), np.empty_like(w)
        for a, b, out in ((x, w, y), (y, w.T, dx), (x.T, y, dw)):
            total += count * m / rows * median_seconds(lambda: np.matmul(a, b, out=out), seconds)
            work += 2 * m * k * n * count
    return work / total


def engines_of(shape_name, dtype, against, threads):
    """{name: Engine}: slm_np, and its peers."""
    config, _ = shape(shape_name)
    engines = {"slm_np": Engine("slm_np", shape_name, dtype, threads)}
    if against == "torch":
        time_loop = set(config.letters) != {"A"}  # a compiler would unroll all of its steps, which takes minutes
        for name, (compiled, bfloat16) in TORCH.items():
            if (dtype == "bf16" or not bfloat16) and not (compiled and time_loop):
                engines[name] = Engine(name, shape_name, dtype, threads)
    elif against == "numpy":
        engines["numpy"] = Engine("numpy", shape_name, "fp32", threads)
    elif against:
        engines["checkout"] = Engine("slm_np", shape_name, dtype, threads, Path(against) / "benchmarks" / "cpu.py")
    return engines


def compare(shape_name, dtype, against, threads, rounds, seconds):
    """One shape, all engines side by side. Returns the row for the table and the JSON file.

    ratio: how many times as long a step of the fastest peer takes, the median over all rounds of the ratio of the
    medians of a round.
    """
    config, batch = shape(shape_name)
    tokens = batch * config.block_size
    engines = engines_of(shape_name, dtype, against, threads)
    sizes = {name: max(1, round(seconds / engine.block(1)[0])) for name, engine in engines.items()}
    blocks = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            blocks[name].append(engine.block(sizes[name]))
    peaks = {name: engine.close() for name, engine in engines.items()}
    step = {name: statistics.median(sum(times, [])) for name, times in blocks.items()}
    row = dict(
        shape=shape_name,
        dtype=dtype,
        tokens_per_s=tokens / step["slm_np"],
        step_ms=1e3 * step["slm_np"],
        gflops=1e-9 * operations(config, batch) / step["slm_np"],
        gemm_gflops=1e-9 * Engine("matmuls", shape_name, dtype, threads).ready,
        peak_rss_mb=peaks["slm_np"],
        peer=None,
        peer_tokens_per_s=None,
        peer_peak_rss_mb=None,
        ratio=None,
    )
    peers = [name for name in engines if name != "slm_np"]
    if peers:
        best = min(peers, key=step.get)
        pairs = zip(blocks[best], blocks["slm_np"])
        row.update(
            peer=best,
            peer_tokens_per_s=tokens / step[best],
            peer_peak_rss_mb=peaks[best],
            ratio=statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs),
            peers={name: tokens / step[name] for name in peers},
        )
    return row


def line_of(row):
    """A row of the table as text."""
    share = 100 * row["gflops"] / row["gemm_gflops"]
    line = (
        f"{row['shape']:<18}{row['tokens_per_s']:>9,.0f} tokens/s {row['step_ms']:>8.1f} ms  "
        f"{row['gflops']:>5.0f} GFLOP/s, {share:.0f} % of NumPy's {row['gemm_gflops']:.0f}  "
        f"{row['peak_rss_mb']:>6.0f} MB"
    )
    if row["ratio"]:
        line += (
            f"   {row['peer']} {row['peer_tokens_per_s']:,.0f} tokens/s {row['peer_peak_rss_mb']:.0f} MB   "
            f"ratio {row['ratio']:.2f}, memory {row['peak_rss_mb'] / row['peer_peak_rss_mb']:.2f}"
        )
        others = [f"{name} {rate:,.0f}" for name, rate in row["peers"].items() if name != row["peer"]]
        line += f"   ({', '.join(others)})" if others else ""
    return line


def check_peer(against):
    """Raise UserError if `--against` names nothing that can run beside slm_np."""
    if against == "torch" and not importlib.util.find_spec("torch"):
        raise UserError('--against torch needs PyTorch, which is not installed; run pip install "slm_np[bench]"')
    if against not in (None, "torch", "numpy") and not (Path(against) / "benchmarks" / "cpu.py").is_file():
        raise UserError(
            f"--against {against} is not a checkout of this project; give torch, numpy or the folder of a checkout"
        )


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Training speed on this CPU.")
    parser.add_argument(
        "--shapes", default=",".join(SHAPES), help="shapes to run, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "bf16"),
        help="precision of slm_np; PyTorch runs in float32 and, with bf16, in bfloat16 too, and the fastest counts",
    )
    parser.add_argument(
        "--against",
        metavar="torch|numpy|CHECKOUT",
        help="what to run beside it: the PyTorch twin (eager and compiled), the NumPy kernels, or the folder of "
        "another checkout of this project",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of each engine; 0 means one per core")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of steps per engine (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a block (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--profile", action="store_true", help="show where a step's time goes instead")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = names_of(args.shapes)
    if args.engine:
        return serve(args.engine, names[0], args.dtype, args.threads)
    check_peer(args.against)
    rows = []
    for name in names:
        if args.profile:
            profile(name, trainer_of(name, args.threads, args.dtype), args.seconds)
            continue
        row = compare(name, args.dtype, args.against, args.threads, args.rounds, args.seconds)
        rows.append(row)
        print(line_of(row), flush=True)
        if args.json:
            write_json(args.json, rows)


if __name__ == "__main__":
    main()
