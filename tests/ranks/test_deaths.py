"""Which rank died first is known even if all are dead when the launcher looks, and their shared memory is removed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_np.ranks.deaths import Deaths

if not hasattr(os, "pidfd_open") or not Path("/dev/shm").is_dir():
    pytest.skip("only Linux tells which process ended first", allow_module_level=True)

SLEEP = "import time; time.sleep(60)"
MAP = (
    "import mmap, sys, time\nfile = open(sys.argv[1], 'w+b')\nfile.truncate(4096)\n"
    "memory = mmap.mmap(file.fileno(), 4096)\nprint(flush=True)\ntime.sleep(60)\n"
)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def sleepers():
    found = [subprocess.Popen([sys.executable, "-c", SLEEP]) for _ in range(4)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def note(folder, processes):
    for rank, process in enumerate(processes):
        (folder / str(rank)).write_text(str(process.pid), encoding="utf-8")


@pytest.mark.parametrize("order", [(2, 0, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3)])
def test_the_first_that_died_is_named_although_the_others_die_at_once(order, sleepers, tmp_path):
    note(tmp_path, sleepers)
    with Deaths(tmp_path, 4) as deaths:
        until(lambda: len(deaths.watched) == 4)
        for rank in order:
            sleepers[rank].kill()
            os.waitid(os.P_PID, sleepers[rank].pid, os.WEXITED | os.WNOWAIT)
        assert deaths.first_dead() == (str(order[0]), str(sleepers[order[0]].pid))


def test_the_order_is_kept_by_the_kernel(sleepers, tmp_path):
    """The thread looks only after all have died."""
    note(tmp_path, sleepers)
    deaths = Deaths(tmp_path, 4)
    find = deaths.find

    def find_then_kill(ends):
        find(ends)
        for rank in (2, 3, 0, 1):
            sleepers[rank].send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, sleepers[rank].pid, os.WEXITED | os.WNOWAIT)

    deaths.find = find_then_kill
    with deaths:
        assert deaths.first_dead() == ("2", str(sleepers[2].pid))


def test_nothing_is_said_if_a_rank_had_not_started(sleepers, tmp_path):
    note(tmp_path, sleepers[:3])
    with Deaths(tmp_path, 4) as deaths:
        until(lambda: len(deaths.watched) == 3)
        sleepers[1].kill()
        until(deaths.known.is_set)
        assert deaths.first_dead() is None


def test_shared_memory_of_a_killed_rank_is_removed(tmp_path):
    segment = Path(f"/dev/shm/mpich_shm_{os.getpid():x}_test")
    process = subprocess.Popen([sys.executable, "-c", MAP, str(segment)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        note(tmp_path, [process])
        with Deaths(tmp_path, 1) as deaths:
            until(lambda: deaths.watched)
            process.kill()
            process.wait()
            assert segment.exists()
        assert not segment.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        segment.unlink(missing_ok=True)
