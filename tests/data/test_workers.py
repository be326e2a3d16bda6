"""The processes that tokenize, when the one that started them is ended by a signal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

PREPARE = """
import sys
from slm_np.data import shards
shards.SHARD = 1 << 16  # so that a small text takes several processes
from slm_np.prepare import main
main(sys.argv[1:])
"""


def running():
    """{process: its parent} of all processes that have not ended."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="this system does not list child processes")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_ends_all_processes_and_leaves_no_store(tmp_path, name):
    """Sent to the whole job, as a terminal does, while the workers start."""
    small.text_file(tmp_path, lines=20_000)
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, "text.txt", "--threads", "2", "--out-dir", "tokens"],
        cwd=tmp_path,
        env=small.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    workers = set()
    while not workers and process.poll() is None:
        workers = {child for child, parent in running().items() if parent == process.pid}
        time.sleep(0.01)
    assert workers
    time.sleep(0.1)
    number = getattr(signal, name)
    os.killpg(process.pid, number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (out, said) == ("", "slm_np: interrupted\n" if number == signal.SIGINT else "")
    end = time.monotonic() + 30
    while workers & running().keys():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not (tmp_path / "tokens").exists()
    assert small.command("prepare", "text.txt", "--out-dir", "tokens", cwd=tmp_path).returncode == 0
