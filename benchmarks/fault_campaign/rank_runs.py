"""Runs of several ranks that SIGKILL and SIGSTOP disturb, again and again until they are complete: rank_campaign.py.

A launch of 4 ranks goes on with 2 after the first fault and ends with the second; a launch of 2 ends with the first.
Then the run is resumed with 4 or with 2 ranks.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from fault_campaign import children, judges, places
from fault_campaign.fixtures import sentences
from fault_campaign.judges import FAILED, LOST, require
from fault_campaign.places import CHECKPOINT, COMPUTE, EXCHANGE, START

SAVE_INTERVAL, MOST = 4, 10  # updates between checkpoints; updates between two faults at most
SETTINGS = (
    "--data text.txt --tokenizer char --kernels numpy --dtype fp32 --n-layer 2 --n-head 2 --n-embd 16 --n-hidden 24 "
    "--block-size 16 --batch-size 8 --learning-rate 3e-3 --min-lr 1e-4 --warmup-iters 2 --beta2 0.99 --threads 1 "
    f"--eval-iters 2 --eval-interval 24 --log-interval 1 --save-interval {SAVE_INTERVAL} --virtual-ranks 4"
)
PLACES = (COMPUTE, EXCHANGE, CHECKPOINT) * 3 + (START,)  # how often faults are aimed at each
LIMIT_S = 120.0  # seconds after which a launch that does not go on counts as hung
LOOK_S, LINGER_S = 0.0005, 0.01  # seconds between looks at a rank; the longest that it stays in a place before a fault
OVERDUE = 12  # updates after which a fault hits whatever place the rank is in
TIMES = "step_ms", "tokens_per_s", "waiting", "time_s"  # columns of the metrics that differ between equal runs
LOST_RANK = re.compile(r"slm_np: rank (\d+) \(process (\d+) on [^)]*\) (died|has sent no heartbeat)")
STEP = re.compile(r"(?:resuming in \S+ from step (\d+)|run in \S+)$")


def updates(faults):
    """Updates of a run that is disturbed so many times: enough, although each fault costs some."""
    return 12 * faults + 16


def prepare(folder):
    """Make the corpus in a folder."""
    (folder / "text.txt").write_text("".join(sentences(0, 400)), encoding="utf-8")


def new_run(faults):
    """The words of `train` for a new run that is disturbed so many times."""
    return [*SETTINGS.split(), "--max-iters", str(updates(faults)), "--out-dir", "run"]


def undisturbed(folder, faults):
    """Make the undisturbed run in one process, in folder/run."""
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process = children.spawned("train", *new_run(faults), cwd=folder, **streams)
    said = process.communicate(timeout=LIMIT_S)[1].decode("utf-8", "replace")
    require(
        process.returncode == 0, FAILED, f"the undisturbed run ends with status {process.returncode}: {said[-600:]}"
    )


class Fault(NamedTuple):
    """What is to happen: `signal` to the rank number `victim` (modulo the number of ranks) after so many updates."""

    signal: int
    place: str
    victim: int
    after: int


def plan(draw, n, stops):
    """[Fault, ...], n of them.   stops: share of SIGSTOP"""
    found = []
    for _ in range(n):
        place = draw.choice(PLACES)
        victim = 0 if place == CHECKPOINT and draw.random() < 0.5 else draw.randrange(4)
        name = signal.SIGSTOP if draw.random() < stops else signal.SIGKILL
        found.append(Fault(name, place, victim, draw.randint(0, MOST)))
    return found


@dataclass
class Row:
    """What happened at a fault. `resumed`: the step from which the run went on; None if it did not."""

    run: int
    ranks: int
    signal: str
    rank: int
    aimed: str
    place: str
    saved: int  # the newest checkpoint
    fired: float  # by time.perf_counter
    named: bool = False  # this rank, and no other, as died or silent
    named_s: float = 0.0  # seconds until then
    restarted: bool = False  # by the launcher, not by the script
    resumed: int | None = None
    wrong: str = ""

    def as_dict(self):
        return {name: value for name, value in asdict(self).items() if name != "fired"}


class Launch:
    """A `python -m slm_np.train --ranks N` in `folder`, with the lines that it prints on stderr."""

    def __init__(self, folder, words, n, restarts, hook, silence):
        self.folder, self.n, self.left, self.seen = folder, n, restarts, set()
        self.places = folder / "places"
        shutil.rmtree(self.places, ignore_errors=True)
        self.places.mkdir()
        env = {places.FOLDER: str(self.places), places.SILENCE: str(silence), "TMPDIR": str(folder)}
        words = [*words, "--ranks", n, *(["--restarts", restarts] if restarts else [])]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.process = spawned(words, folder, hook, env, **pipes)
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append((time.perf_counter(), line.decode("utf-8", "replace").rstrip()))

    def tail(self):
        return " / ".join(line for _, line in self.lines[-4:])[-600:]

    def wait(self, condition, what):
        """Wait until the condition holds (True) or the launch has ended (False)."""
        deadline = time.perf_counter() + LIMIT_S
        while not condition():
            if self.process.poll() is not None:
                self.reader.join(5)
                return bool(condition())
            require(time.perf_counter() < deadline, FAILED, f"hangs ({what}): {self.tail()}")
            time.sleep(LOOK_S)
        return True

    def ranks(self):
        """The Ranks since the last fault."""
        return [rank for rank in places.ranks(self.places) if rank.process not in self.seen]

    def saved(self):
        """The step of the newest checkpoint, -1 if there is no run."""
        run = self.folder / "run"
        if not (run / "run.json").is_file():
            return -1
        return max((int(path.name[11:]) for path in run.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)))

    def hit(self, fault, draw, number):
        """Make a fault and wait until the ranks have ended. Returns the Row, or None if the run ended before."""
        if not self.wait(lambda: len(self.ranks()) == self.n, f"{self.n} ranks start"):
            return None
        here = self.ranks()
        victim, first = here[fault.victim % self.n], here[0]
        watched = first if fault.place == CHECKPOINT else victim
        begun = victim.read()[1]

        def is_due():
            place, done = watched.read()
            return (place == fault.place and done - begun >= fault.after) or done - begun >= fault.after + OVERDUE

        if fault.place == START:
            time.sleep(draw.uniform(0, 0.3))
        else:
            while True:
                if not self.wait(is_due, f"rank {watched.number} reaches {fault.place}"):
                    return None
                time.sleep(draw.uniform(0, LINGER_S) if draw.random() < 0.5 else 0)
                if is_due():
                    break
        saved, of_first, since = self.saved(), first.read()[0], len(self.lines)
        try:
            os.kill(victim.process, fault.signal)
        except ProcessLookupError:
            return None
        fired = time.perf_counter()
        in_checkpoint = of_first == first.read()[0] == CHECKPOINT
        time.sleep(0.005)  # a signal reaches a running process a moment later; then its note does not change anymore
        place = CHECKPOINT if in_checkpoint else victim.read()[0]
        row = Row(number, self.n, fault.signal.name, victim.number, fault.place, place, saved, fired)
        self.seen |= {rank.process for rank in here}
        goes_on = re.compile("slm_np: resuming from the last checkpoint")
        row.restarted = self.wait(lambda: any(goes_on.search(line) for _, line in self.lines[since:]), "ranks end")
        said = [(when, LOST_RANK.search(line)) for when, line in self.lines[since:]]
        named = [(when - fired, match) for when, match in said if match]
        row.named = {(int(match[1]), int(match[2])) for _, match in named} == {(victim.number, victim.process)}
        row.named_s = round(max(0.0, named[0][0]), 3) if named else 0.0
        if not row.named:
            row.wrong = f"names {[match[0] for _, match in named]}: {self.tail()}"
        require(all_end(here), FAILED, f"processes are left over after {row}")
        if row.restarted:
            self.n, self.left = self.n // 2, self.left - 1
        return row

    def end(self):
        """End what is left of it."""
        self.process.kill()
        self.process.wait()
        all_end(places.ranks(self.places), 0)
        self.reader.join(5)
        self.process.stderr.close()


def spawned(words, folder, hook, env, **streams):
    """Start `python -m slm_np.train` with the hook of places.py. Returns the Popen."""
    path = os.pathsep.join([hook, children.environment()["PYTHONPATH"]])
    return children.spawned("train", *words, cwd=folder, env=dict(env, PYTHONPATH=path), **streams)


def all_end(ranks, seconds=children.GRACE_S):
    """Whether the processes of ranks end within some seconds. Those that do not are killed."""
    deadline = time.perf_counter() + seconds
    while any(alive(rank.process) for rank in ranks):
        if time.perf_counter() > deadline:
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.process, signal.SIGKILL)
            return False
        time.sleep(0.01)
    return True


def alive(process):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def disturbed(number, folder, expected, hook, faults, most, args, taken):
    """Make the disturbed run `number` in an empty folder and compare it with the undisturbed one.

    expected: directory of the undisturbed run.   most: faults of any run, which decide the updates of all
    args: the flags of rank_campaign.py.   taken: function that is called with each Row.   Raises judges.Fault.
    """
    prepare(folder)
    draw = random.Random(f"{args.seed} {number}")
    left, open_rows, words = plan(draw, faults, args.stops), [], new_run(most)
    for _ in range(2 * faults + 3):
        n = 4 if left and draw.random() < 0.85 else 2
        launch = Launch(folder, words, n, n // 2 - 1, hook, args.silence)
        try:
            while left and launch.process.poll() is None:
                row = launch.hit(left[0], draw, number)
                if row is None:
                    break
                left.pop(0)
                open_rows.append(row)
                taken(row)
                if not row.restarted:
                    break
            launch.wait(lambda: False, "the launch ends")
            status = launch.process.returncode
            settle(open_rows, launch.lines)
        finally:
            launch.end()
        if status == 0:
            break
        require(status not in (1, 2), FAILED, f"a launch ends with status {status}: {launch.tail()}")
        words = ["--resume", "run"] if (folder / "run" / "run.json").is_file() else words
    require(status == 0, FAILED, "the run does not end")
    require(not left, FAILED, f"the run ended before {len(left)} of its faults")
    same(folder / "run", expected, updates(most))


def settle(rows, lines):
    """Note in rows from which step the run went on after them, according to the lines of a launch.

    A row is open until a line that was printed after its fault says a step.
    """
    for when, line in lines:
        if match := STEP.match(line):
            for row in rows:
                if row.resumed is None and when > row.fired:
                    row.resumed = int(match[1] or 0)  # a run in which nothing is updated yet is not said to be resumed
                    if row.resumed < row.saved:
                        row.wrong = f"checkpoint {row.saved} is lost, the run goes on from {row.resumed}"


def same(run, expected, step):
    """The disturbed run ended with the bits of the undisturbed one: checkpoints, best model, metrics."""
    judges.same_run(run, expected, "the disturbed run", step=step)
    ours, theirs = metrics(run), metrics(expected)
    differs = next((pair for pair in zip(ours, theirs) if pair[0] != pair[1]), None)
    require(differs is None, LOST, f"other metrics: {differs}")
    require(len(ours) == len(theirs), LOST, f"{len(ours)} rows of metrics instead of {len(theirs)}")


def metrics(run):
    """The rows of a run's metrics without times."""
    from slm_np.formats.metrics import read_metrics

    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(run)]
