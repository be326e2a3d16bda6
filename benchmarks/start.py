"""Seconds from launch to the first update of a run: with nothing cached, and with everything cached.

    python benchmarks/start.py [--presets stories,mamba] [--kernels numba,numpy] [--rounds 3] [--json FILE]

Cold: an empty cache folder, so kernels are compiled and the corpus is written. Warm: the same folder again. The presets
train on the embedded corpus. The packages themselves have been loaded before, as an installation leaves them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkout
from measure import write_json

from slm_np.errors import UserError, command
from slm_np.presets import PRESETS


def seconds_to_first_update(preset, kernels, cache, to_the_end=False):
    """Start `train` with this cache folder and wait for the line of its first update, or for the end of the run, too.

    At the end, the corpus is complete in the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--preset {preset} --data stories --kernels {kernels} --max-iters 1 --log-interval 1 --eval-iters 1"
        words = [sys.executable, "-m", "slm_np.train", *flags.split(), "--out-dir", str(Path(folder) / "run")]
        variables = {**os.environ, "SLM_NP_CACHE": str(cache), "PYTHONPATH": str(checkout.ROOT)}
        started = time.perf_counter()
        with subprocess.Popen(
            words, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, encoding="utf-8"
        ) as run:
            seconds, lines = None, []
            for line in run.stderr:
                lines.append(line)
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - started
                    if not to_the_end:
                        run.kill()
    if seconds is None:
        raise UserError(f"the run of {preset} ended before its first update: {''.join(lines[-3:]).strip()}")
    return seconds


def row_of(preset, kernels, rounds):
    """A row: medians over `rounds` cold starts, each followed by a warm one."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds_to_first_update(preset, kernels, cache))
            seconds_to_first_update(preset, kernels, cache, to_the_end=True)
            warm.append(seconds_to_first_update(preset, kernels, cache))
    return dict(preset=preset, kernels=kernels, cold_s=statistics.median(cold), warm_s=statistics.median(warm))


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Seconds from launch to the first update.")
    parser.add_argument("--presets", default="stories,mamba", help="separated by commas (default: %(default)s)")
    parser.add_argument("--kernels", default="numba,numpy", help="separated by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(argv)
    presets = args.presets.split(",")
    if unknown := [name for name in presets if name not in PRESETS]:
        raise UserError(f"--presets {unknown[0]} is unknown; known are {', '.join(PRESETS)}")
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; it must be at least 1")
    rows = []
    for kernels in args.kernels.split(","):
        for preset in presets:
            row = row_of(preset, kernels, args.rounds)
            rows.append(row)
            print(f"{preset:<20} {kernels:<6} cold {row['cold_s']:6.2f} s   warm {row['warm_s']:5.2f} s", flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
