"""The CPU benchmark: training speed of the shapes, against PyTorch, another kernel set, or another checkout.

    python benchmarks/cpu.py [--shapes char,slim,...] [--dtype bf16] [--against torch|numpy|CHECKOUT] [--json FILE]
    [--profile]

It times the trainer's own step (batch, forward, backward, clip, AdamW). Each engine runs in a process of its own;
blocks of steps alternate between them, so that a drift of the machine meets them all, and the median of all steps
counts. Quote the ratios: absolute figures hold for one machine at one time.
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

SLOW = 10.0  # seconds of warm-up after which one step is enough
# PyTorch computes in float32 or under autocast to bfloat16, eager or compiled: name: (compiled, bfloat16). "stepwise"
# runs the whole linear recurrence in its time loop, the others only A h.
TORCH = {
    "eager": (False, False),
    "compiled": (True, False),
    "eager-bf16": (False, True),
    "compiled-bf16": (True, True),
    "stepwise": (False, False),
}


class Engine:
    """A training step in a process of its own: `block(n)` returns the seconds of each of n steps.

    script: the benchmark that serves it, of this checkout or of another one.
    """

    def __init__(self, name, shape_name, dtype, threads, script=HERE / "cpu.py"):
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
        trainer_of(shape_name, threads, dtype, "numpy" if name == "numpy" else "numba").step
        if name in ("slm_np", "numpy")
        else torch_step(shape_name, threads, *TORCH[name], name == "stepwise")
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


def trainer_of(shape_name, threads, dtype="fp32", kernels="numba"):
    """The trainer whose step is timed."""
    from slm_np.config import TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.ops.device import CPU
    from slm_np.training.trainer import Trainer

    config, batch = shape(shape_name)
    CPU.use_kernels(kernels)
    CPU.use_threads(threads)
    train = TrainConfig(batch_size=batch, max_iters=10**6, learning_rate=1e-4, min_lr=1e-5, dtype=dtype)
    return Trainer(RunConfig(config, train), corpus_of(config))


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


def numpy_matmul_rate(shape_name, threads):
    """Operations per second that NumPy's matmuls reach on the step's own shapes, in a process where BLAS has its own
    threads.
    """
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


def engines_of(shape_name, dtype, against, threads):
    """{name: Engine}: ours, and the ones that it runs against."""
    config, _ = shape(shape_name)
    found = {"slm_np": Engine("slm_np", shape_name, dtype, threads)}
    if against == "torch":
        time_loop = set(config.letters) != {"A"}  # a compiler would unroll thousands of steps, for minutes
        for name, (compiled, bfloat16) in TORCH.items():
            wanted = (dtype == "bf16" or not bfloat16) and not (compiled and time_loop)
            if wanted and (name != "stepwise" or "S" in config.letters):
                found[name] = Engine(name, shape_name, dtype, threads)
    elif against == "numpy":
        found["numpy"] = Engine("numpy", shape_name, "fp32", threads)
    elif against:
        found["checkout"] = Engine("slm_np", shape_name, dtype, threads, Path(against) / "benchmarks" / "cpu.py")
    return found


def compare(shape_name, dtype, against, threads, rounds, seconds):
    """One shape, engines side by side. Returns the row for the table and the JSON file.

    ratio: the fastest peer's time per step over ours, the median over rounds of the ratio of each round's medians.
    """
    config, batch = shape(shape_name)
    tokens = batch * config.block_size
    engines = engines_of(shape_name, dtype, against, threads)
    sizes = {name: max(1, round(seconds / engine.block(1)[0])) for name, engine in engines.items()}
    times = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name].append(engine.block(sizes[name]))
    peaks = {name: engine.close() for name, engine in engines.items()}
    step = {name: statistics.median(sum(blocks, [])) for name, blocks in times.items()}
    row = dict(
        shape=shape_name,
        dtype=dtype,
        tokens_per_s=tokens / step["slm_np"],
        step_ms=1e3 * step["slm_np"],
        gflops=1e-9 * operations(config, batch) / step["slm_np"],
        gemm_gflops=1e-9 * numpy_matmul_rate(shape_name, threads),
        peak_rss_mb=peaks["slm_np"],
        peer=None,
        peer_tokens_per_s=None,
        peer_peak_rss_mb=None,
        ratio=None,
    )
    peers = [name for name in engines if name != "slm_np"]
    if peers:
        best = min(peers, key=step.get)
        rounds = zip(times[best], times["slm_np"])
        row.update(
            peer=best,
            peer_tokens_per_s=tokens / step[best],
            peer_peak_rss_mb=peaks[best],
            ratio=statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in rounds),
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
    parser.add_argument(
        "--against",
        metavar="torch|numpy|CHECKOUT",
        help="run beside it PyTorch's twin (eager and compiled), the NumPy kernels, or another checkout of this project",
    )
    parser.add_argument("--threads", type=int, default=0, help="0 means one per core")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of steps per engine")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a block")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--profile", action="store_true", help="say where the step's time goes instead")
    parser.add_argument("--engine", choices=("slm_np", "numpy", *TORCH), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = names_of(args.shapes)
    if args.against == "torch" and not importlib.util.find_spec("torch"):
        raise UserError(
            "--against torch needs PyTorch, which is not installed; install the package torch, or leave --against out"
        )
    elif args.against not in (None, "torch", "numpy") and not (Path(args.against) / "benchmarks" / "cpu.py").is_file():
        raise UserError(f"--against {args.against} is not a checkout of this project; name its folder, torch or numpy")
    if args.engine:
        return serve(args.engine, names[0], args.dtype, args.threads)
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
