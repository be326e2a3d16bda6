"""Compiled kernels on disk, and their compilation in child processes. These tests compile kernels of a second."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import slm_np

ROOT = Path(slm_np.__file__).resolve().parents[1]
# Prepares two small kernels, then calls them: prints how many were compiled ahead and the names of those compiled here.
PREPARE = """\
import sys
import numpy as np
from numba.core import event
from slm_np.kernels import cpu

class Listener(event.Listener):
    def on_start(self, e):
        if e.data["dispatcher"].py_func.__module__ != "numba":
            compiled.append(e.data["dispatcher"].py_func.__name__)
    def on_end(self, e):
        pass

compiled, x = [], np.ones(20_000, np.float32)
def run():
    cpu.accumulate(x, x)
    cpu.square_sum(np.zeros(cpu.square_sum_blocks(x.size)), x)
if "prepare" in sys.argv:
    print("ahead", cpu.prepare(run))
event.register("numba:compile", Listener())
run()
print("here", sorted({"_add", "_square_sums"} & set(compiled)), "result", x[0], x[-1])
"""
READY = "ahead 0\nhere [] result 2.0 2.0\n"


def run(folder, *words, root=ROOT, **environment):
    """What PREPARE prints with its cache in `folder`, and its stderr. The kernels come from the checkout `root`."""
    variables = {**os.environ, "SLM_NP_CACHE": str(folder), "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, *words],
        cwd=folder,  # else Python imports from where the tests run
        env=variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A cache that holds both kernels, compiled by child processes."""
    folder = tmp_path_factory.mktemp("complete")
    out, err = run(folder, "prepare")
    assert out == "ahead 2\nhere [] result 2.0 2.0\n"
    assert err.startswith("compiling 2 kernels for this processor, once\n")
    return folder


@pytest.fixture
def cache(complete, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(complete, tmp_path / "cache"))


def test_a_second_process_finds_the_kernels(cache):
    assert run(cache, "prepare") == (READY, "")
    assert len(files(cache)) == 2  # neither locks nor unfinished files are left


def test_a_kernel_is_compiled_at_its_first_call_if_nobody_prepared_it(tmp_path):
    assert run(tmp_path)[0] == "here ['_add', '_square_sums'] result 2.0 2.0\n"
    assert run(tmp_path, "prepare") == (READY, "")


def test_another_checkout_shares_the_cache(cache, tmp_path):
    """Neither the path of a checkout nor the time of its files counts, nor how its lines end."""
    other = tmp_path / "other"
    for name in ("slm_np", "kernels", "data"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = other / "kernels" / "cpu" / "residual.py"
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    os.utime(source, (0, 0))
    assert run(cache, "prepare", root=other) == (READY, "")
    source.write_bytes(source.read_bytes() + b"# a change\r\n")
    assert run(cache, "prepare", root=other)[0].startswith("ahead 2\n")


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_file_is_replaced(cache, damage):
    for path in files(cache):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:-7], "flipped": flipped}[damage])
    assert run(cache, "prepare")[0].startswith("ahead 2\n")
    assert run(cache, "prepare") == (READY, "")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_cache_that_cannot_be_written_is_used(cache):
    for folder in (cache, *cache.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    try:
        assert run(cache, "prepare") == (READY, "")
    finally:
        for folder in (cache, *cache.rglob("*")):
            folder.chmod(0o755)


def test_processes_share_the_work(tmp_path):
    """Two that start at the same time compile each kernel once."""
    variables = {**os.environ, "SLM_NP_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPARE, "prepare"]
    both = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert all("here [] result 2.0 2.0\n" in out for out in outputs), outputs
    assert len(files(tmp_path)) == 2


def children_of(pid):
    """The process ids of running children."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "Z" not in line]


def running(pid):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes(tmp_path, number):
    command = [sys.executable, "-m", "slm_np", "warmup", "--preset", "mamba"]
    variables = {**os.environ, "SLM_NP_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("compiling ")
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    message = {
        signal.SIGINT: "slm_np: interrupted\n",
        signal.SIGTERM: "slm_np: stopped while compiling kernels; those that are finished are kept\n",
        signal.SIGKILL: "",
    }[number]
    assert (out, err.replace("\r", "")) == ("", message) or err.endswith(message)
    assert "Traceback" not in err
    deadline = time.monotonic() + 30
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, children))


def test_a_child_that_dies_is_reported(tmp_path, monkeypatch):
    from slm_np.errors import UserError
    from slm_np.kernels.cpu import accumulate, compilation

    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation, "CHILD", "import os; os.kill(os.getpid(), 9) # {module}")
    import numpy as np

    x = np.ones(8, ">f4").astype(np.float64)  # a type that no other test prepares in this process
    with pytest.raises(UserError, match="ended by signal 9|ended with status"):
        compilation.prepare(lambda: accumulate(x.astype(np.int16), x.astype(np.int16)))
