"""Learn byte-pair merges in a process of their own: the library that learns them does not react to signals.

The process ends with this one, however that ends, and its memory is free afterwards. Nothing is pickled: it reads
strings on its stdin, each as its length in bytes and its UTF-8, then a length of 0. It writes the model as JSON on
stdout, and the library's progress, a JSON object a line, on stderr.
"""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from queue import Empty, Queue

from slm_np.data.tokenizer_json import byte_letters
from slm_np.errors import UserError
from slm_np.paths import import_path
from slm_np.progress import Progress, duration

LONGEST = 192  # bytes of a word that learning takes as one: 2 x 96, 3 x 64, 4 x 48, so runs are cut between characters
SHOWN_AFTER_S, FIRST_LINE_S, LINE_S = 2.0, 3.0, 15.0  # seconds until a bar, from then to a line, between lines
LENGTH = struct.Struct("<I")  # precedes a string
STAGE = "Compute merges"  # what the library calls the long part of its work


def learned(vocab_size, strings, progress):
    """(vocab {token: id}, merges) of at most `vocab_size` tokens, learned from an iterable of strings (UTF-8).

    Words are those of GPT-2's pre-tokenization, and a longer one than `LONGEST` bytes counts as several: learning takes
    quadratic time in the length of a word. UserError if the process cannot start or dies.
    """
    name = f"bpe:{vocab_size + 1}"
    program = f"import sys; del sys.path[0]; from {__name__} import work; work()"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(import_path()), PYTHONIOENCODING="utf-8")
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(vocab_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
    except (OSError, ValueError, TypeError) as error:  # TypeError: an embedded Python has no executable
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the process that learns {name} cannot be started ({reason}); allow this program to start {sys.executable}"
        ) from None
    answers, last_words = Queue(), []

    def listen():
        for line in process.stderr:
            try:
                found = json.loads(line)
                answers.put(found["current"] if found["stage"] == STAGE else 0)
            except (ValueError, LookupError, TypeError):
                last_words.append(line.decode("utf-8", "replace").strip())

    def receive():
        found = process.stdout.read()
        listener.join()
        answers.put(found)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    threading.Thread(target=receive, daemon=True).start()
    try:
        _send(process.stdin, strings)
        answer = _received(answers, f"learning {name}", vocab_size - len(byte_letters()), progress)
        if process.wait():
            said = next((f", {line}" for line in reversed(last_words) if line), "")
            raise UserError(
                f"the process that learned {name} ended with status {process.returncode}{said}; if memory was short, "
                "give a smaller vocabulary or less text"
            )
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr, process.stdin):
            with contextlib.suppress(OSError):  # a string was on its way to a process that has ended
                pipe.close()
    model = json.loads(answer)
    return model["vocab"], [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]


def _send(pipe, strings):
    """Send strings, then the length 0. If the process has ended, its exit status says why."""
    for string in strings:
        data = string.encode()
        if not _written(pipe, LENGTH.pack(len(data)) + data):
            return
    _written(pipe, LENGTH.pack(0), flush=True)


def _written(pipe, data, flush=False):
    """Whether the process still takes data."""
    with contextlib.suppress(OSError):
        pipe.write(data)
        if flush:
            pipe.flush()
        return True
    return False


def _received(answers, what, n_merges, progress):
    """The bytes that the process answers, and its progress on the way, as a share of `n_merges`."""
    shown, done, begun = None, 0, time.monotonic()
    try:
        while True:
            try:  # without a timeout Ctrl-C would not interrupt it on Windows
                answer = answers.get(timeout=0.2)
                while isinstance(answer, int):
                    done = answer
                    answer = answers.get_nowait()
                return answer
            except Empty:
                pass
            seconds = time.monotonic() - begun
            if progress and seconds > SHOWN_AFTER_S:
                share = min(1.0, done / max(1, n_merges))
                shown = shown or Progress(share, wait=FIRST_LINE_S, every=LINE_S)
                step = f"{what}: {done:,}/{n_merges:,} merges" if done else f"{what} for {duration(seconds)}"
                shown.update(step, share, "", True)
    finally:
        if shown:
            shown.close()


def work():
    """The program of the process. Its argument is the size of the vocabulary."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends this process
    import tokenizers
    from tokenizers import pre_tokenizers

    def read(n):
        data = sys.stdin.buffer.read(n)
        if len(data) < n:
            os._exit(1)  # the parent is gone
        return data

    def strings():
        while n := LENGTH.unpack(read(LENGTH.size))[0]:
            yield read(n).decode()
        threading.Thread(target=lambda: read(1), daemon=True).start()  # until the parent is gone

    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = pre_tokenizers.Split(tokenizers.Regex(f"[\\s\\S]{{{LONGEST}}}"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), parts])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=int(sys.argv[1]), show_progress=False, initial_alphabet=byte_letters()
    )
    if hasattr(trainer, "progress_format"):  # older releases can draw a bar only
        trainer.progress_format, trainer.show_progress = "json", True
    library.train_from_iterator(strings(), trainer)
    sys.stdout.buffer.write(json.dumps(json.loads(library.to_str())["model"]).encode())
    sys.stdout.flush()
    os._exit(0)
