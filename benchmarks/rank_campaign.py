"""What runs of several ranks survive: random SIGKILLs and SIGSTOPs in compute, in exchange, in a checkpoint.

    python benchmarks/rank_campaign.py [--faults 200] [--stops 0.5] [--seed 1] [--json FILE]

Tiny runs of 4 virtual ranks are disturbed in 4 and 2 ranks, go on with 2 or are resumed with 4, until they are
complete. Each must have the bits of an undisturbed run in one process. Needs Linux and slm_np[mpi]. The table at the
end is the one in benchmarks/README.md. The exit status is 1 if anything was lost or wrong.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkout  # noqa: F401

from slm_np.errors import UserError, command
from slm_np.progress import Progress, duration

PER_RUN = 20  # faults of a run
EVERY_S = 10  # seconds between lines


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Count what runs of several ranks survive, and what is lost.")
    parser.add_argument("--faults", type=int, default=200, help="signals in all (default: %(default)s)")
    parser.add_argument(
        "--stops", type=float, default=0.5, metavar="SHARE", help="of them SIGSTOPs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random faults (default: %(default)s)")
    parser.add_argument(
        "--silence",
        type=float,
        default=3.0,
        metavar="S",
        help="seconds until a silent rank counts as lost, which are 15 without this script (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: two per core)")
    parser.add_argument("--json", metavar="FILE", help="write what happened at each fault")
    parser.add_argument("--folder", metavar="DIR", help="keep the runs in this new folder (default: remove them)")
    args = parser.parse_args(argv)
    if args.faults < 1 or not 0 <= args.stops <= 1 or args.silence < 1:
        raise UserError("--faults and --silence are at least 1, and --stops is a share from 0 to 1")
    if not sys.platform.startswith("linux"):
        raise UserError("rank_campaign.py reads the states of processes from /proc; use Linux")
    found = campaign(args)
    print("\n".join(report(found)))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["wrong"]:
        sys.exit(1)


def campaign(args, quiet=False):
    """Make the undisturbed run and the disturbed ones. Returns {what: found}.   args: the flags of `main`"""
    from slm_np.machine import available_cores
    from slm_np.ranks.start import launcher

    launcher()  # UserError if there is no MPI
    begun = time.perf_counter()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="slm_np-rank-campaign-")).resolve()
    if args.folder:
        folder.mkdir(parents=True)
    try:
        rows, runs = make(args, folder, args.jobs or 2 * available_cores(), quiet)
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)
    wrong = [f"run {row['run']}, {row['signal']} to rank {row['rank']}: {row['wrong']}" for row in rows if row["wrong"]]
    wrong += [f"run {run['run']}: {run['wrong']}" for run in runs if run["wrong"]]
    settings = {name: getattr(args, name) for name in ("faults", "stops", "seed", "silence")}
    return dict(settings, seconds=round(time.perf_counter() - begun, 1), rows=rows, runs=runs, wrong=wrong)


def make(args, folder, jobs, quiet):
    """([what happened at each fault], [what became of each run])."""
    from fault_campaign import places, rank_runs
    from fault_campaign.judges import Fault

    n = -(-args.faults // PER_RUN)  # runs
    faults = [args.faults * (i + 1) // n - args.faults * i // n for i in range(n)]
    hook, lock, rows, shown = places.hook(folder / "hook"), threading.Lock(), [], 0.0
    progress = Progress(0.0, quiet)
    (folder / "undisturbed").mkdir()
    rank_runs.prepare(folder / "undisturbed")
    rank_runs.undisturbed(folder / "undisturbed", max(faults))

    def taken(row):
        nonlocal shown
        with lock:
            rows.append(row)
            done, due = len(rows), time.perf_counter() > shown + EVERY_S or len(rows) == args.faults
            shown = time.perf_counter() if due else shown
            text = f"{row.signal} to rank {row.rank} of {row.ranks} in {row.place}"
            progress.update(f"fault {done}/{args.faults}", done / args.faults, text, due)

    def one(number):
        own, wrong = folder / f"run-{number}", ""
        own.mkdir()
        try:
            expected = folder / "undisturbed" / "run"
            rank_runs.disturbed(number, own, expected, hook, faults[number], max(faults), args, taken)
        except Fault as fault:
            wrong = f"{fault.verdict}: {fault}"
        except Exception as error:  # of the script: no reason to lose the other runs
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            progress.say(f"run {number}: {wrong}")
        return dict(run=number, faults=faults[number], wrong=wrong)

    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(one, range(n)))
    progress.close()
    for row in rows:
        if row.resumed is None and not row.wrong:
            row.wrong = "the run did not go on"
    return [row.as_dict() for row in sorted(rows, key=lambda row: (row.run, row.fired))], runs


def report(found):
    """The lines of the table in Markdown, and those about the runs."""
    lines = ["| fault in | signal | faults | rank named | went on | lost |", "|---|---|---|---|---|---|"]
    rows, runs = found["rows"], found["runs"]
    for place in ("compute", "exchange", "checkpoint", "start"):
        for name in ("SIGKILL", "SIGSTOP"):
            lines.append(line(place, name, [row for row in rows if (row["place"], row["signal"]) == (place, name)]))
    lines += [line("together", "", rows), ""]
    equal = sum(not run["wrong"] for run in runs)
    lines.append(f"{equal} of {len(runs)} runs equal the undisturbed one, bit for bit")
    restarts, sizes = sum(row["restarted"] for row in rows), Counter(row["ranks"] for row in rows)
    lines.append(
        f"{restarts} restarts by --restarts, {len(rows) - restarts} by --resume; "
        + ", ".join(f"{sizes[n]} faults in {n} ranks" for n in sorted(sizes, reverse=True))
    )
    for name in ("SIGKILL", "SIGSTOP"):
        times = [row["named_s"] for row in rows if row["signal"] == name and row["named"]]
        if times:
            lines.append(f"after a {name}, the rank was named within {max(times):.1f} s")
    lines.append(f"--silence {found['silence']:g}; {duration(found['seconds'])} on {os.cpu_count()} cores")
    return [*lines, *(f"WRONG: {text}" for text in found["wrong"])]


def line(place, name, rows):
    named, went_on = sum(row["named"] for row in rows), sum(row["resumed"] is not None for row in rows)
    lost = sum(row["resumed"] is not None and row["resumed"] < row["saved"] for row in rows)
    return f"| {place} | {name} | {len(rows)} | {named} | {went_on} | {lost} |"


if __name__ == "__main__":
    main()
