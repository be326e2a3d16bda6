"""Commands in child processes of their own: forked from this warm one, or started anew. Each has limits and an end.

A forked child runs `slm_np.VERB.main` as `python -m slm_np.VERB` would, without the 0.3 s of imports, so thousands of
tries take minutes. It shares nothing that it could change: memory is copied on write, and its streams, working
directory, signals and environment are its own.
"""

import atexit
import contextlib
import fcntl
import importlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import checkout
from tqdm import tqdm

LIMIT_S = 60.0  # seconds after which a child is asked to stop
GRACE_S = 10.0  # seconds that it has to stop then, and that its own children have to end after it
MEMORY = 3 << 30  # bytes of address space that a forked child may add to what it starts with
POLL_S = 0.002
WARM = (
    "train finetune prepare generate evaluate chat info convert cli.launch cli.new_run cli.resume cli.report "
    "cli.settings cli.summary cli.info_files training.trainer training.storage training.display training.matmul_check "
    "inference.generation inference.evaluation inference.decoder nn.warmup formats.runs formats.conversion "
    "formats.directories data.token_store kernels.numpy"
)


@dataclass
class Result:
    """How a child ended. status: its exit status, or minus the signal that ended it."""

    status: int
    out: str
    err: str
    seconds: float
    peak: int  # resident memory, bytes
    late: bool = False  # it did not end within the limit, but stopped when it was asked to
    hung: bool = False  # it had to be killed
    orphans: bool = False  # its children outlived it
    cut: bool = False  # its terminal was closed, so that nobody can read the rest

    def tail(self):
        """The end of what it wrote to stderr, in one line."""
        return " / ".join(self.err.strip().splitlines()[-3:])[-400:]


def warm():
    """Import what the commands need, so that forked children start at once."""
    for name in WARM.split():
        importlib.import_module(f"slm_np.{name}")


def address_space():
    """Bytes of address space of this process, as far as the system tells."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return 0


def environment(**more):
    """Environment variables of a child that computes on one thread with the NumPy kernels."""
    return {
        **os.environ,
        "PYTHONPATH": str(checkout.ROOT),
        "SLM_NP_KERNELS": "numpy",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def forked(verb, *words, cwd, limit=LIMIT_S, stdin=b"", setup=None, kill_after=None, env={}, **more):
    """Run a command in a forked child, in the directory `cwd`, with its cache in cwd/cache. Returns the `Result`.

    stdin       bytes that it reads
    setup       function () -> None or a function to call at the end, called in the child before the command
    kill_after  seconds after which it gets SIGKILL
    env         more environment variables
    """

    child = started_command(verb, *words, cwd=cwd, stdin=stdin, setup=setup, env=env, **more)
    [result] = waited([child], limit, kill_after)
    return result


def forked_call(function, cwd, limit=LIMIT_S, stdin=b"", setup=None, kill_after=None, env={}, **more):
    """`forked` for any function (). What it prints is the output."""
    [result] = waited([started(function, cwd, stdin, setup, env)], limit, kill_after)
    return result


class Pipe:
    """A pipe that holds all that a tiny command writes, used like a file."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 1 << 20)

    def fileno(self):
        return self.write_end

    def seek(self, position):
        pass

    def read(self):
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as file:
            return file.read()

    def close(self):
        pass


@dataclass
class Child:
    """A child that runs. It leads a process group."""

    process: int
    begun: float
    streams: tuple  # files that its stdout and stderr go to; () if they are read elsewhere


def started(function, cwd, stdin=b"", setup=None, env={}, pipes=False):
    """Fork a child that calls a function. Returns the `Child`. pipes: its output goes to pipes, not to files."""
    source, out, err = (tempfile.TemporaryFile() for _ in range(3))
    if pipes:
        out, err = Pipe(), Pipe()
    with source:
        source.write(stdin)
        source.seek(0)
        begun = time.perf_counter()
        process = os.fork()
        if not process:
            _become(function, cwd, (source, out, err), setup, env)
    return Child(process, begun, (out, err))


def started_command(verb, *words, cwd, **options):
    """`started` for a command."""

    def command():
        importlib.import_module(f"slm_np.{verb}").main([str(word) for word in words])

    return started(command, cwd, **options)


def _become(function, cwd, streams, setup, env):
    """In the child: call the function as a program of its own, then exit."""
    status = 1
    try:
        os.setsid()
        atexit._clear()  # the exit functions are the parent's
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules["matplotlib"] = None  # drawing the loss curve would take most of the time of a tiny run
        for descriptor, stream in enumerate(streams):
            os.dup2(stream.fileno(), descriptor)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8", write_through=True)
            for descriptor in (1, 2)
        )
        os.environ.update(SLM_NP_CACHE=str(Path(cwd) / "cache"), SLM_NP_KERNELS="numpy", **env)
        os.chdir(cwd)
        with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
            most = address_space() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        tqdm.set_lock(threading.RLock())  # its default lock is shared: a killed child would keep it
        end = setup() if setup else None
        try:
            function()
            status = 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except BaseException:
            traceback.print_exc()
        if end:
            end()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(status)


def waited(given, limit=LIMIT_S, kill_after=None):
    """Wait for children, and end what is left of their groups. Returns a `Result` of each.

    limit: seconds after which they are asked to stop.   kill_after: seconds after which they get SIGKILL.
    """
    left, results, asked, hung = list(given), {}, set(), set()
    while left:
        for child in list(left):
            found, code, usage = os.wait4(child.process, os.WNOHANG)
            seconds = time.perf_counter() - child.begun
            if found:
                left.remove(child)
                results[child.process] = code, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            elif kill_after is not None and seconds >= kill_after:
                os.kill(child.process, signal.SIGKILL)
            elif seconds > limit + GRACE_S:
                hung.add(child.process)
                os.killpg(child.process, signal.SIGKILL)
            elif seconds > limit and child.process not in asked:
                asked.add(child.process)
                os.kill(child.process, signal.SIGTERM)
        time.sleep(POLL_S)
    return [_result(child, *results[child.process], child.process in asked, child.process in hung) for child in given]


def _result(child, code, seconds, peak, asked, hung):
    orphans, texts = not _group_ends(child.process), ["", ""]
    for i, stream in enumerate(child.streams):
        stream.seek(0)
        texts[i] = stream.read().decode("utf-8", "replace")
        stream.close()
    return Result(os.waitstatus_to_exitcode(code), *texts, seconds, peak, asked and not hung, hung, orphans)


def _group_ends(group):
    """Whether all processes of a group end by themselves. Those that do not are killed."""
    deadline = time.perf_counter() + GRACE_S
    while time.perf_counter() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return False


def spawned(verb, *words, cwd, env={}, **options):
    """Start `python -m slm_np.VERB WORDS` anew, as the leader of a process group. Returns the Popen."""
    return subprocess.Popen(
        [sys.executable, "-m", f"slm_np.{verb}", *map(str, words)],
        cwd=cwd,
        env=environment(SLM_NP_CACHE=str(Path(cwd) / "cache"), **env),
        start_new_session=True,
        **options,
    )


def ended(process, begun, limit=LIMIT_S):
    """The `Result` of a process of `spawned` whose streams are read elsewhere."""
    if process.poll() is not None:
        seconds = time.perf_counter() - begun
        return Result(process.returncode, "", "", seconds, 0, orphans=not _group_ends(process.pid))
    [result] = waited([Child(process.pid, begun, ())], limit)
    process.returncode = result.status  # Popen need not wait for it
    return result
