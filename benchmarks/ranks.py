"""What several ranks cost and bring: on this machine, over slow links, and on machines that are not here.

    python benchmarks/ranks.py shapes [--shapes char,slim,stories] [--json FILE]
    python benchmarks/ranks.py virtual [--shapes stories,slim] [--json FILE]
    python benchmarks/ranks.py exchange [--json FILE]
    python benchmarks/ranks.py links [--rates 1000,20] [--shapes stories] [--time 60] [--json FILE]
    python benchmarks/ranks.py predict [--shapes stories,slim,smallm] [--step-seconds SECONDS]

shapes    tokens/s of two ranks of one thread beside one process of two threads, taking turns, and the share of the time
          that ranks wait
virtual   what virtual ranks cost one process of all cores
exchange  GB/s of the sum of gradients over 2, 4 and 8 ranks: of the same gradients (strong) and of gradients that grow
          with the ranks (weak)
links     two ranks in network namespaces of their own, connected by a link of RATE Mbit/s (Linux, root, tc): time of an
          update beside `predicted`, and the loss after --time seconds, with a sum in every update or rounds
predict   a table of tokens/s for 2 to 256 machines at 1, 10 and 100 Gbit/s, by the formulas of `predicted`
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import checkout
import numpy as np
from measure import write_json
from shapes import SHAPES, names_of, shape

from slm_np.errors import UserError, command

WARMUP = 3  # updates before those that count
SIZES = (1 << 20, 1 << 23, 1 << 25)  # elements of `exchange`
EVERY = 50  # updates in a round of `links`
LATENCY = 100e-6  # seconds of a message between machines, for `predict`
HOSTS = {"10.97.0.1": "slm-np-a", "10.97.0.2": "slm-np-b"}  # addresses and namespaces of `links`
BYTES = dict(fp32=4, bf16=2, int8=1)


# The child: one rank


def child(spec):
    """Train a shape for some time, or sum gradients, and print the result on rank 0 as a line of JSON."""
    from slm_np.ranks.current import world

    here = world()
    out = sys.__stdout__
    with here.ending():
        found = (exchanged if "size" in spec else trained)(spec, here)
        if here.rank == 0:
            print(json.dumps(found), file=out, flush=True)


def exchanged(spec, here):
    """Seconds of a sum of gradients."""
    from slm_np.ops.device import CPU

    CPU.use_threads(1)
    buffer = np.ones(spec["size"], np.float32)
    times = []
    for turn in range(spec["rounds"] + 2):
        here.max_over_ranks(0)
        started = time.perf_counter()
        here.reduce(buffer, CPU.kernels.accumulate, spec["exchange"] == "bf16")
        times.append(time.perf_counter() - started)
    return dict(seconds=statistics.median(times[2:]))


def trained(spec, here):
    """Updates and tokens per second, and the last losses, of a run of some seconds."""
    from cpu import corpus_of

    from slm_np.cli.launch import prepared
    from slm_np.config import TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.ops.device import CPU
    from slm_np.presets import PRESETS
    from slm_np.training.trainer import Trainer

    CPU.use_threads(spec["threads"])
    config, batch = shape(spec["shape"])
    settings = dict(batch_size=batch, max_iters=10**6, dtype=spec["dtype"], warmup_iters=20) | spec["train"]
    if spec["shape"] == "stories":  # a real text, so that losses mean something
        recipe = PRESETS["stories"]["train"]
        settings = {**recipe, "min_lr": recipe["learning_rate"], "lr_schedule": "constant", **settings}
        settings = {name: value for name, value in settings.items() if name != "fit_time"}
        corpus, run = prepared(RunConfig(config, TrainConfig(**settings)))
        if corpus.building:
            corpus.building.wait()
    else:
        corpus, run = corpus_of(config), RunConfig(config, TrainConfig(**settings))
    trainer = Trainer(run, corpus, world=here)
    trainer.load_from_rank_0()
    losses, ended = [], False
    for _ in range(WARMUP):
        updated(trainer, here)
    here.waited, here.sent, started, updates = 0.0, 0, time.perf_counter(), trainer.updates
    while not ended:
        losses.append(updated(trainer, here))
        ended = time.perf_counter() - started >= spec["seconds"]
        ended = trainer.world.on_rank_0(lambda: ended) if not trainer.rounds else trainer.updates >= spec["updates"]
    seconds = time.perf_counter() - started
    updates = trainer.updates - updates
    rows = settings["batch_size"] * settings.get("grad_accumulation_steps", 1)
    return dict(
        updates=updates,
        seconds=seconds,
        tokens_per_s=rows * config.block_size * updates / seconds,
        waiting=here.waited / seconds,
        bytes_per_update=here.sent / updates,
        parameters=trainer.model.parameters.weights.size,
        loss=statistics.mean(losses[-20:]),
    )


def updated(trainer, here):
    """The loss of an update, at whose end a round may end, too."""
    loss, _, _ = trainer.step()
    if trainer.rounds and trainer.updates % trainer.config.sync_every == 0:
        trainer.end_round()
    return loss


# The parent


def run(n, spec, linked=None):
    """The result of n ranks. linked: the rate of the link between them in Mbit/s, or None for shared memory"""
    from slm_np.ranks.start import launcher

    words = [sys.executable, __file__, "--child", json.dumps(spec)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(checkout.ROOT), *sys.path]))
    if linked:
        words = [*in_namespaces(), "-n", str(n), *words]
        environment |= dict(MPIR_CVAR_NOLOCAL="1", UCX_TLS="tcp")  # no shared memory
    elif n > 1:
        words = [*launcher(), "-n", str(n), *words]
    done = subprocess.run(words, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UserError(f"{n} ranks ended with status {done.returncode}")
    return json.loads(lines[-1])


def spec_of(name, threads, seconds, dtype="auto", **train):
    return dict(shape=name, threads=threads, seconds=seconds, dtype=dtype, train=train)


def shapes(names, rounds=3, seconds=5.0):
    """Rows of two ranks beside one process."""
    for name in names:
        kinds = {
            "one process": (1, spec_of(name, 2, seconds)),
            "two ranks": (2, spec_of(name, 1, seconds, virtual_ranks=2)),
        }
        found = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, (n, spec) in kinds.items():
                found[kind].append(run(n, spec))
        one, two = (statistics.median(row["tokens_per_s"] for row in rows) for rows in found.values())
        waiting = statistics.median(row["waiting"] for row in found["two ranks"])
        yield dict(shape=name, one_process=one, two_ranks=two, ratio=two / one, waiting=waiting)


def virtual(names, rounds=3, seconds=4.0):
    """Rows of what virtual ranks cost a process."""
    for name in names:
        _, batch = shape(name)
        kinds = [n for n in (0, 1, 2, 4, 8) if not n or batch % n == 0]
        found = {n: [] for n in kinds}
        for _ in range(rounds):
            for n in kinds:
                found[n].append(run(1, spec_of(name, 0, seconds, virtual_ranks=n))["tokens_per_s"])
        speeds = {n: statistics.median(values) for n, values in found.items()}
        yield dict(shape=name) | {f"{n} virtual ranks": speeds[n] / speeds[0] for n in kinds if n}


def exchange():
    """Rows of the sum of gradients alone."""
    for kind, sizes in (("strong", lambda n, size: size), ("weak", lambda n, size: size * n // 8)):
        for size in SIZES:
            for n in (2, 4, 8):
                elements = sizes(n, size)
                spec = dict(size=elements, rounds=7, exchange="fp32")
                seconds = run(n, spec)["seconds"]
                sent = 2 * (n - 1) / n * 4 * elements
                yield dict(
                    scaling=kind, ranks=n, elements=elements, seconds=seconds, gb_per_s_each=sent / seconds / 1e9
                )


def links(names, rates, seconds):
    """Rows of two machines with a link of each rate (Mbit/s)."""
    for name in names:
        alone = run(1, spec_of(name, 1, 5.0))
        half = run(1, spec_of(name, 1, 5.0, batch_size=shape(name)[1] // 2))
        step = half["seconds"] / half["updates"]
        yield dict(
            shape=name, link="none", mode="one process of one thread", step_ms=1e3 * alone["seconds"] / alone["updates"]
        )
        for rate in rates:
            with link(rate):
                for mode in ({"virtual_ranks": 2}, {"virtual_ranks": 2, "exchange": "bf16"}, *rounds_of()):
                    spec = spec_of(name, 1, seconds, **mode)
                    kind, bits = ("rounds" if "sync_every" in mode else "sum"), BYTES[mode.get("exchange", "fp32")]
                    expected = predicted(
                        kind, step, alone["parameters"], 2, rate * 1e6, bits, mode.get("sync_every", 1)
                    )
                    if kind == "rounds":
                        spec["updates"] = WARMUP + EVERY * max(1, round(seconds / expected / EVERY))
                    found = run(2, spec, linked=rate)
                    yield dict(
                        shape=name,
                        link=f"{rate:g} Mbit/s",
                        mode=" ".join(f"{key} {value}" for key, value in mode.items()),
                        step_ms=1e3 * found["seconds"] / found["updates"],
                        predicted_ms=1e3 * expected,
                        waiting=found["waiting"],
                        updates=found["updates"],
                        seconds=found["seconds"],
                        loss=found["loss"],
                    )


def rounds_of():
    """The settings of runs in rounds of EVERY updates."""
    return [{"sync_every": EVERY, "exchange": exchange} for exchange in BYTES]


def predicted(kind, step, parameters, n, rate, size, every=1):
    """Seconds of an update on n machines.

    sum     step + 2 (n - 1) / n P s / B + 2 (n - 1) l: each machine sends and gets so much, after its own step
    rounds  step + (n - 1) (2 P s / B + 2 l) / H: rank 0 gets P s bytes of each other one, and sends as many back
    step: seconds of a machine's share of the update.   P: parameters.   s: `size`, bytes of one.   H: `every`
    B: bytes per second, rate / 8.   l: LATENCY
    """
    seconds = parameters * size / (rate / 8)
    if kind == "sum":
        return step + 2 * (n - 1) / n * seconds + 2 * (n - 1) * LATENCY
    return step + (n - 1) * (2 * seconds + 2 * LATENCY) / every


def predict(names, given):
    """Rows of tokens/s on many machines, each with the batch of the shape (weak scaling)."""
    from slm_np.nn.model import parameter_count

    for name in names:
        config, batch = shape(name)
        step = given or run(1, spec_of(name, 0, 5.0))
        step = given or step["seconds"] / step["updates"]
        parameters, tokens = parameter_count(config), batch * config.block_size
        for rate in (1, 10, 100):
            for n in (2, 4, 8, 16, 64, 256):
                modes = {
                    "sum": predicted("sum", step, parameters, n, rate * 1e9, 4),
                    "sum, bf16": predicted("sum", step, parameters, n, rate * 1e9, 2),
                    "rounds of 50, int8": predicted("rounds", step, parameters, n, rate * 1e9, 1, 50),
                }
                row = dict(shape=name, gbit_per_s=rate, machines=n, step_ms=1e3 * step)
                yield (
                    row
                    | {mode: n * tokens / seconds for mode, seconds in modes.items()}
                    | dict(best=min(modes, key=modes.get))
                )


# A link between two network namespaces


def in_namespaces():
    """The start of a command line that runs one rank in each namespace."""
    from slm_np.ranks.start import launcher

    first, name = next(iter(HOSTS.items()))
    enter = Path(__file__).with_name("enter_namespace.sh")
    words = [
        launcher()[0],
        "-localhost",
        first,
        "-launcher",
        "ssh",
        "-launcher-exec",
        str(enter),
        "-hosts",
        ",".join(HOSTS),
    ]
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh", *words]


@contextlib.contextmanager
def link(rate):
    """Two namespaces, connected by a link of `rate` Mbit/s in each direction. UserError where that is not allowed."""
    if not all(shutil.which(name) for name in ("ip", "tc", "unshare")) or not hasattr(os, "geteuid") or os.geteuid():
        raise UserError("links needs Linux, root, and the programs ip, tc and unshare")

    def tell(*words):
        subprocess.run(words, check=True, capture_output=True)

    names, ends = list(HOSTS.values()), ("slm-np-0", "slm-np-1")
    remove_namespaces()  # those of a run that was killed
    try:
        for name in names:
            tell("ip", "netns", "add", name)
        tell("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, HOSTS):
            tell("ip", "link", "set", end, "netns", name)
            tell("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                tell("ip", "-n", name, "link", "set", device, "up")
            burst = f"{max(32, int(rate / 4))}kb"
            tell(
                "tc",
                "-n",
                name,
                "qdisc",
                "add",
                "dev",
                end,
                "root",
                "tbf",
                "rate",
                f"{rate:g}mbit",
                "burst",
                burst,
                "latency",
                "100ms",
            )
        yield
    except subprocess.CalledProcessError as error:
        raise UserError(f"{' '.join(error.cmd)}: {error.stderr.decode().strip()}") from None
    finally:
        remove_namespaces()


def remove_namespaces():
    for name in HOSTS.values():
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def table(rows):
    """Lines of Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in rows:
        yield f"| {' | '.join(cell(row.get(name, '')) for name in names)} |"


def cell(value):
    """A value in a table."""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="What several ranks cost and bring.")
    parser.add_argument("what", nargs="?", choices=("shapes", "virtual", "exchange", "links", "predict"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shapes", default="char,slim,stories", help=f"of {', '.join(SHAPES)} (default: %(default)s)")
    parser.add_argument("--rates", default="1000,20", help="of links, in Mbit/s (default: %(default)s)")
    parser.add_argument("--time", type=float, default=60.0, help="seconds of a run over a link (default: %(default)g)")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="of predict (default: measured here)")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    args = parser.parse_args(argv)
    if args.child:
        child(json.loads(args.child))
        return
    if not args.what:
        raise UserError("say what to measure: shapes, virtual, exchange, links or predict")
    names, rates = names_of(args.shapes), [float(rate) for rate in args.rates.split(",")]
    found = {
        "shapes": lambda: shapes(names),
        "virtual": lambda: virtual(names),
        "exchange": exchange,
        "links": lambda: links(names, rates, args.time),
        "predict": lambda: predict(names, args.step_seconds),
    }[args.what]()
    rows = []
    for row in found:
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        if args.json:
            write_json(Path(args.json), rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
