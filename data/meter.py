"""Progress in bytes: a bar on a terminal or in a notebook, a line now and then in a log."""

import time

from tqdm import tqdm

from slm_np.progress import duration, interactive, say

FIRST_LINE_S, LINE_S = 5.0, 15.0  # seconds before the first line in a log, and between lines


class Meter:
    """A context manager that shows how many of `total` bytes are done.

    what: the work's name, shown in front.   show: False prints nothing.   done: bytes that an earlier run finished.
    """

    def __init__(self, total, what, show=True, done=0):
        terminal = interactive()
        self.total, self.what, self.lines = total, what, show and not terminal
        self.done_before, self.done = done, done
        self.started, self.next_line = time.monotonic(), FIRST_LINE_S
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit="B", unit_scale=True, delay=1, disable=not (show and terminal)
        )

    def update(self, n):
        """Count `n` more bytes."""
        self.bar.update(n)
        self.done += n
        seconds = time.monotonic() - self.started
        if self.lines and seconds > self.next_line:
            self.next_line = seconds + LINE_S
            left = duration(seconds * (self.total - self.done) / max(1, self.done - self.done_before))
            say(f"{self.what}: {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB, ETA {left}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()


def metered(blocks, total, what, show=True):
    """Yield each block of bytes from `blocks`, and show how many of `total` bytes have passed."""
    with Meter(total, what, show) as meter:
        for block in blocks:
            yield block
            meter.update(len(block))
