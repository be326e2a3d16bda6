"""Worker processes that tokenize shards.

A worker is a separate program that exchanges lines with this one: shard numbers on its stdin, JSON on its stdout.
Nothing is pickled, and the program that calls us is not imported again, as `multiprocessing` would do.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from queue import Empty, Queue

from slm_np.data.files import read_json_or_empty
from slm_np.data.shards import current_build, tokenize
from slm_np.data.text_files import BLOCK
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.paths import import_path

EAGER = 4 << 20  # bytes of text after which a worker in the background yields to training, which had to wait for them
NICE = 10  # is its niceness then, so it still has the processors whenever training waits


class WorkerDied(Exception):
    """A worker process ended with the exit status that is the argument."""


class Stopped(Exception):
    """The work was asked to stop."""


def tokenize_in_processes(staging, numbers, n, meter, done, stop=None):
    """Tokenize the shards `numbers` with `n` processes, in the folder `staging` with its plan.json and tokenizer.json.

    meter: a `Meter` of the bytes read.   done: function (), called after each shard.   stop: a threading.Event for
    workers in the background, which raises `Stopped` here; None for workers in the foreground.
    UserError for text that cannot be tokenized, OSError if a disk fails, `WorkerDied`.
    """
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(import_path()),
        PYTHONIOENCODING="utf-8",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
    )
    program = f"import sys; del sys.path[0]; from {__name__} import work; work()"
    waiting, answers = deque(numbers), Queue()

    def drive(process):
        """Give a worker one shard after the other, and queue its answers."""
        try:
            while True:
                process.stdin.write(f"{waiting.popleft()}\n")
                process.stdin.flush()
                for line in process.stdout:
                    answer = json.loads(line)
                    answers.put(answer)
                    if "read" not in answer:
                        break
                else:
                    answers.put(dict(died=process.wait()))
                    return
        except IndexError:  # no shard is waiting
            process.stdin.close()
            answers.put(dict(finished=True))
        except (OSError, ValueError):
            answers.put(dict(died=process.wait()))

    processes = []
    try:
        for _ in range(n):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(staging), current_build(staging), str(NICE if stop else 0)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    env=environment,
                    start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends its workers
                )
            )
            threading.Thread(target=drive, args=processes[-1:], daemon=True).start()
        while n:
            if stop and stop.is_set():
                raise Stopped
            try:
                answer = answers.get(timeout=0.2)  # without a timeout Ctrl-C would not interrupt it on Windows
            except Empty:
                continue
            n -= "finished" in answer
            meter.update(answer.get("read", 0))
            if "error" in answer:
                raise UserError(answer["error"])
            if "errno" in answer:
                raise OSError(answer["errno"], answer["strerror"])
            if "died" in answer:
                raise WorkerDied(answer["died"])
            if "done" in answer:
                done()
    finally:
        for process in processes:
            process.kill()  # finished shards stay, the others start again
        for process in processes:
            process.wait()


def work():
    """The program of a worker: tokenize shards by their numbers, which arrive on stdin.

    Its arguments are `staging`, the build that it works for, and its niceness after `EAGER` bytes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows, where Ctrl-C reaches all processes of a console
    staging, build, niceness = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    plan, tokenizer = read_json_or_empty(staging / "plan.json"), load_tokenizer(staging / "tokenizer.json")
    numbers, read, total = Queue(), 0, 0

    def listen():
        for line in sys.stdin:
            numbers.put(int(line))
        os._exit(0)  # the parent has no more shards, or is gone

    def send(**answer):
        try:
            print(json.dumps(answer), flush=True)
        except OSError:
            os._exit(1)  # the parent is gone

    def report(n):
        nonlocal read, total, niceness
        read, total = read + n, total + n
        if niceness and total >= EAGER:
            os.nice(niceness)
            niceness = 0
        if read >= BLOCK:
            send(read=read)
            read = 0

    threading.Thread(target=listen, daemon=True).start()
    while True:
        number = numbers.get()
        try:
            tokenize(staging, plan, number, tokenizer, report, build)
            send(done=number)
        except UserError as error:
            send(error=str(error))
        except OSError as error:
            send(errno=error.errno, strerror=error.strerror)
