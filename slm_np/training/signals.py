"""Signals that ask training to stop after the current step: Ctrl-C, SIGTERM, and SIGHUP when a terminal closes."""

import contextlib
import signal

HANGUP = getattr(signal, "SIGHUP", None) or getattr(signal, "SIGBREAK", None)  # on Windows, the console closes


class Interrupted(Exception):
    """A signal stopped training, and the run is saved. status: the exit status of the process."""

    def __init__(self, signal_number):
        self.status = 128 + signal_number


@contextlib.contextmanager
def stop_signals(request):
    """Within, the first SIGINT, SIGTERM or SIGHUP calls request(signal_number).

    A second SIGINT or SIGTERM ends the process at once. SIGHUP does not count here: when a terminal closes, it comes
    twice, from the system and from the shell, and before a SIGTERM when a session ends.
    A signal that is ignored already stays ignored, as nohup and the background jobs of a script expect. In a thread
    other than the main one no signal is caught, since Python delivers them to the main thread only.
    """
    asked, previous = set(), {}

    def handle(number, frame):
        if number != HANGUP and asked - {HANGUP}:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        first = not asked
        asked.add(number)
        if first:
            request(number)

    try:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: the handler is not Python's
                    previous[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
