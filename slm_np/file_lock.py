"""Locks between processes. The operating system frees a lock when its process ends, however it ends: also by a kill or
a power cut.

A lock is a file that a process holds locked, and that exists only meanwhile. Its lock is that of `flock` (of
`msvcrt.locking` on Windows), which this file relies on:

    local disks   the kernel keeps the lock with the open file, and frees it when the process is gone
    NFS           Linux turns flock into a byte-range lock of the server (since 2.6.12), so it holds between machines.
                  The server frees it when the client has not renewed its lease, by default for 90 s, or when the client
                  starts again. Mounts with `nolock` or `local_lock=flock` lock between processes of one machine only
    SMB           also a lock of the server. Others cannot read the file meanwhile
    no locks      some file systems have none (ENOSYS, ENOTSUP, ENOLCK). `claim` says so on stderr and goes on

A file that a killed process has left behind is not a lock: the next process locks it and removes it at the end.
Child processes do not inherit a lock: neither through exec, nor through fork.
"""

import contextlib
import json
import os
import socket
import sys
import time
from datetime import datetime
from pathlib import Path

from slm_np.errors import UserError

POLL_S = 0.2
FAR = 1 << 30  # the byte that is locked on Windows, far behind the content: a locked byte cannot be read
SHOWN = 120  # characters of a command line in a message

_held = set()  # the locks of this process


class InUse(UserError):
    """Another process holds the lock."""


class _Lock:
    """A file that this process holds locked."""

    def __init__(self, path, handle):
        self.path, self.handle = path, handle
        _held.add(self)

    def is_in_place(self):
        """Whether the path still names the locked file. It does not after the file or its directory was removed."""
        try:
            return os.path.samestat(os.fstat(self.handle), os.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # unknown, as while a network disk is unreachable

    def release(self, remove=True):
        """Free the lock, and remove the file unless it is another one by now. Does nothing in a forked process."""
        if self not in _held:
            return
        _held.remove(self)
        ours = remove and self.is_in_place()
        if os.name == "nt":  # an open file cannot be removed
            os.close(self.handle)
        if ours:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # elsewhere it must go before another process can lock it
        if os.name != "nt":
            os.close(self.handle)


def _after_fork():
    """In a forked process: close its copies of the locked files. They would stay locked after the parent has ended."""
    for lock in _held:
        os.close(lock.handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def locked(path, waiting="", until=lambda: False):
    """Hold the lock of the file `path`. Waits for another process that holds it.

    waiting: a line to print on stderr before waiting.   until: function () -> whether to wait no longer. Yields whether
    the lock is held, which it is unless `until` said so. On a file system without locks it always is.
    """
    while (lock := _try(path)[0]) is None:
        if until():
            yield False
            return
        if waiting:
            print(waiting, file=sys.stderr)
        waiting = ""
        time.sleep(POLL_S)
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def claimed(path, name=None):
    """Hold the lock of the file `path` as the only writer of `name`, by default its directory.

    The file says who holds it.
    Raises InUse at once, which names the process, if another one holds it; OSError if the file cannot be written.
    """
    path = Path(path)
    lock, supported = _try(path)
    if lock is None:
        raise _in_use(path, name)
    try:
        if not supported:
            print(
                f"slm_np: the file system of {path.parent} has no locks, so nothing stops a second process from "
                "writing there; start only one at a time",
                file=sys.stderr,
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its content
            os.truncate(lock.handle, 0)
            os.write(lock.handle, json.dumps(_description(), indent=2).encode("ascii") + b"\n")
        yield
    finally:
        lock.release()


def check_unclaimed(path):
    """Raise InUse if another process holds the lock of the file `path`. Creates and removes nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a path
        lock, _ = _try(path, create=False)
        if lock is None:
            raise _in_use(Path(path))
        lock.release(remove=False)


def is_lost(path):
    """Whether this process holds the lock of `path` and the file was removed or replaced since."""
    return any(lock.path == Path(path) and not lock.is_in_place() for lock in _held)


def release(path):
    """Free the lock of `path` now, if this process holds it."""
    for lock in [lock for lock in _held if lock.path == Path(path)]:
        lock.release()


def _try(path, create=True):
    """(the _Lock of `path`, or None while another process holds it; whether the file system has locks)."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_BINARY", 0)
    while True:
        handle = os.open(path, flags, 0o666)  # child processes do not inherit it
        try:
            supported = _lock(handle)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, (BlockingIOError, PermissionError)):
                return None, True
            raise
        lock = _Lock(Path(path), handle)
        if lock.is_in_place():
            return lock, supported
        lock.release()  # the process that held it before has removed this file


def _lock(handle):
    """Lock an open file. Returns False on a file system without locks.

    Raises BlockingIOError or PermissionError while another process holds the lock.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        return False
    return True


def _description():
    """Who holds a lock: what `_owner` reads."""
    return dict(
        process=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=" ".join([Path(word).stem for word in sys.argv[:1]] + sys.argv[1:]),
    )


def _in_use(path, name=None):
    what, other = (path.parent, "directory") if name is None else (name, "name")
    return InUse(f"{what} is in use by {_owner(path)}; wait until that has ended, or choose another {other}")


def _owner(path):
    """The process that holds the lock, in words. It may not have written its description yet."""
    for _ in range(5):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(Path(path).read_bytes())
            command = found["command"] if len(found["command"]) <= SHOWN else found["command"][:SHOWN] + "..."
            return f"process {found['process']} on {found['host']} since {found['since']} ({command})"
        time.sleep(0.02)
    return "another process"
