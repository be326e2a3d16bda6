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


class Progress:
    """Training's display: `update` draws the bar or, at log steps, prints a line; `say` prints a line above the bar."""

    def __init__(self, total, start, quiet=False):
        self.total, self.quiet, self.bar = total, quiet, None
        self.begun, self.fraction_begun = time.perf_counter(), None
        if not quiet and interactive():
            from tqdm.auto import tqdm
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)

    def update(self, step, fraction, text, log):
        """step: updates done.   fraction: share of the run that is over.   text: what to show.   log: whether this is a log step."""
        if self.quiet:
            return
        if self.fraction_begun is None:
            self.fraction_begun = fraction
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            if log:
                self.bar.set_postfix_str(text, refresh=False)
        elif log:
            done = fraction - self.fraction_begun
            eta = duration((time.perf_counter() - self.begun) * (1 - fraction) / done) if done > 0 else "?"
            print(f"step {step}/{self.total or '?'}  {text}  ETA {eta}", file=sys.stderr, flush=True)

    def say(self, text):
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
