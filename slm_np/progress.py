"""Progress of long work: a bar with an ETA in a terminal or a notebook, plain lines elsewhere."""

import sys
import time


def duration(seconds):
    """'45s', '3m20s', '2h05m'."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


def interactive():
    """Whether a bar can be drawn: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def bar(quiet=False, **options):
    """A tqdm bar, which draws nothing if `quiet` or outside of a terminal and a notebook."""
    from tqdm.auto import tqdm

    return tqdm(dynamic_ncols=True, disable=quiet or not interactive(), **options)


class Progress:
    """The display of a long loop: a bar, or lines of a log.

    fraction: the share of the work that is done already. The bar measures this share, so that a limit in updates and
    one in time look alike.
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
        """Move the bar or, if `log`, print a line.

        step: the label, such as "step 3/100".   fraction: share of the work that is done.   text: other values to show.
        """
        if self.bar is not None:
            self.bar.set_description_str(step, refresh=False)
            if log:
                self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(fraction - self.bar.n)
        elif log and not self.quiet:
            done = fraction - self.fraction
            eta = duration((time.perf_counter() - self.begun) * (1 - fraction) / done) if done > 0 else "?"
            print("  ".join(filter(None, (step, text, f"ETA {eta}"))), file=sys.stderr, flush=True)

    def say(self, text):
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
