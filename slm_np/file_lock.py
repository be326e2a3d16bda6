"""A lock that one process holds at a time. The operating system frees it when the process ends, however it ends."""

import contextlib
import os
import sys
import time

POLL_S = 0.2


@contextlib.contextmanager
def locked(path, waiting="", until=lambda: False):
    """Hold the lock of the file `path`, which exists only meanwhile. Waits for another process that holds it.

    waiting: a line to print on stderr before waiting.   until: function () -> whether to wait no longer. Yields whether
    the lock is held, which it is unless `until` said so.
    """
    while True:
        file = open(path, "a+b")
        while not _lock(file):
            if until():
                file.close()
                yield False
                return
            if waiting:
                print(waiting, file=sys.stderr)
            waiting = ""
            time.sleep(POLL_S)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break  # else the process that held it before has removed this file
        file.close()
    try:
        yield True
    finally:
        if os.name == "nt":  # an open file cannot be removed
            file.close()
        with contextlib.suppress(OSError):
            path.unlink()  # elsewhere it must go before another process can lock it
        file.close()


def _lock(file):
    """Whether this process now holds the lock of an open file. True on a file system without locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True
