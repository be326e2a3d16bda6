"""Streams that are closed, full, vanished, slow or narrow, and terminals that hang up, for every command.

Commands that work (train, resume, finetune, prepare, convert, warmup) have to end with status 0 and the undisturbed
result, whatever cannot be shown. A terminal that hangs up stops training with the run saved. The others may give up,
with one sentence or none. Real processes, since Python sets up its streams when it starts.
"""

import contextlib
import fcntl
import os
import re
import select
import signal
import tempfile
import threading
import time

from fault_campaign import children, fixtures, scenes
from fault_campaign.fixtures import SCENES
from fault_campaign.judges import FAILED, LOST, UNAVAILABLE, Fault, after_fault, check_end, finished, require

TRIES = None
WORK = "train", "resume", "finetune", "prepare", "rows", "convert"
TEXT = {  # commands that only show something
    "generate": "generate --model tuned -n 8 --seed 3 --prompt -",
    "samples": "generate --model tuned -n 8 --seed 3 --num-samples 3",
    "chat": "chat --model tuned -n 8 --seed 3",
    "evaluate": "evaluate --model tuned --data chat.jsonl --json",
    "info": "info tuned half",
    "help": "__main__",
    "bad": "train --data missing.txt",
}
INPUTS = "text.txt", "chat.jsonl", "base=run", "half", "tuned", "cache"
CONDITIONS = (
    "stdin-closed stdout-closed stderr-closed all-closed stdout-full stderr-full all-full stdout-vanished "
    "stderr-vanished both-vanish-later stdout-blocked stderr-blocked ascii cp1252 C-locale hangup terminal-hangup"
).split()
NARROW = {
    "ascii": dict(PYTHONIOENCODING="ascii"),
    "cp1252": dict(PYTHONIOENCODING="cp1252"),
    "C-locale": dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
}
HANGUP = 128 + signal.SIGHUP
GAVE_UP = 0, 2, 141, HANGUP, -signal.SIGHUP, -signal.SIGPIPE
LINE = b"a cat?\n"
BLOCKED_S = 1.5  # seconds until the reader of a full pipe reads
STEP = b"step "  # what training shows of an update


def cases(context):
    return [f"{name} {condition}" for name in (*WORK, *TEXT) for condition in CONDITIONS]


def attempt(case, context, folder):
    name, condition = case.split()
    if condition.endswith("-full") and not os.path.exists("/dev/full"):
        raise Fault(UNAVAILABLE, "there is no /dev/full")
    scene = SCENES.get(name) if name in WORK else None
    if scene:
        before = scenes.begin(scene, context, folder)
        verb, words = scene.verb, scene.words.split()
    else:
        fixtures.place(context.fixtures, folder, INPUTS)
        verb, *words = TEXT[name].split()
    hangs_up = "hangup" in condition
    result = run(verb, words, condition, folder)
    if scene and hangs_up:
        check_end(result, f"{name}, {condition},", (0, 2, HANGUP, -signal.SIGHUP))
        shown = re.findall(r"step (\d+)/", result.err)  # training is asked to stop, and the run is saved
        saved = [int(path.name.rpartition("-")[2]) for path in (folder / scene.output).glob("checkpoint-*")]
        if shown:
            kept = max(saved, default=-1) >= int(shown[-1])
            require(kept, LOST, f"training ends with status {result.status}, step {shown[-1]} is not saved: {saved}")
        after_fault(scene, context.fixtures, folder, result, before)
    elif scene:
        require(result.status == 0, FAILED, f"{name} ends with status {result.status}: {result.tail()}")
        check_end(result, f"{name}, {condition},", (0,))
        finished(scene, context.fixtures, folder)
    else:
        check_end(as_told(result, condition), f"{name}, {condition},", (*GAVE_UP, *(2,) * (name == "bad")))
        if name == "bad":
            require(result.status == 2 or hangs_up, FAILED, f"bad input ends with status {result.status}")
        elif condition in ("stdin-closed", "stderr-closed", "stderr-full", "stderr-vanished", "stderr-blocked"):
            require(result.status == 0, FAILED, f"{name} ends with status {result.status}: {result.tail()}")
            require(result.out or name == "chat", FAILED, f"{name} shows nothing")


def as_told(result, condition):
    """The `Result`, of which no sentence is asked where stderr cannot be read."""
    if result.cut:
        result.err = "slm_np: (cannot be read)"
    if condition not in ("stdin-closed", "stdout-closed", "stdout-full", "stdout-vanished", "stdout-blocked", *NARROW):
        result.err = result.err or "slm_np: (cannot be read)"
    return result


def run(verb, words, condition, folder):
    """The `Result` of a command under a condition of `CONDITIONS`. What it writes to streams that work is in it."""
    out, err, source = (tempfile.TemporaryFile() for _ in range(3))
    source.write(LINE)
    source.seek(0)
    with contextlib.ExitStack() as stack:
        for file in (out, err, source):
            stack.enter_context(file)
        streams, then = {0: source, 1: out, 2: err}, None
        which, _, how = condition.partition("-")
        chosen = dict(stdin=(0,), stdout=(1,), stderr=(2,), all=(0, 1, 2) if how == "closed" else (1, 2)).get(which, ())
        closed = chosen if how == "closed" else ()
        for number in chosen:
            if how == "full":
                streams[number] = stack.enter_context(open("/dev/full", "wb", 0))
            elif how == "vanished":
                streams[number] = vanished(stack)
            elif how == "blocked":
                streams[number] = blocked(stack)
        if condition == "both-vanish-later":
            read, write = os.pipe()
            streams[1] = streams[2] = stack.enter_context(os.fdopen(write, "wb", 0))
            then = lambda process: leave(process, read)  # noqa: E731
        elif condition == "hangup":
            then = lambda process: hang_up(process, err)  # noqa: E731
        elif condition == "terminal-hangup":
            master, slave = os.openpty()
            streams = dict.fromkeys((0, 1, 2), stack.enter_context(os.fdopen(slave, "rb", 0)))
            then = lambda process: close_terminal(process, master)  # noqa: E731

        def closing():
            for number in closed:
                os.close(number)

        begun = time.perf_counter()
        process = children.spawned(
            verb,
            *words,
            cwd=folder,
            env=NARROW.get(condition, {}),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            preexec_fn=closing if closed else take_terminal if condition == "terminal-hangup" else None,
        )
        if condition == "terminal-hangup":
            streams[0].close()  # from here on the child alone holds the terminal
        if then:
            then(process)
        result = children.ended(process, begun)
        for file, name in ((out, "out"), (err, "err")):
            file.seek(0)
            setattr(result, name, file.read().decode("utf-8", "replace"))
        result.err += getattr(process, "shown", b"").decode("utf-8", "replace")
        result.cut = getattr(process, "cut", False)
    return result


def vanished(stack):
    """A pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return stack.enter_context(os.fdopen(write, "wb", 0))


def blocked(stack):
    """A pipe that is full and does not block, as a program with an event loop leaves it. Its reader wakes up later."""
    read, write = os.pipe()
    done = threading.Event()

    def drain():
        done.wait(BLOCKED_S)
        while not done.is_set():
            if select.select([read], [], [], 0.01)[0]:
                os.read(read, 1 << 16)

    reader = threading.Thread(target=drain)
    reader.start()
    for end in (lambda: os.close(read), reader.join, done.set):  # in reverse
        stack.callback(end)
    fcntl.fcntl(write, fcntl.F_SETFL, fcntl.fcntl(write, fcntl.F_GETFL) | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    return stack.enter_context(os.fdopen(write, "wb", 0))


def leave(process, read):
    """Read the first line of a pipe, then go, as `head` does."""
    with os.fdopen(read, "rb", 0) as file:
        file.read(1)


def hang_up(process, err):
    """SIGHUP when training shows its first update, which `err` tells, or after the command has shown something."""
    deadline = time.perf_counter() + (10 if "train" in process.args[2] or "finetune" in process.args[2] else 0.7)
    while process.poll() is None and time.perf_counter() < deadline and STEP not in os.pread(err.fileno(), 1 << 16, 0):
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGHUP)


def take_terminal():
    """In the child: make its stdin its controlling terminal."""
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def close_terminal(process, master):
    """Close a terminal when training shows its first update on it, or any other command its end."""
    shown, deadline = b"", time.perf_counter() + 20
    with contextlib.suppress(OSError):
        os.write(master, LINE + b"\x04")  # what the user types: a line, then Ctrl-D
        while STEP not in shown and select.select([master], [], [], max(0, deadline - time.perf_counter()))[0]:
            shown += os.read(master, 4096)
    process.shown, process.cut = shown, STEP in shown
    os.close(master)
