"""SIGINT and SIGTERM: the first asks training to stop after the current step, the second ends the process at once."""

import contextlib
import signal


class Interrupted(Exception):
    """A signal stopped training, and the run is saved. status: the exit status of the process."""

    def __init__(self, signal_number):
        self.status = 128 + signal_number


@contextlib.contextmanager
def stop_signals(request):
    """Within, the first SIGINT or SIGTERM calls request(signal_number); the next one ends the process.

    In a thread other than the main one no signal is caught, since Python delivers them to the main thread only.
    """
    requested, previous = False, {}

    def handle(number, frame):
        nonlocal requested
        if requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requested = True
        request(number)

    try:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
