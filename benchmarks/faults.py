"""What slm_np survives: thousands of faults, and a count of what was lost and of what went unreported.

    python benchmarks/faults.py [--only KIND,KIND] [--tries N] [--work DIR]

A second start continues where the first was interrupted; outcomes of other sources do not count. The table at the
end is the one in benchmarks/README.md. Needs an operating system with fork.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded: tries run side by side

import checkout  # noqa: E402, F401

from slm_np.errors import UserError, command, near  # noqa: E402


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Count what survives faults, what is lost, and what is undetected.")
    parser.add_argument("--only", default="", metavar="KIND", help="these kinds, separated by commas (default: all)")
    parser.add_argument("--tries", type=int, default=0, help="at most so many of each kind (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the random faults (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=0, help="tries at a time (default: one per core)")
    parser.add_argument(
        "--work", metavar="DIR", help="folder of the outcomes (default: a fixed one for temporary files)"
    )
    parser.add_argument("--case", help="repeat this one try of --only and keep its folder")
    args = parser.parse_args(argv)
    if not hasattr(os, "fork"):
        raise UserError("faults.py needs fork, which this operating system lacks; use Linux or macOS")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a background job of a shell. Commands respect it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from fault_campaign import campaign

    names = args.only.split(",") if args.only else list(campaign.KINDS)
    if unknown := [name for name in names if name not in campaign.KINDS]:
        raise UserError(f"--only {unknown[0]} is unknown; {near(unknown[0], list(campaign.KINDS))}")
    context = campaign.opened(args.work or Path(tempfile.gettempdir()) / "slm_np-faults", args.seed)
    if args.case:
        folder = Path(tempfile.mkdtemp(prefix="slm_np-fault-"))
        row = campaign.attempt(names[0], args.case, context, folder)
        print(f"{row['verdict']}: {row['seen']}\nin {folder}")
        return
    from slm_np.machine import available_cores

    rows = campaign.run(names, context, args.tries, args.jobs or available_cores())
    for lines in (campaign.notes(rows), campaign.faults(rows), campaign.table(rows)):
        print("\n".join(lines), end="\n\n")
    if any(row["verdict"] not in ("survived", "unavailable") for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
