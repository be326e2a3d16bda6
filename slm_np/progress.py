"""Progress of long work: a bar with an ETA in a terminal or a notebook, plain lines elsewhere."""

import os
import sys
import time

LINE_S = 2.0  # seconds between the lines of a log


def duration(seconds):
    """'45s', '3m20s', '2h05m'."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


def interactive():
    """Whether a bar can be drawn: in a notebook, or in a terminal that has a width."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # no stderr, or one that is not a file
        return False


def say(text):
    """Print a line on stderr, if the program has one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def bar(quiet=False, **options):
    """A tqdm bar, which draws nothing if `quiet` or outside of a terminal and a notebook."""
    from tqdm.auto import tqdm

    return tqdm(dynamic_ncols=True, disable=quiet or not interactive(), **options)


class Progress:
    """The display of a long loop: a bar, or lines of a log.

    fraction: the share of the work that is done already. The bar measures this share, so that a limit in updates and
    one in time look alike.
    wait, every: seconds before the first line, and between lines. If there is one, the last update has one, too.
    """

    def __init__(self, fraction, quiet=False, wait=0.0, every=LINE_S):
        self.quiet, self.fraction, self.begun = quiet, fraction, time.perf_counter()
        self.next_line, self.every, self.lines = wait, every, 0
        self.bar = None
        if not quiet and interactive():
            self.bar = bar(
                total=1.0,
                initial=fraction,
                smoothing=0.05,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, ETA {remaining}{postfix}",
            )

    def update(self, step, fraction, text, log):
        """Move the bar or, if `log` and it is time, print a line.

        step: the label, such as "step 3/100".   fraction: share of the work that is done.   text: other values to show.
        """
        if self.bar is not None:
            self.bar.set_description_str(step, refresh=False)
            if log:
                self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(fraction - self.bar.n)
        elif log and not self.quiet:
            seconds, done = time.perf_counter() - self.begun, fraction - self.fraction
            if seconds >= self.next_line or fraction >= 1 and self.lines:
                self.next_line, self.lines = seconds + self.every, self.lines + 1
                eta = duration(seconds * (1 - fraction) / done) if done > 0 else "?"
                say("  ".join(filter(None, (step, text, f"ETA {eta}"))))

    def say(self, text):
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            say(text)

    def close(self):
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
