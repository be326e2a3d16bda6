"""Locks between processes: one holder, freed by any end of the process, not inherited, refused at once by name."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small

from slm_np import file_lock
from slm_np.errors import UserError

HOLD = """
import sys, time
from slm_np.file_lock import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock tmp_path / "lock" until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=small.environment(),
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    if not process.stdin.closed:
        process.stdin.close()


def test_a_second_process_is_refused_by_name(tmp_path, holder):
    path = tmp_path / "lock"
    with pytest.raises(file_lock.InUse) as refused, file_lock.claimed(path):
        pass
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))} is in use by process {holder.pid} on \S+ since "
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d \(-c .*\); "
        "wait until that has ended, or choose another directory",
        str(refused.value),
    )
    with pytest.raises(file_lock.InUse):
        file_lock.check_unclaimed(path)
    holder.stdin.close()
    assert holder.wait() == 0 and not path.exists()
    file_lock.check_unclaimed(path)
    with file_lock.claimed(path):
        assert json.loads(path.read_bytes())["process"] == os.getpid()
    assert not path.exists()


def test_a_kill_frees_the_lock(tmp_path, holder):
    path = tmp_path / "lock"
    holder.kill()
    holder.wait()
    assert path.exists()
    file_lock.check_unclaimed(path)
    assert path.exists()  # looking removes nothing
    with file_lock.claimed(path):
        assert json.loads(path.read_bytes())["process"] == os.getpid()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"process": 1}', b"\xff", b"[" * 10000])
def test_any_content_of_the_file_is_harmless(tmp_path, holder, content):
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(UserError, match="is in use by another process; wait"), file_lock.claimed(tmp_path / "lock"):
        pass


def test_a_long_command_is_shortened(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/train.py", "--data", "größe \udcff" * 100])
    with file_lock.claimed(tmp_path / "lock"):
        with pytest.raises(UserError, match=r"\(train --data gr.{1,120}\.\.\.\); wait"):
            with file_lock.claimed(tmp_path / "lock"):
                pass


def test_waiting_for_a_lock(tmp_path, holder, capsys):
    timer = threading.Timer(0.3, holder.stdin.close)
    timer.start()
    with file_lock.locked(tmp_path / "lock", "waiting") as held:
        assert held
    timer.join()
    assert capsys.readouterr().err == "waiting\n"


def test_waiting_no_longer(tmp_path, holder):
    with file_lock.locked(tmp_path / "lock", until=lambda: True) as held:
        assert not held


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    program = (
        "import os, sys, time\n"
        "from slm_np.file_lock import claimed\n"
        "with claimed(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=small.environment(),
        text=True,
    )
    child = int(parent.stdout.readline())
    try:
        time.sleep(0.2)
        parent.kill()
        parent.wait()
        with file_lock.claimed(tmp_path / "lock"):
            pass
        os.kill(child, 0)  # it still runs
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_leaves_the_block_does_not_free_the_lock(tmp_path):
    path = tmp_path / "lock"
    before = os.getpid()
    with file_lock.claimed(path):
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            assert path.exists()
            with pytest.raises(UserError), file_lock.claimed(path):
                pass
    if os.getpid() != before:
        os._exit(0)
    assert not path.exists()


def test_a_child_program_does_not_inherit_the_lock(tmp_path):
    with file_lock.claimed(tmp_path / "lock"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with file_lock.claimed(tmp_path / "lock"):
        assert child.poll() is None
    child.communicate(b"\n")


def test_a_lock_that_was_removed_is_lost_and_the_new_one_stays(tmp_path):
    path = tmp_path / "lock"
    with file_lock.claimed(path):
        assert not file_lock.is_lost(path)
        path.unlink()
        assert file_lock.is_lost(path)
        path.write_bytes(b"another one")
        assert file_lock.is_lost(path)
    assert path.read_bytes() == b"another one"


@pytest.mark.skipif(os.name == "nt", reason="flock")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, code):
    import fcntl

    def unsupported(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with file_lock.claimed(tmp_path / "lock"):
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "has no locks, so nothing stops a second process from writing" in line
    with file_lock.locked(tmp_path / "lock") as held:
        assert held


RACE = """
import sys, time
from pathlib import Path
from slm_np import file_lock
path, log = Path(sys.argv[1]), Path(sys.argv[2])
while time.time() < float(sys.argv[3]):
    try:
        with file_lock.claimed(path):
            inside = log / "inside"
            inside.touch(exist_ok=False)
            inside.unlink()
    except file_lock.InUse:
        pass
"""


def test_one_at_a_time_while_the_file_is_made_and_removed(tmp_path):
    (tmp_path / "log").mkdir()
    end = time.time() + 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "lock"), str(tmp_path / "log"), str(end)],
            env=small.environment(),
        )
        for _ in range(3)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert not Path(tmp_path / "lock").exists()
