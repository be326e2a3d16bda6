"""The campaign itself: tries in parallel processes, outcomes in a file that a second start continues, the table."""

import contextlib
import hashlib
import importlib
import json
import re
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import checkout

from fault_campaign import children, fixtures
from fault_campaign.judges import FAILED, LOST, SURVIVED, UNAVAILABLE, UNDETECTED, Fault
from slm_np.progress import Progress

KINDS = {
    "kills": "SIGKILL at random moments and operations",
    "writes": "every k-th write, flush, rename, mkdir and unlink fails",
    "disks": "full disks, limits on file sizes",
    "flips": "flipped bits and truncated files",
    "settings": "mutated settings files",
    "calls": "fuzzed library calls",
    "corpora": "odd corpora through prepare and train",
    "races": "concurrent starts",
    "streams": "closed, full, vanished and narrow streams",
    "long": "Ctrl-C in long work, texts without spaces",
}
LIMIT_S = 240  # seconds after which a try ends
SEVERITY = LOST, UNDETECTED, FAILED, UNAVAILABLE  # the worst first
SOURCES = "slm_np", "kernels/numpy", "kernels/cpu", "data"
SHARED = "children", "fixtures", "injection", "judges", "scenes"  # what all kinds use


@dataclass(frozen=True)
class Context:
    """What the tries of a campaign share: the folder of its files, with the fixtures, and the seed."""

    work: Path
    seed: int

    @property
    def fixtures(self):
        return self.work / "fixtures"


def kind_named(name):
    """The module of a kind."""
    return importlib.import_module(f"fault_campaign.{name}")


def opened(work, seed):
    """The `Context` of a campaign in the folder `work`. The fixtures are made anew if the sources have changed."""
    folder = Path(work).resolve() / version()
    context = Context(folder, seed)
    children.warm()
    fixtures.make(context.fixtures)
    return context


def version():
    """A digest of the sources that outcomes depend on. Outcomes of other sources do not count."""
    files = [path for folder in SOURCES for path in sorted((checkout.ROOT / folder).rglob("*.py"))]
    return digest_of(files + [kind_file(name) for name in SHARED])


def kind_file(name):
    """The source of a kind, or of a module that all kinds use."""
    return Path(__file__).with_name(f"{name}.py")


def digest_of(files):
    """The first digits of a SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cases_of(name, context, tries):
    """The names of the tries of a kind: all of them, or `tries` that are spread evenly over them."""
    found = kind_named(name).cases(context)
    if tries and tries < len(found):
        found = [found[i * len(found) // tries] for i in range(tries)]
    return found


def attempt(name, case, context, folder):
    """Make one try in the empty folder `folder`. Returns its outcome."""
    begun = time.perf_counter()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(getattr(kind_named(name), "LIMIT_S", LIMIT_S))
    try:
        verdict, seen = SURVIVED, kind_named(name).attempt(case, context, folder) or ""
    except Fault as fault:
        verdict, seen = fault.verdict, str(fault)
    except Exception as error:  # of the judge: the try shows something that no judge expects
        verdict, seen = FAILED, f"the judge failed: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return dict(kind=name, case=case, verdict=verdict, seen=seen, seconds=round(time.perf_counter() - begun, 2))


def too_long(*signal_and_frame):
    raise TimeoutError("the try does not end")


def attempt_in_new_folder(name, case, context):
    """`attempt` in a folder that is removed afterwards."""
    folder = context.work / "tries" / hashlib.sha256(f"{name} {case}".encode()).hexdigest()[:16]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return attempt(name, case, context, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Outcomes:
    """The outcomes so far, in a file of JSON lines."""

    def __init__(self, context):
        self.path, self.found = context.work / f"outcomes-{context.seed}.jsonl", {}
        self.sources = {name: digest_of([kind_file(name)]) for name in KINDS}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a killed campaign
                row = json.loads(line)
                if row.pop("source") == self.sources[row["kind"]]:
                    self.found[row["kind"], row["case"]] = row

    def add(self, row):
        self.found[row["kind"], row["case"]] = row
        row = row | dict(source=self.sources[row["kind"]])
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def run(names, context, tries=0, jobs=1, quiet=False):
    """Make the tries of these kinds that have no outcome yet, `jobs` at a time. Returns the outcomes of all of them."""
    outcomes = Outcomes(context)
    cases = {name: cases_of(name, context, tries) for name in names}
    todo = [(name, case) for name in names for case in cases[name] if (name, case) not in outcomes.found]
    alone = [(name, case) for name, case in todo if getattr(kind_named(name), "ALONE", False)]
    progress, done = Progress(0.0, quiet), 0
    shown = time.perf_counter()

    def take(row):
        nonlocal done, shown
        outcomes.add(row)
        done += 1
        due = time.perf_counter() > shown + 10 or done == len(todo)
        if row["verdict"] != SURVIVED:
            progress.say(f"{row['verdict']}: {row['kind']}: {row['case']}: {row['seen']}")
        shown = time.perf_counter() if due else shown
        progress.update(f"try {done}/{len(todo)}", done / len(todo), row["kind"], due)

    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        together = [one for one in todo if one not in set(alone)]
        futures = [pool.submit(attempt_in_new_folder, name, case, context) for name, case in together]
        for future in as_completed(futures):
            take(future.result())
    for name, case in alone:  # times are measured
        take(attempt_in_new_folder(name, case, context))
    progress.close()
    shutil.rmtree(context.work / "tries", ignore_errors=True)
    return [outcomes.found[name, case] for name in names for case in cases[name]]


def table(rows):
    """The lines of the table in Markdown."""
    lines = ["| kind | tried | survived | failed | lost | undetected |", "|---|---|---|---|---|---|"]
    names = list(dict.fromkeys(row["kind"] for row in rows))
    counts = {name: Counter() for name in [*names, "together"]}
    for row in rows:
        for name in (row["kind"], "together"):
            counts[name][row["verdict"]] += getattr(kind_named(row["kind"]), "WEIGHT", 1)
    for name, count in counts.items():
        tried = sum(count.values()) - count[UNAVAILABLE]
        label = f"`{name}`: {KINDS[name]}" if name in KINDS else name
        shown = [count[verdict] for verdict in (SURVIVED, FAILED, LOST, UNDETECTED)]
        lines.append(f"| {label} | {tried:,} | " + " | ".join(f"{n:,}" for n in shown) + " |")
    return lines


def faults(rows):
    """The lines about what did not survive, the worst first; the same sentence about several tries once."""
    groups = {}
    for row in rows:
        if row["verdict"] != SURVIVED:
            key = row["verdict"], row["kind"], re.sub(r"\d+", "N", row["seen"])[:160]
            groups.setdefault(key, []).append(row)
    for (verdict, kind, _), group in sorted(groups.items(), key=lambda item: SEVERITY.index(item[0][0])):
        first = group[0]
        yield f"{verdict}, {len(group)} of `{kind}`: {first['seen']}"
        yield f'    python benchmarks/faults.py --only {kind} --case "{first["case"]}"'


def notes(rows):
    """The lines about what survived and was measured."""
    return [
        f"{row['kind']}: {row['case']}: {row['seen']}" for row in rows if row["verdict"] == SURVIVED and row["seen"]
    ]
