"""Progress of long work: a bar with an ETA on a terminal or in a notebook, plain lines in a log."""

import sys
import time


def duration(seconds):
    """'45s', '3m20s', '2h05m'."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


def interactive():
    """Whether a bar can be drawn: a terminal, or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def bar(quiet=False, **options):
    """tqdm's bar, which draws nothing where no bar can be drawn."""
    from tqdm.auto import tqdm

    return tqdm(dynamic_ncols=True, disable=quiet or not interactive(), **options)


class Progress:
    """Training's display: `update` moves the bar or, at log steps, prints a line; `say` prints a line above the bar.

    The bar measures the share of the run that is over, so that a limit in updates and one in time look alike.
    """

    def __init__(self, fraction, quiet=False):
        self.quiet, self.fraction, self.begun = quiet, fraction, time.perf_counter()
        self.bar = None
        if not quiet and interactive():
            self.bar = bar(
                total=1.0,
                initial=fraction,
                smoothing=0.05,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, ETA {remaining}{postfix}",
            )

    def update(self, step, fraction, text, log):
        """step: what to call it, such as "step 3/100".   fraction: share of the run that is over.   text: what else to show.   log: whether to."""
        if self.bar is not None:
            self.bar.set_description_str(step, refresh=False)
            if log:
                self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(fraction - self.bar.n)
        elif log and not self.quiet:
            done = fraction - self.fraction
            eta = duration((time.perf_counter() - self.begun) * (1 - fraction) / done) if done > 0 else "?"
            print(f"{step}  {text}  ETA {eta}", file=sys.stderr, flush=True)

    def say(self, text):
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
