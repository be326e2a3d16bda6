"""Ctrl-C in long work, and texts without spaces. Times are measured, so these tries are made one at a time.

SIGINT goes to the process group, as from a terminal, a moment after the start. Everything has to end within a second,
with status 130, one line and no process left over. What ends before that moment does not count. Learning byte pairs of
twice the text may take at most three times as long.
"""

import base64
import os
import random
import signal
import struct
import tempfile
import time

from fault_campaign import children, fixtures
from fault_campaign.judges import FAILED, UNAVAILABLE, Fault, check_end, require

ALONE = True
TRIES = None
REACTION_S = 1.0
MOMENTS = 0.7, 1.2, 2.5  # seconds after the start, of which Python takes 0.3
INTERRUPTED = 130
SMALL = fixtures.MODEL + " --kernels numpy --threads 1 --eval-iters 1 --max-iters 100000 --out-dir new"


def letters(alphabet, n, seed=1):
    return "".join(random.Random(seed).choices(alphabet, k=n))


def dna(folder, n=3_000_000):
    (folder / "dna.txt").write_text(letters("ACGT", n), encoding="utf-8")


def prose(folder, n=40):
    (folder / "prose.txt").write_text(fixtures.documents(5, 12_000) * n, encoding="utf-8")


def sparse(folder):
    """A large text of which the disk holds next to nothing."""
    with open(folder / "zeros.txt", "wb") as file:
        file.truncate(8 << 30)


def large_checkpoint(folder):
    """A llama2.c checkpoint of 1.3 GB of zeros."""
    dim, hidden, layers, heads, vocab, steps = 1024, 2816, 24, 16, 32000, 256
    size = vocab * dim + layers * (2 * dim + 4 * dim * dim + 3 * hidden * dim) + dim + steps * (dim // heads)
    with open(folder / "large.bin", "wb") as file:
        file.write(struct.pack("<7i", dim, hidden, layers, heads, heads, vocab, steps))
        file.truncate(28 + 4 * size)


def long_text(folder):
    (folder / "long.txt").write_text(fixtures.documents(6, 30_000), encoding="utf-8")


def nothing(folder):
    pass


WORK = {  # what is interrupted: (what makes its input, command, environment)
    "learn bpe of one line": (dna, "prepare dna.txt --tokenizer bpe:600 --out-dir tokens", {}),
    "learn bpe of prose": (prose, "prepare prose.txt --tokenizer bpe:2000 --out-dir tokens", {}),
    "learn characters": (prose, "prepare prose.txt --tokenizer char --out-dir tokens", {}),
    "tokenize": (prose, "prepare prose.txt --out-dir tokens", {}),
    "hash": (sparse, "prepare zeros.txt --binary --out-dir tokens", {}),
    "train": (prose, f"train --data prose.txt --tokenizer char {SMALL}", {}),
    "evaluate": (long_text, "evaluate --model base --data long.txt --stride 1", {}),
    "convert": (large_checkpoint, "convert large.bin --out-dir converted", {}),
    "compile": (nothing, "warmup", dict(SLM_NP_KERNELS="numba")),
    "compile for train": (
        prose,
        f"train --data prose.txt --tokenizer byte {SMALL.replace('numpy', 'numba')}",
        dict(SLM_NP_KERNELS=""),
    ),
}
TEXTS = {  # texts without spaces, of n characters
    "dna": lambda n: letters("ACGT", n),
    "cjk": lambda n: letters([chr(0x4E00 + i) for i in range(2000)], n // 3),
    "base64": lambda n: base64.b64encode(random.Random(1).randbytes(n * 3 // 4)).decode(),
    "spaces": lambda n: " " * n,
    "one letter": lambda n: "a" * n,
    "one line of words": lambda n: " ".join(fixtures.sentences(1, 1 + n // 40)).replace("\n", "")[:n],
}
SIZE, RATIO = 250_000, 3.0


def cases(context):
    found = [f"interrupt {name} after {moment} s" for name in WORK for moment in MOMENTS]
    return found + [f"linear {name} of {SIZE} and {2 * SIZE} characters" for name in TEXTS]


def attempt(case, context, folder):
    what, rest = case.split(" ", 1)
    if what == "interrupt":
        name, _, moment = rest.removesuffix(" s").rpartition(" after ")
        return interrupt(name, float(moment), context, folder)
    return linear(rest.partition(" of 250000")[0], folder)


def interrupt(name, moment, context, folder):
    make, line, env = WORK[name]
    fixtures.place(context.fixtures, folder, ("base=run", "text.txt"))
    make(folder)
    verb, *words = line.split()
    with tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = children.spawned(verb, *words, cwd=folder, env=env, stdout=err, stderr=err)
        while process.poll() is None and time.perf_counter() - begun < moment:
            time.sleep(0.02)
        if process.poll() is not None:
            err.seek(0)
            require(process.returncode == 0, FAILED, f"{name} fails: {err.read().decode()[-300:]}")
            raise Fault(UNAVAILABLE, f"{name} ends before it is interrupted")
        asked = time.perf_counter()
        os.killpg(process.pid, signal.SIGINT)
        result = children.ended(process, asked, 30.0)
        seconds = time.perf_counter() - asked  # until the last process of the group is gone
        err.seek(0)
        result.err = err.read().decode("utf-8", "replace")
    result.peak = 0  # large inputs take memory
    require(result.status != 0, FAILED, f"status 0 {seconds:.2f} s after Ctrl-C: {result.tail()}")
    check_end(result, f"{name} after Ctrl-C", (INTERRUPTED,))
    require(seconds <= REACTION_S, FAILED, f"{name} ends {seconds:.2f} s after Ctrl-C")
    return f"{seconds:.2f} s after Ctrl-C"


def linear(name, folder):
    seconds = []
    for n in (SIZE, 2 * SIZE):
        (folder / "text.txt").write_text(TEXTS[name](n), encoding="utf-8")
        words = f"text.txt --tokenizer bpe:600 --threads 1 --out-dir tokens-{n}".split()
        result = children.forked("prepare", *words, cwd=folder, limit=60)
        require(not result.late, FAILED, f"{n:,} characters take more than a minute")
        check_end(result, f"prepare {name}")
        seconds.append(result.seconds)
    ratio = seconds[1] / max(seconds[0], 0.3)
    require(ratio <= RATIO, FAILED, f"{SIZE:,} characters take {seconds[0]:.1f} s, twice as many {seconds[1]:.1f} s")
    return f"{seconds[0]:.1f} s and {seconds[1]:.1f} s"
