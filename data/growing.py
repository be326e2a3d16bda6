"""A corpus that is read while it is written: a thread builds the token store, and training takes the first tokens.

Worker processes tokenize, so the thread itself computes next to nothing. Tokens are read from SPLIT.bin, which only
ever grows. So it makes no difference whether this process builds the store or another one.
"""

import atexit
import os
import sys
import threading
import time

import numpy as np
from tqdm import tqdm

from slm_np.data import shards
from slm_np.data.documents import ROWS
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.tokens import Tokens, mapped
from slm_np.data.workers import Stopped
from slm_np.errors import UserError
from slm_np.words import counted

WORTHWHILE = 4 << 20  # bytes of text below which the store is built first: starting a worker would take as long
POLL_S = 0.02  # between two looks at the files
SAMPLE = 1 << 16  # tokens from which the bytes per token of a split are estimated
FIRST_LINE_S, LINE_S = 2.0, 15.0  # seconds of waiting before the first line, and between lines


class CorpusFailed(UserError):
    """The corpus that training reads could not be completed."""


def can_grow(plan):
    """Whether a store with this plan is read while it is built.

    Not on Windows, where a folder cannot be renamed while its files are open; nor with rows, since only all of them
    show whether there are masks.
    """
    size = sum(stop - start for _, _, start, stop in plan["shards"])
    return os.name != "nt" and size > WORTHWHILE and not any(kind == ROWS for _, kind, _, _ in plan["shards"])


class Building:
    """A token store that a thread of this process, or another process, builds. It is there once its tokenizer is.

    build     Build, not yet begun
    read      function () -> the complete Corpus
    floors    {split: bits per byte, or None}
    between   function () that is called while a read waits. What it raises ends the read.

    UserError if the tokenizer cannot be made.
    """

    def __init__(self, build, read, floors):
        self.build, self.read, self.floors = build, read, floors
        self.separated, self.progress = build.plan["separated"], build.progress
        self.between = lambda: None
        self.corpus = self.error = self.tokenizer = None
        self.stop, self.ended = threading.Event(), threading.Event()
        while self.tokenizer is None and self.corpus is None:
            mine = build.begin(until=build.begun)
            if mine:
                self.tokenizer = build.tokenizer
            elif build.exists():
                self.corpus = read()
            else:  # another process builds it
                try:
                    self.tokenizer = load_tokenizer(build.staging / "tokenizer.json")
                except UserError:
                    continue  # that process has just completed the store, or has failed
        build.progress = False  # training has a display of its own
        if self.corpus is None:
            atexit.register(self.close)
            self.thread = threading.Thread(target=self._run, args=(mine,), daemon=True)
            self.thread.start()

    def __reduce__(self):
        raise UserError(
            "a corpus that is still being tokenized cannot be copied or pickled; load it with wait=True, "
            "or take what corpus.building.wait() returns"
        )

    def _run(self, mine):
        """The thread: build the store, or wait for the process that does. If that one dies, continue its work."""
        try:
            if mine or self.build.begin(until=self.stop.is_set):
                self.build.finish(self.stop)
            if not self.stop.is_set():
                self.corpus = self.read()
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.build.close()
            self.ended.set()

    def check(self):
        """Raise `CorpusFailed` if the store could not be built, and what `between` raises."""
        self.between()
        if isinstance(self.error, UserError):
            raise CorpusFailed(str(self.error)) from self.error
        if self.error is not None:
            raise self.error
        if self.stop.is_set() and self.corpus is None:
            raise CorpusFailed("the corpus is incomplete, since tokenizing it was stopped; start again")

    def wait(self):
        """The complete `Corpus`. Raises what `check` raises."""
        lines = _Lines("waiting for the rest of the corpus, which is being tokenized", self.progress)
        while self.corpus is None:
            self.check()
            lines.due("")
            self.ended.wait(0.1)
        return self.corpus

    def close(self):
        """End the thread and its workers. Finished shards are kept for the next start."""
        self.stop.set()
        self.thread.join()
        atexit.unregister(self.close)


class GrowingTokens:
    """One split of a corpus that is being built. `first` reads its start; everything else waits for the whole split.

    n_text: bytes of its text, with the separators of documents.   lossy: as in `Tokens`.
    """

    mask = None

    def __init__(self, split, building, lossy=""):
        self.split, self.lossy, self._building, self._dtype = split, lossy, building, building.tokenizer.dtype
        self._numbers = shards.numbers_of(building.build.plan, split)
        ranges = [building.build.plan["shards"][number][2:] for number in self._numbers]
        self.n_text = sum(stop - start for start, stop in ranges)
        self._counts = []  # of the finished shards, in order
        self._ids = np.empty(0, self._dtype)
        self._whole = self._sample = None  # Tokens: all, once they are there, and those of `sample`

    def first(self, n):
        """`Tokens` of the first `n`, or of all if the split has fewer. Waits until they are written."""
        self._look(n)
        if self._whole is None and len(self._ids) < n:
            lines = _Lines(f"waiting until the {self.split} split has {counted(n, 'token')}", self._building.progress)
            while self._whole is None and len(self._ids) < n:
                lines.due(f": {len(self._ids):,} so far")
                time.sleep(POLL_S)
                self._building.check()
                self._look(n)
        return self._whole.first(n) if self._whole is not None else Tokens(self.split, self._ids[:n], lossy=self.lossy)

    def whole(self):
        """`Tokens` of the whole split."""
        return self.first(sys.maxsize)

    def sample(self):
        """`Tokens` that stand for all in their bytes per token: the first ones."""
        if self._whole is None and self._sample is None:
            ids = self.first(SAMPLE).ids
            self._sample = Tokens(self.split, ids, len(self._building.tokenizer.decode(ids)), lossy=self.lossy)
        return self._sample if self._whole is None else self._whole

    def __len__(self):
        return len(self.whole())

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def _look(self, n):
        """Find what has been written: the whole split, or more than the first `n` tokens."""
        if self._whole is not None or len(self._ids) >= n:
            return
        if self._building.corpus is not None:
            self._whole = getattr(self._building.corpus, self.split)
            return
        staging = self._building.build.staging
        for number in self._numbers[len(self._counts) :]:
            counts = shards.finished(staging, number)
            if not counts:
                break
            self._counts.append(counts)
        try:
            self._ids = mapped(staging / f"{self.split}.bin", self._dtype)
        except (OSError, UserError, ValueError):  # not begun, or complete just now
            return
        total = {key: sum(counts[key] for counts in self._counts) for key in shards.COUNTS}
        if len(self._counts) == len(self._numbers) and len(self._ids) == total["tokens"]:
            separated, floor = self._building.separated, self._building.floors[self.split]
            documents = shards.documents_of(total, separated)
            self._whole = Tokens(
                self.split,
                self._ids,
                total["bytes"],
                None if separated else floor,
                n_documents=documents,
                lossy=self.lossy,
            )


class _Lines:
    """Lines on stderr now and then while something is waited for."""

    def __init__(self, text, show):
        self.text, self.show, self.next = text, show and sys.stderr is not None, time.monotonic() + FIRST_LINE_S

    def due(self, rest):
        """Print a line if it is time for one."""
        if self.show and time.monotonic() > self.next:
            self.next = time.monotonic() + LINE_S
            tqdm.write(self.text + rest, file=sys.stderr)  # above the bar if there is one
