"""Matmuls on AMX tiles while processes contend for the cores, right and wrong ones counted.

    python benchmarks/amx_stress.py [--seconds 60]

Some virtual machines lose a tile when its thread is interrupted, and report no error. So four processes share two cores
and multiply integers, whose matmuls are exact, and every element is compared. Exit status: 0 if all are right, 1 if one
is wrong, 2 if AMX is unavailable.
"""

import argparse
import contextlib
import multiprocessing
import os

import checkout  # noqa: F401

from slm_np.errors import UserError, command
from slm_np.kernels.cpu import amx
from slm_np.progress import Progress

PROCESSES, CORES = 4, 2
LOG_SECONDS = 10  # between the lines of a log


def contend():
    """Keep this process on the cores that all of them share."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def one_turn(turn):
    seconds, seed = turn
    return amx.multiply_integers(seconds, seed)


def count(seconds):
    """(matmuls, wrong ones) of all processes in so many seconds."""
    total = wrong = 0
    amx.multiply_integers(0)  # compiles the kernel once, before the processes start
    turns = [(1.0, seed) for seed in range(seconds * PROCESSES)]
    progress = Progress(0.0)
    with multiprocessing.get_context("fork").Pool(PROCESSES, contend) as pool:
        for turn, (made, failed) in enumerate(pool.imap_unordered(one_turn, turns), 1):
            total, wrong = total + made, wrong + failed
            due = turn % (LOG_SECONDS * PROCESSES) == 0
            text = f"{total:,} matmuls, {wrong:,} wrong"
            progress.update(f"{turn // PROCESSES} s", turn / len(turns), text, due)
    progress.close()
    return total, wrong


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Matmuls on AMX tiles while processes contend for the cores.")
    parser.add_argument("--seconds", type=int, default=60, help="how long to run (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seconds < 1:
        raise UserError(f"--seconds is {args.seconds}; it must be at least 1")
    if amx.refusal():
        raise UserError(f"AMX is unavailable: {amx.refusal()}")
    total, wrong = count(args.seconds)
    cores = min(CORES, len(os.sched_getaffinity(0)))
    print(f"{total:,} matmuls by {PROCESSES} processes on {cores} cores in {args.seconds} s, {wrong:,} wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
