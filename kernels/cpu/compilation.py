"""Compile kernels ahead of their first call, in child processes on all cores, and show how far they are.

Numba compiles in one thread of a process, so only processes use all cores. A child takes one kernel at a time,
compiles it, and leaves it in the cache, from which its parent loads it. Processes that start at the same time share
the work: a kernel that another one compiles is put off, and taken from the cache when it is there.
"""

import base64
import collections
import contextlib
import importlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import types as python_types

import numpy as np

from slm_np.errors import UserError
from slm_np.file_lock import POLL_S, locked
from slm_np.machine import available_cores
from slm_np.paths import cache_dir, import_path
from slm_np.progress import Progress
from slm_np.words import counted

from .jit import ENTRIES, recorded, recording
from .kernel_cache import writable_folder

CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import serve; serve()"
COMPILED, BUSY = "compiled", "busy"  # what a child answers


def prepare(run):
    """Compile the kernels that run() would call, unless the cache holds them. Returns how many it did not hold.

    run() is executed without its kernels, so it must not depend on their results; within it, `prepare` does nothing.
    Raises UserError if a child process dies, and SystemExit after SIGTERM; the children end in any case.
    """
    if recording():
        return 0
    with recorded() as calls, np.errstate(all="ignore"):
        run()
    missing = [call for call in calls if call[1] not in call[0].overloads and not call[0]._cache.stored(call[1])]
    if missing:
        _compile_all(sorted(missing, key=lambda call: -cost(call[0])))
    return len(missing)


def cost(compiled):
    """An estimate of the time that compiling takes: the size of a function and of all functions that it calls."""
    seen, pending = set(), [compiled]
    while pending:
        function = getattr(pending.pop(), "py_func", None)
        if function is None or function in seen:
            continue
        seen.add(function)
        names = {**function.__globals__, **dict(zip(function.__code__.co_freevars, _cells(function)))}
        for name in (*function.__code__.co_names, *function.__code__.co_freevars):
            used = names.get(name)
            if isinstance(used, python_types.FunctionType):  # an overload's stub, or `register_jitable`
                used = python_types.SimpleNamespace(py_func=used)
            pending.append(used)
    return sum(len(function.__code__.co_code) for function in seen)


def _cells(function):
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _compile_all(calls):
    """Compile [(entry, argument types)] in this order, several at a time."""
    work, answers = collections.deque(calls), queue.Queue()
    total = sum(cost(entry) for entry, _ in calls)
    try:
        children = [Child(work, answers) for _ in range(min(available_cores(), len(calls)))]
    except OSError:  # no process can be started: each kernel is compiled at its first call
        return
    done, finished = 0, 0
    progress = Progress(0.0)
    progress.say(f"compiling {counted(len(calls), 'kernel')} for this processor, once")
    try:
        with _sigterm_raises():
            while finished < len(calls):
                answer = _next(answers)
                if isinstance(answer, UserError):
                    raise answer
                done, finished = done + cost(answer[0]), finished + 1
                log = finished % 4 == 0  # a line for every fourth kernel
                progress.update(f"compiling kernels {finished}/{len(calls)}", done / total, "", log)
    finally:
        progress.close()
        for child in children:
            child.stop()


def _next(answers):
    """The next answer. Waits in short turns, since on Windows a signal does not end a wait without a limit."""
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=0.2)


@contextlib.contextmanager
def _sigterm_raises():
    """Within, SIGTERM raises SystemExit instead of ending the process at once, so that the children end as well."""

    def stop(number, frame):
        print("slm_np: stopped while compiling kernels; those that are finished are kept", file=sys.stderr)
        raise SystemExit(128 + number)

    previous = None
    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


class Child:
    """A process that compiles, and the thread of this process that gives it work.

    work: a deque of (entry, argument types).   answers: a queue that gets each of them when it is compiled, or a
    UserError.
    """

    def __init__(self, work, answers):
        self.work, self.answers, self.stopped = work, answers, False
        path = json.dumps(import_path())
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(module=__name__), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "SLM_NP_CACHE": str(cache_dir())},
            cwd=cache_dir(),  # the working directory may be deleted, and then Numba cannot compile
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._give_work, daemon=True).start()

    def _give_work(self):
        try:
            while self.work:
                call = self.work.popleft()
                entry, types = call
                waits = not self.work  # the last one: nothing else is left to do meanwhile
                task = dict(name=_name(entry), types=base64.b64encode(pickle.dumps(types)).decode(), waits=waits)
                self.process.stdin.write(json.dumps(task) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline().strip()
                if answer == COMPILED:
                    self.answers.put(call)
                elif answer == BUSY:
                    self.work.append(call)
                    time.sleep(POLL_S)
                else:
                    raise BrokenPipeError
        except IndexError:
            pass  # another child took the last one
        except (OSError, ValueError):
            if not self.stopped:
                self.answers.put(UserError(_why(self.process.wait())))

    def stop(self):
        """End the process."""
        self.stopped = True
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _name(entry):
    return next(name for name, known in ENTRIES.items() if known is entry)


def _why(status):
    """A sentence about a child that ended with this status."""
    if status < 0:
        return (
            f"a process that compiled kernels was ended by signal {-status}, perhaps for lack of memory; free some, or "
            "use --kernels numpy"
        )
    return (
        f"a process that compiled kernels ended with status {status}, see its messages above; use --kernels numpy "
        "meanwhile"
    )


def serve():
    """The main function of a child: compile what the lines of stdin name, until stdin ends."""
    answers, tasks = os.fdopen(os.dup(1), "w", encoding="utf-8"), queue.Queue()
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    importlib.import_module(__package__)  # most kernels, while the first task is on its way
    while True:
        task = json.loads(tasks.get())
        importlib.import_module(task["name"].rpartition(".")[0])
        answer = compile_entry(ENTRIES[task["name"]], pickle.loads(base64.b64decode(task["types"])), task["waits"])
        answers.write(answer + "\n")
        answers.flush()


def _read_tasks(tasks):
    """Read lines in a thread, which ends the process when its parent is gone, even in the middle of a compilation."""
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def compile_entry(entry, types, waits):
    """Compile an entry into the cache, unless it is there.

    If another process is at it: wait for that one if `waits`, otherwise return BUSY.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder without locks: better compiled twice than not at all
            lock = writable_folder() / (entry._cache.file_name(types) + ".lock")
            if not held.enter_context(locked(lock, until=lambda: not waits)):
                return BUSY
        if not entry._cache.stored(types):
            entry.compile(types)
    return COMPILED
