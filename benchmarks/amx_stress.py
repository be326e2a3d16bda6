"""How many AMX products come out wrong while processes contend for the cores: python benchmarks/amx_stress.py

Some virtual machines lose a tile when its process is interrupted, and say nothing. So four processes share two cores and multiply
integers, whose products are exact; every number is compared. Exit status: 0 all right, 1 a product was wrong, 2 there is no AMX.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

PROCESSES, CORES = 4, 2


def contend():
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seconds < 1:
        parser.error(f"--seconds {args.seconds} is too short; give at least 1")
    from slm_np.kernels.cpu import amx
    from slm_np.progress import Progress

    if amx.refusal():
        print(f"no AMX: {amx.refusal()}", file=sys.stderr)
        raise SystemExit(2)
    made = wrong = 0
    amx.exact_products(0)  # compiled once, before there are four
    turns = [(1.0, seed) for seed in range(args.seconds * PROCESSES)]
    progress = Progress(0.0)
    with multiprocessing.get_context("fork").Pool(PROCESSES, contend) as pool:
        for turn, counts in enumerate(pool.imap_unordered(one_turn, turns), 1):
            made, wrong = made + counts[0], wrong + counts[1]
            progress.update(
                f"{turn // PROCESSES} s",
                turn / len(turns),
                f"{made:,} products, {wrong:,} wrong",
                turn % (10 * PROCESSES) == 0,
            )
    progress.close()
    print(
        f"{made:,} products by {PROCESSES} processes on {min(CORES, len(os.sched_getaffinity(0)))} cores in {args.seconds} s, {wrong:,} wrong"
    )
    raise SystemExit(wrong > 0)


def one_turn(turn):
    from slm_np.kernels.cpu import amx

    return amx.exact_products(*turn)


if __name__ == "__main__":
    main()
