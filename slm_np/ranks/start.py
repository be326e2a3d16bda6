"""Start the ranks of a run on this machine by the mpiexec of an installed MPI, and resume the run if one is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from slm_np.errors import UserError
from slm_np.ranks.deaths import Deaths
from slm_np.ranks.world import LOST, PIDS, RUN_NAME
from slm_np.words import counted, quoted

LAUNCHERS = ("mpiexec", "mpirun")
# What MPICH and Open MPI print about processes that ended by themselves, which is said in one line here.
NOISE = re.compile(
    r"={20}|=   (BAD TERMINATION|EXIT CODE|CLEANING UP|YOU CAN IGNORE)|YOUR APPLICATION TERMINATED|"
    r"This typically refers|Please see the FAQ|Abort\(|\[mpiexec@|-{20}|prterun |thus causing the job|"
    r" +Process name: \[prterun| +Exit code: +\d|signal \d+ \(\w+\)\.$"
)
DEAD = (
    re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+)"),  # MPICH
    re.compile(r"process rank \d+ with PID (?P<pid>\d+) on node (?P<host>\S+) exited"),  # Open MPI
)
ASKED = (0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM, 129)  # statuses with which a rank ends by itself


def launcher():
    """The command that starts processes of MPI on this machine. UserError if there is none."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = next(filter(None, (shutil.which(name, path=places) for name in LAUNCHERS)), None)
    if found is None:
        raise UserError('--ranks needs an MPI with its mpiexec; run pip install "slm_np[mpi]"')
    version = subprocess.run([found, "--version"], capture_output=True, encoding="utf-8", errors="replace").stdout
    if "HYDRA" in version:
        return [found, "-launcher", "fork", "-bind-to", "none"]
    return [found, "--bind-to", "none", "--oversubscribe"]


def start(module, words, n, restarts=0):
    """Run `python -m MODULE WORDS` in n ranks. Returns their exit status.

    restarts: how often the run is resumed from its last checkpoint with half of the ranks after one died or hung
    """
    command = launcher()
    while True:
        with tempfile.TemporaryDirectory(prefix="slm_np-ranks-") as folder:
            with Deaths(Path(folder), n) as deaths:
                ranks = [*command, "-n", str(n), sys.executable, "-m", module, *words]
                status, cause = once(ranks, Path(folder), deaths)
            written = Path(folder) / RUN_NAME
            directory = written.read_text(encoding="utf-8") if written.is_file() else None
        if status in ASKED:
            return status
        if cause:
            status = LOST
            print(f"slm_np: {cause}", file=sys.stderr)
        if not restarts:
            if directory:
                print(
                    f"slm_np: resume with: python -m {module} --resume {quoted(directory)} --ranks N", file=sys.stderr
                )
            return status
        restarts, n = restarts - 1, max(1, n // 2)
        words = ["--resume", directory] if directory else words
        print(
            f"slm_np: resuming from the last checkpoint with {counted(n, 'rank')}; {counted(restarts, 'restart')} left",
            file=sys.stderr,
        )


def once(command, folder, deaths):
    """(Exit status of the ranks, a line about the one that died or None).   folder: for notes of the ranks"""
    environment = dict(os.environ, **{PIDS: str(folder)})
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C in a terminal reaches this process only
    )
    causes, streams = [], ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    readers = [threading.Thread(target=relay, args=(*pair, folder, deaths, causes), daemon=True) for pair in streams]
    for reader in readers:
        reader.start()

    asked = []  # signals to this process

    def forward(number, frame):
        asked.append(number)
        try:  # rank 0 tells the others
            os.kill(int((folder / "0").read_text(encoding="utf-8")), number)
        except (OSError, ValueError):
            process.send_signal(signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.kill()
    for reader in readers:
        reader.join(timeout=5)
    if asked:  # a rank may have ended by the signal before it could save
        return status if status in ASKED else 128 + asked[0], None
    return (128 - status if status < 0 else status), next(iter(causes), None)


def relay(stream, target, folder, deaths, causes):
    """Pass on what the ranks print, to the stream `target`. Adds a line to `causes` for each rank that died."""
    for line in stream:
        dead = next(filter(None, (pattern.search(line) for pattern in DEAD)), None)
        if dead:
            ranks = {read(path): path.name for path in folder.iterdir() if path.name.isdecimal()}
            rank, process = ranks.get(dead["pid"]), dead["pid"]
            if dead.re is DEAD[0]:
                rank, process = deaths.first_dead() or (rank, process)
            who = f"rank {rank} (process {process} on {dead['host']})" if rank else f"process {process}"
            causes.append(f"{who} died")
        if not dead and not NOISE.match(line):
            target.write(line)
            target.flush()


def read(path):
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
